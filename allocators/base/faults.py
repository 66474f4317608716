"""Messages about mistakes in a plugin's code: one line that names the file and the line."""

import re
from pathlib import Path
from types import ModuleType

#: Longest text of an exception in a message, characters.
_WIDTH = 300
#: A place in the text of Numba's errors.
_PLACE = re.compile(r'File "(.+?)", line (\d+)|\bat (\S.*?) \((\d+)\)')
#: The call in the text of Numba's errors for which there is no code.
_CALL = re.compile(r">>> (.+)")
_RECORD = re.compile(r"(Record|NestedArray|nestedarray)[(\[].*?[)\]](?=[,)\s]|$)")


def located(error: BaseException, path: Path | str, default: int = 0) -> str:
    """Return 'FILE:LINE: ERROR: message' in one line; LINE as :func:`last_line` returns it.

    ``default``: line to use if the error has none in the file; 0: none.
    """
    line = last_line(error, path) or default
    place = f"{path}:{line}" if line else path
    return f"{place}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """Return 'ERROR: message' in one line of limited length."""
    try:
        message = _shortened(str(error))
    except Exception:  # a plugin's exception may have a __str__ of its own
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _shortened(text: str) -> str:
    """Return ``text`` in one printable line of limited length."""
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return line if len(line) <= _WIDTH else f"{line[:_WIDTH]}…"


def compile_error(error: Exception, *paths: str) -> str:
    """Return 'FILE:LINE: it does not compile: why' for an exception of the compiler.

    FILE is the first of the plugin files ``paths`` that the error names, else the first.
    """
    text = str(error)
    files = [str(Path(path).resolve()) for path in paths]
    place = paths[0]
    for match in _PLACE.finditer(text):
        file = str(Path(match[1] or match[3]).resolve())
        if file in files:
            place = f"{file}:{match[2] or match[4]}"
            break
    reason = one_line(error)
    if type(error).__module__.startswith("numba"):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        reason = next((line for line in lines if not line.startswith("Failed in")), reason)
        if call := _CALL.search(text):
            reason = f"{reason.partition(' Function(')[0]} {_RECORD.sub('record', call[1])}"
    return f"{place}: it does not compile: {_shortened(reason)}"


def last_line(error: BaseException, path: Path | str) -> int:
    """Return the line of the deepest frame of ``error`` in ``path``, or 0."""
    line = getattr(error, "lineno", None)  # a SyntaxError has one
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line if isinstance(line, int) else 0


def place_of(module: ModuleType, name: str) -> str:
    """Return 'FILE:LINE' of the definition of a global in the plugin ``module``."""
    value = getattr(module, name, None)
    code = getattr(value, "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    source = Path(module.__file__).read_text(encoding="utf-8", errors="replace")
    found = re.search(rf"^(?:class |(?:async )?def )?{name}\b", source, re.MULTILINE)
    if found is None:
        return module.__file__
    return f"{module.__file__}:{source[: found.start()].count(chr(10)) + 1}"

"""Foreign files: read them without surprises, and quote them in messages on one line.

A file that another program wrote may be a pipe, hold control characters, JSON nested without end,
or a line of megabytes.  Every reader of such files uses these functions.
"""

import builtins
import errno
import json
import os
import reprlib
import stat
from pathlib import Path
from typing import Any

#: Longest quotation in a message, characters.
WIDTH = 80

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = WIDTH
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def printable(text: str, width: int | None = None) -> str:
    """Return ``text`` with escapes for all characters that would not print, newlines included.

    ``width``: longest result in characters, None for no bound; a cut text ends with "…".
    """
    shown = text if width is None else text[: width + 1]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else builtins.repr(c)[1:-1] for c in shown)
    return shown if width is None or len(shown) <= width else f"{shown[: width - 1]}…"


def quoted(value: object) -> str:
    """Return a foreign string or JSON value in the notation of Python, at most WIDTH characters."""
    return printable(_SHORT.repr(value), WIDTH)


def check_regular(path: Path) -> None:
    """Raise OSError unless ``path`` is a regular file: reading any other may never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "not a file")
        raise OSError(errno.EINVAL, f"is {kind}; expected a regular file")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.  Raises ValueError, also for NaN and endless nesting."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")

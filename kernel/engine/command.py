"""Frame of a command: argument types, exit codes, one-line errors, interrupts and output streams.

A command's module ends with ``sys.exit(run("its.module", main))``; its parser is a
:class:`OneLineParser`, and every number on its command line has one of the types below.
"""

import argparse
import io
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_FAILED, EXIT_USAGE, EXIT_SKIP, EXIT_INTERRUPTED = 1, 2, 77, 130

#: Largest count that a command accepts: more operations than a year of work.
MOST = 10**12
#: Largest number of worker processes.
MOST_JOBS = 1024
#: Longest timeout, seconds: a year.
LONGEST = 366 * 86400.0
#: Characters that a message quotes of an argument, and of the parser's message.
_QUOTED, _LONGEST_LINE = 60, 1000


def quoted(text: str) -> str:
    """Return ``text`` in quotes, without control characters and shortened to part of a line."""
    return repr(text if len(text) <= _QUOTED else text[: _QUOTED - 1] + "…")


def whole(low: int, high: int = MOST) -> Callable[[str], int]:
    """Return the type of a whole number in [``low``, ``high``]; ',' and '_' may group digits."""

    def parse(text: str) -> int:
        digits = text.replace("_", "").replace(",", "")
        try:
            number = int(digits) if digits.isascii() else None
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            named = f"must be a whole number from {low:,} to {high:,}"
            raise argparse.ArgumentTypeError(f"{named}, not {quoted(text)}")
        return number

    return parse


#: Types of the numbers on command lines.
positive = whole(1)
jobs = whole(1, MOST_JOBS)
seed = whole(-(2**63), 2**63 - 1)


def seconds(text: str) -> float:
    """Parse a time in seconds, from 0 to a year."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= LONGEST:
        raise argparse.ArgumentTypeError(f"must be seconds, 0 or more, not {quoted(text)}")
    return number


def timeout(text: str) -> float:
    """Parse a time in seconds above 0."""
    number = seconds(text)
    if not number:
        raise argparse.ArgumentTypeError(f"must be seconds above 0, not {quoted(text)}")
    return number


class _ParserEnd(SystemExit):
    """End of a command by its parser, after --help or an error."""


class OneLineParser(argparse.ArgumentParser):
    """Parser that reports an error in one line, which begins with the command's module."""

    def error(self, message: str) -> NoReturn:
        """Print ``message`` in one line and exit with code 2."""
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        line = line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"
        self.exit(EXIT_USAGE, f"{self.prog.removeprefix('python -m ')}: {line}\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Print ``message`` on standard error and end the command."""
        if message:
            print(message, end="", file=sys.stderr)
        raise _ParserEnd(status)


def report_exit(command: str, text: str, code: int, *, as_json: bool = False) -> int:
    """Print in one line why ``command`` exits with ``code``, and return ``code``."""
    if as_json and code == EXIT_SKIP:
        print(json.dumps({"status": "skipped", "reason": text}))
    else:
        message = f"nothing verified: {text}" if code == EXIT_SKIP else text
        print(f"{command}: {message}", file=sys.stderr)
    return code


def text_of(error: OSError) -> str:
    """Return an error of the operating system as "FILE: reason", without its number."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; during an import, print a line and exit at once.

    Modules that are written in C report an interrupt of their imports as ImportError, and callbacks
    of the import system swallow it.  Nothing is open yet that needs an end.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            arguments = sys.orig_argv
            program = os.path.basename(sys.argv[0])  # noqa: PTH119 - nothing is imported here
            name = arguments[arguments.index("-m") + 1] if "-m" in arguments else program
            os.write(2, f"{name}: interrupted\n".encode())
            os._exit(EXIT_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def begin() -> None:
    """Prepare for interrupts if this process is a command of the project, ``python -m MODULE``.

    Each of the project's packages calls it first: while it is imported for the command, Python has
    not yet put the module's path in place of "-m".
    """
    if sys.argv[:1] == ["-m"]:
        handle_interrupts()


def handle_interrupts() -> None:
    """Make Ctrl-C, SIGTERM and SIGHUP interrupts, which end an import in one line."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a job in the background
            signal.signal(number, _interrupt)


def run(command: str, main: Callable[[], int]) -> int:
    """Run ``main`` as the process ``command``; return the exit code for :func:`sys.exit`.

    Ctrl-C, SIGTERM and SIGHUP are interrupts: exit code 130.  An error of the operating system,
    standard output that is closed or full, and a plugin that calls sys.exit are failures: exit code
    1.  Each is reported in one line.
    """
    _prepare_streams()
    if sys.stdout is None:
        return report_exit(command, "standard output is closed", EXIT_FAILED)
    handle_interrupts()
    code, problem = EXIT_FAILED, ""
    try:
        code = main()
    except _ParserEnd as end:
        code = end.code
    except KeyboardInterrupt as interrupt:
        code, problem = EXIT_INTERRUPTED, ": ".join(["interrupted", *interrupt.args])
    except SystemExit as end:
        problem = _origin(end)
    except OSError as error:
        problem = text_of(error)
    except MemoryError as error:
        problem = f"out of memory: {error}".removesuffix(": ")
    if failure := _flush_failure():
        code, problem = code or EXIT_FAILED, failure
    if problem:
        report_exit(command, problem, code)
    return code


def _origin(end: SystemExit) -> str:
    """Return why something other than the parser ends the command."""
    if isinstance(end.__context__, OSError):  # Rich exits if standard output is a closed pipe
        return text_of(end.__context__)
    *_, frame = traceback.extract_tb(end.__traceback__)
    return f"{frame.filename}:{frame.lineno}: {frame.line} ends the command; remove the call"


def _prepare_streams() -> None:
    """Open closed standard streams on /dev/null; let output replace what it cannot encode.

    Otherwise a file of results might get the descriptor of a stream, and its output.
    """
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
    if sys.stderr is None:  # print() would take None for standard output
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stdout is not None:
        settings = {
            "encoding": sys.stdout.encoding,
            "line_buffering": sys.stdout.line_buffering,
            "write_through": sys.stdout.write_through,
        }
        sys.stdout = _StandardOutput(sys.stdout.detach(), errors="replace", **settings)


class _StandardOutput(io.TextIOWrapper):
    """Standard output whose errors name it."""

    def write(self, text: str) -> int:
        """Write text.  Raises OSError."""
        with _named("standard output"):
            return super().write(text)

    def flush(self) -> None:
        """Write what has been buffered.  Raises OSError."""
        with _named("standard output"):
            super().flush()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Set the file name in errors of the operating system."""
    try:
        yield
    except OSError as error:
        error.filename = name
        raise


def _flush_failure() -> str:
    """Return why standard output could not be written, '' if it could."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Otherwise Python flushes it again at exit, and reports the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return text_of(error)
    return ""

"""``python -m benchmarks.trace COMMAND``: record, inspect, cut and convert traces.

Exit codes: 0 success, 1 a trace cannot be read or written, 2 bad arguments, 130 interrupted.
"""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from benchmarks.events.parquet import TraceError
from benchmarks.trace import formats
from benchmarks.trace.tools import cat, convert, head, info, merge, record, scale, slice
from kernel.engine.command import OneLineParser, run

#: Commands by name, in the order of --help.
COMMANDS: dict[str, ModuleType] = {
    "info": info,
    "cat": cat,
    "head": head,
    "slice": slice,
    "merge": merge,
    "scale": scale,
    "convert": convert,
    "record": record,
}


@contextmanager
def _progress() -> Iterator[formats.Progress | None]:
    """Yield a progress callback if standard error is a terminal, else None."""
    if not sys.stderr.isatty():
        yield None
        return
    from kernel.engine.progress import shown_progress

    with shown_progress("trace") as progress:
        yield progress


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = OneLineParser(
        prog="python -m benchmarks.trace", description="Record, inspect, cut and convert traces."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    arguments = sys.argv[1:] if arguments is None else arguments
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        hint = getattr(COMMANDS[given.command], "HINT", "")
        commands.choices[given.command].error(f"unknown arguments: {shlex.join(unknown)}{hint}")
    given.arguments = arguments
    try:
        with _progress() as progress:
            print_result = COMMANDS[given.command].run(given, progress)
        print_result()
        sys.stdout.flush()
    except TraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(": ".join(["interrupted", *interrupt.args]), file=sys.stderr)
        return 130
    except OSError as error:
        # Otherwise Python reports the error again when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader has closed the pipe: that is known
            print(f"error: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run("benchmarks.trace", main))

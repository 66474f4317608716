"""record: run a program and write its allocations as Parquet traces."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.events.parquet import TraceError
from benchmarks.trace import formats
from benchmarks.trace.recorder.run import Recording, describe_exit, record, recover

#: Appended to the error for unknown arguments.
HINT = " (a command comes after --)"
HELP = "run a program and its children, and record their allocations"

_EPILOG = """\
FILE is the program's trace.  The traces of its children, and of programs it ran before an exec, are
FILE with .1, .2, ... before the suffix; FILE's provenance lists them.  Programs that are statically
linked, setuid, or define their own malloc cannot be recorded.

Recorded are calls of malloc and its family, the ends of threads, malloc_trim, mallopt, and the
program's own sbrk and brk.  Not recorded are other calls (malloc_usable_size, mmap), the use of the
memory, memory that a program divides itself (pools, garbage collectors), and calls before the C
library is initialised.  The summary counts what is known to be missing: records that were lost, and
processes that could not be recorded, such as those started under a seccomp filter.

The command waits for children that outlive the program; press Ctrl-C again to stop waiting.  The
raw recording is in FILE.raw until it is converted.  It survives if the program or this command is
killed; read it with --recover.

Prints the program's exit code.  The exit code of this command is 0 if a trace was written, else 1.
"""

#: Upper bound on the traces listed in the summary.
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.usage = "%(prog)s -o FILE [--resolution NS] (-- COMMAND [ARGUMENT ...] | --recover RAW)"
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--resolution",
        type=_whole,
        default=1000,
        metavar="NS",
        help="round times down to multiples of NS nanoseconds (default: %(default)s)",
    )
    parser.add_argument(
        "--recover",
        type=Path,
        metavar="RAW",
        help="convert the directory FILE.raw of an interrupted recording",
    )
    parser.add_argument("argv", nargs="*", metavar="COMMAND", help="the program and its arguments")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: expected nanoseconds, a whole number above 0")
    return int(text)


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Record; return a function that prints the summary.

    It prints to standard error, because standard output belongs to the program.
    """
    # Without -- the parser could take the command's options for its own.
    if bool(given.argv) == bool(given.recover) or (given.argv and "--" not in given.arguments):
        raise TraceError("record takes a command after --, or --recover and a directory")
    if given.recover:
        recording = recover(given.recover, given.output, given.resolution, progress)
    else:
        recording = record(given.argv, given.output, given.resolution, progress)
    return lambda: _print_summary(recording)


def _print_summary(recording: Recording) -> None:
    for trace in recording.traces[:_SHOWN]:
        left_out = ", ".join(f"{n:,} × {what}" for what, n in trace.left_out.items())
        print(
            f"{trace.path}: {trace.program}: {trace.events:,} events, "
            f"{trace.threads} thread{'s' if trace.threads != 1 else ''}"
            + (f" (left out: {left_out.replace('_', ' ')})" if left_out else ""),
            file=sys.stderr,
        )
    more = recording.traces[_SHOWN:]
    if more:
        events = sum(trace.events for trace in more)
        print(f"and {len(more)} more traces with {events:,} events", file=sys.stderr)
    if recording.unrecorded:
        n = recording.unrecorded
        print(
            f"not recorded: {n} process{'es' if n > 1 else ''} after a fork or exec, where no file "
            "could be created (a limit, a full disk, another root directory) or system calls are "
            "filtered",
            file=sys.stderr,
        )
    for program in recording.running:
        print(f"{program} is still running: its trace is incomplete", file=sys.stderr)
    if recording.exit is not None:
        print(f"the program ended{describe_exit(recording.exit)}", file=sys.stderr)

"""record: run a program and write what it allocates as Parquet traces."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.events.parquet import TraceError
from benchmarks.trace import formats
from benchmarks.trace.recorder.run import Recording, record, recover, told_exit

#: For arguments that are not known here.
HINT = " (a command comes after --)"
HELP = "run a program and its children, and record what they allocate"

_EPILOG = """\
FILE is the program's trace; those of its children and of what it executed on its way are
FILE with .1, .2, ... before the suffix, named in FILE's provenance.  Programs that are statically
linked, setuid, or bring a malloc of their own cannot be recorded.

Children that outlive the program are waited for; another Ctrl-C ends that.  The recording stands in
FILE.raw until it is converted, and whatever ends the program or this command, what it holds is read
with --recover.

The program's exit code is told; this command's own is 0 when a trace was written, else 1.
"""

#: Traces of which the summary tells.
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.usage = "%(prog)s -o FILE [--resolution NS] (-- COMMAND [ARGUMENT ...] | --recover RAW)"
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--resolution",
        type=_whole,
        default=1000,
        metavar="NS",
        help="times are multiples of this, nanoseconds (default: %(default)s)",
    )
    parser.add_argument(
        "--recover",
        type=Path,
        metavar="RAW",
        help="read the directory FILE.raw that an interrupted recording left",
    )
    parser.add_argument("argv", nargs="*", metavar="COMMAND", help="the program and its arguments")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of nanoseconds")
    return int(text)


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Record; returns what prints the summary (to standard error: the other is the program's)."""
    # Without -- the command's options could be taken for ours.
    if bool(given.argv) == bool(given.recover) or (given.argv and "--" not in given.arguments):
        raise TraceError("record takes a command after --, or --recover and a directory")
    if given.recover:
        recording = recover(given.recover, given.output, given.resolution, progress)
    else:
        recording = record(given.argv, given.output, given.resolution, progress)
    return lambda: _say(recording)


def _say(recording: Recording) -> None:
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
        print(f"and {len(more)} more, {events:,} events in all", file=sys.stderr)
    for program in recording.running:
        print(f"{program} still ran: its trace ends where it was read", file=sys.stderr)
    if recording.exit is not None:
        print(f"the program ended{told_exit(recording.exit)}", file=sys.stderr)

"""head: print the first events as text."""

import argparse
from collections.abc import Callable

from benchmarks.trace import formats
from benchmarks.trace.tools import cat, derive

HELP = "print the first events as text, as cat does"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    derive.add_input(parser)
    parser.add_argument(
        "-n",
        "--events",
        type=derive.count,
        default=10,
        metavar="N",
        help="number of events (default: %(default)s)",
    )


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Open the trace; return a function that prints its first events."""
    return cat.printing(given, given.events, progress)

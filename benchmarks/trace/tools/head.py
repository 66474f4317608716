"""head: the first events as text."""

import argparse
from collections.abc import Callable

from benchmarks.trace import formats
from benchmarks.trace.tools import cat, derive

HELP = "print the first events as text, as cat does"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    derive.add_input(parser)
    parser.add_argument(
        "-n", "--events", type=derive.count, default=10, metavar="N", help="how many (10)"
    )


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Open the trace; returns what prints its first events."""
    return cat.printing(given, given.events, progress)

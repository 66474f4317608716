"""convert: write a trace in the native format."""

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks import formats

HELP = "write a trace in the native format"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("input", type=Path, metavar="IN")
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument(
        "--lenient", action="store_true", help="drop and count what cannot have happened"
    )


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Convert; returns what prints where it went."""
    provenance = formats.convert(given.input, given.output, not given.lenient, progress)

    def say() -> None:
        formats.report_dropped(given.input, provenance)
        print(given.output)

    return say

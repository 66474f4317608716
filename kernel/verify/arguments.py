"""The command line that kernel.verify and benchmarks.verify have in common."""

import argparse
from pathlib import Path

EXIT_MISMATCH, EXIT_USAGE, EXIT_SKIP, EXIT_INTERRUPTED = 1, 2, 77, 130


def positive(text: str) -> int:
    """A whole number above 0, with or without underscores."""
    try:
        number = int(text.replace("_", ""))
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, not {text!r}")
    return number


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, which begins with the command's module."""

    def error(self, message: str) -> None:
        """End with exit code 2."""
        self.exit(EXIT_USAGE, f"{self.prog.split()[-1]}: {message}\n")


def add_arguments(parser: argparse.ArgumentParser, whose: str) -> None:
    """Add how programs are run, stored and told; ``whose`` build counts the branches."""
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="J", help="worker processes (default 1)"
    )
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="run a stored program instead of random ones"
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="where to store a program that shows a mismatch"
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="go on with the next program after a mismatch"
    )
    parser.add_argument(
        "--no-branches",
        action="store_true",
        help=f"use the {whose}'s own build, which counts no branches",
    )
    parser.add_argument(
        "--shrink",
        type=float,
        default=60,
        metavar="SECONDS",
        help="time for making a failing program shorter (default 60)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")

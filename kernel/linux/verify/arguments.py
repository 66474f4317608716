"""The command line that kernel.linux.verify and benchmarks.twin.verify have in common."""

import argparse
from pathlib import Path

from kernel.linux.command import positive


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

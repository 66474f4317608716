"""``python -m benchmarks.twin.verify ptmalloc``: compare the twin with the real glibc.

Exit codes: 0 no mismatch, 1 a mismatch, 2 bad arguments, 77 this machine's C library cannot serve
as truth, 130 interrupted.  The last line is ``N operations, M mismatches``.
"""

import argparse
import sys
from typing import Any

from kernel.differential.command import EXIT_USAGE, OneLineParser, add_arguments, complain, verify


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m benchmarks.twin.verify",
        description="Do the same on this machine's C library and on an allocator of the model, and "
        "compare address, break and page faults after every operation.",
    )
    parser.add_argument("allocator", help="ptmalloc, another allocator, or a .py file")
    parser.add_argument("--against", choices=("libc",), default="libc", help="the truth (libc)")
    add_arguments(parser, 100_000, "of each mode", "allocator")
    parser.add_argument(
        "--mode",
        action="append",
        metavar="MODE",
        help="small, mixed, big, burst or threads; may be given again (default: all)",
    )
    parser.add_argument(
        "--trace",
        action="append",
        metavar="FILE",
        help="a trace instead of random programs, or shipped:NAME, or shipped: for all of these",
    )
    parser.add_argument(
        "--touch",
        choices=("all", "first", "nothing", "read"),
        default="all",
        help="what a trace's program does with a new block (default all)",
    )
    parser.add_argument(
        "--threads",
        action="store_true",
        help="a trace's threads are threads, which take turns as recorded (else all are one)",
    )
    parser.add_argument(
        "--tunable",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of glibc.malloc, for both sides; may be given again; random: drawn in every "
        "other program",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    options = _parser().parse_args(argv)
    from kernel.differential.pool import Mistake

    try:
        return verify(_subject(options), options)
    except Mistake as error:
        return complain("benchmarks.twin.verify", str(error), EXIT_USAGE)


def _subject(options: argparse.Namespace) -> Any:
    """Return what to run.  Raises Mistake for what cannot be."""
    from benchmarks.twin.verify.modes import MODES
    from benchmarks.twin.verify.subject import Glibc
    from kernel.differential.pool import Mistake

    tunables, vary = {}, False
    for text in options.tunable:
        name, equals, value = text.partition("=")
        if text == "random":
            vary = True
        elif not equals or not value.isdecimal():
            raise Mistake(f"--tunable {text}: expected NAME=NUMBER or random")
        else:
            tunables[name.removeprefix("glibc.malloc.")] = int(value)
    if options.trace and options.mode:
        raise Mistake("--mode is of random programs: it cannot be with --trace")
    if options.threads and not options.trace:
        raise Mistake("--threads is of traces: it cannot be without --trace")
    if options.replay and (options.trace or options.mode or options.tunable):
        raise Mistake("--replay says what to run: no --mode, --trace or --tunable with it")
    if vary and options.trace:
        raise Mistake("--tunable random is for random programs: it cannot be with --trace")
    return Glibc(
        options.allocator,
        options.ops,
        options.seed,
        tuple(dict.fromkeys(options.mode or MODES)),
        tunables,
        vary=vary,
        traces=tuple(options.trace or ()),
        touch=options.touch,
        threads=options.threads,
        count_branches=not (options.no_branches or options.replay),
    )


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks.twin.verify ptmalloc``: compare the twin with the real glibc.

Exit codes: 0 no mismatch, 1 a mismatch, 2 bad arguments, 77 this machine's C library cannot serve
as the reference, 130 interrupted.  The last line is ``N operations, M mismatches``.
"""

import argparse
import sys
from typing import Any

from kernel.differential.command import add_arguments, verify
from kernel.engine.command import EXIT_USAGE, OneLineParser, report_exit, run


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m benchmarks.twin.verify",
        description="Run programs on this machine's C library and on a simulated allocator, and "
        "compare address, break and page faults after every operation.",
    )
    parser.add_argument("allocator", help="ptmalloc, another allocator, or a .py file")
    parser.add_argument("--against", choices=("libc",), default="libc", help="reference (libc)")
    add_arguments(parser, 100_000, "of each mode", "allocator")
    parser.add_argument(
        "--mode",
        action="append",
        metavar="MODE",
        help="small, mixed, big, burst or threads; may be repeated (default: all)",
    )
    parser.add_argument(
        "--trace",
        action="append",
        metavar="FILE",
        help="run a trace instead of random programs: a file, shipped:NAME, or shipped: for all "
        "shipped traces; may be repeated",
    )
    parser.add_argument(
        "--touch",
        choices=("all", "first", "nothing", "read"),
        default="all",
        help="bytes that the program of a trace touches in a new block (default all)",
    )
    parser.add_argument(
        "--threads",
        action="store_true",
        help="run a trace's threads as threads, in the recorded order (default: as one thread)",
    )
    parser.add_argument(
        "--tunable",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a tunable of glibc.malloc on both sides; may be repeated; 'random' draws "
        "tunables for every other program",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.  Returns its exit code."""
    options = _parser().parse_args(argv)
    from kernel.differential.pool import Mistake

    try:
        return verify(_subject(options), options)
    except Mistake as error:
        return report_exit("benchmarks.twin.verify", str(error), EXIT_USAGE)


def _subject(options: argparse.Namespace) -> Any:
    """Create the subject from the options.  Raises Mistake for options that do not fit."""
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
        raise Mistake("--mode: applies to random programs; omit it or --trace")
    if options.threads and not options.trace:
        raise Mistake("--threads: applies to traces; add --trace FILE")
    if options.replay and (options.trace or options.mode or options.tunable):
        raise Mistake("--replay: cannot be combined with --mode, --trace or --tunable")
    if vary and options.trace:
        raise Mistake("--tunable random: applies to random programs; omit it or --trace")
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
    sys.exit(run("benchmarks.twin.verify", main))

"""``python -m benchmarks.twin.verify ptmalloc``: compare the twin with the real glibc.

Exit codes: 0 no mismatch, 1 a mismatch, 2 bad arguments, 77 this machine's C library cannot serve
as truth, 130 interrupted.  The last line is ``N operations, M mismatches``.
"""

import argparse
import json
import sys
from typing import Any

from kernel.linux.command import EXIT_SKIP, EXIT_USAGE, OneLineParser, positive
from kernel.linux.verify.arguments import add_arguments


def _count(text: str) -> int:
    return positive(text.replace(",", ""))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m benchmarks.twin.verify",
        description="Do the same on this machine's C library and on an allocator of the model, and "
        "compare address, break and page faults after every operation.",
    )
    parser.add_argument("allocator", help="ptmalloc, another allocator, or a .py file")
    parser.add_argument("--against", choices=("libc",), default="libc", help="the truth (libc)")
    parser.add_argument(
        "--ops",
        type=_count,
        default=100_000,
        metavar="N",
        help="operations of each mode (default 100000)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="default 1")
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
    add_arguments(parser, "allocator")
    return parser


def _complain(text: str) -> int:
    print(f"benchmarks.twin.verify: {text}", file=sys.stderr)
    return EXIT_USAGE


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    options = _parser().parse_args(argv)
    from benchmarks.twin.verify.report import Run, unavailable, wrong_library

    try:
        plan = _plan(options)
    except ValueError as error:
        return _complain(str(error))
    if reason := unavailable():
        if options.json:
            print(json.dumps({"status": "skipped", "reason": reason}))
        else:
            print(f"benchmarks.twin.verify: nothing verified: {reason}", file=sys.stderr)
        return EXIT_SKIP
    run = Run(plan, options, wrong_library())
    return run.execute()


def _plan(options: argparse.Namespace) -> Any:
    """What to run.  Raises ValueError for what cannot be."""
    from allocators.base.registry import load
    from benchmarks.twin.verify.compare import plugin_for
    from benchmarks.twin.verify.modes import MODES
    from benchmarks.twin.verify.run import Plan

    load(options.allocator)
    modes = tuple(dict.fromkeys(options.mode or MODES))
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"no mode {mode!r}; choose of {', '.join(MODES)}")
    if options.trace and options.mode:
        raise ValueError("--mode is of random programs: it cannot be with --trace")
    if options.threads and not options.trace:
        raise ValueError("--threads is of traces: it cannot be without --trace")
    if options.replay and (options.trace or options.mode or options.tunable):
        raise ValueError("--replay says what to run: no --mode, --trace or --tunable with it")
    tunables, vary = {}, False
    for text in options.tunable:
        name, equals, value = text.partition("=")
        if text == "random":
            vary = True
        elif not equals or not value.isdecimal():
            raise ValueError(f"--tunable {text}: expected NAME=NUMBER or random")
        else:
            tunables[name.removeprefix("glibc.malloc.")] = int(value)
    settings = plugin_for(options.allocator, tunables).values
    for name in tunables:
        if name not in settings:
            raise ValueError(f"--tunable {name}: {options.allocator} has no such setting")
    if vary and options.trace:
        raise ValueError("--tunable random is for random programs: it cannot be with --trace")
    return Plan(
        options.allocator,
        options.ops,
        options.seed,
        modes,
        tunables,
        vary=vary,
        count_branches=not options.no_branches,
        keep_going=options.keep_going,
        shrink_seconds=options.shrink,
    )


if __name__ == "__main__":
    sys.exit(main())

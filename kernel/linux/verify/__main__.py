"""``python -m kernel.linux.verify``: run random programs on the real kernel and on the model.

Exit codes: 0 no mismatch, 1 a mismatch or a failure, 2 bad arguments, 77 the host cannot serve as
the reference, 130 interrupted.  The last line is ``N operations, M mismatches``.
"""

import sys

from kernel.differential.command import add_arguments, verify
from kernel.engine.command import EXIT_SKIP, OneLineParser, report_exit, run


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m kernel.linux.verify",
        description="Run random programs on the real kernel and on the model, and compare result, "
        "faults, areas, resident pages and counters after every operation.",
    )
    add_arguments(parser, 10_000, "in total", "kernel")
    parser.add_argument(
        "--thp",
        choices=("on", "off", "both"),
        help="run programs with huge pages, without, or alternately (default: both if "
        "the host has huge pages, else off)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(argv)
    # Late imports: argument errors are reported at once, and not all platforms can import these.
    from kernel.linux.host import unavailable

    if reason := unavailable():
        return report_exit("kernel.linux.verify", reason, EXIT_SKIP, as_json=options.json)
    from kernel.linux.scope import huge_pages
    from kernel.linux.verify.subject import Linux

    thp = options.thp or ("both" if huge_pages() else "off")
    branches = not (options.no_branches or options.replay)
    return verify(Linux(options.ops, options.seed, thp, count_branches=branches), options)


if __name__ == "__main__":
    sys.exit(run("kernel.linux.verify", main))

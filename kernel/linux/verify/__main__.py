"""``python -m kernel.linux.verify``: run random programs on the real kernel and on the model.

Exit codes: 0 no mismatch, 1 a mismatch, 2 bad arguments, 77 the host cannot serve as truth,
130 interrupted.  The last line is ``N operations, M mismatches``.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kernel.linux.command import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SKIP,
    EXIT_USAGE,
    OneLineParser,
    positive,
)
from kernel.linux.verify.arguments import add_arguments

#: Branches never reached that are printed.
_MOST_LINES = 30


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m kernel.linux.verify",
        description="Run random programs on the real kernel and on the model, and compare result, "
        "faults, areas, resident pages and counters after every operation.",
    )
    parser.add_argument(
        "--ops",
        type=positive,
        default=10_000,
        metavar="N",
        help="operations in all (default 10000)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="default 1")
    parser.add_argument(
        "--thp",
        choices=("on", "off", "both"),
        help="programs with huge pages, without, or in turn (default: both where "
        "the host has them)",
    )
    add_arguments(parser, "kernel")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    options = _parser().parse_args(argv)
    # Late: mistakes in the arguments answer at once, and not every platform can import all of it.
    from kernel.linux.host import unavailable

    reason = unavailable()
    if not reason:
        from kernel.linux.verify.modes import cannot_serve, huge_pages

        if options.thp is None:
            options.thp = "both" if huge_pages() else "off"
        reason = cannot_serve(options.thp)
    if reason:
        return _skip(reason, as_json=options.json)
    if options.replay:
        return _replay(options)
    return _random(options)


def _skip(reason: str, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"status": "skipped", "reason": reason}))
    else:
        print(f"kernel.linux.verify: nothing verified: {reason}", file=sys.stderr)
    return EXIT_SKIP


def _replay(options: argparse.Namespace) -> int:
    from kernel.linux.verify.compare import Setting, files
    from kernel.linux.verify.operation import load
    from kernel.linux.verify.run import Plan, Runner

    try:
        stored, ops = load(options.replay)
        setting = Setting(**stored)
    except (ValueError, TypeError) as error:
        print(f"kernel.linux.verify: {error}", file=sys.stderr)
        return EXIT_USAGE
    with files() as opened:
        runner = Runner(Plan(len(ops), 0, count_branches=False), opened)
        executed, differences, lines = runner.run(setting, ops)
    if options.json:
        print(
            json.dumps(
                {
                    "operations": len(executed),
                    "mismatches": int(bool(differences)),
                    "program": lines,
                }
            )
        )
    else:
        print("\n".join(lines))
        print(f"{len(executed)} operations, {int(bool(differences))} mismatches")
    return EXIT_FAILED if differences else 0


def _random(options: argparse.Namespace) -> int:
    from kernel.linux.verify.model import warm
    from kernel.linux.verify.modes import modes
    from kernel.linux.verify.run import Plan
    from kernel.linux.verify.tally import Tally

    plan = Plan(
        options.ops,
        options.seed,
        options.thp,
        count_branches=not options.no_branches,
        keep_going=options.keep_going,
        shrink_seconds=options.shrink,
    )
    scope = modes(options.thp)
    if not options.json:
        print(f"Linux {scope['kernel']}, seed {options.seed}")
        print("verified here: " + "; ".join(scope["verified"]))
        print(
            "only against the written rules: " + "; ".join(scope["written_rules_only"]), flush=True
        )
    tally, findings = Tally(), []
    start = time.monotonic()
    status = "ok"
    try:
        warm(count_branches=plan.count_branches)
        start = time.monotonic()
        _collect(plan, options, tally, findings)
    except KeyboardInterrupt:
        status = "interrupted"
    except RuntimeError as error:
        print(f"kernel.linux.verify: a worker failed: {error}", file=sys.stderr)
        return EXIT_FAILED
    seconds = time.monotonic() - start
    if findings and status == "ok":
        status = "mismatch"
    if options.json:
        print(json.dumps(_as_json(plan, scope, tally, findings, status, seconds)))
    else:
        _print_tally(plan, tally, status, seconds)
        print(f"{tally.operations} operations, {len(findings)} mismatches")
    if status == "interrupted":
        return EXIT_INTERRUPTED
    return EXIT_FAILED if findings else 0


def _collect(plan: Any, options: argparse.Namespace, tally: Any, findings: list) -> None:
    """Run the plan, showing how far it is."""
    from contextlib import closing

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from kernel.linux.verify.run import run_programs

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), "operations", TimeRemainingColumn())
    reports = run_programs(plan, options.jobs)
    with (
        closing(reports),
        Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress,
    ):
        task = progress.add_task("", total=plan.operations)
        for report in reports:
            tally.add(report.tally)
            progress.update(task, advance=report.tally.operations)
            if report.finding:
                findings.append(report.finding)
                path = _store(report.finding, options.save, len(findings))
                if not options.json:
                    print(_finding_text(report.finding, path), flush=True)


def _store(finding: Any, path: Path | None, number: int) -> Path:
    """Store the program; where."""
    from dataclasses import asdict

    from kernel.linux.verify.operation import dump

    if path is None:
        name = f"verify-{finding.setting.seed.replace('/', '-')}.json"
        path = Path(tempfile.gettempdir()) / name
    elif number > 1:
        path = path.with_stem(f"{path.stem}-{number}")
    dump(path, asdict(finding.setting), finding.ops)
    return path


def _finding_text(finding: Any, path: Path) -> str:
    head = (
        f"MISMATCH in {finding.what} ({finding.setting.words()}); "
        f"{len(finding.lines)} lines below from a program of {finding.length} operations"
    )
    return "\n".join(
        [head, *finding.lines, f"again: python -m kernel.linux.verify --replay {path}"]
    )


def _branches() -> tuple[list, dict[int, str]]:
    from kernel.linux.verify.model import counted_branches
    from kernel.linux.verify.reach import out_of_reach

    branches = counted_branches()
    return branches, out_of_reach(branches)


def _as_json(
    plan: Any, scope: dict, tally: Any, findings: list, status: str, seconds: float
) -> dict[str, Any]:
    branches, unreachable = _branches() if plan.count_branches else ([], {})
    return {
        "status": status,
        "seed": plan.seed,
        "thp": plan.thp,
        "seconds": round(seconds, 1),
        **scope,
        **tally.as_dict(branches, unreachable),
        "mismatches": len(findings),
        "findings": [
            {
                "seed": f.setting.seed,
                "setting": f.setting.words(),
                "what": f.what,
                "program": f.lines,
            }
            for f in findings
        ],
    }


def _print_tally(plan: Any, tally: Any, status: str, seconds: float) -> None:
    from kernel.linux.verify.tally import split_branches, table

    total = tally.operations
    for title, counts, whole in (
        ("operations by kind", tally.by_label, total - tally.by_hand),
        ("by errno", tally.by_errno, total),
        ("programs by setting", tally.by_setting, tally.programs),
    ):
        print("\n".join(table(title, counts, whole)))
    if plan.count_branches:
        branches, unreachable = _branches()
        reached, missed, apart = split_branches(tally.hits, branches, unreachable)
        print(f"branches of the model: {len(reached)} of {len(reached) + len(missed)} reached")
        counts = Counter({str(b): int(tally.hits[b.number]) for b in reached})
        lines = table("  the rarest (--json counts all)", dict(counts.most_common()[:-6:-1]))
        print("\n".join(lines))
        for branch in missed[:_MOST_LINES]:
            print(f"  never: {branch}")
        if len(missed) > _MOST_LINES:
            print(f"  and {len(missed) - _MOST_LINES} more (--json lists all)")
        for why, count in Counter(why for _, why in apart).items():
            print(f"  {count} more out of reach: {why}")
    if tally.reruns:
        print(f"{tally.reruns} programs run again: khugepaged or DAMON had interfered")
    if tally.outside:
        print(f"{tally.outside} programs ended early: the model's window cannot hold their layout")
    rate = total / seconds if seconds else 0
    print(
        f"{tally.faults} page faults, {seconds:.0f} s, {rate:.0f} operations/s"
        + (", interrupted" if status == "interrupted" else "")
    )


if __name__ == "__main__":
    sys.exit(main())

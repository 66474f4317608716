"""``python -m benchmarks.speed.referee``: count how often a comparison of times is right.

Measures one allocator against itself, and against itself with a planted slow-down: PERCENT more
replays of the same events, of which the clock tells the bench nothing.  Every comparison is made
exactly as bench.py makes one: rounds in fresh processes, an A/A floor of its own, and a verdict
(benchmarks.timing.statistics).  Exit codes: 0 the verdicts hold what is asked of them, 1 they do
not, 130 interrupted.

    A/A       no difference: at most 1 in 20 may be called one
    planted   3 %: at least 19 in 20 must be called slower
    duet      1 % with measure=rigorous measure.duet=true: at least 15 in 20
"""

import argparse
import json
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.replay.metrics import WARM
from benchmarks.timing.statistics import FASTER, SAME, SLOWER, UNCLEAR, effect, floor
from kernel.engine.command import EXIT_FAILED, OneLineParser, positive, report_exit, run
from kernel.engine.progress import Progress, shown_progress


@dataclass(frozen=True)
class Trial:
    """A kind of comparison and what is asked of it.

    ``percent``: planted slow-down.  ``share``: of the comparisons that must have one of the
    verdicts ``right``; UNCLEAR is no wrong answer where the machine was busy.
    """

    name: str
    percent: float
    right: tuple[str, ...]
    share: float
    measure: str = "default"
    duet: bool = False


TRIALS = {
    "aa": Trial("A/A", 0.0, (SAME, UNCLEAR), 0.95),
    "planted": Trial("3 % slower", 3.0, (SLOWER,), 0.95),
    "duet": Trial("1 % slower, rigorous duet", 1.0, (SLOWER,), 0.75, "rigorous", True),
}


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m benchmarks.speed.referee", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "trials", nargs="*", metavar="TRIAL", help=f"{', '.join(TRIALS)} (default: aa, planted)"
    )
    parser.add_argument("--comparisons", type=positive, default=20, metavar="N")
    parser.add_argument("--allocator", default="segregated")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(argv)
    names = options.trials or ["aa", "planted"]
    unknown = [name for name in names if name not in TRIALS]
    if unknown:
        return report_exit("benchmarks.speed.referee", f"no trial {unknown[0]!r}", 2)
    with (
        tempfile.TemporaryDirectory(prefix="referee-") as scratch,
        shown_progress("referee") as progress,
    ):
        found = {
            name: _judge(TRIALS[name], options, Path(scratch) / name, progress) for name in names
        }
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    return 0 if all(result["holds"] for result in found.values()) else EXIT_FAILED


def _judge(
    trial: Trial, options: argparse.Namespace, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Make the comparisons of a trial; return its verdicts and figures."""
    verdicts: Counter[str] = Counter()
    ratios, floors = [], []
    total = options.comparisons
    prepared = _prepare(trial, options.allocator, folder, progress)
    for number in range(total):

        def report(fraction: float, what: str, number: int = number) -> None:
            progress((number + fraction) / total, f"{trial.name}, comparison {number + 1}: {what}")

        base, new, twins = _compare(trial, prepared, report)
        found, same = effect(base, new), effect(*twins)
        verdicts[found.verdict(floor(same))] += 1
        ratios.append(found.ratio)
        floors.append(floor(same))
    right = sum(verdicts[verdict] for verdict in trial.right)
    return {
        "trial": trial.name,
        "comparisons": total,
        "verdicts": dict(verdicts),
        "right": right,
        "ratios": sorted(ratios),
        "floors": sorted(floors),
        "holds": right >= trial.share * total,
    }


def _print(found: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("trial", box=None)
    heads = ("comparisons", FASTER, SAME, SLOWER, UNCLEAR, "ratio", "A/A floor", "holds")
    for head in heads:
        table.add_column(head, justify="right")
    for result in found.values():
        verdicts = [
            str(result["verdicts"].get(name, 0)) for name in (FASTER, SAME, SLOWER, UNCLEAR)
        ]
        ratios, floors = result["ratios"], result["floors"]
        middle = len(ratios) // 2
        table.add_row(
            *(result["trial"], str(result["comparisons"]), *verdicts),
            f"{ratios[middle]:.4f} ({ratios[0]:.4f}–{ratios[-1]:.4f})",
            f"{floors[middle]:.2%} ({floors[0]:.2%}–{floors[-1]:.2%})",
            "yes" if result["holds"] else "no",
        )
    Console(width=None if sys.stdout.isatty() else 132).print(table)


# --- One comparison -------------------------------------------------------------------------------


def _prepare(trial: Trial, allocator: str, folder: Path, progress: Progress) -> Path:
    """Run the untimed part once; return its run directory, which comparisons copy."""
    import yaml

    from benchmarks.run import results
    from benchmarks.run.compose import compose
    from benchmarks.run.job import check_job
    from benchmarks.run.launch import run_job
    from benchmarks.run.sources import snapshot

    directory = folder / "untimed"
    directory.mkdir(parents=True)
    config = compose(
        [
            *(f"allocator={allocator}", "workload=churn"),
            *("workload.operations=20000", "workload.live=1000"),
            *(f"measure={trial.measure}", f"measure.duet={str(trial.duet).lower()}"),
        ]
    )
    job = check_job(config)
    sources = snapshot(job)
    (directory / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    described = {"label": job.plugin.label, "workload_label": job.workload_label, "seed": job.seed}
    entries = {"page_size": job.kernel.page_size, "versions": results.versions()}
    results.write_json(directory / "run.json", described | entries | {"sources": sources.hashes})
    status, reason = run_job(job, directory, sources, progress)
    if status != results.WAITING:
        raise RuntimeError(f"{allocator}: {reason}")
    return directory


def _compare(
    trial: Trial, untimed: Path, progress: Callable[[float, str], None]
) -> tuple[list[float], list[float], tuple[list[float], list[float]]]:
    """Compare the allocator with itself in rounds; return the times of base, new, and twins."""
    from benchmarks.run.timing import load_waiting, measure_in_rounds
    from benchmarks.timing.rounds import read_times, twins, valid

    with tempfile.TemporaryDirectory(prefix="comparison-", dir=untimed.parent) as scratch:
        sides = []
        for name in ("base", "new"):
            shutil.copytree(untimed, Path(scratch) / name)
            sides.append(Path(scratch) / name)
        base, new = load_waiting(sides)
        new = replace(new, extra=trial.percent)
        measure_in_rounds([base, new], secrets.randbits(32), progress)
        lines = [valid(read_times(side)) for side in sides]
        pairs = twins(read_times(sides[0]))
    common = sorted(lines[0].keys() & lines[1].keys())
    values = [[line[number]["times"][WARM] for number in common] for line in lines]
    first, second = ([pair[i][WARM] for pair in pairs] for i in (0, 1))
    return values[0], values[1], (first, second)


if __name__ == "__main__":
    sys.exit(run("benchmarks.speed.referee", main))

"""``python -m analysis compare BASE NEW``: say which is better in what, and fail on a regression.

BASE and NEW are result directories, or the same one with --base and --new to name two of its
allocators.  Times are compared if both sides were measured in the same rounds, as ratios with
intervals; deterministic metrics are compared exactly.  Exit codes: 0 no regression, 1 a regression
or bad input, 3 times that are too noisy to tell.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import ResultError, Results, load
from benchmarks.replay.metrics import BY_NAME, METRICS, TIMES, TITLES
from benchmarks.timing.statistics import (
    FASTER,
    LEVEL,
    SLOWER,
    UNCLEAR,
    Effect,
    geometric_mean,
)
from kernel.engine.command import OneLineParser, report_exit

EXIT_OK, EXIT_WORSE, EXIT_UNCLEAR = 0, 1, 3
BETTER, WORSE, SAME = "better", "worse", "same"
#: Row of a geometric mean over the workloads.
ALL = "geometric mean"
_WORDS = {FASTER: BETTER, SLOWER: WORSE}


@dataclass(frozen=True)
class Line:
    """Comparison of one metric on one workload.

    ``ratio``: new / base (NaN if base is 0), with the interval ``low`` to ``high`` of a time; both
    are None for a deterministic metric, whose values are exact.  ``floor``: A/A floor of a time.
    """

    workload: str
    metric: str
    base: float | None
    new: float | None
    ratio: float
    verdict: str
    low: float | None = None
    high: float | None = None
    floor: float | None = None

    @property
    def loss(self) -> float:
        """Share by which the new value is worse, 0 if it is not."""
        if self.verdict != WORSE:
            return 0.0
        return abs(self.ratio - 1) if math.isfinite(self.ratio) else math.inf


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        lines = compare(options.base_directory, options.new_directory, options)
    except ResultError as error:
        return report_exit("analysis compare", str(error), EXIT_WORSE)
    limit = 0.0 if options.exact else options.fail_above
    failed = [line for line in lines if line.loss > limit]
    noisy = [line for line in lines if _too_noisy(line, limit)]
    if options.json:
        print(json.dumps([_plain(line) for line in lines], indent=2, allow_nan=False))
    else:
        _print(lines)
    for line in failed:
        print(f"regression: {line.metric} on {line.workload}: {line.loss:+.1%}", file=sys.stderr)
    for line in noisy:
        floor = f", A/A floor {line.floor:.1%}" if line.floor is not None else ""
        print(f"cannot tell: {line.metric} on {line.workload}{floor}", file=sys.stderr)
    return EXIT_WORSE if failed else EXIT_UNCLEAR if noisy else EXIT_OK


def _too_noisy(line: Line, limit: float) -> bool:
    """Return True for a time that may be worse by more than the limit without being noticed."""
    return line.verdict == UNCLEAR and line.high is not None and line.high > 1 + limit


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m analysis compare", description=__doc__.split("\n")[0])
    parser.add_argument("base_directory", type=Path, metavar="BASE")
    parser.add_argument("new_directory", type=Path, metavar="NEW")
    parser.add_argument("--base", metavar="LABEL", help="allocator of BASE (default: its only one)")
    parser.add_argument("--new", metavar="LABEL", help="allocator of NEW (default: its only one)")
    parser.add_argument(
        "--fail-above",
        type=_share,
        default=0.0,
        metavar="PERCENT",
        help="largest loss that is no regression, for example 3%% (default: any difference is one)",
    )
    parser.add_argument(
        "--metrics",
        type=_metric_names,
        metavar="NAME,…",
        help="compare only these metrics (default: all)",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="compare deterministic metrics only, and fail if any is worse",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _metric_names(text: str) -> list[str]:
    """Return the names in a comma-separated list.  Raises argparse.ArgumentTypeError."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in BY_NAME:
            raise argparse.ArgumentTypeError(f"no metric {name!r} (see benchmarks/README.md)")
    return names


def _share(text: str) -> float:
    """Parse a percentage.  Raises argparse.ArgumentTypeError."""
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a percentage, for example 3%")
    return value


# --- Comparison -----------------------------------------------------------------------------------


def compare(base: Path, new: Path, options: argparse.Namespace) -> list[Line]:
    """Compare two sides on every workload that both have; times first.

    Raises ResultError if there is nothing to compare, or the times were not measured together.
    """
    sides = [
        _side(load([path], timing=False, timelines=False, metrics=(), gaps=True), path, label)
        for path, label in ((base, options.base), (new, options.new))
    ]
    for key in sides[0].conditions:
        if sides[0].conditions[key] != sides[1].conditions[key] and key != "machine":
            raise ResultError(f"{base} and {new} differ in {key}: they cannot be compared")
    workloads = [name for name in sides[0].workloads if name in sides[1].workloads]
    if not workloads:
        raise ResultError(f"{base} and {new} have no workload in common")
    times = [] if options.exact else _times(*sides, workloads, f"{base} and {new}")
    lines = [*times, *_counts(*sides, workloads)]
    return [line for line in lines if not options.metrics or line.metric in options.metrics]


def _side(results: Results, path: Path, label: str | None) -> Results:
    """Return the results of one allocator."""
    if label is None and len(results.labels) > 1:
        names = ", ".join(results.labels)
        raise ResultError(f"{path}: several allocators ({names}): choose with --base and --new")
    if label is not None and label not in results.labels:
        raise ResultError(f"{path}: no allocator {label}, only {', '.join(results.labels)}")
    return results.of(label or results.labels[0])


def _times(base: Results, new: Results, workloads: Iterable[str], names: str) -> list[Line]:
    """Compare the times, if there are any."""
    if base.times.empty and new.times.empty:
        return []
    shared = base.comparisons & new.comparisons
    if not shared:
        raise ResultError(
            f"{names}: the times were not measured in the same rounds, and the machine may have "
            "changed between them; measure both in one sweep, or compare with --exact"
        )
    lines, ratios = [], {}
    for quantity in (metric.name for metric in TIMES):
        for workload in workloads:
            pair = [_rounds(side.times, workload, quantity) for side in (base, new)]
            together = pd.concat(pair, axis=1, join="inner")
            if not together.empty:
                logs = (together.iloc[:, 1] - together.iloc[:, 0]).to_numpy()
                ratios.setdefault(quantity, {})[workload] = logs
                lines.append(_time_line(workload, quantity, logs, base.floors, together))
    means = [
        _time_line(ALL, quantity, by_workload, base.floors)
        for quantity, by_workload in ratios.items()
        if len({len(logs) for logs in by_workload.values()}) == 1 and len(by_workload) > 1
    ]
    return [*lines, *means]


def _rounds(times: pd.DataFrame, workload: str, quantity: str) -> "pd.Series[float]":
    """Return the logarithm of each round's time, averaged over the seeds."""
    mine = times[(times["workload"] == workload) & (times["quantity"] == quantity)]
    table = np.log(mine.pivot(index="round", columns="seed", values="ns_per_op").dropna())
    return table.mean(axis=1)


def _time_line(
    workload: str,
    quantity: str,
    logarithms: np.ndarray | Mapping[str, np.ndarray],
    floors: Mapping[str, float],
    values: pd.DataFrame | None = None,
) -> Line:
    by_workload = logarithms if isinstance(logarithms, Mapping) else {workload: logarithms}
    effect: Effect = geometric_mean(by_workload)
    floor = floors.get(quantity)
    verdict = effect.verdict(floor) if floor is not None else UNCLEAR
    base, new = (None, None) if values is None else np.exp(values.median()).tolist()
    return Line(
        *(workload, quantity, base, new, effect.ratio, _WORDS.get(verdict, verdict)),
        *(None if math.isnan(x) else x for x in (effect.low, effect.high)),
        floor=floor,
    )


def _counts(base: Results, new: Results, workloads: Iterable[str]) -> list[Line]:
    """Compare the deterministic metrics that have a better direction and that both sides have."""
    lines = []
    for workload in workloads:
        means = [
            side.runs[side.runs["workload"] == workload].mean(numeric_only=True)
            for side in (base, new)
        ]
        for metric in METRICS:
            if metric.better and not metric.timed and all(metric.name in mean for mean in means):
                before, after = (float(mean[metric.name]) for mean in means)
                if math.isfinite(before) and math.isfinite(after):
                    lines.append(_count_line(workload, metric, before, after))
    return lines


def _count_line(workload: str, metric: Any, before: float, after: float) -> Line:
    less = SAME if before == after else BETTER if after < before else WORSE
    turned = {BETTER: WORSE, WORSE: BETTER, SAME: SAME}
    verdict = less if metric.better == "lower" else turned[less]
    ratio = after / before if before else math.nan
    return Line(workload, metric.name, before, after, ratio, verdict)


# --- Output ---------------------------------------------------------------------------------------


def _plain(line: Line) -> dict[str, Any]:
    """Return a line for JSON, with null for what is not a number."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(line).items()
    }


def _print(lines: Sequence[Line]) -> None:
    """Print the times, and the deterministic metrics that differ."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 132)
    table = Table("workload", "metric", box=None)
    for head in ("base", "new", "new ÷ base", f"{LEVEL:.0%} interval", "floor", "verdict"):
        table.add_column(head, justify="right")
    same = 0
    for line in lines:
        if line.verdict == SAME and line.metric not in TITLES:
            same += 1
            continue
        interval = f"{line.low:.3f}–{line.high:.3f}" if line.low is not None else "exact"
        if line.metric in TITLES and line.low is None:
            interval = "too few rounds"
        table.add_row(
            *(line.workload, line.metric, _number(line.base), _number(line.new)),
            *(_number(line.ratio, 3), interval),
            *("" if line.floor is None else f"{line.floor:.1%}", line.verdict),
        )
    console.print(table)
    if same:
        console.print(f"{same} deterministic metrics are the same", highlight=False)


def _number(value: float | None, digits: int = 2) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:,.0f}" if value == int(value) and abs(value) > 99 else f"{value:,.{digits}f}"

"""Read result directories into data frames, and refuse results that would make a figure wrong.

A run directory holds ``run.json``; a sweep directory holds run directories at any depth.  A
finished run also has ``metrics.json`` (name -> number), ``timeline.parquet`` (a row per sample) and
``times.jsonl`` (a line per measurement, benchmarks.timing.rounds).

Every :class:`ResultError` is one line that names the directory or file at fault.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import spread
from benchmarks.replay.metrics import BY_NAME, TIMES
from benchmarks.timing import statistics
from benchmarks.timing.rounds import FILE, TimesError, read_times, twins, valid

#: Version of run.json that this module reads.
SCHEMA = 2
#: Statuses of runs with complete data, which are drawn, and all statuses.
DRAWN = ("ok", "oom")
STATUSES = (*DRAWN, "failed", "running", "waiting", "interrupted")
#: Keys and types in every run.json, and additional ones in that of a drawn run.
REQUIRED = {"allocator": str, "label": str, "workload": str, "workload_label": str}
REQUIRED_IF_DRAWN = {"seed": int, "touch": str, "page_size": int}
#: Keys (dots for nested entries) that must agree among runs in one figure.  ``kernel``: the other
#: settings of the memory model, for example limits and costs.  A key that no run has is ignored.
CONDITIONS = ("page_size", "touch", "kernel", "versions.model", "machine")
#: Columns of the timeline that figures draw.
TIMELINE = ("event", "live", "heap", "rss")
#: Columns that identify a run.
IDENTITY = ["label", "workload", "seed"]
#: First columns of a run.
_FIRST = ["directory", "allocator", "real", "threads", "workload_name", *IDENTITY, "status"]
#: Columns that describe it further.
_DESCRIBED = ["directory", "allocator", "real", "threads", "workload_name"]


class ResultError(ValueError):
    """Error for results that cannot be drawn; names the directory or file and the reason."""


@dataclass(frozen=True)
class Results:
    """Input of the figures.

    ``runs``: a row per finished run with directory, allocator, real (True for a real library),
    threads (how they were run: one, interleaved or real), workload_name (without settings), label
    and workload (with settings), seed, status, a column per quantity of time
    (benchmarks.replay.metrics.TIMES; estimate over its rounds in ns, NaN without one) and a column
    per metric of metrics.json, in the units of benchmarks.replay.metrics; NaN where a real
    library's run does not have it.

    ``times``: a row per valid measurement with label, workload, seed, quantity, round and ns_per_op
    (ns).  Runs whose seeds yield the same events count as further rounds of the first of them;
    own_seed keeps their seed.  ``floors``: the largest A/A floor of each quantity, as a share (0.01
    for 1 %).  ``comparisons``: identifiers of the rounds in which runs were measured together.
    ``untimed``: (label, workload, quantity) -> why it has no time.  ``notes``: what was
    unusual about the machine while timing, a sentence each.

    ``timelines``: a row per sample with label, workload, seed, status, event, live, heap, rss
    (bytes), for one run per cell.  ``skipped``: a row per unfinished run with directory, allocator,
    workload_name, label, workload, seed, status and reason.  ``conditions``: values that all runs
    share, for example the page size.
    """

    runs: pd.DataFrame
    times: pd.DataFrame
    timelines: pd.DataFrame
    skipped: pd.DataFrame
    conditions: dict[str, Any]
    floors: Mapping[str, float] = field(default_factory=dict)
    untimed: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    comparisons: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Labels of the allocators, sorted."""
        return sorted(self.runs["label"].unique())

    @property
    def workloads(self) -> list[str]:
        """Labels of the workloads, sorted."""
        return sorted(self.runs["workload"].unique())

    @property
    def simulated(self) -> list[str]:
        """Labels of the simulated allocators, sorted; the others are real libraries."""
        return sorted(self.runs.loc[~self.runs["real"], "label"].unique())

    def interleaved(self, workload: str) -> list[str]:
        """Return the labels whose threads take turns on ``workload``, sorted."""
        mine = self.runs[self.runs["workload"] == workload]
        return sorted(mine.loc[mine["threads"] == "interleaved", "label"].unique())

    def of(self, label: str) -> "Results":
        """Return the results of one allocator, with the floors of all."""
        frames = {
            name: frame if frame.empty else frame[frame["label"] == label]
            for name, frame in (
                ("runs", self.runs),
                ("times", self.times),
                ("timelines", self.timelines),
                ("skipped", self.skipped),
            )
        }
        return replace(self, **frames)

    def gaps(self) -> dict[tuple[str, str], str]:
        """Return the cells (label, workload) without a finished run: their status or "no result".

        A run that ended before its settings were known has labels without settings.
        """
        allocators = dict(zip(self.runs["label"], self.runs["allocator"], strict=True))
        names = dict(zip(self.runs["workload"], self.runs["workload_name"], strict=True))
        status = {(run.label, run.workload): run.status for run in self.skipped.itertuples()}
        present = set(zip(self.runs["label"], self.runs["workload"], strict=True))
        gaps = {}
        for label, workload in itertools.product(self.labels, self.workloads):
            if (label, workload) not in present:
                spellings = itertools.product(
                    (label, allocators[label]), (workload, names[workload])
                )
                reasons = [status[spelling] for spelling in spellings if spelling in status]
                gaps[label, workload] = reasons[0] if reasons else "no result"
        return gaps

    def out_of_memory(self) -> dict[tuple[str, str], str]:
        """Return the cells (label, workload) out of memory, and how often: "oom", "oom 2/5"."""
        marks = {}
        for (label, workload), cell in self.runs.groupby(["label", "workload"]):
            count, n = int((cell["status"] == "oom").sum()), len(cell)
            if count:
                marks[str(label), str(workload)] = "oom" if count == n else f"oom {count}/{n}"
        return marks

    def remarks(self, workload: str) -> dict[str, str]:
        """Return the remarks for allocator labels on ``workload``: the reason of a gap, or oom."""
        cells = self.gaps() | self.out_of_memory()
        return {label: text for (label, name), text in cells.items() if name == workload}


def load(
    directories: Sequence[Path],
    *,
    timing: bool,
    timelines: bool,
    metrics: Iterable[str],
    gaps: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Results:
    """Read every run under ``directories``.

    ``timing`` and ``timelines`` require times.jsonl and timeline.parquet in every finished run;
    ``metrics`` are names that its metrics.json must have.  A run on a real library need not have
    metrics that only the model has, and its system calls may be null if they were not observable.
    Unless ``gaps``, every allocator must have a result on every workload, or a failed run that
    explains its absence.  ``progress(what, done, total)`` is called after each run.  Raises
    :class:`ResultError`.
    """
    metrics = tuple(metrics)
    described = [(path, _read_description(path)) for path in _find_runs(directories)]
    finished = [(path, run) for path, run in described if run["status"] in DRAWN]
    names = ", ".join(str(directory) for directory in directories)
    if not finished:
        raise ResultError(f"{names}: none of the {len(described)} runs is finished")
    _check_versions(finished)
    conditions = _common_conditions(finished)
    _check_distinct(finished)

    runs, times = [], _Times()
    for done, (path, run) in enumerate(finished, 1):
        row = _identity(path, run) | _read_metrics(path / "metrics.json", metrics, run)
        if timing or (path / FILE).exists():
            times.read(path, run)
        if timelines:
            _check_timeline(path / "timeline.parquet")
        runs.append(row)
        if progress:
            progress("reading runs", done, len(finished))

    results = Results(
        runs=_run_frame(runs, times.frame()),
        times=times.frame(),
        floors=times.floors,
        untimed=times.untimed,
        comparisons=frozenset(times.comparisons),
        notes=tuple(times.notes),
        timelines=_read_timelines(finished) if timelines else pd.DataFrame(),
        skipped=_skipped_frame(described),
        conditions=conditions,
    )
    if not gaps:
        for (label, workload), why in results.gaps().items():
            if why == "no result":
                raise ResultError(
                    f"{names}: no run of {label} on {workload}; add one, or use --gaps to leave "
                    "a gap"
                )
    return results


def of_one_run(
    timeline: pd.DataFrame,
    *,
    label: str,
    workload: str,
    seed: int,
    status: str,
    conditions: dict[str, Any],
) -> Results:
    """Build the data of the memory figure from one run that is not stored, without its metrics.

    ``timeline``: columns TIMELINE, bytes.  ``conditions``: page_size (bytes) and touch.
    """
    cell = {"label": label, "workload": workload, "seed": seed, "status": status}
    return Results(
        runs=pd.DataFrame(
            [
                cell
                | {"allocator": label, "real": False, "threads": "one", "workload_name": workload}
            ]
        ),
        times=pd.DataFrame(),
        timelines=timeline[list(TIMELINE)].assign(**cell),
        skipped=_skipped_frame([]),
        conditions=conditions,
    )


def _skipped_frame(described: Iterable[tuple[Path, dict]]) -> pd.DataFrame:
    """Return a row for each run that is not drawn."""
    rows = [
        _identity(path, run) | {"reason": str(run.get("reason", ""))}
        for path, run in described
        if run["status"] not in DRAWN
    ]
    return pd.DataFrame(rows, columns=[*_FIRST, "reason"])


# --- Finding and describing runs -----------------------------------------------------------------


def _find_runs(directories: Sequence[Path]) -> list[Path]:
    """Return the run directories under ``directories``, each once, sorted."""
    found: dict[Path, Path] = {}
    for directory in directories:
        if not directory.is_dir():
            raise ResultError(f"{directory}: no such directory")
        files = sorted(directory.rglob("run.json"))
        if not files:
            raise ResultError(f"{directory}: no run.json in this directory or below")
        for file in files:
            found.setdefault(file.parent.resolve(), file.parent)
    return list(found.values())


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``, which must not be empty."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{path}: missing") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ResultError(f"{path}: not a JSON object")
    if not data:
        raise ResultError(f"{path}: empty")
    return data


def _read_description(directory: Path) -> dict[str, Any]:
    """Return the checked contents of run.json in ``directory``."""
    path = directory / "run.json"
    run = _read_json(path)
    if run.get("schema") != SCHEMA:
        raise ResultError(
            f"{path}: schema {run.get('schema')!r}, but this version reads schema {SCHEMA}"
        )
    if run.get("status") not in STATUSES:
        raise ResultError(
            f"{path}: status {run.get('status')!r} is not one of {', '.join(STATUSES)}"
        )
    for key, kind in (REQUIRED | (REQUIRED_IF_DRAWN if run["status"] in DRAWN else {})).items():
        if not isinstance(run.get(key), kind):
            raise ResultError(f"{path}: {key} is {run.get(key)!r}, not of type {kind.__name__}")
    return run


def _cell(run: dict[str, Any]) -> dict[str, Any]:
    """Return the columns IDENTITY of a run."""
    return {"label": run["label"], "workload": run["workload_label"], "seed": run.get("seed")}


def _identity(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a run that come from run.json."""
    return {
        "directory": str(path),
        "allocator": run["allocator"],
        "real": "library" in run,
        "threads": str(run.get("threads", "one")),
        "workload_name": run["workload"],
        **_cell(run),
        "status": run["status"],
    }


def _common_conditions(finished: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """Return the conditions that all runs share.  Raises ResultError if two runs differ in one."""
    first, reference = finished[0]
    for path, run in finished[1:]:
        for key in CONDITIONS:
            mine, other = _entry(run, key), _entry(reference, key)
            if mine != other:
                name, mine, other = _difference(key, mine, other)
                raise ResultError(
                    f"{path / 'run.json'}: {name} is {mine}, but {other} in {first / 'run.json'}; "
                    "these runs cannot share a figure, draw them separately"
                )
    return {key: _entry(reference, key) for key in CONDITIONS}


def _check_versions(finished: list[tuple[Path, dict[str, Any]]]) -> None:
    """Raise ResultError if runs of one label measured different versions of its file."""
    first: dict[str, tuple[Path, Any]] = {}
    for path, run in finished:
        version = _entry(run, "hashes.plugin")
        other, known = first.setdefault(run["label"], (path, version))
        if version != known:
            raise ResultError(
                f"{path / 'run.json'}: {run['label']} was edited since {other / 'run.json'} was "
                "measured; these runs cannot share a figure, draw them separately"
            )


def _difference(name: str, mine: Any, other: Any) -> tuple[str, Any, Any]:
    """Return the dotted name of the first entry in which two values differ, and both entries."""
    if isinstance(mine, dict) and isinstance(other, dict):
        for key in [*other, *mine]:
            if mine.get(key) != other.get(key):
                return _difference(f"{name}.{key}", mine.get(key), other.get(key))
    return name, mine, other


def _entry(run: dict[str, Any], key: str) -> Any:
    """Return the entry ``key`` (dots for nested entries) of ``run``, or None if it is missing."""
    value: Any = run
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _check_distinct(finished: list[tuple[Path, dict[str, Any]]]) -> None:
    """Refuse two runs with the same identity, which would count as two seeds."""
    seen: dict[tuple[Any, ...], Path] = {}
    threads: dict[tuple[str, str], str] = {}
    for path, run in finished:
        cell = _cell(run)
        how = str(run.get("threads", "one"))
        if threads.setdefault((cell["label"], cell["workload"]), how) != how:
            raise ResultError(
                f"{path}: {cell['label']} on {cell['workload']} with threads {how}, but with "
                f"{threads[cell['label'], cell['workload']]} in another run"
            )
        other = seen.setdefault(tuple(cell.values()), path)
        if other != path:
            raise ResultError(
                f"{path}: {cell['label']} on {cell['workload']} with seed {cell['seed']} is "
                f"already in {other}; give only one of them"
            )


# --- Reading the files of a run ------------------------------------------------------------------


def _read_metrics(path: Path, needed: Iterable[str], run: dict[str, Any]) -> dict[str, float]:
    """Return metrics.json, with NaN for null; the ``needed`` names must have a number.

    A run on a real library may lack some of them (see :func:`load`); they are NaN as well.
    """
    metrics = _read_json(path)
    for name in needed:
        if metrics.get(name) is None:
            unknowable = name in metrics or (name in BY_NAME and BY_NAME[name].modelled)
            if "library" not in run or not unknowable:
                raise ResultError(f"{path}: no {name}")
    for name, value in metrics.items():
        number = isinstance(value, int | float) and math.isfinite(value)
        if value is not None and not number:
            raise ResultError(f"{path}: {name} is {value!r}, not a finite number")
    return dict.fromkeys(needed, math.nan) | {
        name: math.nan if value is None else value for name, value in metrics.items()
    }


#: Distance of the round numbers of two runs that repeat each other.
_FAR = 1_000_000


class _Times:
    """Times of the runs read so far."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        #: By cell and hash of the workload's events: the seeds whose events these are.
        self._inputs: dict[tuple[str, str, str], list[int]] = {}
        self.floors: dict[str, float] = {}
        self.untimed: dict[tuple[str, str, str], str] = {}
        self.notes: dict[str, None] = {}
        self.comparisons: set[str] = set()

    def read(self, path: Path, run: dict[str, Any]) -> None:
        """Add the valid measurements of a run.  Raises ResultError if there are none."""
        try:
            lines = read_times(path)
        except (TimesError, OSError) as error:
            raise ResultError(str(error)) from None
        if not lines and (path / FILE).exists():
            raise ResultError(f"{path / FILE}: no measurement in it")
        if not lines:
            raise ResultError(
                f"{path / FILE}: missing: the run was not timed (measure.timing=false); select "
                "figures that need no time with --figures"
            )
        cell = _cell(run)
        events = str(_entry(run, "hashes.workload") or cell["seed"])
        seeds = self._inputs.setdefault((cell["label"], cell["workload"], events), [])
        seeds.append(cell["seed"])
        # A seed that changes no event is no other input: its rounds are further repetitions.
        shared = {"seed": seeds[0], "own_seed": cell["seed"]}
        first = (len(seeds) - 1) * _FAR
        for number, line in sorted(valid(lines).items()):
            for quantity, value in _checked_times(path, line).items():
                row = {"quantity": quantity, "round": first + number, "ns_per_op": value}
                self._rows.append(cell | shared | row)
            for quantity, reason in dict(line.get("gaps", {})).items():
                self.untimed[cell["label"], cell["workload"], quantity] = str(reason)
        for quantity, floor in _floors(path, lines).items():
            self.floors[quantity] = max(self.floors.get(quantity, 0.0), floor)
        if comparison := _entry(run, "timing.comparison"):
            self.comparisons.add(str(comparison))
        self.notes |= dict.fromkeys(_entry(run, "timing.warnings") or ())

    def frame(self) -> pd.DataFrame:
        """Return the rows of Results.times."""
        return pd.DataFrame(self._rows)


def _checked_times(path: Path, line: Mapping[str, Any]) -> dict[str, float]:
    """Return the times of a measurement, in ns.  Raises ResultError for what is no time."""
    for name, value in line["times"].items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name not in BY_NAME or not number or not 0 < value < math.inf:
            raise ResultError(f"{path / FILE}: round {line['round']}: {name} is {value!r}")
    return line["times"]


def _floors(path: Path, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the A/A floor of each quantity; empty unless the cell was measured twice a round."""
    for line in lines:
        _checked_times(path, line)
    return statistics.floors(twins(lines))


def _check_timeline(path: Path) -> None:
    """Check that the timeline in ``path`` exists and has the columns to draw and a row."""
    try:
        footer = pq.read_metadata(path)
    except FileNotFoundError:
        raise ResultError(f"{path}: missing") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ResultError(f"{path}: not a readable Parquet file: {reason}") from None
    absent = [name for name in TIMELINE if name not in footer.schema.names]
    if absent:
        raise ResultError(f"{path}: no column {', '.join(absent)}")
    if footer.num_rows == 0:
        raise ResultError(f"{path}: empty: it has no rows")


def _read_timelines(finished: list[tuple[Path, dict[str, Any]]]) -> pd.DataFrame:
    """Return one timeline per cell, of the lowest seed common to all cells, else its own lowest."""
    cells: dict[tuple[str, str], dict[int, tuple[Path, dict[str, Any]]]] = {}
    for path, run in finished:
        cells.setdefault((run["label"], run["workload_label"]), {})[run["seed"]] = path, run
    common = set.intersection(*(set(by_seed) for by_seed in cells.values()))
    frames = []
    for by_seed in cells.values():
        directory, run = by_seed[min(common or by_seed)]
        path = directory / "timeline.parquet"
        try:
            frame = pd.read_parquet(path, columns=list(TIMELINE))
        except (OSError, pa.ArrowException) as error:
            raise ResultError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
        frames.append(frame.assign(**_cell(run), status=run["status"]))
    return pd.concat(frames, ignore_index=True)


def _run_frame(rows: list[dict[str, Any]], times: pd.DataFrame) -> pd.DataFrame:
    """Return the frame of runs: identity, times, then metrics in the order of their table."""
    frame = pd.DataFrame(rows)
    quantities = [metric.name for metric in TIMES]
    if not times.empty:
        alone = pd.concat(
            spread.over_rounds(run).assign(seed=seed) for seed, run in times.groupby("own_seed")
        )
        wide = alone.pivot(index=IDENTITY, columns="quantity", values="value").reset_index()
        frame = frame.merge(wide, on=IDENTITY, how="left")
    front = [*_FIRST, *quantities]
    known = [name for name in BY_NAME if name in frame and name not in front]
    others = [name for name in frame if name not in front and name not in known]
    return (
        frame.reindex(columns=[*front, *known, *others])
        .sort_values(IDENTITY, ignore_index=True)
        .astype({"seed": "int64"})
    )

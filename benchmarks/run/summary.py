"""Summary that bench.py prints after a run or a sweep, with texts from the table of metrics."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.replay.metrics import BY_NAME, CALLS, END_TO_END, FAULTS, METRICS, TIMES, TITLES
from benchmarks.run import results

#: Groups of rows in the summary of one run: title and metrics.  Left out are the metrics of a
#: kernel part that is off (kernel.frames, kernel.tlb), rare ones that are 0, and, for a real
#: library, those that only the model has.
_ROWS = (
    ("events", ("operations", "failed")),
    ("memory", ("peak_live", "peak_heap", "peak_rss", "peak_page_tables")),
    (
        "fragmentation",
        (
            "fragmentation_mean",
            "fragmentation_peak_live",
            "fragmentation_peak_heap",
            "fragmentation_peaks",
        ),
    ),
    ("system calls", tuple(m.name for m in CALLS)),
    ("page faults", tuple(m.name for m in FAULTS)),
    ("physical memory", tuple(m.name for m in METRICS if m.part == "frames")),
    ("TLB", tuple(m.name for m in METRICS if m.part == "tlb")),
    (
        "loads + stores",
        ("steps_mean", "steps_p50", "steps_p99", "steps_p999", "steps_max"),
    ),
)


#: Metrics in the table of a sweep, for narrow and wide terminals.
_NARROW = ("peak_heap",)
_WIDE = ("peak_heap", "peak_rss", "steps_p99")


def console() -> Console:
    """Return a console on standard output; in files and pipes, wide enough for all columns."""
    return Console(width=None if sys.stdout.isatty() else 132)


def format_value(name: str, value: float | None) -> str:
    """Format the value of metric ``name`` with its unit; a dash for None."""
    if value is None:
        return "–"
    unit = BY_NAME[name].unit
    if unit == "bytes":
        for prefix, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if abs(value) >= size:
                return f"{value / size:.2f} {prefix}"
        return f"{value:.0f} B"
    if unit == "%":
        return f"{value:.1f} %"
    number = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
    return f"{number} ns" if unit == "ns" else number


def timing(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, float, int]]:
    """Return the estimate of each quantity, its interval (ns per event) and the number of rounds.

    ``lines``: those of times.jsonl.  The ends of the interval are NaN for a few rounds.
    """
    import numpy as np

    from benchmarks.timing.rounds import valid
    from benchmarks.timing.statistics import centre

    found = {}
    for metric in TIMES:
        rounds = [line["times"] for line in valid(lines).values()]
        values = [times[metric.name] for times in rounds if metric.name in times]
        if values:
            middle, low, high = np.exp(centre(np.log(values)))
            found[metric.name] = float(middle), float(low), float(high), len(values)
    return found


def _time_cell(estimate: tuple[float, float, float, int] | None) -> str:
    """Format an estimate with the larger half of its interval: ``14.73 ±1.2 %``."""
    if estimate is None:
        return "–"
    middle, low, high, _ = estimate
    half = max(high / middle, middle / low) - 1
    return f"{middle:.2f}" + (f" ±{half:.1%}" if math.isfinite(half) else "")


def print_run(directory: Path, console: Console) -> None:
    """Print the summary of one finished run."""
    from benchmarks.timing.rounds import read_times

    run = results.read_run(directory)
    metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    title = f"{run['label']} · {run['workload_label']} · seed {run['seed']}"
    table = Table(title=Text(title), show_header=False)
    for justify in ("left", "left", "right"):
        table.add_column(no_wrap=True, justify=justify)
    wide = console.width >= 110
    if wide:
        table.add_column(style="dim", no_wrap=True)

    def row(title: str, name: str, value: str, meaning: str) -> None:
        table.add_row(title, name, value, *([meaning] if wide else []))

    lines = read_times(directory)
    times = timing(lines)
    gaps = {name: why for line in lines for name, why in line.get("gaps", {}).items()}
    for i, metric in enumerate(TIMES if times else ()):
        value = _time_cell(times.get(metric.name))
        meaning = gaps.get(metric.name, metric.meaning)
        row("" if i else "ns per event", TITLES[metric.name], value, meaning)
    if "kernel_ns_per_op" in metrics:
        cell = format_value("kernel_ns_per_op", metrics["kernel_ns_per_op"])
        meaning = BY_NAME["kernel_ns_per_op"].meaning
        row("" if times else "ns per event", "kernel_ns_per_op", cell, meaning)
    for title, names in _ROWS:
        table.add_section()
        shown = [n for n in names if n in metrics and (metrics[n] != 0 or not BY_NAME[n].rare)]
        for i, name in enumerate(shown):
            cell = format_value(name, metrics[name])
            row("" if i else title, name, cell, BY_NAME[name].meaning)
    console.print(table)
    for name, count in run.get("ignored", {}).items():
        console.print(f"ignored: {count:,} × {name}, which this replay does not perform")
    status = run["status"] + (f": {run['reason']}" if run["reason"] else "")
    for sentence in _describe_timing([directory]):
        console.print(Text(sentence))
    console.print(Text(f"status: {status}"))


def sweep_runs(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the run directories of a sweep with their run.json, in the order of their jobs."""
    found = [(path.parent, results.read_run(path.parent)) for path in directory.glob("*/run.json")]
    numbered = [(path.name.partition("-")[0], path, run) for path, run in found]
    numbered = [(int(number), path, run) for number, path, run in numbered if number.isdecimal()]
    return [(path, run) for _, path, run in sorted(numbered, key=lambda item: item[:2])]


def _describe_timing(directories: list[Path]) -> list[str]:
    """Return what a reader of the times must know: rounds, A/A floor, and the machine."""
    from benchmarks.timing.rounds import read_times, twins
    from benchmarks.timing.statistics import LEAST_ROUNDS, floors

    sentences: dict[str, None] = {}
    for directory in directories:
        entries = results.read_run(directory).get("timing")
        if not entries:
            continue
        count = entries["rounds"]
        sentences[
            f"Times: ns per event, {count} interleaved rounds in fresh processes"
            + (
                ", 95 % interval over rounds."
                if count >= LEAST_ROUNDS
                else "; too few for an interval."
            )
        ] = None
        if found := floors(twins(read_times(directory))):
            shown = ", ".join(f"{TITLES[name]} {floor:.1%}" for name, floor in found.items())
            what = f"A/A floor (one cell measured twice in each round): {shown}"
            sentences[f"{what}; smaller differences mean nothing."] = None
        sentences |= {f"While timing: {warning}": None for warning in entries["warnings"]}
    return list(sentences)


def _differing(kernels: list[dict[str, Any]]) -> list[str]:
    """Return the names of the kernel settings in which the runs of a sweep differ.

    The kernel of a run that failed early is unknown, {}.
    """
    known = [kernel for kernel in kernels if kernel]
    names = dict.fromkeys(name for kernel in known for name in kernel)
    return [n for n in names if any(kernel.get(n) != known[0].get(n) for kernel in known)]


def _settings(kernel: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a kernel by dotted name; each price is a setting."""
    found: dict[str, Any] = {}
    for name, value in kernel.items():
        if isinstance(value, Mapping):
            found |= _settings(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _results(path: Path, quantities: tuple[str, ...], columns: tuple[str, ...]) -> list[str] | None:
    """Return the cells of a finished run; None if its files cannot be read."""
    from benchmarks.timing.rounds import read_times

    try:
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        times = timing(read_times(path))
        numbers = [format_value(name, metrics.get(name)) for name in columns]
        return [_time_cell(times.get(name)) if times else "" for name in quantities] + numbers
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def print_sweep(directory: Path, console: Console) -> bool:
    """Print a table of the runs and the reasons of failures.  Returns True if none failed."""
    columns = _WIDE if console.width >= 120 else _NARROW
    table = Table(title="sweep")
    runs = sweep_runs(directory)
    kernels = [_settings(run.get("kernel") or {}) for _, run in runs]
    differing = _differing(kernels)
    heads = ("run", "allocator", "workload", *(["kernel"] if differing else []), "seed", "status")
    for head in heads:
        table.add_column(head, overflow="fold", no_wrap=head == "kernel")
    quantities = tuple(TITLES) if console.width >= 120 else (END_TO_END,)
    for head in (*(f"{TITLES[name]} ns" for name in quantities), *columns):
        table.add_column(head, justify="right", no_wrap=True)
    failures = []
    for (path, run), kernel in zip(runs, kernels, strict=True):
        labels = [str(run.get(name) or "?") for name in ("label", "workload_label", "seed")]
        status = str(run.get("status", "unreadable"))
        cells = [path.name.partition("-")[0], *labels[:2]]
        if differing:
            cells.append(
                "\n".join(f"{name}={kernel[name]}" for name in differing if name in kernel)
            )
        cells += [labels[2], status]
        if status not in results.FINISHED:
            failures.append(f"{status}: {path.name}: {run.get('reason', 'cannot read run.json')}")
        elif (found := _results(path, quantities, columns)) is None:
            failures.append(
                f"{status}: {path.name}: files are missing or damaged; resume the sweep"
            )
        else:
            cells += found
        table.add_row(*map(Text, cells))
    console.print(table)
    for sentence in _describe_timing([path for path, _ in runs]):
        console.print(Text(sentence))
    for failure in failures:
        console.print(Text(failure))
    return not failures

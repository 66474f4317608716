"""Summary that bench.py prints after a run or a sweep, with texts from the table of metrics."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.replay.metrics import BY_NAME, CALLS, FAULTS, METRICS
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
_WIDE = ("kernel_ns_per_op", "peak_heap", "peak_rss", "steps_p99")


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


def timing(directory: Path) -> tuple[float, float, int] | None:
    """Return mean and standard deviation of ns per operation and the number of values.

    Returns None if the run was not timed.
    """
    path = directory / "bench.json"
    if not path.exists():
        return None
    import pyperf

    benchmark = pyperf.BenchmarkSuite.load(str(path)).get_benchmarks()[0]
    spread = benchmark.stdev() if benchmark.get_nvalue() > 1 else 0.0
    return benchmark.mean() * 1e9, spread * 1e9, benchmark.get_nvalue()


def print_run(directory: Path, console: Console) -> None:
    """Print the summary of one finished run."""
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

    modelled = metrics.get("kernel_ns_per_op")
    time = timing(directory)
    if time:
        mean, spread, count = time
        kernel = "" if modelled is not None else ", including the kernel's work"
        meaning = f"measured, mean of {count} values{kernel}"
        row("time", "ns_per_op", f"{mean:.2f} ± {spread:.2f} ns", meaning)
    if modelled is not None:
        cell = format_value("kernel_ns_per_op", modelled)
        row("" if time else "time", "kernel_ns_per_op", cell, BY_NAME["kernel_ns_per_op"].meaning)
        if time:
            row("", "sum", f"{mean + modelled:.2f} ns", "measured plus modelled time")
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
    console.print(Text(f"status: {status}"))


def sweep_runs(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the run directories of a sweep with their run.json, in the order of their jobs."""
    found = [(path.parent, results.read_run(path.parent)) for path in directory.glob("*/run.json")]
    numbered = [(path.name.partition("-")[0], path, run) for path, run in found]
    numbered = [(int(number), path, run) for number, path, run in numbered if number.isdecimal()]
    return [(path, run) for _, path, run in sorted(numbered, key=lambda item: item[:2])]


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


def _results(path: Path, columns: tuple[str, ...]) -> list[str] | None:
    """Return the cells of a finished run; None if its files cannot be read."""
    try:
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        time = timing(path)
        numbers = [format_value(name, metrics.get(name)) for name in columns]
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return [f"{time[0]:.2f} ± {time[1]:.2f}" if time else "", *numbers]


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
    for head in ("ns_per_op", *columns):
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
        elif (found := _results(path, columns)) is None:
            failures.append(
                f"{status}: {path.name}: files are missing or damaged; resume the sweep"
            )
        else:
            cells += found
        table.add_row(*map(Text, cells))
    console.print(table)
    for failure in failures:
        console.print(Text(failure))
    return not failures

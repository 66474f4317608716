"""Page faults by cause and system calls by kind."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import spread, style
from analysis.load import Results
from benchmarks.replay.metrics import BY_NAME, CALLS, FAULTS

#: Metrics that the figure reads: faults by cause, system calls by kind, and the total of faults for
#: real libraries, whose faults are not split by cause.  Failed calls have no column.
METRICS = tuple(metric.name for metric in (*FAULTS, *CALLS))

#: Width of a panel in inches.
WIDTH = 1.5


def draw(results: Results) -> Figure:
    """Draw a row of panels per workload and a column per cause or kind, with a row per allocator.

    Reads label, workload, seed and METRICS (counts) from ``results.runs``.  A metric that is always
    zero has no column, and total faults have one only if there is a real library.  A column has
    dots on a logarithmic axis instead of bars if an allocator's count exceeds style.WIDE_RANGE
    times another's on the same workload.
    """
    labels, workloads, runs = results.labels, results.workloads, results.runs
    whole = "faults"  # split by cause, except for real libraries
    real = bool(runs[f"{whole}_write"].isna().any())
    known = [name for name in METRICS if runs[name].notna().any() and (real or name != whole)]
    names = [name for name in known if (runs[name] > 0).any()] or known
    absent = [name for name in known if name not in names]
    width = max(0.4 + style.names_width(labels) + (WIDTH + 0.1) * len(names), style.LEAST_WIDTH)
    height = 0.35 + max(style.rows_height(labels), style.names_width(workloads))
    fig = Figure(figsize=(width, 1.2 + height * len(workloads)), layout="constrained")
    grid = fig.subplots(len(workloads), len(names), squeeze=False)
    for j, name in enumerate(names):
        means = runs.groupby(["workload", "label"])[name].mean()
        log = any(style.is_wide(cell) for _, cell in means.groupby(level="workload"))
        for i, workload in enumerate(workloads):
            ax = grid[i, j]
            mine = runs[runs["workload"] == workload]
            notes = results.remarks(workload)
            _panel(ax, mine.dropna(subset=[name]), name, labels, notes, log=log, spelled=j == 0)
            for label in set(mine.loc[mine[name].isna(), "label"]):
                style.remark(ax, None, labels.index(label), "–", color="0.2")
            style.name_rows(ax, labels, named=j == 0)
            ax.set(title="" if i else name, xlabel="")
            if j == 0:
                ax.set_ylabel(style.wrapped(workload), fontweight="bold")
        ax.set_xlabel(BY_NAME[name].unit + (", log scale" if log else ""))
    style.caption(
        fig,
        "Each panel has its own scale.",
        "; ".join(f"{n}: {BY_NAME[n].meaning}" for n in names if BY_NAME[n].meaning not in n) + ".",
        f"Zero in every run: {', '.join(absent)}." if absent else "",
        "–: unknown for a real library, whose counts may vary between runs." if real else "",
        spread.describe_counts(runs),
        style.describe_cells(results),
        style.describe_conditions(results.conditions),
    )
    return fig


def _panel(
    ax: Axes,
    runs: pd.DataFrame,
    name: str,
    labels: list[str],
    notes: dict[str, str],
    *,
    log: bool,
    spelled: bool,
) -> None:
    """Draw one workload and metric: a mark per label, and its mean as text to the right.

    Labels with a note have the mean in the note's colour and, if ``spelled``, followed by the note.
    On a logarithmic axis a count of zero has no mark, and its text is at the left edge.
    """
    cells = spread.over_seeds(runs, name)
    means = cells.set_index("label")["value"]
    texts = {label: style.short(mean) for label, mean in means.items()}
    if spelled:
        texts |= {label: f"{texts[label]} {notes[label]}" for label in notes if label in texts}
    log = log and bool(means.any())
    shown = cells[cells["value"] > 0] if log else cells
    ends = spread.ends(shown)
    if log:
        style.dots(ax, shown, labels)
    else:
        style.bars(ax, shown, labels)
    low = style.log_start([*means[means > 0], *ends]) if log else 0.0
    high = style.room_at_right(ends, texts, WIDTH, low, log=log)
    style.set_range(ax.xaxis, low, high or 1.0, log=log, ticks=3)
    for label, text in (notes | texts).items():
        color = style.REMARK if label in notes else "0.2"
        style.remark(ax, ends.get(label), labels.index(label), text, color=color)

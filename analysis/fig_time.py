"""Time per operation by allocator and workload: warm, cold and end to end, each on its own axis."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import spread, style
from analysis.load import Results
from benchmarks.replay.metrics import BY_NAME, TITLES, WARM

#: Metrics that the figure reads in addition to the times.
METRICS = ()
#: Width of a panel in inches.
WIDTH = 1.75
#: Band of the differences below the A/A floor.
BAND = {"color": "0.88", "linewidth": 0, "zorder": 0.5}


def draw(results: Results) -> Figure:
    """Draw a row of panels per workload and a column per quantity, with a row per allocator.

    Reads label, workload, seed, quantity, round and ns_per_op (ns) from ``results.times``.  Bars
    start at zero; of a simulated allocator, the part modelled on top of its warm time is pale.  If
    a bar were more than style.WIDE_RANGE times another in its panel, dots on a logarithmic axis
    replace the bars in its column, since a logarithmic axis has no zero.
    """
    labels, workloads = results.labels, results.workloads
    cells = spread.over_rounds(results.times)
    names = [name for name in TITLES if name in set(cells["quantity"])]
    width = max(0.4 + style.names_width(labels) + (WIDTH + 0.1) * len(names), style.LEAST_WIDTH)
    height = 0.3 + max(style.rows_height(labels), style.names_width(workloads))
    fig = Figure(figsize=(width, 1.4 + height * len(workloads)), layout="constrained")
    grid = fig.subplots(len(workloads), len(names), squeeze=False)
    logs = []
    for j, name in enumerate(names):
        column = cells[cells["quantity"] == name]
        log = any(style.is_wide(cell["value"]) for _, cell in column.groupby("workload"))
        logs.append(log)
        for i, workload in enumerate(workloads):
            ax = grid[i, j]
            _panel(ax, results, cells[cells["workload"] == workload], workload, name, log=log)
            style.name_rows(ax, labels, named=j == 0)
            ax.set(title="" if i else TITLES[name], xlabel="")
            if j == 0:
                ax.set_ylabel(style.wrapped(workload), fontweight="bold")
        grid[-1, j].set_xlabel(f"{BY_NAME[name].unit} per event{', log scale' if log else ''}")
    fig.legend(handles=_legend(results), loc="outside upper left", ncols=3)
    style.caption(
        fig,
        "; ".join(f"{TITLES[name].capitalize()}: {BY_NAME[name].meaning}" for name in names) + ".",
        "Each panel has its own scale.",
        spread.describe_times(cells),
        style.describe_floor(results),
        _describe_gaps(results),
        "†: threads that take turns." if (results.runs["threads"] == "interleaved").any() else "",
        style.HIDDEN if any(logs) else "",
        style.describe_cells(results),
        style.describe_conditions(results.conditions),
        style.describe_machine(results),
    )
    return fig


def _panel(
    ax: Axes, results: Results, cells: pd.DataFrame, workload: str, name: str, *, log: bool
) -> None:
    """Draw one workload and quantity; ``cells``: all quantities of the workload."""
    labels, mine = results.labels, cells[cells["quantity"] == name]
    remarks = results.remarks(workload)
    for label in labels:
        if (label, workload, name) in results.untimed:
            remarks[label] = "–"
    for label in results.interleaved(workload):
        remarks[label] = f"† {remarks.get(label, '')}"
    ends = spread.ends(mine)
    if name in results.floors and len(mine):
        best = mine["value"].min()
        ax.axvspan(best, best * (1 + results.floors[name]), **BAND)
    if log:
        style.dots(ax, mine, labels)
    else:
        style.bars(ax, mine, labels)
        _modelled_parts(ax, results, cells, name)
    low = style.log_start([*mine["value"], *ends]) if log else 0.0
    high = style.room_at_right(ends, remarks, WIDTH, low, log=log)
    style.set_range(ax.xaxis, low, high or 1.0, log=log, ticks=4)
    style.remark_rows(ax, labels, remarks, ends)


def _modelled_parts(ax: Axes, results: Results, cells: pd.DataFrame, name: str) -> None:
    """Cover the modelled part of the bars of simulated allocators with a tint."""
    values = cells.set_index(["label", "quantity"])["value"]
    for label in results.simulated:
        if name != WARM and (label, name) in values and (label, WARM) in values:
            warm, whole = values[label, WARM], values[label, name]
            tint = style.tint(style.looks(results.labels)[label].color)
            row = results.labels.index(label)
            ax.barh(row, whole - warm, style.BAR, warm, color=tint, linewidth=0)


def _legend(results: Results) -> list[Line2D | Patch]:
    """Return the legend handles, in a colour that belongs to no allocator."""
    parts: list[Line2D | Patch] = [Patch(color=style.NEUTRAL, label="measured")]
    if results.simulated:
        tint = style.tint(style.NEUTRAL)
        parts.append(Patch(color=tint, label="modelled kernel time (simulated allocators)"))
    return [*parts, style.whisker_handle()]


def _describe_gaps(results: Results) -> str:
    """Return the caption sentence about quantities without a value, or ''."""
    gaps = [
        f"{label} on {workload}, {TITLES.get(name, name)} ({reason})"
        for (label, workload, name), reason in results.untimed.items()
    ]
    return f"–: cannot be had: {'; '.join(gaps)}." if gaps else ""

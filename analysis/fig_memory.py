"""Memory over time: live, heap and RSS of each allocator on each workload."""

import math

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import style
from analysis.load import Results

#: Metrics that the figure reads in addition to the timelines.
METRICS = ()
#: Maximum number of panels side by side; more allocators wrap.
MOST_COLUMNS = 6
#: Series that are drawn, bytes.
SERIES = ["live", "heap", "rss"]
#: Decades of a logarithmic axis below the smallest peak of any series.
DECADES_BELOW = 1.5
AREA = {"color": "0.84", "linewidth": 0}
LIVE = {"color": "0.55", "linewidth": 1.0}
HEAP = {"linewidth": 1.7}
RSS = {"color": "0.1", "linewidth": 0.9, "linestyle": (0, (3, 1.5))}


def draw(results: Results) -> Figure:
    """Draw the panels of stored results, with a caption."""
    fig = panels(results)
    style.caption(
        fig,
        _describe_seeds(results.timelines),
        "Curves connect samples; the exact peaks are in table.csv.",
        style.describe_cells(results),
        style.describe_conditions(results.conditions),
    )
    return fig


def panels(results: Results) -> Figure:
    """Draw a panel per workload and allocator; the panels of a workload share their axes.

    Reads label, workload, seed, event, live, heap and rss (bytes) from ``results.timelines``.  Live
    is a grey area, heap a line in the label's colour, RSS a dark dashed line.  If one series' peak
    exceeds style.WIDE_RANGE times another's, the panels of that workload are logarithmic.
    """
    labels, workloads = results.labels, results.workloads
    looks = style.looks(labels)
    block = math.ceil(len(labels) / MOST_COLUMNS)  # rows of panels per workload
    columns = math.ceil(len(labels) / block)
    rows = block * len(workloads)
    width = max(1.2 + 1.9 * columns, style.LEAST_WIDTH)
    fig = style.Picture(figsize=(width, 1.1 + 1.65 * rows), layout="constrained")
    grid = fig.subplots(rows, columns, squeeze=False)
    for i, workload in enumerate(workloads):
        mine = results.timelines[results.timelines["workload"] == workload]
        gaps = {label: why for (label, name), why in results.gaps().items() if name == workload}
        row = grid[i * block : (i + 1) * block].flat
        for ax in row[len(labels) :]:
            ax.remove()
        for j, label in enumerate(labels):
            ax, cell = row[j], mine[mine["label"] == label]
            _lines(ax, cell, mine, looks[label].color)
            if i == 0 or block > 1:
                ax.set_title(style.wrapped(label, 20))
            style.remark_corner(ax, "oom" if "oom" in set(cell["status"]) else gaps.get(label, ""))
            if j % columns:
                ax.tick_params(labelleft=False)
                ax.set_ylabel("")
            else:
                ax.set_ylabel(f"{style.wrapped(workload, 20)}\n{ax.get_ylabel()}")
            if j + columns < len(labels):
                ax.tick_params(labelbottom=False)
            elif i == len(workloads) - 1:
                ax.set_xlabel("event")
    fig.legend(
        handles=[
            Patch(fc=AREA["color"], ec=LIVE["color"], label="live: requested by the program"),
            Line2D([], [], color=style.NEUTRAL, **HEAP, label="heap: mapped by the allocator"),
            Line2D([], [], **RSS, label="RSS: resident frames"),
        ],
        loc="outside upper left",
        ncols=3,
    )
    return fig


def _lines(ax: Axes, cell: pd.DataFrame, workload: pd.DataFrame, color: str) -> None:
    """Draw one ``cell``, on axes that fit all timelines of its ``workload``."""
    peaks = workload.groupby("label")[SERIES].max()
    top = peaks.max(axis=None)
    log = style.is_wide(peaks.to_numpy().flat)
    divisor, unit = style.byte_unit(top)
    scaled = cell[SERIES] / divisor
    if not log:
        ax.fill_between(cell["event"], scaled["live"], **AREA)
    for name, look in (("live", LIVE), ("heap", HEAP | {"color": color}), ("rss", RSS)):
        sns.lineplot(x=cell["event"], y=scaled[name], estimator=None, ax=ax, **look)
    style.set_range(ax.xaxis, 0, max(workload["event"].max(), 1), ticks=3)
    if log:
        low = peaks[peaks > 0].min(axis=None) / 10**DECADES_BELOW
        style.set_range(ax.yaxis, low / divisor, 2 * top / divisor, log=True, ticks=4)
    else:
        style.set_range(ax.yaxis, 0, 1.06 * max(top, 1) / divisor, ticks=4)
    ax.set(xlabel="", ylabel=f"{unit}, log scale" if log else unit)
    sns.despine(ax=ax)


def _describe_seeds(timelines: pd.DataFrame) -> str:
    """Return the caption sentence that states which seed is drawn."""
    seeds = sorted(timelines["seed"].unique())
    if len(seeds) == 1:
        return f"One run per panel, with seed {seeds[0]}."
    return (
        f"One run per panel, with its lowest seed ({seeds[0]} to {seeds[-1]}): no seed is common "
        "to all."
    )

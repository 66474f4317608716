"""Time against memory for each workload, with the Pareto front."""

import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import spread, style
from analysis.load import ResultError, Results
from benchmarks.replay.metrics import BY_NAME, END_TO_END

#: Metrics that the figure reads in addition to the times.
METRICS = ("peak_heap", "peak_live")
#: Maximum number of panels side by side.
MOST_COLUMNS = 3
#: Ratio of largest to smallest value above which an axis is logarithmic; points need no zero.
LOG_RANGE = 10.0
FRONT = {"color": "0.45", "linewidth": 1.0, "linestyle": (0, (4, 2)), "zorder": 2}
#: Ring around the points of the front.
RING = {"marker": "o", "markersize": 13.0, "markerfacecolor": "none", "markeredgecolor": "0.45"}
HOLLOW = {"markerfacecolor": "white", "markeredgewidth": 1.3}


def draw(results: Results) -> Figure:
    """Draw a panel per workload with a point per allocator; lower left is better.

    Reads label, workload, status, peak_heap and peak_live (bytes), whose ratio is averaged over
    seeds, from ``results.runs``; end-to-end time (ns) from ``results.times``.
    Cells that ran out of memory are hollow and excluded from the front: they did less work.
    """
    labels, workloads = results.labels, results.workloads
    for run in results.runs[results.runs["peak_live"] <= 0].itertuples():
        raise ResultError(f"{run.directory}: peak_live is 0, so the memory ratio is undefined")
    ratios = results.runs.assign(ratio=results.runs["peak_heap"] / results.runs["peak_live"])
    memory = spread.over_seeds(ratios, "ratio")
    times = spread.over_rounds(results.times)
    times = times[times["quantity"] == END_TO_END]
    legend = max(style.names_width(labels), 1.9)
    fig, axes = style.panel_grid(
        len(workloads), MOST_COLUMNS, panel=(2.6, 2.7), margin=(legend + 1.0, 0.9)
    )
    across, upward = [], []
    for workload, ax in zip(workloads, axes, strict=True):
        x, y = _panel(
            ax,
            memory[memory["workload"] == workload].set_index("label"),
            times[times["workload"] == workload].set_index("label"),
            labels,
            {label for label, name in results.out_of_memory() if name == workload},
        )
        across.append(x)
        upward.append(y)
        ax.set_title(style.wrapped(workload))
    remark_x = _scale([ax.xaxis for ax in axes], across)
    remark_y = _scale([ax.yaxis for ax in axes], upward)
    heap, live = BY_NAME["peak_heap"].meaning, BY_NAME["peak_live"].meaning
    style.label_bottom(axes, f"{heap} ÷ {live}{remark_x}")
    for ax in axes:
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(textwrap.fill(f"{style.axis_label(END_TO_END)}{remark_y}", 30))
    fig.legend(handles=_legend(labels, bool(results.out_of_memory())), loc="outside right upper")
    style.caption(
        fig,
        "Lower left is better. For an allocator on the Pareto front, no other one is at least as "
        "good in both and better in one.",
        spread.describe_times(times),
        "Horizontal whiskers: lowest and highest seed." if memory["seeds"].max() > 1 else "",
        style.HIDDEN,
        style.describe_cells(results),
        style.describe_conditions(results.conditions),
    )
    return fig


def pareto_front(points: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``points`` (x and y, less is better) that no other dominates, sorted by x.

    A row dominates another if it is no worse in both coordinates and better in one.
    """
    x, y = points["x"].to_numpy(), points["y"].to_numpy()
    worse_or_equal = (x[:, None] >= x) & (y[:, None] >= y)
    worse = (x[:, None] > x) | (y[:, None] > y)
    return points[~(worse_or_equal & worse).any(axis=1)].sort_values(["x", "y"])


def _panel(
    ax: Axes, memory: pd.DataFrame, times: pd.DataFrame, labels: list[str], oom: set[str]
) -> tuple[list[float], list[float]]:
    """Draw one workload: a point for each label with its whiskers, and the front.

    ``memory`` and ``times`` (ns): spread.ESTIMATE by label; ``oom``: labels that ran out of memory.
    Return the values drawn along x and along y.
    """
    points = pd.DataFrame({"x": memory["value"], "y": times["value"]}).dropna()
    front = pareto_front(points.drop(index=list(oom & set(points.index))))
    ax.step(front["x"], front["y"], where="post", **FRONT)
    across, upward = list(points["x"]), list(points["y"])
    for label, (x, y) in points.iterrows():
        look = style.looks(labels)[label]
        ratio = memory.loc[label, ["low", "high"]].astype(float)
        time = times.loc[label, ["low", "high"]].astype(float)
        ax.plot(ratio, [y, y], **style.WHISKER)
        ax.plot([x, x], time, **style.WHISKER)
        across.extend(ratio)
        upward.extend(time)
        hollow = HOLLOW | {"markeredgecolor": look.color} if label in oom else {}
        ax.plot(x, y, look.marker, color=look.color, **style.DOT | hollow)
        if label in front.index:
            ax.plot(x, y, **RING)
    sns.despine(ax=ax)
    return across, upward


def _scale(axes: list[Axis], values: list[list[float]]) -> str:
    """Set the ranges of the panels' x- or y-axes, all with one scale; return the label suffix."""
    log = any(style.is_wide(mine, LOG_RANGE) for mine in values)
    for axis, mine in zip(axes, values, strict=True):
        low, high = np.nanmin(mine), np.nanmax(mine)
        if log:
            room = max((high / low) ** 0.12, 1.15)
            style.set_range(axis, low / room, high * room, log=True)
        else:
            room = 0.15 * (high - low) or 0.15 * high
            style.set_range(axis, max(low - room, 0), high + room)
    return ", log scale" if log else ""


def _legend(labels: list[str], oom: bool) -> list[Line2D]:
    """Return a handle per label, and handles for the front, the whiskers and hollow points."""
    looks = style.looks(labels)
    handles = [
        Line2D(
            [],
            [],
            ls="",
            marker=look.marker,
            color=look.color,
            label=style.wrapped(label),
            **style.DOT,
        )
        for label, look in looks.items()
    ]
    handles.append(Line2D([], [], **FRONT, **RING, label="Pareto front"))
    handles.append(style.whisker_handle())
    if oom:
        hollow = style.DOT | HOLLOW | {"markeredgecolor": style.NEUTRAL}
        handles.append(Line2D([], [], ls="", marker="o", label="oom", **hollow))
    return handles

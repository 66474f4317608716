"""Time against memory, with the Pareto front, for each workload."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import spread, style
from analysis.load import ResultError, Results
from benchmarks.metrics import BY_NAME

#: Metrics that the figure reads beside the timed values.
METRICS = ("peak_heap", "peak_live")
#: Panels side by side.
MOST_COLUMNS = 3
FRONT = {"color": "0.45", "linewidth": 1.0, "linestyle": (0, (4, 2)), "zorder": 2}
#: A ring around the points of the front.
RING = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgecolor": "0.45"}


def draw(results: Results) -> Figure:
    """A panel per workload with a point per allocator; lower left is better.

    From ``results.runs`` label, workload, status, peak_heap and peak_live (bytes), whose ratio is
    averaged over seeds; from ``results.times`` label, workload, seed and ns_per_op (ns).  Cells
    that ran out of memory are hollow and outside the front: they did less work.
    """
    labels, workloads = results.labels, results.workloads
    for run in results.runs[results.runs["peak_live"] <= 0].itertuples():
        raise ResultError(f"{run.directory}: peak_live is 0: there is no memory to compare with")
    ratios = results.runs.assign(ratio=results.runs["peak_heap"] / results.runs["peak_live"])
    observed = spread.time_observations(results.times)
    fig, axes = style.panel_grid(len(workloads), MOST_COLUMNS, (2.9, 2.7), (2.0, 0.9))
    for workload, ax in zip(workloads, axes, strict=True):
        _panel(
            ax,
            ratios.loc[ratios["workload"] == workload].groupby("label")["ratio"],
            observed.loc[observed["workload"] == workload].groupby("label")["ns_per_op"],
            labels,
            {label for label, name in results.out_of_memory() if name == workload},
        )
        ax.set_title(style.wrapped(workload, 40))
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(style.axis_label("ns_per_op"))
    heap, live = BY_NAME["peak_heap"].meaning, BY_NAME["peak_live"].meaning
    style.label_bottom(axes, f"{heap} ÷ {live}")
    fig.legend(handles=_legend(labels, bool(results.out_of_memory())), loc="outside right upper")
    style.caption(
        fig,
        "Lower left is better; points on the Pareto front are those that no other beats or equals "
        "in both.",
        f"Vertical whiskers: {spread.describe_time(observed)}",
        "Horizontal whiskers: the same over seeds.",
        style.describe_cells(results),
        style.describe_conditions(results.conditions),
    )
    return fig


def pareto_front(points: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``points`` (columns x, y; less is better) that no other dominates, by rising x.

    A row is dominated by one that is no worse in both and better in one.
    """
    ordered = points.sort_values(["x", "y"])
    best = ordered["y"].cummin().shift(fill_value=float("inf"))
    equal = ordered.duplicated(["x", "y"])
    first = ordered["y"] < best
    return ordered[first | (equal & first.groupby([ordered["x"], ordered["y"]]).transform("any"))]


def _panel(ax: Axes, ratios, times, labels: list[str], oom: set[str]) -> None:
    """One workload: the mean of each label, its intervals, and the front."""

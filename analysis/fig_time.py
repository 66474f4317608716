"""Time per operation by allocator and workload."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import spread, style
from analysis.load import Results
from benchmarks.replay.metrics import BY_NAME

#: Metrics that the figure reads in addition to the timed values.
METRICS = ("kernel_ns_per_op",)
#: Panels side by side, and the width of one in inches.
MOST_COLUMNS = 3
WIDTH = 2.6


def draw(results: Results) -> Figure:
    """Draw a panel per workload, a row per allocator: measured time plus modelled kernel time.

    Reads label, workload, seed and ns_per_op (ns) from ``results.times``; label, workload and
    kernel_ns_per_op (ns), averaged over seeds, from ``results.runs``.  Bars start at zero.  If a
    bar were more than style.WIDE_RANGE times another in its panel, dots on a logarithmic axis
    replace the bars in all panels, since a logarithmic axis has no zero.  A real library (NaN for
    kernel_ns_per_op) is marked: its measured time includes kernel time.
    """
    labels, workloads = results.labels, results.workloads
    observed = spread.time_observations(results.times)
    means = observed.groupby(["workload", "label"]).agg(
        measured=("ns_per_op", "mean"), over=("over", "first")
    )
    means["kernel"] = results.runs.groupby(["workload", "label"])["kernel_ns_per_op"].mean()
    real = means["kernel"].isna()
    means["kernel"] = means["kernel"].fillna(0.0)
    means["total"] = means["measured"] + means["kernel"]
    log = any(
        style.is_wide([*cell["measured"], *cell["total"]])
        for _, cell in means.groupby(level="workload")
    )
    mixed = observed["over"].nunique() > 1

    fig, axes = style.panel_grid(
        len(workloads),
        MOST_COLUMNS,
        panel=(WIDTH + 0.1, 0.4 + 0.16 * style.line_count(workloads) + style.rows_height(labels)),
        margin=(style.names_width(labels), 1.2),
    )
    for workload, ax in zip(workloads, axes, strict=True):
        mine, points = means.loc[workload], observed[observed["workload"] == workload]
        remarks = results.remarks(workload)
        for label in mine.index[mine["over"] == "values"] if mixed else ():
            remarks[label] = f"† {remarks.get(label, '')}"
        for label in mine.index[real.loc[workload]]:
            remarks[label] = f"‡ {remarks.get(label, '')}"
        (_dots if log else _bars)(ax, mine, points, labels)
        ends = points.groupby("label")["ns_per_op"].agg(spread.mark_end).clip(lower=mine["total"])
        low = style.log_start([*mine["measured"], *ends]) if log else 0.0
        high = style.room_at_right(ends, remarks, WIDTH, low, log=log)
        style.set_range(ax.xaxis, low, high, log=log)
        style.remark_rows(ax, labels, remarks, ends)
        style.name_rows(ax, labels, named=ax.get_subplotspec().is_first_col())
        ax.set(title=style.wrapped(workload), xlabel="")
    unit = BY_NAME["ns_per_op"].unit
    style.label_bottom(axes, f"time per operation ({unit}{', log scale' if log else ''})")
    fig.legend(handles=_legend(log, observed), loc="outside upper left", ncols=2)
    style.caption(
        fig,
        f"Whiskers (measured part): {spread.describe_time(observed)}",
        "†: only one seed." if mixed else "",
        "‡: real library, whose kernel time is part of the measured time." if any(real) else "",
        style.HIDDEN if log else "",
        style.describe_cells(results),
        style.describe_conditions(results.conditions),
    )
    return fig


def _bars(ax: Axes, means: pd.DataFrame, points: pd.DataFrame, labels: list[str]) -> None:
    """Draw stacked bars for one workload: measured in the label's colour, kernel in its tint."""
    style.bars(ax, points, "ns_per_op", labels)
    for label, mean in means.iterrows():
        tint = style.tint(style.looks(labels)[label].color)
        ax.barh(labels.index(label), mean["kernel"], style.BAR, mean["measured"], color=tint)
    seeds = points[points["over"] == "seeds"]
    rows = [labels.index(label) + 0.21 for label in seeds["label"]]
    sns.scatterplot(x=seeds["ns_per_op"].to_numpy(), y=rows, ax=ax, **style.SEED)


def _dots(ax: Axes, means: pd.DataFrame, points: pd.DataFrame, labels: list[str]) -> None:
    """Draw dots for one workload: filled for measured time, hollow for the sum with the kernel."""
    for label, mean in means.iterrows():
        look, row = style.looks(labels)[label], labels.index(label)
        ax.plot([mean["measured"], mean["total"]], [row, row], color=look.color, lw=1.2)
        ax.plot(mean["total"], row, look.marker, mec=look.color, mfc="white", ms=6)
    style.dots(ax, points, "ns_per_op", labels)


def _legend(log: bool, observed: pd.DataFrame) -> list[Line2D | Patch]:
    """Return the legend handles, in a colour that belongs to no allocator."""
    neutral = style.NEUTRAL
    measured, kernel = BY_NAME["ns_per_op"].meaning, BY_NAME["kernel_ns_per_op"].meaning
    if log:
        parts = [
            Line2D([], [], ls="", marker="o", color=neutral, label=measured, **style.DOT),
            Line2D([], [], ls="", marker="o", mfc="white", mec=neutral, label=f"… plus {kernel}"),
        ]
    else:
        parts = [
            Patch(color=neutral, label=measured),
            Patch(color=style.tint(neutral), label=kernel),
        ]
    parts.append(style.whisker_handle())
    if not log and "seeds" in set(observed["over"]):
        parts.append(style.seed_handle())
    return parts

"""Page faults by cause and system calls by kind."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import spread, style
from analysis.load import Results
from benchmarks.metrics import BY_NAME

#: The totals; what follows each with an underscore is a part, save the calls that failed, which the
#: kinds contain.
TOTALS = ("faults", "syscalls")
#: Metrics that the figure reads.
METRICS = tuple(
    name
    for total in TOTALS
    for name in BY_NAME
    if name.startswith(f"{total}_") and name != "syscalls_failed"
)


def draw(results: Results) -> Figure:
    """A row of panels per workload, a column per cause or kind, in each a row per allocator.

    From ``results.runs`` label, workload, seed and the METRICS (counts).  Causes and kinds that
    never occur have no column.  A column is logarithmic, with dots for bars, where an allocator's
    count is more than style.WIDE_RANGE times another's on the same workload.
    """
    labels, workloads, runs = results.labels, results.workloads, results.runs
    names = [name for name in METRICS if (runs[name] > 0).any()]
    absent = [name for name in METRICS if name not in names]
    means = runs.groupby(["workload", "label"])[names].mean()
    fig = Figure(
        figsize=(
            1.9 + 1.55 * len(names),
            1.3 + len(workloads) * (0.35 + style.rows_height(labels)),
        ),
        layout="constrained",
    )
    grid = fig.subplots(len(workloads), len(names), squeeze=False)
    for j, name in enumerate(names):
        log = any(style.is_wide(cell) for _, cell in means[name].groupby(level="workload"))
        for i, workload in enumerate(workloads):
            ax = grid[i, j]
            mine = runs[runs["workload"] == workload]
            (_dots if log else _bars)(ax, mine, name, labels)
            style.name_rows(ax, labels, named=j == 0)
            style.remark_rows(ax, labels, results.remarks(workload), {})
            if i == 0:
                ax.set_title(name)
            if i == len(workloads) - 1:
                ax.set_xlabel(BY_NAME[name].unit + (", logarithmic" if log else ""))
            if j == 0:
                ax.set_ylabel(style.wrapped(workload), fontweight="bold")
    return fig

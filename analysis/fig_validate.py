"""``python -m analysis.fig_validate VALIDATION.json -o OUT``: draw the twin against glibc.

Draws the output of ``python -m benchmarks.twin.predict``.  Left: predicted time by kind of work and
measured time; right: agreement of memory metrics.  On an error, prints one line on standard error
and exits with 1.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import style
from kernel.engine.command import OneLineParser, run

SCHEMA = 2
#: Legend labels of the parts of a bar, from the axis outwards: kinds of work and colour.
PARTS = {
    "instructions": (("event", "access"), style.PALETTE[4]),
    "caches and TLB": (("l2", "l3", "memory", "tlb", "walk"), style.PALETTE[1]),
    "branch mispredictions": (("mispredict",), style.PALETTE[3]),
    "copying": (("line",), style.PALETTE[6]),
    "kernel": (("entry", "kernel"), style.PALETTE[2]),
}
#: Metrics in the columns of the memory panel, and their headings.
MEMORY = {
    "faults": "faults",
    "syscalls_brk": "brk",
    "syscalls_mmap": "mmap",
    "peak_rss": "peak\nRSS",
    "end_rss": "final\nRSS",
    "": "all\nmetrics",
}


def draw(found: Mapping[str, Any]) -> Figure:
    """Draw the contents of validation.json.

    Raises ValueError, KeyError or TypeError for any other contents.
    """
    if found["schema"] != SCHEMA:
        raise ValueError(f"schema {found['schema']}, but this version reads schema {SCHEMA}")
    traces = found["traces"]
    if not traces:
        raise ValueError("it has no traces")
    names = sorted(traces, key=lambda name: traces[name]["measured_ns"] / traces[name]["events"])
    height = 1.9 + 0.3 * len(names)
    fig = Figure(figsize=(style.LEAST_WIDTH + 1.2, height), layout="constrained")
    time, memory = fig.subplots(1, 2, width_ratios=(2.2, 1))
    _time(time, names, traces)
    _memory(memory, names, traces)
    handles = [Patch(color=color, label=label) for label, (_, color) in PARTS.items()]
    handles.append(Line2D([], [], ls="", marker="D", color="0.1", label="measured, with range"))
    fig.legend(handles=handles, loc="outside upper left", ncols=6, columnspacing=1.2)
    style.caption(fig, _caption(found))
    return fig


def _caption(found: Mapping[str, Any]) -> str:
    error, programs = found["median_error"], found["programs"]
    text = (
        f"glibc and its simulated twin on {len(found['traces'])} traces, {found['repeats']} fresh "
        f"processes per trace; touch: {found['touch']}. The costs of steps were fitted on "
        f"{len(programs)} other programs, the costs of kernel work measured in loops. "
        f"Median error of the predicted time: {100 * error:.1f} %."
    )
    if found["reason"]:
        text += f" This machine's C library differs from the modelled one: {found['reason']}."
    return text


def _time(ax: Axes, names: Sequence[str], traces: Mapping[str, Any]) -> None:
    rows = np.arange(len(names))
    left = np.zeros(len(names))
    for kinds, color in PARTS.values():
        width = np.array(
            [
                sum(traces[name]["predicted_by_kind_ns"][kind] for kind in kinds)
                / traces[name]["events"]
                for name in names
            ]
        )
        ax.barh(rows, width, style.BAR, left=left, color=color, linewidth=0)
        left += width
    ends = left.copy()
    for row, name in enumerate(names):
        trace = traces[name]
        n = trace["events"]
        every = [ns / n for ns in trace["repetitions_ns"]]
        ax.plot([min(every), max(every)], [row, row], **style.WHISKER)
        ax.plot(trace["measured_ns"] / n, row, "D", color="0.1", **style.DOT | {"markersize": 5.5})
        ends[row] = max(ends[row], *every)
    errors = [traces[name]["predicted_ns"] / traces[name]["measured_ns"] - 1 for name in names]
    for row, error in enumerate(errors):
        style.remark(
            ax, ends[row], row, f"{100 * error:+.0f} %".replace("-", "−"), color=style.NEUTRAL
        )
    style.set_range(ax.xaxis, 0, 1.15 * ends.max())
    ax.set(title="Predicted and measured time", xlabel="time per event (ns)")
    style.name_rows(ax, names, named=True)


def _memory(ax: Axes, names: Sequence[str], traces: Mapping[str, Any]) -> None:
    for row, name in enumerate(names):
        for column, metric in enumerate(MEMORY):
            text, same = _cell(traces[name], metric)
            ax.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=7.5,
                color="0.2" if same else style.REMARK,
                fontweight="normal" if same else "bold",
            )
    ax.set_xlim(-0.6, len(MEMORY) - 0.4)
    ax.set_title("Memory: twin against glibc")
    style.name_rows(ax, names, named=False)
    ax.set_xticks(range(len(MEMORY)), list(MEMORY.values()), fontsize=7.5)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    sns.despine(ax=ax, left=True, bottom=True)


def _cell(trace: Mapping[str, Any], metric: str) -> tuple[str, bool]:
    """Return the text for a metric ('': for all metrics), and True if both sides agree."""
    if not metric:
        seen = sum(pair["real"] is not None for pair in trace["memory"].values())
        same = seen - len(trace["differing"])
        return f"{same}/{seen}", same == seen
    twin, real = trace["memory"][metric]["twin"], trace["memory"][metric]["real"]
    if real is None:
        return "no data", False
    if twin == real:
        return "=", True
    return f"{100 * (twin / real - 1):+.1g} %" if real else f"{twin:g}, not 0", False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = OneLineParser(
        prog="python -m analysis.fig_validate",
        description="Draw the output of python -m benchmarks.twin.predict.",
    )
    parser.add_argument("validation", type=Path, metavar="VALIDATION.json")
    parser.add_argument("-o", "--out", required=True, type=style.picture, metavar="OUT.png|svg")
    options = parser.parse_args(arguments)
    reason = style.draw_json(
        options.validation, options.out, draw, "the output of benchmarks.twin.predict"
    )
    if reason:
        print(f"fig_validate: {reason}", file=sys.stderr)
        return 1
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run("analysis.fig_validate", main))

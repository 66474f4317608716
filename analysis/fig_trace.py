"""``python -m analysis.fig_trace INFO.json -o OUT``: draw a trace in four panels.

INFO.json is the output of ``python -m benchmarks.trace info FILE --json``; the same command draws
this figure directly with ``--plot``.  On an error, prints one line on standard error and exits with
1.
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
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis import style
from kernel.engine.command import OneLineParser, run

#: Colours for numbers of objects or requests, and for bytes.
COUNT, BYTES = style.PALETTE[0], style.PALETTE[1]
#: Threads that have their own row; the others share one.
MOST_THREADS = 9
#: Width and height, inches.
SIZE = (8.6, 6.4)
LINE = {"linewidth": 1.7}
#: Width of each of two bars side by side.
BAR = 0.4


def draw(about: Mapping[str, Any]) -> Figure:
    """Draw live bytes over time, sizes, lifetimes and threads; ``about`` describes the trace."""
    fig = Figure(figsize=SIZE, layout="constrained")
    (live, sizes), (lifetimes, threads) = fig.subplots(2, 2)
    _draw_live(live, about)
    _draw_sizes(sizes, about)
    _draw_lifetimes(lifetimes, about)
    _draw_threads(threads, about)
    for ax in (live, sizes, lifetimes, threads):
        sns.despine(ax=ax)
    fig.legend(
        handles=[
            Line2D([], [], color=COUNT, **LINE, label="number of objects or requests"),
            Line2D([], [], color=BYTES, **LINE, label="bytes"),
        ],
        loc="outside upper right",
        ncols=2,
    )
    fig.suptitle(Path(about["file"]).name, x=0.01, ha="left", fontsize=10, fontweight="bold")
    style.caption(
        fig,
        f"{about['events']:,} events; threads: {about['threads']:,}; "
        f"{_spell(about['allocated_bytes'])} allocated in total, peak live "
        f"{_spell(about['peak_live_bytes'])}.",
        "Sizes: each pair of bars covers sizes up to a power of two and above the previous one.",
        "A lifetime ends with the free, not with a realloc. Objects live at the end of the trace "
        "count in the total, so the curves stay below 100 % by their share.",
    )
    return fig


def _spell(bytes_: float) -> str:
    divisor, unit = style.byte_unit(bytes_)
    return f"{style.short(bytes_ / divisor)} {unit}"


def _draw_live(ax: Axes, about: Mapping[str, Any]) -> None:
    rows = about["live"]
    divisor, unit = style.byte_unit(about["peak_live_bytes"])
    events = np.array([0] + [row["event"] + 1 for row in rows])
    peaks = np.array([row["peak_bytes"] for row in rows]) / divisor
    if len(rows):
        ax.stairs(peaks, events, fill=True, color=style.tint(BYTES))
        ax.stairs(peaks, events, color=BYTES, **LINE, baseline=None)
    style.set_range(ax.xaxis, 0, max(events[-1], 1), ticks=4)
    style.set_range(ax.yaxis, 0, 1.06 * max(peaks.max(initial=0), 1 / divisor), ticks=4)
    ax.set(title="Live bytes over time", xlabel="event", ylabel=unit)


def _draw_sizes(ax: Axes, about: Mapping[str, Any]) -> None:
    rows = about["sizes"]
    exponents = np.array([row["to"].bit_length() - 1 for row in rows])
    for name, shift, color in (("requests", -BAR, COUNT), ("bytes", 0, BYTES)):
        values = np.array([row[name] for row in rows])
        share = 100 * values / max(values.sum(), 1)
        ax.bar(exponents + shift, share, BAR, align="edge", color=color, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda e, _: _size(e)))
    ax.grid(visible=False, axis="x")
    ax.set(title="Requests by size", xlabel="size, up to (bytes)", ylabel="share (%)")


def _size(exponent: float) -> str:
    """Format 2**``exponent`` bytes in few characters."""
    if exponent < 0 or exponent != int(exponent):
        return ""
    suffixes = ((30, "G"), (20, "M"), (10, "K"), (0, ""))
    shift, suffix = next(pair for pair in suffixes if exponent >= pair[0])
    return f"{1 << int(exponent) - shift}{suffix}"


def _draw_lifetimes(ax: Axes, about: Mapping[str, Any]) -> None:
    lifetimes = about["lifetimes"]["events"]
    rows = lifetimes["distribution"]
    ends = [row["below"] for row in rows]
    alive = {"objects": lifetimes["alive"], "bytes": about["end_live_bytes"]}
    for name, color in (("objects", COUNT), ("bytes", BYTES)):
        values = np.array([row[name] for row in rows])
        share = 100 * np.cumsum(values) / max(values.sum() + alive[name], 1)
        ax.plot([1, *ends], [0, *share], color=color, **LINE)
    style.set_range(ax.xaxis, 1, max([2, *ends]), log=True, ticks=6)
    style.set_range(ax.yaxis, 0, 100)
    ax.set(
        title="Lifetimes",
        xlabel="lifetime (allocator events, log scale)",
        ylabel="cumulative share (%)",
    )


def _draw_threads(ax: Axes, about: Mapping[str, Any]) -> None:
    rows = sorted(about["by_thread"], key=lambda row: -row["bytes"])
    most = len(rows) if len(rows) == MOST_THREADS + 1 else MOST_THREADS  # no row for "1 others"
    shown = [(f"{row['thread']}", row["requests"], row["bytes"]) for row in rows[:most]]
    rest = rows[most:]
    if rest:
        others = [sum(row[name] for row in rest) for name in ("requests", "bytes")]
        shown.append((f"{len(rest)} others", *others))
    for i, shift, color in ((1, -BAR, COUNT), (2, 0, BYTES)):
        values = np.array([row[i] for row in shown])
        total = max(values.sum(), 1)
        ax.barh(
            np.arange(len(shown)) + shift,
            100 * values / total,
            BAR,
            align="edge",
            color=color,
            linewidth=0,
        )
    ax.set_yticks(range(len(shown)), [name for name, *_ in shown])
    ax.set_ylim(max(len(shown), 4) - 0.5, -0.5)
    style.set_range(ax.xaxis, 0, 100)
    ax.grid(visible=False, axis="y")
    ax.set(title="Requests by thread", xlabel="share (%)", ylabel="thread")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = OneLineParser(
        prog="python -m analysis.fig_trace",
        description="Draw the output of python -m benchmarks.trace info --json.",
    )
    parser.add_argument("info", type=Path, metavar="INFO.json")
    parser.add_argument("-o", "--out", required=True, type=style.picture, metavar="OUT.png|svg")
    options = parser.parse_args(arguments)
    reason = style.draw_json(options.info, options.out, draw, "the output of trace info --json")
    if reason:
        print(f"fig_trace: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run("analysis.fig_trace", main))

"""``python -m analysis.fig_synth RESULT_DIRECTORY… -o OUT``: draw synthetic against real traces.

Draws memory and faults under ``workload=synth`` relative to ``workload=trace`` for the same file,
and the same for the null model, ``workload.shuffle=true``.  Needs results of all three, from two
sweeps:

    python bench.py -m experiment=synth
    python bench.py -m experiment=synth workload=synth workload.shuffle=true

On an error, prints one line on standard error and exits with 1.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import style
from analysis.load import ResultError, Results, load
from kernel.engine.command import EXIT_FAILED, OneLineParser, report_exit, run, text_of

#: Metrics that are compared, and the names of their rows.
METRICS = {
    "peak_heap": "peak heap",
    "mean_heap": "mean heap",
    "peak_rss": "peak RSS",
    "mean_rss": "mean RSS",
    "faults": "page faults",
}
#: Half-width of the band of good agreement, from 1 / (1 + BAND) to 1 + BAND.
BAND = 0.1
#: Labels of a trace and of its models; the label of a shipped trace is only its name.
_ORIGINAL = re.compile(r"(?:trace\()?([^,()]+)\)?")
_MODEL = re.compile(r"synth\(([^,()]+)(, shuffle=true)?\)")
#: Legend label, colour and marker of the two models.
KINDS = {
    "synth": ("synthetic: sizes, lifetimes and phases of the trace", style.PALETTE[0], "o"),
    "null": ("null model: lifetimes shuffled", style.PALETTE[5], "D"),
}
ROW = 0.155


def ratios(results: Results) -> pd.DataFrame:
    """Return a row per trace, label, kind (a key of KINDS), seed and metric, with its ``ratio``.

    The ratio is to the original trace.  Raises ResultError if an original or a model is missing.
    """
    runs = results.runs.copy()
    named = [_named(run) for run in runs.itertuples()]
    runs["trace"], runs["kind"] = zip(*named, strict=True)
    long = runs.melt(
        ["trace", "label", "kind", "seed"], list(METRICS), var_name="metric", value_name="value"
    )
    cells = ["trace", "label", "metric"]
    original = long[long["kind"] == "original"].groupby(cells)["value"].mean()
    models = long[long["kind"] != "original"].copy()
    for kind in KINDS:
        for trace in sorted(long["trace"].unique()):
            if not ((models["trace"] == trace) & (models["kind"] == kind)).any():
                what = "shuffle=true" if kind == "null" else "its default settings"
                raise ResultError(f"no run of workload synth for {trace} with {what}")
    models = models.join(original.rename("original"), on=cells)
    for row in models[models["original"].isna()].itertuples():
        raise ResultError(f"no run of {row.label} on the original trace {row.trace}")
    for row in models[(models["original"] <= 0) | (models["value"] <= 0)].itertuples():
        raise ResultError(f"{row.label} on {row.trace}: {row.metric} is 0, so it has no ratio")
    models["ratio"] = models["value"] / models["original"]
    return models


def _named(run: Any) -> tuple[str, str]:
    """Return the trace of a run, and "original" or a key of KINDS.  Raises ResultError."""
    model = _MODEL.fullmatch(run.workload)
    if model:
        return model[1], "null" if model[2] else "synth"
    original = _ORIGINAL.fullmatch(run.workload)
    if run.workload_name != "trace" or not original:
        raise ResultError(
            f"{run.directory}: {run.workload} is neither a trace nor a synthetic trace"
        )
    return original[1], "original"


def draw(results: Results) -> Figure:
    """Draw a panel per trace, with a row per allocator and metric; all panels share their axis."""
    frame = ratios(results)
    traces, labels = sorted(frame["trace"].unique()), results.labels
    rows = [(label, metric) for label in labels for metric in METRICS]
    names = 1.0 + style.names_width(labels)
    fig, axes = style.panel_grid(
        len(traces), 2, panel=(2.6, 0.5 + ROW * len(rows)), margin=(names, 1.1)
    )
    low, high = min(frame["ratio"].min(), 1 / 1.5), max(frame["ratio"].max(), 1.5)
    for trace, ax in zip(traces, axes, strict=True):
        _panel(ax, frame[frame["trace"] == trace], rows)
        style.set_range(ax.xaxis, low / 1.15, high * 1.15, log=True)
        ax.set_title(trace)
    style.label_bottom(axes, "ratio to the original trace (log scale)")
    fig.legend(
        handles=[
            *(
                Line2D([], [], ls="", marker=marker, color=color, label=text, **style.DOT)
                for text, color, marker in KINDS.values()
            ),
            Patch(color="0.9", label=f"within {BAND:.0%}".replace("%", " %")),
        ],
        loc="outside upper left",
        ncols=2,
    )
    style.caption(
        fig,
        f"One point per seed ({', '.join(str(seed) for seed in sorted(frame['seed'].unique()))}).",
        "The original traces do not depend on the seed.",
        style.describe_conditions(results.conditions),
    )
    return fig


def _panel(ax: Axes, frame: pd.DataFrame, rows: list[tuple[str, str]]) -> None:
    ax.axvspan(1 / (1 + BAND), 1 + BAND, color="0.9", linewidth=0, zorder=0)
    for kind, (_, color, marker) in reversed(KINDS.items()):
        mine = frame[frame["kind"] == kind]
        at = [rows.index(pair) for pair in zip(mine["label"], mine["metric"], strict=True)]
        ax.plot(
            mine["ratio"], at, ls="", marker=marker, color=color, **style.DOT | {"markersize": 5}
        )
    ax.set_ylim(len(rows) - 0.4, -0.6)
    count = len(METRICS)
    for group in range(count, len(rows), count):
        ax.axhline(group - 0.5, color="0.6", linewidth=0.7)
    if ax.get_subplotspec().is_first_col():
        ax.set_yticks(range(len(rows)), [METRICS[metric] for _, metric in rows], fontsize=7)
        for group, (label, _) in enumerate(rows[::count]):
            ax.annotate(
                style.wrapped(label),
                (0, group * count + (count - 1) / 2),
                xycoords=ax.get_yaxis_transform(),
                xytext=(-60, 0),
                textcoords="offset points",
                ha="right",
                va="center",
            )
    else:
        ax.set_yticks([])
    ax.grid(visible=False, axis="y")
    sns.despine(ax=ax)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = OneLineParser(
        prog="python -m analysis.fig_synth",
        description="Draw memory and faults of synthetic traces relative to the original traces.",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT_DIRECTORY")
    parser.add_argument("-o", "--out", required=True, type=style.picture, metavar="OUT.png|svg")
    options = parser.parse_args(arguments)
    try:
        style.check_output(options.out)
        results = load(
            options.results, timing=False, timelines=False, metrics=list(METRICS), gaps=True
        )
        with style.publication():
            style.save_as(draw(results), options.out)
    except ResultError as error:
        return report_exit("fig_synth", str(error), EXIT_FAILED)
    except OSError as error:
        return report_exit("fig_synth", text_of(error), EXIT_FAILED)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run("analysis.fig_synth", main))

"""Bounds of theory on placement policies, against the results of the allocators here.

Drawn only if named with --figures, from the sweeps of three experiments together:

    python bench.py -m experiment=theory
    python bench.py -m experiment=theory_adversary
    python bench.py -m experiment=theory_rounding
    python -m analysis SWEEP SWEEP SWEEP --figures theory --gaps -o figures
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import style
from analysis.load import ResultError, Results

#: Metrics that the figure reads.
METRICS = ("peak_heap", "peak_live")
#: Workloads of the panels.
NO_REUSE, ADVERSARY, ROUNDING = "ffworst", "robson", "churn"
#: Theoretical curves, and the area between two of them.
THEORY = {"color": "0.35", "linewidth": 1.1, "linestyle": (0, (4, 2)), "zorder": 2}
BAND = {"color": "0.9", "linewidth": 0, "zorder": 0}
#: Expected range of binary buddy's memory, as a multiple of the requested bytes.
LEAST, MOST = 4 / 3, 3 / 2
#: Text beside a line.
NOTE = {"fontsize": 7.5, "color": style.NEUTRAL}


def draw(results: Results) -> Figure:
    """Draw three panels from peak_heap and peak_live (bytes) in ``results.runs``, and the settings.

    Left, ffworst: peak heap over peak live, by round.  Middle, the adversary that sees addresses:
    peak heap over its budget, by doublings of the block size.  Right, log-uniform sizes: peak heap
    over peak live, by doublings of the size.
    """
    runs = _described(results)
    panels = {NO_REUSE: _no_reuse, ADVERSARY: _adversary, ROUNDING: _rounding}
    missing = [name for name in panels if name not in set(runs["workload_name"])]
    if missing:
        raise ResultError(
            f"no result of {', '.join(missing)}: the figure theory needs the sweeps of the "
            "experiments theory, theory_adversary and theory_rounding; give all three"
        )
    fig = Figure(figsize=(10.2, 4.1), layout="constrained")
    axes = fig.subplots(1, len(panels), squeeze=False).flat
    for ax, (name, panel) in zip(axes, panels.items(), strict=True):
        panel(ax, runs[runs["workload_name"] == name], style.looks(results.labels))
        ax.grid(visible=True, axis="y")
        ax.spines[["top", "right"]].set_visible(False)
    style.caption(
        fig,
        "Left: block sizes double and every other survivor is freed, so no freed block can be "
        "reused; blocks above an allocator's mmap threshold (dotted) are unmapped when freed.",
        "Middle: n is the largest block in units of the smallest, M the adversary's limit on live "
        "bytes; for any policy some program forces at least the lower line, and first fit never "
        "exceeds the upper one.",
        "Right: nothing is freed; rounding up to powers of two multiplies the requested bytes by "
        f"{LEAST:.2f} to {MOST:.2f}, on average by 2 ln 2 over whole doublings.",
        style.describe_cells(results) if results.out_of_memory() else "",
        style.describe_conditions(results.conditions),
    )
    return fig


def _described(results: Results) -> pd.DataFrame:
    """Return the runs, each with the settings of its allocator and its workload."""
    runs = results.runs.copy()
    settings = [_settings(Path(directory)) for directory in runs["directory"]]
    runs["allocator_settings"] = [one["allocator"] for one in settings]
    runs["workload_settings"] = [one["workload"] for one in settings]
    return runs


def _settings(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the sections allocator and workload of a run's config.yaml.  Raises ResultError."""
    path = directory / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: dict(config[name]) for name in ("allocator", "workload")}
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, yaml.YAMLError):
        raise ResultError(f"{path}: not the configuration of a run") from None


def without_reuse(rounds: np.ndarray) -> np.ndarray:
    """Return peak heap over peak live after ``rounds`` of ffworst, (n,), if nothing is reused."""
    return rounds / (2 - 2.0 ** (1 - rounds))


def first_fit_at_most(doublings: np.ndarray) -> np.ndarray:
    """Return address-ordered first fit's upper bound on heap over M, (n,): H(2**doublings) / ln 2.

    Knuth, TAOCP 1, exercise 2.5-43, after Robson 1977.
    """
    return np.array([math.fsum(1 / i for i in range(1, 2**d + 1)) for d in doublings]) / math.log(2)


def _line(ax: Axes, x: pd.Series, y: pd.Series, color: str, marker: str, name: str) -> None:
    """Draw points, joined by a line in the order of ``x``."""
    order = np.argsort(x.to_numpy(), kind="stable")
    x, y = x.to_numpy()[order], y.to_numpy()[order]
    look = style.DOT | {"markersize": 5.5}
    ax.plot(x, y, marker=marker, color=color, linewidth=1.0, label=name, **look)


def _legend(ax: Axes, *, formulas: bool = False) -> None:
    legend = ax.legend(loc="upper left", borderaxespad=0.1, handlelength=1.6)
    for text in legend.get_texts():
        text.set_parse_math(formulas)


def _note(ax: Axes, text: str, at: tuple[float, float], shift: tuple[float, float]) -> None:
    """Write ``text``, which may hold formulas, left of a point and shifted by points of type."""
    look = NOTE | {"textcoords": "offset points", "ha": "right", "va": "center"}
    ax.annotate(text, at, xytext=shift, parse_math=True, **look)


def _setting(runs: pd.DataFrame, name: str) -> pd.Series:
    """Return a setting of each run's workload."""
    return runs["workload_settings"].map(lambda settings: settings[name])


def _no_reuse(ax: Axes, runs: pd.DataFrame, looks: dict[str, style.Look]) -> None:
    """Draw ffworst: the cost of no reuse, and the sizes from which allocators unmap blocks."""
    smallest = int(_setting(runs, "smallest").min())
    every = np.arange(1, _setting(runs, "rounds").max() + 1)
    theory = without_reuse(every)
    for label, mine in runs.groupby("label"):
        look, ratio = looks[label], mine["peak_heap"] / mine["peak_live"]
        _line(ax, _setting(mine, "rounds"), ratio, look.color, look.marker, label)
        threshold = mine["allocator_settings"].iloc[0].get("mmap_threshold", 0)
        if threshold:  # a line after the last round whose blocks do not exceed it
            last = math.floor(math.log2(threshold / smallest)) + 1.5
            ax.vlines(last, 0, theory[-1] / 1.3, color=look.color, lw=0.9, ls=":", zorder=1)
    ax.plot(every, theory, **THEORY | {"zorder": 5})
    _note(ax, "no reuse: k / (2 − 2$^{1−k}$)", (every[-1], theory[-1]), (-2, 9))
    _legend(ax)
    style.set_range(ax.xaxis, 0.5, every[-1] + 0.5)
    style.set_range(ax.yaxis, 0, 1.3 * theory[-1])
    ax.set(title="ffworst", ylabel="peak heap / peak live")
    ax.set_xlabel(f"round k: blocks of {smallest // 1024} KiB · 2$^{{k−1}}$", parse_math=True)


def _adversary(ax: Axes, runs: pd.DataFrame, looks: dict[str, style.Look]) -> None:
    """Draw Robson's adversary: first fit between the two bounds."""
    unit, budget = (int(_setting(runs, name).min()) for name in ("unit", "budget"))
    steps = _setting(runs, "steps")
    for i, (number, mine) in enumerate(runs.groupby(steps)):
        name = "sizes double" if number == 1 else f"sizes grow by 2$^{{1/{number}}}$"
        ratio = mine["peak_heap"] / _setting(mine, "budget")
        color = looks[mine["label"].iloc[0]].color
        _line(ax, _setting(mine, "doublings"), ratio, color, style.MARKERS[i], name)
    every = np.arange(0, _setting(runs, "doublings").max() + 1)
    last = every[-1]
    lower, upper = every / 2 + 1 - unit * 2.0**every / budget, first_fit_at_most(every)
    ax.fill_between(every, lower, upper, **BAND)
    for bound in (lower, upper):
        ax.plot(every, bound, **THEORY | {"zorder": 5})
    _note(ax, "first fit, upper bound:\nM H$_n$ / ln 2 ≈ M log$_2$ n", (last, upper[-1]), (-12, 7))
    _note(ax, "any policy, lower bound:\n½ M log$_2$ n + M − n", (last, lower[-1]), (0, -38))
    _legend(ax, formulas=True)
    style.set_range(ax.xaxis, 0, last + 0.5)
    ax.set_xticks(every[::2])
    style.set_range(ax.yaxis, 0, 1.5 * upper[-1])
    allocators = ", ".join(sorted(runs["allocator"].unique()))
    ax.set(title=f"adversary that sees addresses: {allocators}", ylabel="peak heap / M")
    ax.set_xlabel("log$_2$ n", parse_math=True)


def _rounding(ax: Axes, runs: pd.DataFrame, looks: dict[str, style.Look]) -> None:
    """Draw the cost of rounding log-uniform sizes up to powers of two."""
    smallest = int(_setting(runs, "sizes").map(lambda sizes: sizes["low"]).min())
    end = 0.5
    for label, mine in runs.groupby("label"):
        look, ratio = looks[label], mine["peak_heap"] / mine["peak_live"]
        doublings = _setting(mine, "sizes").map(lambda s: math.log2(s["high"] / s["low"]))
        _line(ax, doublings, ratio, look.color, look.marker, label)
        end = max(end, doublings.max() + 0.5)
    expected = 2 * math.log(2)
    ax.fill_between([0.5, end], LEAST, MOST, **BAND)
    ax.plot([0.5, end], [expected, expected], **THEORY | {"zorder": 5})
    _note(ax, "2 ln 2", (end, expected), (-2, -9))
    _legend(ax)
    style.set_range(ax.xaxis, 0.5, end)
    style.set_range(ax.yaxis, 1, 1.7)
    ax.set(
        title="log-uniform sizes",
        xlabel=f"doublings from {smallest // 1024} KiB to the largest size",
        ylabel="peak heap / peak live",
    )

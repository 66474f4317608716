"""Common style of all figures: colours, units, panels, remarks, captions, files."""

import argparse
import io
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.load import ResultError, Results
from benchmarks.replay.metrics import BY_NAME, TITLES
from kernel.engine.command import text_of
from kernel.engine.output import replacing, unwritable

#: Palette of Okabe and Ito, safe for the common forms of colour blindness; without its yellow, too
#: pale for a line on white, and with dark grey instead of black.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#4D4D4D")
#: Hatches for the first and every further round through the palette.
HATCHES = ("", "////", "....", "xxxx", "----")
#: Their number and the palette's are coprime, so that a pair of colour and marker repeats late.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h")

#: Colour of marks that belong to no allocator, and of remarks like "oom" and "failed".
NEUTRAL = "#595959"
REMARK = "#A11D2A"
#: Lines of confidence intervals, and the outline that makes them visible on bars of any colour.
WHISKER = {"color": "0.1", "linewidth": 1.2, "zorder": 3, "solid_capstyle": "butt"}
ON_BAR = {"zorder": 5, "path_effects": [Stroke(linewidth=2.8, foreground="white"), Normal()]}
#: Points for single seeds.
SEED = {"s": 11, "color": "white", "edgecolor": "0.2", "linewidth": 0.6, "zorder": 6}

#: Minimum width of a figure in inches, needed by legends and captions.
LEAST_WIDTH = 6.8
#: Height of a bar in rows.
BAR = 0.64
#: Points for allocators.
DOT = {"markersize": 7.5, "markeredgecolor": "white", "markeredgewidth": 0.5, "zorder": 4}
#: Caption sentence about intervals that these points cover.
HIDDEN = "Intervals narrower than a marker are hidden by it."

#: File types of figures.
PICTURES = (".png", ".svg")
#: Dots per inch of the PNG.
DPI = 200
#: Ratio of largest to smallest value above which an axis is logarithmic.
WIDE_RANGE = 50.0
#: Maximum number of allocator labels that can be distinguished.
MOST_LABELS = len(PALETTE) * len(HATCHES)

_SETTINGS = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.titleweight": "bold",
    "axes.edgecolor": "0.6",
    "grid.color": "0.9",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "savefig.dpi": DPI,
    "path.simplify_threshold": 0.3,  # pixels; halves the size of files with long lines
    "svg.hashsalt": "analysis",  # makes the file of a figure reproducible
    "text.parse_math": False,  # a $ in a label is a $; formulas ask for it
}


class Look(NamedTuple):
    """Appearance of an allocator label in every figure."""

    color: str
    marker: str
    hatch: str


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Return the look of each label; sorted labels take the colours of the palette in order."""
    if len(labels) > MOST_LABELS:
        raise ResultError(
            f"{len(labels)} allocator labels, but a figure distinguishes at most {MOST_LABELS}; "
            "draw fewer results"
        )
    return {
        label: Look(
            PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], HATCHES[i // len(PALETTE)]
        )
        for i, label in enumerate(sorted(labels))
    }


@contextmanager
def publication() -> Iterator[None]:
    """Set this module's style for figures drawn and saved within the context."""
    with sns.axes_style("whitegrid"), mpl.rc_context(_SETTINGS):
        yield


class Picture(Figure):
    """A figure that shows itself where it is the value of a notebook's cell."""

    def _repr_png_(self) -> bytes:
        """The PNG, by the name under which notebooks ask for it."""
        content = io.BytesIO()
        with publication():
            self.savefig(content, dpi=self.dpi)
        return content.getvalue()


# --- Words and units -----------------------------------------------------------------------------


def axis_label(name: str) -> str:
    """Return the meaning and unit of a metric."""
    metric = BY_NAME[name]
    return f"{metric.meaning} ({metric.unit})"


def wrapped(label: str, width: int = 26) -> str:
    """Wrap ``label`` to about ``width`` characters, with breaks before and between settings."""
    if len(label) <= width:
        return label
    name, _, settings = label.partition("(")
    lines = textwrap.wrap(f"({settings}" if settings else "", width, break_long_words=False)
    return "\n".join([name, *lines])


def byte_unit(largest: float) -> tuple[float, str]:
    """Return the size in bytes and the name of the unit that suits values up to ``largest``."""
    for exponent, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if largest >= 2**exponent:
            return float(2**exponent), name
    return 1.0, "bytes"


def short(value: float) -> str:
    """Format ``value`` to three digits with a suffix: 0, 0.25, 12, 3.4k, 120k, 2.5M."""
    for divisor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * divisor:
            return f"{float(f'{value / divisor:.3g}'):g}{suffix}"
    return f"{float(f'{value:.3g}'):g}"


def describe_conditions(conditions: Mapping[str, Any]) -> str:
    """Return the caption sentence about the conditions that all runs share."""
    kib = conditions["page_size"] / 1024
    return f"All runs: {kib:g} KiB pages, touch: {conditions['touch']}."


def describe_cells(results: Results) -> str:
    """Return the caption sentences about incomplete cells, or ''."""
    sentences = []
    if results.out_of_memory():
        sentences.append("oom: out of memory (k/n: in k of n seeds), so less work was done.")
    gaps = [f"{label} on {name} ({why})" for (label, name), why in results.gaps().items()]
    if gaps:
        sentences.append(f"Missing: {', '.join(gaps)}.")
    return " ".join([*sentences, describe_threads(results)]).strip()


#: What the marks of allocators mean whose threads are not real ones.
_THREADS = {
    "interleaved": "the threads take turns on one core, contention is not modelled",
    "real": "real threads",
}


def describe_threads(results: Results) -> str:
    """Return the caption sentence about how several threads were run, or ''."""
    found = results.runs[results.runs["threads"] != "one"]
    parts = [
        f"{', '.join(sorted(set(runs['label'])))}: {_THREADS.get(how, how)}"
        for how, runs in found.groupby("threads")
    ]
    return f"Threads: {'; '.join(parts)}." if parts else ""


def describe_floor(results: Results) -> str:
    """Return the caption sentence about the A/A floor, or ''."""
    if not results.floors:
        return ""
    floors = ", ".join(f"{TITLES[name]} {floor:.1%}" for name, floor in results.floors.items())
    return (
        "Grey band: the difference from the fastest is below the A/A floor, the difference between "
        f"two measurements of one cell ({floors})."
    )


def describe_machine(results: Results) -> str:
    """Return the caption sentence about what was unusual about the machine, or ''."""
    return f"While timing: {'; '.join(results.notes)}." if results.notes else ""


# --- Axes ----------------------------------------------------------------------------------------


def is_wide(values: Iterable[float], limit: float = WIDE_RANGE) -> bool:
    """Return True if the largest value exceeds ``limit`` times the smallest positive one."""
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) > limit * min(positive)


def tint(color: str) -> tuple[float, float, float]:
    """Return a light shade of ``color``."""
    return sns.light_palette(color, 10)[4]


def set_range(axis: Axis, low: float, high: float, *, log: bool = False, ticks: int = 5) -> None:
    """Set scale, limits and readable ticks of an x- or y-axis; if ``log``, ``low`` must be > 0."""
    if log:
        getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
        decades = math.log10(high / low)
        subs = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=ticks + 1))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    getattr(axis.axes, f"set_{axis.axis_name}lim")(low, high)


def log_start(values: Iterable[float]) -> float:
    """Return the lower end of a logarithmic axis for ``values``, which are positive."""
    values = list(values)
    low, high = min(values), max(values)
    return low / max(1.4, (high / low) ** 0.15)


def room_at_right(
    ends: Mapping[str, float],
    texts: Mapping[str, str],
    width: float,
    low: float = 0.0,
    *,
    log: bool = False,
) -> float:
    """Return the upper limit of an x-axis from ``low``, ``width`` inches long, with room for texts.

    The mark of each label ends at ``ends[label]``, and ``texts[label]`` fits to the right of it.
    """

    def scaled(value: float) -> float:
        return math.log10(value / low) if log else value - low

    span = 0.0
    for label, end in ends.items():
        share = min((0.17 + 0.068 * len(texts.get(label, ""))) / width, 0.8)
        span = max(span, scaled(max(end, low)) / (1 - share))
    return low * 10**span if log else low + span


def line_count(labels: Sequence[str]) -> int:
    """Return the largest number of lines of any of ``labels`` when wrapped."""
    return 1 + max(wrapped(label).count("\n") for label in labels)


def rows_height(labels: Sequence[str]) -> float:
    """Return the height in inches of a panel with a row per label; all rows are equally high."""
    return len(labels) * max(0.27, 0.15 * line_count(labels))


def names_width(labels: Sequence[str]) -> float:
    """Return the width in inches of the row names at the left of a panel."""
    return 0.2 + 0.075 * max(len(line) for label in labels for line in wrapped(label).split("\n"))


def panel_grid(
    count: int, most_columns: int, panel: tuple[float, float], margin: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """Make a figure with ``count`` panels; ``panel`` and ``margin``: width and height in inches."""
    rows = math.ceil(count / most_columns)
    columns = math.ceil(count / rows)
    size = (max(margin[0] + panel[0] * columns, LEAST_WIDTH), margin[1] + panel[1] * rows)
    fig = Figure(figsize=size, layout="constrained")
    grid = fig.subplots(rows, columns, squeeze=False).flat
    for ax in grid[count:]:
        ax.remove()
    return fig, list(grid[:count])


def name_rows(ax: Axes, labels: Sequence[str], *, named: bool) -> None:
    """Give the y-axis of ``ax`` a row per label, the first at the top; show names if ``named``."""
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_yticks(range(len(labels)), [wrapped(label) for label in labels] if named else [])
    ax.set_ylabel("")
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    sns.despine(ax=ax, left=True)


def bars(ax: Axes, cells: pd.DataFrame, labels: Sequence[str]) -> None:
    """Draw a bar from zero in each row, with its whisker; ``cells``: label and spread.ESTIMATE."""
    by_label = looks(labels)
    sns.barplot(
        cells,
        x="value",
        y="label",
        hue="label",
        order=labels,
        hue_order=labels,
        palette=[by_label[label].color for label in labels],
        saturation=1,
        width=BAR,
        errorbar=None,
        linewidth=0,
        legend=False,
        ax=ax,
    )
    for bar in ax.patches:
        bar.set_hatch(by_label[labels[round(bar.get_y() + bar.get_height() / 2)]].hatch)
    for cell in cells.itertuples():
        ax.plot([cell.low, cell.high], [labels.index(cell.label)] * 2, **WHISKER | ON_BAR)


def dots(ax: Axes, cells: pd.DataFrame, labels: Sequence[str]) -> None:
    """Draw a dot in each row, with its whisker, as :func:`bars` does; for logarithmic axes."""
    for cell in cells.itertuples():
        look, row = looks(labels)[cell.label], labels.index(cell.label)
        ax.plot([cell.low, cell.high], [row, row], **WHISKER)
        ax.plot(cell.value, row, look.marker, color=look.color, **DOT)


def label_bottom(axes: Sequence[Axes], text: str) -> None:
    """Label the x-axis of those ``axes`` that have no panel below."""
    for ax in axes[-axes[0].get_gridspec().ncols :]:
        ax.set_xlabel(text)


def remark(ax: Axes, x: float | None, row: int, text: str, *, color: str = REMARK) -> None:
    """Write ``text`` in a row of ``ax``, to the right of ``x`` (None: of the left edge)."""
    ax.annotate(
        text,
        (0 if x is None else x, row),
        xycoords=ax.get_yaxis_transform() if x is None else "data",
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=color,
        zorder=7,
    )


def remark_rows(
    ax: Axes, labels: Sequence[str], remarks: Mapping[str, str], ends: Mapping[str, float]
) -> None:
    """Write each label's remark in its row, after the end of its mark, or at the left edge."""
    for label, text in remarks.items():
        remark(ax, ends.get(label), labels.index(label), text)


def remark_corner(ax: Axes, text: str) -> None:
    """Write ``text`` in the upper left corner of ``ax``."""
    ax.text(0.03, 0.95, text, va="top", fontsize=8, color=REMARK, transform=ax.transAxes)


def whisker_handle() -> Line2D:
    """Return the legend handle for the lines WHISKER."""
    return Line2D([], [], label="interval (see caption)", **WHISKER)


def seed_handle() -> Line2D:
    """Return the legend handle for the points SEED."""
    return Line2D(
        [], [], ls="", marker="o", ms=3.5, mfc="white", mec="0.2", mew=0.6, label="one seed"
    )


def caption(fig: Figure, *sentences: str) -> None:
    """Write ``sentences`` below the panels of ``fig``, wrapped to its width."""
    text = " ".join(sentence for sentence in sentences if sentence)
    fig.supxlabel(
        textwrap.fill(text, int(fig.get_figwidth() * 16.5)),
        x=0.01,
        ha="left",
        fontsize=7.5,
        color=NEUTRAL,
        linespacing=1.3,
    )


# --- Files ---------------------------------------------------------------------------------------


def save(fig: Figure, directory: Path, name: str) -> None:
    """Write ``fig`` as PNG and SVG to ``directory``."""
    for suffix in PICTURES:
        save_as(fig, directory / f"{name}{suffix}")


def save_as(fig: Figure, out: Path) -> None:
    """Write ``fig`` to ``out``, one of PICTURES by its suffix, completely or not at all."""
    with replacing(out) as scratch:
        fig.savefig(scratch, metadata={"Date": None} if out.suffix == ".svg" else None)


def check_output(out: Path) -> None:
    """Raise ResultError if no file can be written at ``out``."""
    if reason := unwritable(out):
        raise ResultError(f"{out}: {reason}")


def draw_json(source: Path, out: Path, draw: Callable[[Any], Figure], what: str) -> str:
    """Draw the contents of a JSON file and write them to ``out``; return '', or one line on error.

    ``what`` describes the expected contents.  ``draw`` raises ValueError, KeyError or TypeError for
    any other.
    """
    try:
        check_output(out)
        contents = json.loads(source.read_text(encoding="utf-8"))
        with publication():
            save_as(draw(contents), out)
    except ResultError as error:
        return str(error)
    except OSError as error:
        return text_of(error)
    except (ValueError, KeyError, TypeError) as error:
        return f"{source}: not {what} ({error})"
    return ""


def picture(text: str) -> Path:
    """Parse the path of a picture on the command line.  Raises argparse.ArgumentTypeError."""
    if Path(text).suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in .png or .svg")
    return Path(text)

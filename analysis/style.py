"""How every figure looks: colours, units, panels, remarks, captions, files."""

import argparse
import io
import json
import math
import textwrap
import uuid
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

from analysis import spread
from analysis.load import ResultError, Results
from benchmarks.replay.metrics import BY_NAME

#: Okabe and Ito's palette, which the common forms of colour blindness tell apart; without its
#: yellow, too pale for a line on white, and with a dark grey for its black.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#4D4D4D")
#: Each further round through the palette has a hatch of its own.
HATCHES = ("", "////", "....", "xxxx", "----")
#: Their number has no factor in common with the palette's: colour and marker repeat together late.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h")

#: Colour of marks that stand for no allocator, and of remarks such as "oom" and "failed".
NEUTRAL = "#595959"
REMARK = "#A11D2A"
#: Lines of confidence intervals, and what shows them on bars of any colour.
WHISKER = {"color": "0.1", "linewidth": 1.2, "zorder": 3, "solid_capstyle": "butt"}
ON_BAR = {"zorder": 5, "path_effects": [Stroke(linewidth=2.8, foreground="white"), Normal()]}
#: Points that stand for one seed each.
SEED = {"s": 11, "color": "white", "edgecolor": "0.2", "linewidth": 0.6, "zorder": 6}

#: Least width of a figure in inches: legends and captions need it.
LEAST_WIDTH = 6.8
#: Height of a bar in rows.
BAR = 0.64
#: Points that stand for an allocator.
DOT = {"markersize": 7.5, "markeredgecolor": "white", "markeredgewidth": 0.5, "zorder": 4}
#: The sentence of a caption on intervals under them.
HIDDEN = "Intervals narrower than their point are hidden by it."

#: Kinds of files that figures are written as.
PICTURES = (".png", ".svg")
#: Dots per inch of the PNG.
DPI = 200
#: Largest over smallest value from which an axis is logarithmic.
WIDE_RANGE = 50.0
#: Most allocator labels: more could not be told apart.
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
    "path.simplify_threshold": 0.3,  # of a pixel: halves the files of long lines
    "svg.hashsalt": "analysis",  # the same figure gives the same file
}


class Look(NamedTuple):
    """How an allocator label is drawn, in every figure."""

    color: str
    marker: str
    hatch: str


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """The look of each label: the sorted labels take the palette in order."""
    if len(labels) > MOST_LABELS:
        raise ResultError(
            f"{len(labels)} allocator labels, of which only {MOST_LABELS} could be told apart"
        )
    return {
        label: Look(
            PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], HATCHES[i // len(PALETTE)]
        )
        for i, label in enumerate(sorted(labels))
    }


@contextmanager
def publication() -> Iterator[None]:
    """Within it figures are drawn and saved in this module's style."""
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
    """Meaning and unit of a metric."""
    metric = BY_NAME[name]
    return f"{metric.meaning} ({metric.unit})"


def wrapped(label: str, width: int = 26) -> str:
    """``label`` on lines of about ``width`` characters, broken before its settings and between."""
    if len(label) <= width:
        return label
    name, _, settings = label.partition("(")
    lines = textwrap.wrap(f"({settings}" if settings else "", width, break_long_words=False)
    return "\n".join([name, *lines])


def byte_unit(largest: float) -> tuple[float, str]:
    """Bytes in the unit that suits values up to ``largest`` bytes, and its name."""
    for exponent, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if largest >= 2**exponent:
            return float(2**exponent), name
    return 1.0, "bytes"


def short(value: float) -> str:
    """``value`` to three digits with a suffix: 0, 0.25, 12, 3.4k, 120k, 2.5M."""
    for divisor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * divisor:
            return f"{float(f'{value / divisor:.3g}'):g}{suffix}"
    return f"{float(f'{value:.3g}'):g}"


def describe_conditions(conditions: Mapping[str, Any]) -> str:
    """The sentence of a caption on what all runs share."""
    kib = conditions["page_size"] / 1024
    return f"All runs: pages of {kib:g} KiB, touch: {conditions['touch']}."


def describe_cells(results: Results) -> str:
    """The sentences of a caption on cells that are incomplete."""
    sentences = []
    if results.out_of_memory():
        sentences.append("oom: memory ran out (k/n: for k of n seeds), so that less work was done.")
    gaps = [f"{label} on {name} ({why})" for (label, name), why in results.gaps().items()]
    if gaps:
        sentences.append(f"Nothing to draw: {', '.join(gaps)}.")
    return " ".join(sentences)


# --- Axes ----------------------------------------------------------------------------------------


def is_wide(values: Iterable[float], limit: float = WIDE_RANGE) -> bool:
    """Whether the largest of ``values`` is more than ``limit`` times the smallest positive one."""
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) > limit * min(positive)


def tint(color: str) -> tuple[float, float, float]:
    """A light shade of ``color``."""
    return sns.light_palette(color, 10)[4]


def set_range(axis: Axis, low: float, high: float, *, log: bool = False, ticks: int = 5) -> None:
    """Scale, limits and readable ticks of an x- or y-axis; ``low`` of a logarithmic one is > 0."""
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
    """Lower end of a logarithmic axis that shows ``values``, which are positive."""
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
    """Upper limit of an x-axis from ``low``, ``width`` inches long, with room for remarks.

    The mark of each label ends at ``ends[label]``, and right of it fits ``texts[label]``.
    """

    def scaled(value: float) -> float:
        return math.log10(value / low) if log else value - low

    span = 0.0
    for label, end in ends.items():
        share = min((0.17 + 0.068 * len(texts.get(label, ""))) / width, 0.8)
        span = max(span, scaled(max(end, low)) / (1 - share))
    return low * 10**span if log else low + span


def line_count(labels: Sequence[str]) -> int:
    """Lines of the longest of ``labels`` when wrapped."""
    return 1 + max(wrapped(label).count("\n") for label in labels)


def rows_height(labels: Sequence[str]) -> float:
    """Inches that a panel with a row per label needs: all rows are as high as the highest."""
    return len(labels) * max(0.27, 0.15 * line_count(labels))


def names_width(labels: Sequence[str]) -> float:
    """Inches that the names of rows take at the left of a panel."""
    return 0.2 + 0.075 * max(len(line) for label in labels for line in wrapped(label).split("\n"))


def panel_grid(
    count: int, most_columns: int, panel: tuple[float, float], margin: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels of ``panel`` inches, width and height, and ``margin``."""
    rows = math.ceil(count / most_columns)
    columns = math.ceil(count / rows)
    size = (max(margin[0] + panel[0] * columns, LEAST_WIDTH), margin[1] + panel[1] * rows)
    fig = Figure(figsize=size, layout="constrained")
    grid = fig.subplots(rows, columns, squeeze=False).flat
    for ax in grid[count:]:
        ax.remove()
    return fig, list(grid[:count])


def name_rows(ax: Axes, labels: Sequence[str], *, named: bool) -> None:
    """Make the y-axis of ``ax`` a row per label, the first on top."""
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_yticks(range(len(labels)), [wrapped(label) for label in labels] if named else [])
    ax.set_ylabel("")
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    sns.despine(ax=ax, left=True)


def bars(ax: Axes, frame: pd.DataFrame, column: str, labels: Sequence[str]) -> None:
    """A bar from zero per row for the mean of ``column``, with its interval.

    ``frame``: label and ``column``, a row per observation.
    """
    by_label = looks(labels)
    sns.barplot(
        frame,
        x=column,
        y="label",
        hue="label",
        order=labels,
        hue_order=labels,
        palette=[by_label[label].color for label in labels],
        saturation=1,
        width=BAR,
        errorbar=spread.interval,
        err_kws=WHISKER | ON_BAR,
        linewidth=0,
        legend=False,
        ax=ax,
    )
    for bar in ax.patches:
        bar.set_hatch(by_label[labels[round(bar.get_y() + bar.get_height() / 2)]].hatch)


def dots(ax: Axes, frame: pd.DataFrame, column: str, labels: Sequence[str]) -> None:
    """A dot per row for the mean of ``column``, over its interval; for logarithmic axes.

    ``frame``: label and ``column``, a row per observation.
    """
    for label, values in frame.groupby("label")[column]:
        look, row = looks(labels)[label], labels.index(label)
        ax.plot(spread.interval(values), [row, row], **WHISKER)
        ax.plot(values.mean(), row, look.marker, color=look.color, **DOT)


def label_bottom(axes: Sequence[Axes], text: str) -> None:
    """Name the x-axis of those ``axes`` that have no panel below."""
    for ax in axes[-axes[0].get_gridspec().ncols :]:
        ax.set_xlabel(text)


def remark(ax: Axes, x: float | None, row: int, text: str, *, color: str = REMARK) -> None:
    """Write ``text`` in a row of ``ax`` right of ``x``, or of the left edge if that is None."""
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
    """Write each label's remark in its row, right of where its mark ends, or at the left edge."""
    for label, text in remarks.items():
        remark(ax, ends.get(label), labels.index(label), text)


def remark_corner(ax: Axes, text: str) -> None:
    """Write ``text`` into the upper left corner of ``ax``."""
    ax.text(0.03, 0.95, text, va="top", fontsize=8, color=REMARK, transform=ax.transAxes)


def whisker_handle() -> Line2D:
    """The legend's handle of the lines WHISKER."""
    return Line2D([], [], label=f"{spread.LEVEL} % confidence interval", **WHISKER)


def seed_handle() -> Line2D:
    """The legend's handle of the points SEED."""
    return Line2D(
        [], [], ls="", marker="o", ms=3.5, mfc="white", mec="0.2", mew=0.6, label="one seed"
    )


def caption(fig: Figure, *sentences: str) -> None:
    """Put ``sentences`` below the panels of ``fig``, wrapped to its width."""
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
    """Write ``fig`` as PNG and SVG into ``directory``."""
    for suffix in PICTURES:
        save_as(fig, directory / f"{name}{suffix}")


def save_as(fig: Figure, out: Path) -> None:
    """Write ``fig`` as ``out``, of one of PICTURES; it appears whole or not at all."""
    scratch = out.with_name(f".{uuid.uuid4().hex[:12]}{out.suffix}")
    try:
        fig.savefig(scratch, metadata={"Date": None} if out.suffix == ".svg" else None)
        scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)


def draw_json(source: Path, out: Path, draw: Callable[[Any], Figure], what: str) -> str:
    """Draw the contents of a JSON file as ``out``; '', or in one line why that cannot be.

    ``what`` it has to be, in words.  ``draw`` raises ValueError, KeyError or TypeError for any
    other.
    """
    try:
        contents = json.loads(source.read_text(encoding="utf-8"))
        with publication():
            save_as(draw(contents), out)
    except OSError as error:
        return f"{error.filename or out}: {error.strerror}"
    except (ValueError, KeyError, TypeError) as error:
        return f"{source}: not {what} ({error})"
    return ""


def picture(text: str) -> Path:
    """The path of a picture, of a command line.  Raises argparse.ArgumentTypeError."""
    if Path(text).suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in .png or .svg")
    return Path(text)

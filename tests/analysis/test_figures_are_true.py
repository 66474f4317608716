"""The figures show the stored numbers, in one colour per allocator, and are readable."""

import csv
import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from analysis import fig_faults, fig_memory, fig_pareto, fig_time, spread, style
from analysis.__main__ import FIGURES
from analysis.load import Results, load
from benchmarks.replay.metrics import COLD, END_TO_END, WARM
from kernel import PROJECT
from tests.analysis.conftest import measurement, write_times

#: Labels and workloads, including very long ones.
LABELS = (
    "arena(region=64KiB)",
    "buddy",
    "buddy(growth=mmap, min_order=4)",
    "bump",
    "first_fit(fit=best, order=address)",
    "first_fit(fit=next)",
    "kr",
    "segregated(spacing=8)",
)
WORKLOADS = ("churn(live=1000, sizes=lognormal)", "larson", "ramp", "trace(path=phone.zip)")
METRICS = {metric for figure in FIGURES.values() for metric in figure.METRICS}


def read(*directories: Path, gaps: bool = False) -> Results:
    """Load all results in ``directories``."""
    return load(directories, timing=True, timelines=True, metrics=METRICS, gaps=gaps)


def drawn(figure: str, results: Results) -> Figure:
    """Draw a figure and lay it out."""
    with style.publication():
        fig = FIGURES[figure].draw(results)
        fig.draw_without_rendering()
    return fig


def words(fig: Figure) -> str:
    """Return all text of a figure on one line."""
    return " ".join(" ".join(text.get_text().split()) for text in fig.findobj(Text))


def shown_texts(fig: Figure) -> list[Text]:
    """Return the visible texts of a figure; of tick labels, only those within their axis."""
    texts = [*fig.texts, *(text for legend in fig.legends for text in legend.texts)]
    for ax in fig.axes:
        texts += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            shown = axis.get_majorticklabels()  # none on an inner panel
            labelled = zip(axis.get_majorticklocs(), shown, strict=False)
            texts += [text for at, text in labelled if low <= at <= high]
    return [text for text in texts if text.get_text().strip() and text.get_visible()]


def row_colors(ax: Axes, labels: list[str]) -> dict[str, str]:
    """Return the colour of the leftmost mark in each row of a panel."""
    colors = {}
    for bar in ax.patches:
        if bar.get_x() == 0 and bar.get_width() > 0:
            row = round(bar.get_y() + bar.get_height() / 2)
            colors.setdefault(labels[row], to_hex(bar.get_facecolor()))
    for line in ax.lines:
        if line.get_marker() in style.MARKERS and len(line.get_xdata()) == 1:
            label = labels[round(line.get_ydata()[0])]
            if line.get_markerfacecolor() != "white":
                colors[label] = to_hex(line.get_markerfacecolor())
    return colors


@pytest.fixture(scope="module")
def results(sweep: Path) -> Results:
    """Results of the sweep of four allocators, two workloads and five seeds."""
    return read(sweep)


def test_every_figure_is_a_png_and_an_svg(
    sweep: Path, tmp_path: Path, analyse: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out = tmp_path / "deep" / "figures"
    done = analyse(sweep, "-o", out)
    assert done.returncode == 0, done.stderr
    names = {f"{figure}.{kind}" for figure in FIGURES for kind in ("png", "svg")} | {"table.csv"}
    assert {file.name for file in out.iterdir()} == names
    assert [line for line in done.stdout.splitlines() if line.startswith("wrote ")] == [
        f"wrote {out / name}" for name in sorted(names)
    ]
    for figure in FIGURES:
        assert imread(out / f"{figure}.png").std() > 0
        assert "</svg>" in (out / f"{figure}.svg").read_text()
    assert style.DPI >= 150
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert rows[0].keys() >= {"label", "workload", "seed", "status", WARM, COLD, END_TO_END}
    assert rows[0].keys() >= METRICS
    assert not list(tmp_path.rglob(".analysis-*"))


def test_analysis_imports_no_allocator() -> None:
    code = "import sys, analysis.__main__; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    modules = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    loaded = set(modules.split())
    assert not {"numba", "hydra", "allocators", "benchmarks.replay.loop"} & loaded
    kernel = {name for name in loaded if name.split(".")[0] == "kernel"}
    frame = {"kernel.engine", "kernel.engine.command", "kernel.engine.output"}
    assert kernel <= {"kernel", "kernel.counters", "kernel.uapi"} | frame
    ours = {name for name in loaded if name.startswith("benchmarks.")}
    timing = {f"benchmarks.timing{name}" for name in ("", ".machine", ".rounds", ".statistics")}
    assert ours == {"benchmarks.replay", "benchmarks.replay.metrics"} | timing


def test_the_same_results_give_the_same_files(
    one_seed: Path, tmp_path: Path, analyse: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for name in ("a", "b"):
        assert analyse(one_seed, "-o", tmp_path / name).returncode == 0
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_a_label_has_one_colour_in_all_figures(results: Results) -> None:
    labels = results.labels
    expected = {label: look.color.lower() for label, look in style.looks(labels).items()}
    assert len(set(expected.values())) == 4
    for figure in ("time", "faults"):
        for ax in drawn(figure, results).axes:
            colors = row_colors(ax, labels)
            assert colors
            assert colors == {label: expected[label] for label in colors}
    panels = drawn("memory", results).axes
    heaps = [to_hex(ax.lines[1].get_color()) for ax in panels]
    assert heaps == list(expected.values()) * 2
    (legend,) = drawn("pareto", results).legends
    shown = [to_hex(handle.get_color()) for handle in legend.legend_handles]
    assert shown[:4] == list(expected.values())


def test_styles_do_not_depend_on_order_and_stay_distinct_beyond_the_palette() -> None:
    labels = [f"a{i:02}" for i in range(style.MOST_LABELS)]
    looks = style.looks(labels)
    assert style.looks(labels[::-1]) == looks
    assert len({(look.color, look.hatch) for look in looks.values()}) == len(labels)
    assert len({(look.color, look.marker) for look in looks.values()}) == len(labels)


def test_bars_start_at_zero_and_show_the_means(results: Results) -> None:
    cells = spread.over_rounds(results.times).set_index(["workload", "label", "quantity"])["value"]
    panels = itertools.product(results.workloads, (WARM, COLD, END_TO_END))
    for (workload, quantity), ax in zip(panels, drawn("time", results).axes, strict=True):
        assert ax.get_xlim()[0] == 0
        widths = {}
        for bar in ax.patches:
            label = results.labels[round(bar.get_y() + bar.get_height() / 2)]
            widths.setdefault(label, []).append(bar.get_width())
        for label, (whole, *modelled) in widths.items():
            cell = cells[workload, label]
            assert whole == pytest.approx(cell[quantity])
            pale = [cell[quantity] - cell[WARM]] if quantity != WARM else []
            assert modelled == pytest.approx(pale)
        assert len(widths) == 4


def test_memory_shows_the_lowest_seed(results: Results, sweep: Path) -> None:
    assert set(results.timelines["seed"]) == {1}
    stored = pd.read_parquet(sweep / "0-0-1" / "timeline.parquet")
    fig = drawn("memory", results)
    live, heap, rss = fig.axes[0].lines
    for line, name in ((live, "live"), (heap, "heap"), (rss, "rss")):
        np.testing.assert_allclose(line.get_ydata(), stored[name] / 2**20)
    assert "MiB" in fig.axes[0].get_ylabel()
    assert "seed 1" in words(fig)


def test_pareto_front() -> None:
    points = pd.DataFrame(
        {"x": [1, 2, 3, 2, 1, 4], "y": [9, 5, 5, 7, 9, 1]}, index=list("abcdef"), dtype=float
    )
    assert list(fig_pareto.pareto_front(points).index) == ["a", "e", "b", "f"]


def test_axes_show_units(results: Results) -> None:
    assert [ax.get_xlabel() for ax in fig_time.draw(results).axes[-3:]] == ["ns per event"] * 3
    assert "(ns)" in fig_pareto.draw(results).axes[0].get_ylabel()
    assert {ax.get_xlabel() for ax in fig_faults.draw(results).axes[-4:]} == {"faults", "calls"}
    assert fig_memory.draw(results).axes[-1].get_xlabel() == "event"


def test_captions_name_the_population_of_the_intervals(
    results: Results, one_seed: Path, sweep: Path, make: Callable[..., Path], tmp_path: Path
) -> None:
    for figure in ("time", "pareto"):
        assert "over 10 rounds on 5 seeds" in words(drawn(figure, results))
        assert "over 10 rounds on one seed." in words(drawn(figure, read(one_seed)))
    make(tmp_path / "bump-churn", "bump", "churn")
    make(tmp_path / "bump-larson", "bump", "larson(threads=2)")
    assert "over 10 rounds on 1–5 seeds" in words(drawn("time", read(sweep, tmp_path)))


def test_few_rounds_have_no_interval(tmp_path: Path, make: Callable[..., Path]) -> None:
    write_times(make(tmp_path / "a"), [measurement(n, 9.0 + n, 3.0) for n in range(5)])
    results = read(tmp_path)
    assert spread.over_rounds(results.times)["low"].isna().all()
    for figure in ("time", "pareto"):
        assert "below 6 rounds there is no interval" in words(drawn(figure, results))


def test_the_floor_of_a_cell_measured_twice_is_drawn(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    twice = [
        measurement(n, 10.0 * (1.02 if side and n % 2 else 1.0), 0.0, side)
        for n in range(10)
        for side in (0, 1)
    ]
    write_times(make(tmp_path / "a", "arena"), twice)
    make(tmp_path / "b", "buddy", speed=3)
    results = read(tmp_path)
    assert results.floors[WARM] == pytest.approx(0.02)
    fig = drawn("time", results)
    assert "warm 2.0%" in words(fig)
    (band,) = [p for p in fig.axes[0].patches if to_hex(p.get_facecolor()) == "#e0e0e0"]
    assert band.get_width() == pytest.approx(0.2)


def test_a_quantity_that_cannot_be_had_is_a_gap_with_its_reason(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    make(tmp_path / "a", "arena")
    lines = [measurement(n, 10.0, 5.0) for n in range(10)]
    for line in lines:
        del line["times"][WARM]
        line["gaps"] = {WARM: "it returns memory in every replay"}
    write_times(make(tmp_path / "b", "glibc"), lines)
    fig = drawn("time", read(tmp_path))
    assert "glibc on churn, warm (it returns memory in every replay)" in words(fig)
    assert "–" in [text.get_text() for text in fig.axes[0].texts]


def test_threads_that_take_turns_are_marked(tmp_path: Path, make: Callable[..., Path]) -> None:
    make(tmp_path / "a", "arena", threads="interleaved")
    make(tmp_path / "b", "glibc", threads="real")
    fig = drawn("time", read(tmp_path))
    marked = [text.get_text() for text in fig.axes[0].texts]
    assert [text.strip() for text in marked if "†" in text] == ["†"]
    assert "arena: the threads take turns on one core, contention is not modelled" in words(fig)
    assert "glibc: real threads" in words(fig)


def test_seeds_that_change_no_event_are_repetitions(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    for seed in (1, 2):
        make(tmp_path / f"a{seed}", seed=seed, hashes={"workload": "same"})
        make(tmp_path / f"b{seed}", "kr", seed=seed, hashes={"workload": f"other {seed}"})
    cells = spread.over_rounds(read(tmp_path).times).set_index(["label", "quantity"])
    assert tuple(cells.loc[("buddy", WARM), ["rounds", "seeds"]]) == (20, 1)
    assert tuple(cells.loc[("kr", WARM), ["rounds", "seeds"]]) == (10, 2)


def test_a_wide_range_makes_the_axis_logarithmic_and_drops_the_bars(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    make(tmp_path / "a", "arena", speed=1, waste=1.2)
    make(tmp_path / "b", "kr", speed=80, waste=100)
    results = read(tmp_path)
    colors = {label: look.color.lower() for label, look in style.looks(results.labels).items()}
    for ax in drawn("time", results).axes:
        assert (ax.get_xscale(), len(ax.patches)) == ("log", 0)
        assert "log scale" in ax.get_xlabel()
        assert row_colors(ax, results.labels) == colors
    assert {ax.get_yscale() for ax in drawn("memory", results).axes} == {"log"}
    scales = {ax.get_title(): ax.get_xscale() for ax in drawn("faults", results).axes}
    assert scales["syscalls_brk"] == "log"
    for ax in drawn("faults", results).axes:
        assert ax.get_xscale() == "log" or ax.get_xlim()[0] == 0


def test_out_of_memory_is_marked(tmp_path: Path, make: Callable[..., Path]) -> None:
    for seed in (1, 2):
        make(tmp_path / f"a{seed}", "arena", seed=seed)
        make(tmp_path / f"b{seed}", "buddy", seed=seed, status="oom" if seed == 1 else "ok")
        make(tmp_path / f"c{seed}", "kr", seed=seed, status="oom", speed=0.5, waste=1.05)
    results = read(tmp_path)
    for figure in ("time", "faults"):
        text = words(drawn(figure, results))
        assert re.search(r"\boom 1/2", text)
        assert re.search(r"\boom(?! 1/2|:)", text)
    assert [ax.texts[0].get_text() for ax in drawn("memory", results).axes] == ["", "oom", "oom"]
    pareto = drawn("pareto", results)
    rings = [line for line in pareto.axes[0].lines if line.get_markersize() == 13]
    assert len(rings) == 1, "only arena is on the front: the others did less work"
    assert "oom" in [text.get_text() for text in pareto.legends[0].texts]


def test_a_failed_cell_is_a_named_gap(tmp_path: Path, make: Callable[..., Path]) -> None:
    make(tmp_path / "a", "arena", "churn(live=9)")
    make(tmp_path / "b", "arena", "ramp")
    make(tmp_path / "c", "kr", "ramp")
    # It failed before its workload was made, so the workload's settings are not in its label.
    make(tmp_path / "d", "kr", "churn", status="failed", reason="loops")
    results = read(tmp_path)
    assert results.gaps() == {("kr", "churn(live=9)"): "failed"}
    for figure in FIGURES:
        assert "Missing: kr on churn(live=9) (failed)." in words(drawn(figure, results))


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize(
    ("labels", "workloads", "step"),
    [
        (LABELS[3:4], ("ramp",), 0.5),
        (LABELS[1:3], WORKLOADS[:1], 0.5),
        (LABELS[:6], (*WORKLOADS, "queue", "stack"), 4),
        (LABELS, WORKLOADS, 0.5),
    ],
    ids=["1x1", "2x1", "6x6", "8x4"],
)
def test_no_text_overlaps_or_leaves_the_figure(
    figure: str,
    labels: tuple[str, ...],
    workloads: tuple[str, ...],
    step: float,
    tmp_path: Path,
    sweep_of: Callable[..., Path],
) -> None:
    fig = drawn(figure, read(sweep_of(tmp_path, labels, workloads, 2, step)))
    boxes = {text: text.get_window_extent() for text in shown_texts(fig)}
    assert len(boxes) > 5
    edge = fig.bbox.padded(1)
    for text, box in boxes.items():
        assert edge.contains(box.x0, box.y0), text.get_text()
        assert edge.contains(box.x1, box.y1), text.get_text()
    texts = list(boxes)
    for i, text in enumerate(texts):
        for other in texts[i + 1 :]:
            overlap = boxes[text].padded(-1).overlaps(boxes[other].padded(-1))
            assert not overlap, f"{text.get_text()!r} overlaps {other.get_text()!r}"


@pytest.mark.hardening(17)
@pytest.mark.parametrize("figure", FIGURES)
def test_a_dollar_in_a_label_is_drawn_as_a_dollar(figure, sweep_of, tmp_path):
    label, workload = "mine$_x$", "trace(path=$a_{$.txt)"  # the second is no valid formula
    results = read(sweep_of(tmp_path / "sweep", (label, "bump"), (workload, "churn"), seeds=1))
    fig = drawn(figure, results)
    dollars = [text for text in fig.findobj(Text) if "$" in text.get_text()]
    assert dollars
    assert not any(text.get_parse_math() for text in dollars)

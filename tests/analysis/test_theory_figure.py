"""The figure theory shows the stored numbers, and names a missing sweep."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis import fig_theory, style
from analysis.__main__ import FIGURES, main
from analysis.load import ResultError, load

ADVERSARY = {"budget": 1024, "unit": 16}


def stored(make: Callable[..., Path], directory: Path, allocator: str, name: str, ratio, settings):
    """Write a run whose heap is ``ratio`` times the live bytes; its label names all settings."""
    label = f"{name}({', '.join(f'{k}={v}' for k, v in settings.items())})"
    path = make(directory, allocator, label)
    metrics = json.loads((path / "metrics.json").read_text())
    metrics |= {"peak_live": 1024, "peak_heap": 1024 * ratio}
    (path / "metrics.json").write_text(json.dumps(metrics))
    sections = {"allocator": {"name": allocator}, "workload": {"name": name} | settings}
    if allocator == "first_fit":
        sections["allocator"]["mmap_threshold"] = 131072
    (path / "config.yaml").write_text(yaml.safe_dump(sections))
    return path


@pytest.fixture
def sweeps(make: Callable[..., Path], tmp_path: Path) -> Path:
    root = tmp_path / "sweeps"
    for k in (3, 1, 2):
        settings = {"rounds": k, "smallest": 4096}
        stored(make, root / f"a{k}", "bump", "ffworst", k * 1.0, settings)
        stored(make, root / f"b{k}", "first_fit", "ffworst", k * 0.5, settings)
        settings = ADVERSARY | {"doublings": k, "steps": 4}
        stored(make, root / f"c{k}", "first_fit", "robson", 1 + 0.7 * k, settings)
        sizes = {"low": 4096, "high": 4096 << k}
        stored(make, root / f"d{k}", "buddy", "churn", 1.4, {"sizes": sizes})
    return root


def read(directory: Path):
    return load([directory], timing=False, timelines=False, metrics=fig_theory.METRICS, gaps=True)


def test_points_are_the_stored_ratios_in_order(sweeps: Path) -> None:
    with style.publication():
        fig = fig_theory.draw(read(sweeps))
        fig.draw_without_rendering()
    shown = [
        {
            line.get_label(): line.get_xydata().tolist()
            for line in ax.lines
            if line.get_marker() in "os^Dv"
        }
        for ax in fig.axes
    ]
    assert shown[0]["bump"] == [[1, 1], [2, 2], [3, 3]]
    assert shown[0]["first_fit"] == [[1, 0.5], [2, 1], [3, 1.5]]
    np.testing.assert_allclose(
        shown[1]["sizes grow by 2$^{1/4}$"], [[1, 1.7], [2, 2.4], [3, 3.1]], rtol=1e-9
    )
    np.testing.assert_allclose(shown[2]["buddy"], [[1, 1.4], [2, 1.4], [3, 1.4]])


def test_the_theoretical_curve() -> None:
    np.testing.assert_allclose(
        fig_theory.without_reuse(np.array([1, 2, 5])), [1, 4 / 3, 5 / (2 - 1 / 16)]
    )


def test_the_figure_is_drawn_only_on_request(sweeps: Path, tmp_path: Path) -> None:
    assert "theory" not in FIGURES
    out = tmp_path / "out"
    assert main([str(sweeps), "--figures", "theory", "--gaps", "-o", str(out)]) == 0
    assert {file.name for file in out.iterdir()} == {"theory.png", "theory.svg", "table.csv"}


def test_a_missing_sweep_is_named(sweeps: Path) -> None:
    for k in (1, 2, 3):
        (sweeps / f"c{k}" / "run.json").unlink()
    with pytest.raises(ResultError, match=r"no result of robson: .* theory_adversary"):
        fig_theory.draw(read(sweeps))


@pytest.mark.parametrize("text", [None, "", "- a", "allocator: {name: bump}", "{"])
def test_a_configuration_that_cannot_be_read_is_named(
    sweeps: Path, tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweeps / "a1" / "config.yaml"
    path.unlink()
    if text is not None:
        path.write_text(text)
    out = tmp_path / "out"
    assert main([str(sweeps), "--figures", "theory", "--gaps", "-o", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"analysis: {path}: ")
    assert error.count("\n") == 1
    assert not out.exists()

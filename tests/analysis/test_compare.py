"""analysis compare: verdicts, exit codes, and what cannot be compared."""

import json
from pathlib import Path

import pytest

from analysis.compare import EXIT_OK, EXIT_UNCLEAR, EXIT_WORSE, main
from benchmarks.replay.metrics import TITLES, WARM
from tests.analysis.conftest import change_metrics, make_run, measurement, write_times


def make_pair(folder: Path, ratio: float, noise: float = 0.002, **described: object) -> Path:
    """Write a sweep of two allocators whose times have this ratio, with this much noise."""
    timing = {"timing": {"comparison": "x", "warnings": []}} | described
    for label, factor in (("base", 1.0), ("new", ratio)):
        run = make_run(folder / label, label, hashes={"plugin": label}, **timing)
        change_metrics(run, peak_rss=1000)
        speeds = [1 + 0.3 * (number % 3) for number in range(10)]  # the machine's own changes
        lines = []
        for number, speed in enumerate(speeds):
            wobble = 1 + noise * (-1) ** (number if label == "base" else number // 2)
            lines.append(measurement(number, 10 * speed * factor * wobble, 4.0))
            if label == "base":
                lines.append(measurement(number, 10 * speed / wobble, 4.0, side=1))
        write_times(run, lines)
    return folder


def verdicts(folder: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple:
    code = main([str(folder), str(folder), "--base", "base", "--new", "new", "--json", *arguments])
    return code, {
        (line["workload"], line["metric"]): line for line in json.loads(capsys.readouterr().out)
    }


@pytest.mark.parametrize(
    ("ratio", "code", "verdict"),
    [(1.0, EXIT_OK, "same"), (1.05, EXIT_WORSE, "worse"), (0.95, EXIT_OK, "better")],
)
def test_times_of_the_same_rounds_are_compared_as_ratios(tmp_path, capsys, ratio, code, verdict):
    found_code, found = verdicts(make_pair(tmp_path / "s", ratio), "--metrics", WARM, capsys=capsys)
    line = found["churn", WARM]
    assert (found_code, line["verdict"]) == (code, verdict)
    assert line["low"] <= ratio <= line["high"]
    assert line["ratio"] == pytest.approx(ratio, abs=0.005)


def test_a_loss_below_the_limit_is_no_regression(tmp_path, capsys):
    code, found = verdicts(
        make_pair(tmp_path / "s", 1.02), "--metrics", WARM, "--fail-above", "3%", capsys=capsys
    )
    assert (code, found["churn", WARM]["verdict"]) == (EXIT_OK, "worse")


def test_a_difference_below_the_floor_is_no_difference(tmp_path, capsys):
    code, found = verdicts(make_pair(tmp_path / "s", 1.004), "--metrics", WARM, capsys=capsys)
    assert (code, found["churn", WARM]["verdict"]) == (EXIT_OK, "same")


def test_noise_that_hides_the_limit_has_an_exit_code_of_its_own(tmp_path, capsys):
    folder = make_pair(tmp_path / "s", 1.02, noise=0.2)
    code, found = verdicts(folder, "--metrics", WARM, "--fail-above", "3%", capsys=capsys)
    assert (code, found["churn", WARM]["verdict"]) == (EXIT_UNCLEAR, "unclear")


def test_deterministic_metrics_are_compared_exactly(tmp_path, capsys):
    folder = make_pair(tmp_path / "s", 1.0)
    change_metrics(folder / "new", peak_rss=1001)
    code, found = verdicts(folder, "--exact", "--metrics", "peak_rss,operations", capsys=capsys)
    assert code == EXIT_WORSE
    assert found["churn", "peak_rss"]["verdict"] == "worse"
    assert found["churn", "peak_rss"]["low"] is None
    assert ("churn", "operations") not in found  # neither direction is better
    assert verdicts(folder, "--metrics", "peak_rss", "--fail-above", "1", capsys=capsys)[0] == 0


def test_workloads_have_a_geometric_mean(tmp_path, capsys):
    folder = make_pair(tmp_path / "s", 1.1)
    for label, factor in (("base", 1.0), ("new", 1.21)):
        described = {"timing": {"comparison": "x", "warnings": []}, "hashes": {"plugin": label}}
        run = make_run(folder / f"{label}-2", label, "larson", **described)
        write_times(run, [measurement(n, 10 * factor + n / 100, 4.0) for n in range(10)])
    _, found = verdicts(folder, "--metrics", WARM, capsys=capsys)
    assert found["geometric mean", WARM]["ratio"] == pytest.approx((1.1 * 1.21) ** 0.5, abs=0.01)


def test_the_table_shows_times_and_what_differs(tmp_path, capsys):
    folder = make_pair(tmp_path / "s", 1.05)
    main([str(folder), str(folder), "--base", "base", "--new", "new"])
    out, err = capsys.readouterr()
    assert all(name in out for name in TITLES)
    assert "deterministic metrics are the same" in out
    assert f"regression: {WARM} on churn" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "several allocators (base, new): choose with --base and --new"),
        (("--base", "base", "--new", "other"), "no allocator other, only base, new"),
    ],
)
def test_sides_that_are_not_named(tmp_path, capsys, arguments, message):
    folder = str(make_pair(tmp_path / "s", 1.0))
    assert main([folder, folder, *arguments]) == EXIT_WORSE
    assert message in capsys.readouterr().err


def test_times_of_two_sweeps_are_not_compared(tmp_path, capsys):
    base = str(make_pair(tmp_path / "a", 1.0) / "base")
    new = str(make_pair(tmp_path / "b", 1.0, timing={"comparison": "y", "warnings": []}) / "new")
    assert main([base, new]) == EXIT_WORSE
    assert "were not measured in the same rounds" in capsys.readouterr().err
    assert main([base, new, "--exact", "--metrics", "peak_rss"]) == EXIT_OK


def test_other_conditions_are_not_compared(tmp_path, capsys):
    base = str(make_pair(tmp_path / "a", 1.0) / "base")
    new = str(make_pair(tmp_path / "b", 1.0, page_size=65536) / "new")
    assert main([base, new]) == EXIT_WORSE
    assert "differ in page_size" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-1", "many", "nan"])
def test_a_limit_that_is_no_percentage(tmp_path, text):
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path), "--fail-above", text])

"""analysis.fig_synth draws the ratios of models to their trace, or names the missing result."""

import json
import shutil

import pytest

from analysis import fig_synth

NULL = ", shuffle=true"


def change(path, **values):
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def results(make, tmp_path):
    """Results for two traces, one shipped; each model is off by a factor known for each seed."""
    for trace, original in (("git", "git"), ("a.txt", "trace(a.txt)")):
        workloads = [(original, 1.0), (f"synth({trace})", 1.05), (f"synth({trace}{NULL})", 2.0)]
        for label in ("buddy", "first_fit(fit=best)"):
            for workload, factor in workloads:
                for seed in (1, 2):
                    path = make(
                        tmp_path / "r" / f"{label}-{workload}-{seed}", label, workload, seed
                    )
                    name = "trace" if workload == original else "synth"
                    change(path / "run.json", workload=name)
                    value = 1000 * factor * (1 if name == "trace" else 1 + seed / 100)
                    change(path / "metrics.json", **dict.fromkeys(fig_synth.METRICS, value))
    return tmp_path / "r"


def drawn(results, *more):
    return fig_synth.main([str(results), "-o", str(results.parent / "out.png"), *more])


def test_ratios(results):
    loaded = fig_synth.load([results], timing=False, timelines=False, metrics=fig_synth.METRICS)
    frame = fig_synth.ratios(loaded)
    assert len(frame) == 2 * 2 * 2 * 2 * len(fig_synth.METRICS)
    assert set(frame["trace"]) == {"git", "a.txt"}
    for row in frame.itertuples():
        factor = {"synth": 1.05, "null": 2.0}[row.kind]
        assert row.ratio == pytest.approx(factor * (1 + row.seed / 100))


def test_drawing(results, capsys):
    assert drawn(results) == 0
    out = results.parent / "out.png"
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("*shuffle*", "no run of workload synth for a.txt with shuffle=true"),
        ("*synth(git)*", "no run of workload synth for git with its default settings"),
        ("buddy-git*", "no run of buddy on the original trace git"),
    ],
)
def test_a_missing_run_is_named(results, capsys, pattern, complaint):
    for run in list(results.glob(pattern)):
        shutil.rmtree(run)
    assert drawn(results) == 1
    assert capsys.readouterr().err == f"fig_synth: {complaint}\n"
    assert not (results.parent / "out.png").exists()


def test_other_workloads_are_refused(results, make, capsys):
    make(results / "other", "buddy", "churn", 1)
    assert drawn(results) == 1
    assert "churn is neither a trace nor a synthetic trace" in capsys.readouterr().err


def test_a_ratio_to_zero_is_refused(results, capsys):
    for run in results.glob("buddy-git-*"):
        change(run / "metrics.json", faults=0)
    assert drawn(results) == 1
    assert "buddy on git: faults is 0" in capsys.readouterr().err

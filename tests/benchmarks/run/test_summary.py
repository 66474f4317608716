"""Tests of the table printed after a sweep."""

import json
from io import StringIO

import pytest
from rich.console import Console

from benchmarks.run.summary import print_sweep


@pytest.fixture
def printed(tmp_path):
    """Function that returns the table of a sweep of failed runs on these kernels."""

    def print_table(*kernels):
        for n, kernel in enumerate(kernels):
            (tmp_path / f"{n}-bump").mkdir()
            run = {"label": "bump", "status": "failed", "reason": "it broke", "kernel": kernel}
            (tmp_path / f"{n}-bump" / "run.json").write_text(json.dumps(run))
        out = StringIO()
        assert not print_sweep(tmp_path, Console(file=out, width=132))
        return out.getvalue()

    return print_table


def test_kernel_settings_that_differ_are_shown_in_a_column(printed):
    text = printed({"thp": "always", "fragmentation": 0}, {"thp": "always", "fragmentation": 50})
    assert "fragmentation=0" in text
    assert "fragmentation=50" in text
    assert "thp" not in text
    assert text.count("it broke") == 2


def test_kernel_settings_that_do_not_differ_are_not_shown(printed):
    assert "always" not in printed({"thp": "always"}, {"thp": "always"})


@pytest.mark.hardening(18)
def test_a_run_that_failed_before_its_kernel_was_known_adds_no_settings(printed):
    kernel = {"thp": "always", "cost": {"brk": 1, "mmap": 2}}
    assert "always" not in printed({}, kernel, None, kernel)


@pytest.mark.hardening(18)
def test_a_price_that_differs_is_shown_alone(printed):
    text = printed(*({"thp": "never", "cost": {"brk": price, "mmap": 2}} for price in (1, 5)))
    assert "cost.brk=1" in text
    assert "cost.brk=5" in text
    assert "mmap" not in text


@pytest.mark.hardening(18)
def test_a_table_with_damaged_runs_and_strange_names_is_printed(tmp_path):
    def write(name, **run):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(run))

    write("0-bump-churn", status="ok", label="bump[/]", workload_label="[red]churn[/red]")
    write("1-bump-churn", status="failed", reason="no [/such] markup")
    write("backup of 1", status="ok")
    (tmp_path / "2-bump-churn").mkdir()
    (tmp_path / "2-bump-churn" / "run.json").write_text("{cut off")
    write("3-bump-churn", status="ok", label="kr")
    (tmp_path / "3-bump-churn" / "metrics.json").write_text('{"peak_heap": "many"}')
    out = StringIO()
    assert not print_sweep(tmp_path, Console(file=out, width=132))
    text = out.getvalue()
    assert "bump[/]" in text
    assert "[red]churn[/red]" in text
    assert "failed: 1-bump-churn: no [/such] markup" in text
    assert "unreadable: 2-bump-churn: cannot read run.json" in text
    for name in ("0-bump-churn", "3-bump-churn"):
        assert f"ok: {name}: files are missing or damaged; resume the sweep" in text
    assert "backup" not in text

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

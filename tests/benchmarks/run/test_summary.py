"""What a person is told at the end of a sweep."""

import json
from io import StringIO

import pytest
from rich.console import Console

from benchmarks.run.summary import print_sweep


@pytest.fixture
def told(tmp_path):
    """The table of a sweep of failed runs on these kernels."""

    def tell(*kernels):
        for n, kernel in enumerate(kernels):
            (tmp_path / f"{n}-bump").mkdir()
            run = {"label": "bump", "status": "failed", "reason": "it broke", "kernel": kernel}
            (tmp_path / f"{n}-bump" / "run.json").write_text(json.dumps(run))
        out = StringIO()
        assert not print_sweep(tmp_path, Console(file=out, width=132))
        return out.getvalue()

    return tell


def test_settings_of_the_kernel_that_differ_are_a_column(told):
    text = told({"thp": "always", "fragmentation": 0}, {"thp": "always", "fragmentation": 50})
    assert "fragmentation=0" in text
    assert "fragmentation=50" in text
    assert "thp" not in text
    assert text.count("it broke") == 2


def test_one_kernel_is_no_column(told):
    assert "always" not in told({"thp": "always"}, {"thp": "always"})

"""What all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# The first example compiles, so no deadline; the same examples every time, so that a red suite is
# red for everybody.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def traces() -> Path:
    """The folder of real traces beside the project; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "traces"
    if not folder.is_dir():
        pytest.skip("the real traces are not here (../shared/traces)")
    return folder


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what is built as plain Python: nothing waits for the compiler."""
    if os.environ.get("NUMBA_BOUNDSCHECK"):
        pytest.skip("plain Python checks bounds anyway, in the other lanes")
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")

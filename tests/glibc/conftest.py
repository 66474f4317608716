import pytest

from benchmarks.verify.report import unavailable, wrong_library

_REASON = unavailable() or wrong_library()
needs_glibc = pytest.mark.skipif(bool(_REASON), reason=_REASON or "usable")


@pytest.fixture
def plain(monkeypatch):
    """Everything as plain Python: nothing is compiled for a few hundred operations."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")

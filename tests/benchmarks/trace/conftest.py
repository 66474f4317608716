"""Fixtures: small traces, and a private import cache for each test."""

from pathlib import Path

import pytest

from kernel.engine.cache import cache_root

ANDROID = """\
186: malloc 0x1000 100
186: calloc 0x2000 4 25
186: malloc 0x3000 8
200: realloc 0x4000 0x1000 300
200: free 0x2000
186: free 0x0
186: realloc 0x2000 0x0 50
186: memalign 0x5000 4096 64
200: realloc 0x0 0x2000 0
186: free 0x3000
200: malloc 0xb400007a12345678 16
200: thread_done 0x0
186: free 0xb400007a12345678
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Put imported traces into the test's directory; keep the cache of compiled code."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache_root()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def android(tmp_path) -> Path:
    """Return the path of a small trace that has every operation."""
    path = tmp_path / "small.txt"
    path.write_text(ANDROID)
    return path

"""Fixtures shared with tests/benchmarks/trace: an example trace and a private cache."""

from tests.benchmarks.trace.conftest import android, own_cache

__all__ = ["android", "own_cache"]

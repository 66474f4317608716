"""The traces and the cache of tests/benchmarks/trace."""

from tests.benchmarks.trace.conftest import android, own_cache

__all__ = ["android", "own_cache"]

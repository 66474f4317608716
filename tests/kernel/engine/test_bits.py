"""The bit scans of kernel.engine.bits, plain and compiled, compared with strings of digits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.engine.bits import bit_length, trailing_zeros
from kernel.engine.jit import build, jit

EDGES = [0, 1, 2, 3, 4, 7, 8, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1]


@jit
def both(n):
    return bit_length(n), trailing_zeros(n)


@pytest.fixture(scope="module")
def scans():
    return build(both)


def digits(n):
    """Return the expected results of the scans, from the binary digits of ``n``."""
    text = f"{n:b}"
    return len(text.lstrip("0")), len(text) - len(text.rstrip("0")) if n else 64


@pytest.mark.parametrize("n", EDGES)
def test_edges(scans, n):
    assert scans(n) == digits(n)


@given(st.integers(0, 2**63 - 1))
def test_any(scans, n):
    assert scans(n) == digits(n)
    assert both(n) == digits(n)

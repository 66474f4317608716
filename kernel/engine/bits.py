"""Bit scans: one machine instruction each in compiled code, where a loop would mispredict.

kernel.engine.link binds these names to intrinsics; the functions below are their meaning, and what
runs with the JIT off.
"""

from kernel.engine.jit import jit


@jit(intrinsic=True)
def bit_length(n):
    """Number of bits of ``n`` >= 0: 0 for 0, else floor(log2(n)) + 1."""
    return int(n).bit_length()


@jit(intrinsic=True)
def trailing_zeros(n):
    """Number of the lowest set bit of ``n`` > 0; 64 for 0."""
    n = int(n)
    return (n & -n).bit_length() - 1 if n else 64

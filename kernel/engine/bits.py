"""Bit scans: one machine instruction each in compiled code, without mispredicted branches.

kernel.engine.link binds these names to intrinsics; the functions below define their results and run
with the JIT off.
"""

from kernel.engine.jit import jit


@jit(intrinsic=True)
def bit_length(n):
    """Return the number of bits of ``n`` >= 0: 0 for 0, else floor(log2(n)) + 1."""
    return int(n).bit_length()


@jit(intrinsic=True)
def trailing_zeros(n):
    """Return the index of the lowest set bit of ``n`` > 0; 64 for 0."""
    n = int(n)
    return (n & -n).bit_length() - 1 if n else 64

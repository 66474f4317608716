"""Random numbers that are the same on every machine: SplitMix64 on unsigned 64-bit arrays.

It uses no floating point, and no library whose stream may change.  The n-th number depends only on
the seed and n, so any quantity of numbers is one vector operation.

Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", 2014.
"""

import numpy as np

_MASK = (1 << 64) - 1
#: The golden ratio as a 64-bit fraction, odd.
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


class Random:
    """A stream of random numbers; each call continues it."""

    def __init__(self, seed: int) -> None:
        """Start the stream of ``seed``, of which only the lowest 64 bits are used."""
        self._state = seed & _MASK

    def bits(self, n: int) -> np.ndarray:
        """Return the next ``n`` numbers, (n,) uint64, all 64 bits random."""
        z = np.arange(1, n + 1, dtype=np.uint64)
        z *= np.uint64(_GAMMA)
        z += np.uint64(self._state)
        self._state = (self._state + n * _GAMMA) & _MASK
        z ^= z >> np.uint64(30)
        z *= np.uint64(_MIX_1)
        z ^= z >> np.uint64(27)
        z *= np.uint64(_MIX_2)
        z ^= z >> np.uint64(31)
        return z

    def below(self, n: int, bound: int) -> np.ndarray:
        """Return ``n`` integers in [0, bound), (n,) int64; 1 <= bound <= 2**32.

        The relative bias of each value is less than bound / 2**32.
        """
        z = self.bits(n)
        z >>= np.uint64(32)
        z *= np.uint64(bound)
        z >>= np.uint64(32)
        return z.view(np.int64)

    def permutation(self, n: int) -> np.ndarray:
        """Return the numbers 0 … n - 1 in random order, (n,) int64."""
        return np.argsort(self.bits(n), kind="stable")

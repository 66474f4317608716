"""Dense numbers for sparse ones: threads, call sites and slots in order of first appearance."""

import numpy as np


class Numbering:
    """Mapping of numbers to dense ones, from ``first`` on, in order of first appearance.

    Numbers below ``first`` are special values and stay unchanged.  Memory grows with the number of
    different numbers, not with their size.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._keys, self._dense = np.empty(0, "i8"), np.empty(0, "i4")  # sorted by key
        self._next = [first]  # a list, so that beside() can share it

    @classmethod
    def beside(cls, n: int, first: int) -> "list[Numbering]":
        """Return ``n`` numberings that share one counter, so that their results are disjoint."""
        made = [cls(first) for _ in range(n)]
        for numbering in made:
            numbering._next = made[0]._next
        return made

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the new numbers, (n,) int32, of ``numbers``, (n,)."""
        counts = numbers >= self._first
        values, first, inverse = np.unique(numbers[counts], return_index=True, return_inverse=True)
        place = np.searchsorted(self._keys, values)
        new = np.ones(len(values), bool)
        inside = place < len(self._keys)
        new[inside] = self._keys[place[inside]] != values[inside]
        if new.any():
            rank = np.empty(np.count_nonzero(new), "i4")
            rank[np.argsort(first[new])] = np.arange(len(rank))
            self._keys = np.insert(self._keys, place[new], values[new])
            self._dense = np.insert(self._dense, place[new], self._next[0] + rank)
            self._next[0] += len(rank)
            place = np.searchsorted(self._keys, values)
        result = np.where(counts, 0, numbers).astype("i4")
        result[counts] = self._dense[place][inverse]
        return result

    def originals(self) -> np.ndarray:
        """Return the numbers given so far, in the order of their dense ones."""
        return self._keys[np.argsort(self._dense)]

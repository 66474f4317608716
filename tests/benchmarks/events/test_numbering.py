"""Dense numbers for sparse ones."""

import numpy as np
import pytest

from benchmarks.events.numbering import Numbering


@pytest.mark.hardening(16)
def test_numbers_in_order_of_appearance():
    numbering = Numbering()
    assert numbering.of(np.array([7, 2**40, 7, -1, 0])).tolist() == [0, 1, 0, -1, 2]
    assert numbering.of(np.array([5, 0, 2**40, 7, 6])).tolist() == [3, 2, 1, 0, 4]
    assert numbering.of(np.array([], "i8")).tolist() == []
    assert numbering.originals().tolist() == [7, 2**40, 0, 5, 6]


def test_numberings_beside_one_another():
    first, second = Numbering.beside(2, 1)
    assert first.of(np.array([9, 0, 9])).tolist() == [1, 0, 1]
    assert second.of(np.array([9, 8])).tolist() == [2, 3]
    assert first.of(np.array([8])).tolist() == [4]


def test_against_a_dictionary():
    rng = np.random.default_rng(1)
    numbering, known = Numbering(3), {}
    for _ in range(20):
        numbers = rng.integers(-5, 300, 50)
        expected = [known.setdefault(n, 3 + len(known)) if n >= 3 else n for n in numbers.tolist()]
        assert numbering.of(numbers).tolist() == expected

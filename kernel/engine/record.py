"""State records with attribute access to their fields, compiled or not."""

from collections.abc import Callable, Iterable
from functools import cache
from operator import itemgetter
from typing import Any

import numpy as np

from kernel.engine.jit import disabled, jit


def record(dtype: np.dtype, *, bounded: bool = False) -> np.record:
    """Return one zeroed record with attribute access, compiled or not.

    ``bounded``: in plain Python a negative index of its arrays raises IndexError.

    Raises ValueError for a field with the name of an attribute of np.record (``base``, ``size`` …):
    compiled code would read the field, plain Python the attribute.
    """
    for name in dtype.names or ():
        if hasattr(np.record, name):
            raise ValueError(f"a record field cannot be called {name!r}: np.record has that name")
    return as_record(np.zeros(1, dtype), bounded=bounded)


def as_record(array: np.ndarray, *, bounded: bool = False) -> np.record:
    """Return the only element of ``array`` as a record; nested fields are attributes too."""
    if disabled():
        return array.view(_plain_records(array.dtype, bounded))[0]
    return array.view(np.recarray)[0]


class _Bounded(np.ndarray):
    """Array that refuses negative indices, as compiled code with checked bounds does."""

    def __getitem__(self, index: Any) -> Any:
        _check_index(index)
        return super().__getitem__(index)

    def __setitem__(self, index: Any, value: object) -> None:
        _check_index(index)
        super().__setitem__(index, value)


def _check_index(index: Any) -> None:
    for i in index if isinstance(index, tuple) else (index,):
        if isinstance(i, (int, np.integer)) and i < 0:
            raise IndexError(f"index {i} is out of bounds: it is negative")


@cache
def _plain_records(dtype: np.dtype, bounded: bool = False) -> np.dtype:
    """Return ``dtype`` with a record type that plain Python reads eight times faster.

    At every access NumPy's record type searches the ordinary attributes first, then the fields.
    Here each field is a property.  Numba does not support these types.
    """

    def setter(name: str) -> Callable[[np.void, object], None]:
        def put(record: np.void, value: object) -> None:
            record[name] = value

        return put

    def getter(name: str) -> Callable[[np.void], object]:
        if bounded and dtype[name].shape:
            return lambda record: record[name].view(_Bounded)
        return itemgetter(name)

    members = {name: property(getter(name), setter(name)) for name in dtype.names}
    fields = [dtype.fields[name] for name in dtype.names]
    layout = {
        "names": dtype.names,
        "formats": [_plain_field(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
    }
    return np.dtype((type("record", (np.void,), {"__slots__": ()} | members), np.dtype(layout)))


def _plain_field(dtype: np.dtype) -> np.dtype | tuple[np.dtype, tuple[int, ...]]:
    base = _plain_records(dtype.base) if dtype.base.names else dtype.base
    return (base, dtype.shape) if dtype.shape else base


# Compiled code cannot look up a field by a computed name, so these functions generate its source.


def field_sum(fields: Iterable[str]) -> Callable:
    """Return a compilable function that returns the sum of ``fields`` of a record."""
    return _generated("field_sum(r)", "return " + " + ".join(f"r.{name}" for name in fields))


def field_adder(fields: Iterable[str]) -> Callable:
    """Return a compilable function that adds ``fields`` of the second record to the first."""
    return _generated("field_adder(r, s)", "; ".join(f"r.{name} += s.{name}" for name in fields))


def _generated(head: str, body: str) -> Callable:
    scope = {"__name__": __name__}
    exec(compile(f"def {head}: {body}", __file__, "exec"), scope)
    return jit(scope[head.partition("(")[0]])

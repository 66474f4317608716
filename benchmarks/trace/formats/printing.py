"""Compiled text output: functions that write a number or a name into a buffer of bytes."""

import numpy as np

from kernel.engine.jit import jit

_ZERO, _LOWER_A, _X = 48, 97, 120
_DIGITS = 10


@jit
def put_decimal(text, at, value):
    """Write ``value`` >= 0 at ``text[at]``; return the index after it."""
    length = 1
    rest = value // 10
    while rest > 0:
        rest //= 10
        length += 1
    for i in range(length):
        text[at + length - 1 - i] = _ZERO + value % 10
        value //= 10
    return at + length


@jit
def put_address(text, at, value):
    """Write ``value`` >= 0 in hexadecimal after 0x; return the index after it."""
    text[at] = _ZERO
    text[at + 1] = _X
    at += 2
    length = 1
    while value >> (4 * length) > 0:
        length += 1
    for i in range(length):
        digit = (value >> (4 * (length - 1 - i))) & 15
        text[at + i] = _ZERO + digit if digit < _DIGITS else _LOWER_A + digit - _DIGITS
    return at + length


@jit
def put_name(text, at, names, ends, which):
    """Write name number ``which`` of a :func:`name_table`; return the index after it."""
    begin = int(ends[which - 1]) if which > 0 else 0
    for i in range(begin, int(ends[which])):
        text[at] = names[i]
        at += 1
    return at


def name_table(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the concatenated bytes of ``names``, and the end of each name in them."""
    data = "".join(names).encode()
    return np.frombuffer(data, "u1"), np.cumsum([len(name) for name in names])

"""Split the lines of a text trace into fields, in compiled code; formats interpret the fields.

Blanks, colons, commas and parentheses separate fields.  A field is a number (decimal, or
hexadecimal after ``0x``) or a word.  A word is stored as a hash; :func:`word` computes the hash of
a name to compare with.  A format with other rules defines SPLIT: arguments of :func:`split_lines`.
"""

from typing import NamedTuple

import numpy as np

from kernel.engine.jit import build_once, jit

#: Default number of fields stored per line.
WIDTH = 8

#: Types of fields.  BAD: a number that does not fit into 64 bits, or 0x without hexadecimal digits.
ABSENT, NUMBER, WORD, BAD = range(4)

_NEWLINE = 10
_MASK = (1 << 63) - 1
#: Prime and offset basis of the FNV-1a hash (truncated to 63 bits).
_PRIME = 0x100000001B3
_START = 0xCBF29CE484222325 & _MASK
#: A decimal number up to this one can take one more digit without overflow.
_ROOM = ((1 << 63) - 10) // 10


class Lines(NamedTuple):
    """The fields of ``n`` lines.

    ``values`` (n, width) int64: a number (2**63 and above wraps to negative) or a word's hash.
    ``kinds`` (n, width) int8: type of the field.  ``fields`` (n,) int64: number of fields in the
    line, 0 if it is blank.
    """

    values: np.ndarray
    kinds: np.ndarray
    fields: np.ndarray


def word(name: str) -> int:
    """Return the hash by which Lines.values represents ``name``."""
    h = _START
    for c in name.encode():
        h = ((h ^ c) * _PRIME) & _MASK
    return h


@jit(inline=True)
def parts(c):
    """Return True if the byte ``c`` separates fields."""
    return c == 32 or c == 9 or c == 13 or c == 58 or c == 44 or c == 40 or c == 41


@jit
def digit(c):
    """Return the value of a hexadecimal digit, 16 for any other byte."""
    if 48 <= c <= 57:
        return c - 48
    if 97 <= c <= 102:
        return c - 87
    if 65 <= c <= 70:
        return c - 55
    return 16


@jit(inline=True)
def token(text, i, usual):
    """Read the field at ``i``; return its end, its type, and its number or hash.

    ``usual``: base of numbers without 0x.
    """
    n = text.shape[0]
    c = int(text[i]) & 255
    base = usual
    prefixed = False
    if c == 48 and i + 2 < n and (text[i + 1] == 120 or text[i + 1] == 88):
        base = 16
        prefixed = True
        i += 2
        c = int(text[i]) & 255
    value = 0
    kind = NUMBER
    significant = 0
    h = _START
    begin = i
    while c != _NEWLINE and not parts(c):
        h = ((h ^ c) * _PRIME) & _MASK
        d = digit(c)
        if kind != NUMBER:
            pass
        elif d >= base:
            kind = BAD if prefixed else WORD
        elif base == 10:
            if value > _ROOM:
                kind = BAD
            else:
                value = value * 10 + d
        else:
            if value or d:
                significant += 1
            if significant > 16:
                kind = BAD
            else:
                if value >= 1 << 59:
                    value -= 1 << 60  # the sixteenth digit makes it a negative number
                value = value * 16 + d
        i += 1
        if i == n:
            break
        c = int(text[i]) & 255
    if i == begin:
        kind = BAD
    return i, kind, h if kind == WORD else value


@jit
def split(text, values, kinds, fields, usual, tail):
    """Fill the three zeroed arrays from ``text``, (bytes,) int8; return the number of lines."""
    n = text.shape[0]
    width = values.shape[1]
    row = 0
    field = 0
    i = 0
    while i < n:
        c = int(text[i]) & 255
        if c == _NEWLINE:
            fields[row] = field
            row += 1
            field = 0
            i += 1
            continue
        if parts(c):
            i += 1
            continue
        i, kind, value = token(text, i, usual)
        place = field
        if tail and field >= width:
            place = width - 1
            for j in range(place):
                values[row, j] = values[row, j + 1]
                kinds[row, j] = kinds[row, j + 1]
        if place < width:
            values[row, place] = value
            kinds[row, place] = kind
        field += 1
    if n and text[n - 1] != _NEWLINE:
        fields[row] = field
        row += 1
    return row


def split_lines(text: bytes, base: int = 10, width: int = WIDTH, tail: bool = False) -> Lines:
    """Return the fields of all lines of ``text``; the last newline may be missing.

    ``base``: base of numbers without 0x, 10 or 16.  ``width``: number of fields stored per line,
    the first ones or, with ``tail``, the last ones; further fields are only counted.
    """
    data = np.frombuffer(text, np.int8)
    n = int(np.count_nonzero(data == _NEWLINE)) + (1 if text and text[-1] != _NEWLINE else 0)
    lines = Lines(np.zeros((n, width), "i8"), np.zeros((n, width), "i1"), np.zeros(n, "i8"))
    build_once(split)(data, *lines, base, tail)
    return lines


def fields_of(line: bytes) -> list[str]:
    """Return the fields of one line as text, for messages."""
    for c in b":,()":
        line = line.replace(bytes([c]), b" ")
    return [field.decode("ascii", "backslashreplace") for field in line.split()]

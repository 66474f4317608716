"""Traces of the malloc-bench project (.trace.gz): protocol buffers, decoded without protobuf.

    0a LENGTH                   a line of the trace; its only field is the operation:
      0a LENGTH                   1 malloc:  1 result id, 2 size, 3 alignment
      12 LENGTH                   2 free:    1 id, 2 size hint, 3 alignment hint
      1a LENGTH                   3 realloc: 1 result id, 2 id, 3 size
      22 LENGTH                   4 calloc:  1 result id, 2 number, 3 size
    10 NUMBER                   peak number of live objects; not used

Each field of an operation is a tag byte and a varint (a number in base 128); an absent id is NULL.
Positions in a file are counted in messages.
Source: ClaytonKnittel/malloc-bench, proto/tracefile.proto; protobuf's encoding guide.
"""

from collections.abc import Iterator

import numpy as np

from allocators.base import operation as ops
from benchmarks.events.parquet import TraceError
from benchmarks.trace.formats.objects import Records
from benchmarks.trace.formats.packing import Source, chunks
from benchmarks.trace.formats.piece import Piece
from kernel.engine.jit import build_once, jit

NAME = "malloc-bench protobuf"
UNIT = "message"

#: Tags: field number and wire type (0: varint, 2: bytes after their length).
_LINE, _MOST_OBJECTS = 0x0A, 0x10
_MALLOC, _FREE, _REALLOC, _CALLOC = 0x0A, 0x12, 0x1A, 0x22
_FIRST, _SECOND, _THIRD = 0x08, 0x10, 0x18
#: Upper bound on the length of a message of this schema, bytes.
_LONGEST = 128
#: Results of :func:`varint`: data ends within the number; the number has more than 63 bits.
_SHORT, _WRONG = -1, -2


def recognises(head: bytes) -> bool:
    """Return True if ``head`` starts with a well-formed first message of this format."""
    return (
        len(head) > 4
        and head[0] == _LINE
        and 2 <= head[1] < _LONGEST
        and head[2] in (_MALLOC, _FREE, _REALLOC, _CALLOC)
        and head[3] == head[1] - 2
    )


@jit
def varint(data, i, end):
    """Return the length in bytes of the varint at ``i``, or _SHORT or _WRONG."""
    length = 1
    while length <= 9:
        if i + length > end:
            return _SHORT
        if data[i + length - 1] >= 0:
            return length
        length += 1
    return _WRONG


@jit
def number(data, i, length):
    """Return the value of the varint of ``length`` bytes at ``i``."""
    value = 0
    for j in range(length):
        value |= (int(data[i + j]) & 127) << (7 * j)
    return value


@jit
def frame(data, begin, size, state):
    """Find the messages in ``data`` and write their offsets and lengths to ``begin`` and ``size``.

    ``state`` (3,), output: bytes consumed, number of messages, and 1 if the bytes after them are
    not the beginning of a message.
    """
    i = 0
    n = data.shape[0]
    count = 0
    while i < n:
        tag = int(data[i])
        length = varint(data, i + 1, n)
        if (tag != _LINE and tag != _MOST_OBJECTS) or length == _WRONG:
            state[2] = 1
            break
        if length == _SHORT:
            break
        following = i + 1 + length
        if tag == _LINE:
            body = number(data, i + 1, length)
            if body > _LONGEST:
                state[2] = 1
                break
            if following + body > n:
                break
            begin[count] = following
            size[count] = body
            count += 1
            following += body
        i = following
    state[0] = i
    state[1] = count


@jit
def decode(data, begin, size, kind, values):
    """Decode n messages into ``kind`` (n,), the operation's tag, and ``values``.

    ``values`` (n, 3): the three fields of an operation, -1 if absent.  ``kind`` of a malformed
    message is left at 0.
    """
    for row in range(begin.shape[0]):
        i = int(begin[row])
        end = i + int(size[row])
        for j in range(3):
            values[row, j] = -1
        # The length of a body of less than 128 bytes is one byte.
        if end - i < 2 or int(data[i + 1]) != end - i - 2:
            continue
        tag = int(data[i])
        i += 2
        good = True
        while i < end and good:
            which = int(data[i])
            length = varint(data, i + 1, end)
            good = length > 0 and which in (_FIRST, _SECOND, _THIRD)
            if good:
                values[row, (which >> 3) - 1] = number(data, i + 1, length)
                i += 1 + length
        if good:
            kind[row] = tag


def pieces(source: Source) -> Iterator[tuple[Piece, float]]:
    """Yield the pieces of a trace, and the fraction read."""
    rest, seen = b"", 0
    for chunk, fraction in chunks(source):
        data = np.frombuffer(rest + chunk, np.int8)
        begin, size = np.empty(len(data) // 2 + 1, "i4"), np.empty(len(data) // 2 + 1, "i4")
        state = np.zeros(3, "i8")
        build_once(frame)(data, begin, size, state)
        consumed, count, wrong = state.tolist()
        yield _piece(data, begin[:count], size[:count]), fraction
        seen += count
        if wrong:
            raise TraceError(f"{source.path}: {UNIT} {seen + 1}: not a message of this format")
        rest = bytes(data[consumed:])
    if rest:
        raise TraceError(f"{source.path}: {UNIT} {seen + 1}: truncated at the end of the file")


def _piece(data: np.ndarray, begin: np.ndarray, size: np.ndarray) -> Piece:
    n = len(begin)
    kind, values = np.zeros(n, "u1"), np.empty((n, 3), "i8")
    build_once(decode)(data, begin, size, kind, values)
    second, third = (np.maximum(values[:, i], 0) for i in (1, 2))
    ids = values[:, :2] + 1
    aligned = (kind == _MALLOC) & (values[:, 2] > 0)
    op = np.select(
        [aligned, kind == _MALLOC, kind == _FREE, kind == _REALLOC, kind == _CALLOC],
        [ops.ALIGNED, ops.MALLOC, ops.FREE, ops.REALLOC, ops.CALLOC],
        255,
    )
    asked = np.select(
        [op == ops.FREE, op == ops.CALLOC, op == ops.REALLOC],
        [second, second * third, third],
        second,
    )
    power = np.where(aligned, third, 1)
    good = (op != 255) & (power & (power - 1) == 0) & (asked >= 0)
    good &= (op != ops.CALLOC) | (second == 0) | (asked // np.maximum(second, 1) == third)
    line = np.flatnonzero(good)
    records = Records(
        line=line,
        op=op[line].astype("u1"),
        pointer=ids[line, 0],
        old=np.where(op == ops.REALLOC, ids[:, 1], 0)[line],
        size=asked[line],
        align=np.searchsorted(1 << np.arange(62), power[line]).astype("u1"),
        thread=np.empty(0, "i8"),
        time=np.empty(0, "i8"),
        bad=np.flatnonzero(~good),
    )

    def explain(row: int) -> str:
        shown = bytes(data[begin[row] : begin[row] + size[row]]).hex(" ")
        return f"not a valid malloc, calloc, realloc or free: {shown}"

    return Piece(records, n, explain, lambda _row, pointer: f"id {pointer - 1}")

"""memray's captures of Python programs (``memray run``), read with memray's own reader.

    address  size  allocator (function that allocated or freed)  thread

With PYTHONMALLOC=malloc or --trace-python-allocators the capture contains every Python object.
memray starts when the program is already running and misses earlier allocations, so the free of an
unknown object is not an error.  memray captures a realloc as a free directly followed by an
allocation marked as realloc; this module joins the two.
The alignment of posix_memalign, aligned_alloc and memalign is not captured: they are read as
malloc.  mmap and munmap are skipped, since they are not requests to an allocator.  Positions are
counted in records.  A capture that is cut can be read up to there (--lenient) if it is not
compressed (``memray run --no-compress``), as that of a killed program is.
Needs the optional package memray.  Source: memray's documentation, class FileReader; memray 1.10
to 1.20.
"""

import itertools
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from allocators.base import operation as ops
from benchmarks.events.parquet import TraceError
from benchmarks.trace.formats.objects import LATE, Records
from benchmarks.trace.formats.packing import Source, trace_errors
from benchmarks.trace.formats.piece import Piece, end, format_address

NAME = "memray"
UNIT = "record"

_LZ4_FRAME, _NAME = b"\x04\x22\x4d\x18", b"memray\x00"
_PIECE = 1 << 16

#: Operation by name in memray.AllocatorType; the numbers there differ between versions.  Of the
#: aligned allocations only valloc and pvalloc imply their alignment.
_OPERATIONS = {
    "FREE": ops.FREE,
    "MALLOC": ops.MALLOC,
    "CALLOC": ops.CALLOC,
    "REALLOC": ops.REALLOC,
    "POSIX_MEMALIGN": ops.MALLOC,
    "ALIGNED_ALLOC": ops.MALLOC,
    "MEMALIGN": ops.MALLOC,
    "VALLOC": ops.ALIGNED,
    "PVALLOC": ops.ALIGNED,
}
_PYMALLOC_PREFIX = "PYMALLOC_"
_PAGE_SHIFT = 12
_MAPPING, _UNKNOWN = 254, 255


def _operation(name: str) -> int:
    if name in ("MMAP", "MUNMAP"):
        return _MAPPING
    return _OPERATIONS.get(name.removeprefix(_PYMALLOC_PREFIX), _UNKNOWN)


def recognises(head: bytes) -> bool:
    """Return True if ``head`` is the start of a capture, plain or compressed with LZ4."""
    return head.startswith(_NAME) or (head.startswith(_LZ4_FRAME) and _NAME in head[:64])


def pieces(source: Source) -> Iterator[tuple[Piece, float]]:
    """Yield the pieces of a capture, and the fraction read."""
    try:
        import memray
    except ImportError:
        raise TraceError(
            f"{source.path}: reading a memray capture needs the package memray; "
            "install it with pip install -e '.[memray]'"
        ) from None
    with trace_errors(source.path):
        try:
            reader = _open(memray, source.path)
            total = reader.metadata.total_allocations  # 0: the program was killed
            seen = 0
            operations = np.full(256, _UNKNOWN, "u1")
            for kind in memray.AllocatorType:
                operations[kind.value] = _operation(kind.name)
            for piece, seen in _pieces(iter(reader.get_allocation_records()), operations):
                yield piece, min(seen / max(total, 1), 1.0)
            if seen < total:
                what = f"truncated: {seen} of {total} records"
                yield end(("missing_records", total - seen, what)), 1.0
        except NotImplementedError:
            raise TraceError(
                f"{source.path}: an aggregated capture has no individual events; "
                "record without --aggregate"
            ) from None


def _open(memray: ModuleType, path: Path) -> Any:
    """Return memray's reader of a capture.  Raises TraceError for one whose beginning is cut."""
    try:
        return memray.FileReader(path)
    except OSError as error:
        if error.errno:
            raise
        with path.open("rb") as file:
            packed = file.read(len(_LZ4_FRAME)) == _LZ4_FRAME
        hint = "it is compressed, so that no part can be read" if packed else "its header is cut"
        raise TraceError(f"{path}: truncated or damaged capture: {hint}") from None


def _pieces(stream: Iterator, operations: np.ndarray) -> Iterator[tuple[Piece, int]]:
    """Yield the pieces of a stream of AllocationRecords, and the number of records read.

    ``operations`` (256,): our operation by memray's number.
    """
    fields = attrgetter("address", "size", "allocator", "tid")
    held = np.empty((0, 4), "i8")
    seen = 0
    while True:
        rows = list(map(fields, itertools.islice(stream, _PIECE)))
        table = np.concatenate([held, np.array(rows, "i8").reshape(-1, 4)])
        # A free at the end may be the first half of a realloc: move it to the next piece.
        wait = len(rows) == _PIECE and operations[np.clip(table[-1, 2], 0, 255)] == ops.FREE
        held = table[len(table) - wait :]
        table = table[: len(table) - wait]
        seen += len(table)
        yield _piece(table, operations), seen
        if len(rows) < _PIECE:
            return


def _piece(table: np.ndarray, operations: np.ndarray) -> Piece:
    """Convert (n, 4) rows of address, size, allocator, thread into a Piece."""
    address, size, allocator, thread = (np.ascontiguousarray(c) for c in table.T)
    op = operations[np.clip(allocator, 0, 255)]
    second = np.zeros(len(op), bool)
    second[1:] = (op[1:] == ops.REALLOC) & (op[:-1] == ops.FREE) & (thread[1:] == thread[:-1])
    first = np.zeros(len(op), bool)
    first[:-1] = second[1:]
    unknown = op == _UNKNOWN
    old = np.where(second, np.roll(address, 1), 0)
    line = np.flatnonzero((op < _MAPPING) & ~first)
    op = op[line]
    records = Records(
        line=line,
        op=op,
        pointer=address[line],
        old=old[line],
        size=np.where(op == ops.FREE, 0, size[line]),
        align=np.where(op == ops.ALIGNED, _PAGE_SHIFT, 0).astype("u1"),
        thread=thread[line],
        time=np.empty(0, "i8"),
        bad=np.flatnonzero(unknown),
    )

    def explain(row: int) -> str:
        return f"unknown allocator number {allocator[row]}"

    return Piece(records, len(table), explain, lambda _row, p: format_address(p), late=LATE)

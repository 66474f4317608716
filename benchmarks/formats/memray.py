"""memray's captures of Python programs (``memray run``), through memray's own reader.

    address  size  allocator (a kind of allocation or of free)  thread

With PYTHONMALLOC=malloc, or with --trace-python-allocators, every object of Python is there.
memray starts in mid-program and does not see every allocation, so that frees of objects which it
did not see are no errors.  A realloc is captured as a free and an allocation marked as realloc, one
after the other; they are put together again.
The alignment of posix_memalign, aligned_alloc and memalign is not captured: they are as malloc.
mmap and munmap are no requests to an allocator.  Places are counted in records.
Needs the optional package memray.  Source: memray's documentation, class FileReader; memray 1.20.
"""

import itertools
from collections.abc import Iterator
from operator import attrgetter

import numpy as np

from benchmarks.events import ALIGNED, CALLOC, FREE, MALLOC, REALLOC
from benchmarks.formats.objects import Records
from benchmarks.formats.packing import Source, complaints
from benchmarks.formats.piece import Piece, spell_address
from benchmarks.native import TraceError

NAME = "memray"
UNIT = "record"

_LZ4_FRAME, _NAME = b"\x04\x22\x4d\x18", b"memray\x00"
_PIECE = 1 << 16

#: memray.AllocatorType: what each number is to us.  The first four are of Python's own allocators;
#: of the aligned ones only valloc and pvalloc tell the alignment.
_KINDS = {
    FREE: (1, 5),
    MALLOC: (2, 6, 9, 10, 11),
    CALLOC: (3, 8),
    REALLOC: (4, 7),
    ALIGNED: (12, 13),
}
_MAPPINGS = (14, 15)
_PAGE_SHIFT = 12
_UNKNOWN = 255
_OPERATIONS = np.full(256, _UNKNOWN, "u1")
for _op, _numbers in _KINDS.items():
    _OPERATIONS[list(_numbers)] = _op


def recognises(head: bytes) -> bool:
    """Whether a file that begins so is a capture: usually compressed with LZ4."""
    return head.startswith(_NAME) or (head.startswith(_LZ4_FRAME) and _NAME in head[:64])


def pieces(source: Source) -> Iterator[tuple[Piece, float]]:
    """Yield the pieces of a capture, and the fraction read."""
    try:
        import memray
    except ImportError:
        raise TraceError(
            f"{source.path}: reading a memray capture needs the package memray: "
            "pip install 'malloc-bench[memray]'"
        ) from None
    with complaints(source.path):
        try:
            reader = memray.FileReader(source.path)
            total = reader.metadata.total_allocations  # 0: the program was killed
            seen = 0
            for piece, seen in _pieces(iter(reader.get_allocation_records())):
                yield piece, min(seen / max(total, 1), 1.0)
            if seen < total:
                raise TraceError(f"{source.path}: cut off: {seen} of {total} records")
        except NotImplementedError:
            raise TraceError(
                f"{source.path}: an aggregated capture has no single events; "
                "record without --aggregate"
            ) from None


def _pieces(stream: Iterator) -> Iterator[tuple[Piece, int]]:
    """Yield the pieces of a stream of AllocationRecords, and how many were read."""
    fields = attrgetter("address", "size", "allocator", "tid")
    held = np.empty((0, 4), "i8")
    seen = 0
    while True:
        rows = list(map(fields, itertools.islice(stream, _PIECE)))
        table = np.concatenate([held, np.array(rows, "i8").reshape(-1, 4)])
        # A free at the end may be the first half of a realloc: it waits for the next piece.
        wait = len(rows) == _PIECE and table[-1, 2] in _KINDS[FREE]
        held = table[len(table) - wait :]
        table = table[: len(table) - wait]
        seen += len(table)
        yield _piece(table), seen
        if len(rows) < _PIECE:
            return


def _piece(table: np.ndarray) -> Piece:
    """Records of (n, 4): address, size, allocator, thread."""
    address, size, allocator, thread = (np.ascontiguousarray(c) for c in table.T)
    op = _OPERATIONS[np.clip(allocator, 0, 255)]
    second = np.zeros(len(op), bool)
    second[1:] = (op[1:] == REALLOC) & (op[:-1] == FREE) & (thread[1:] == thread[:-1])
    first = np.zeros(len(op), bool)
    first[:-1] = second[1:]
    old = np.where(second, np.roll(address, 1), 0)
    unknown = (op == _UNKNOWN) & ~np.isin(allocator, _MAPPINGS)
    line = np.flatnonzero((op != _UNKNOWN) & ~first)
    op = op[line]
    records = Records(
        line=line,
        op=op,
        pointer=address[line],
        old=old[line],
        size=np.where(op == FREE, 0, size[line]),
        align=np.where(op == ALIGNED, _PAGE_SHIFT, 0).astype("u1"),
        thread=thread[line],
        time=np.empty(0, "i8"),
        bad=np.flatnonzero(unknown),
    )

    def explain(row: int) -> str:
        return f"unknown kind of allocation {allocator[row]}"

    return Piece(records, len(table), explain, lambda _row, p: spell_address(p), late=True)

"""Operations of a program: as rows of numbers for both sides, as printed text, and as JSON.

Slots identify blocks, as in benchmarks.events.events.  Any part of a program is a valid program: on
an empty slot, free is free(NULL) and realloc is malloc; filling a slot again leaks its old block.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from allocators.base.operation import (
    ALIGNED,
    ALLOCATING,
    CALLOC,
    FREE,
    MALLOC,
    REALLOC,
    SBRK,
    STRAY,
    THREAD_END,
    TRIM,
    USABLE,
)
from kernel.linux.host.code import MAX_THREADS

#: Allows compiled code to refer to this module as a whole (kernel.engine.jit).
HEADER = True

#: Kinds of operations in addition to those of allocators.base.operation.
USE, BLOCK, UNBLOCK, LIMIT_DATA, LIMIT_AS, THREAD_START = range(16, 22)
#: Names of the kinds in stored programs.
NAMES = {
    MALLOC: "malloc",
    CALLOC: "calloc",
    REALLOC: "realloc",
    ALIGNED: "aligned_alloc",
    FREE: "free",
    USABLE: "malloc_usable_size",
    TRIM: "malloc_trim",
    USE: "use",
    SBRK: "sbrk",
    BLOCK: "block",
    UNBLOCK: "unblock",
    LIMIT_DATA: "limit_data",
    LIMIT_AS: "limit_as",
    STRAY: "stray",
    THREAD_START: "thread_start",
    THREAD_END: "thread_end",
}
KINDS = {name: kind for kind, name in NAMES.items()}

#: Use of the block after the operation.
LEAVE, WRITE, READ = range(3)
#: ``begin`` of a use that starts at the block's old end, before a realloc.
GROWN = -1


class Row(NamedTuple):
    """A row of PROGRAM as plain numbers."""

    kind: int
    slot: int = -1
    request: int = 0
    extra: int = 0
    use: int = LEAVE
    begin: int = 0
    length: int = 0
    thread: int = 0

    def describe(self) -> str:
        """Format the operation as C code; the block of slot 3 is ``b3``."""
        call = _CALLS[self.kind].format_map(self._parts())
        if self.use != LEAVE:
            verb = "write" if self.use == WRITE else "read"
            begin = "old size" if self.begin == GROWN else str(self.begin)
            used = f"{verb} b{self.slot}[{begin} … +{self.length}]"
            call = f"{call}; {used}" if call else used
        by = f"[thread {self.thread}] " if self.thread else ""
        return by + (call or "nothing")

    def _parts(self) -> dict[str, object]:
        """Return the values for the placeholders in _CALLS."""
        request, members = self.request, self.extra or 1
        size = str(request) if request >= 0 else hex(request % (1 << 64))
        return {
            "b": f"b{self.slot}" if self.slot >= 0 else "NULL",
            "n": request,
            "size": size,
            "extra": self.extra,
            "members": members,
            "each": size if request < 0 else request // members,
            "alignment": 1 << min(self.extra, 63),
            "limit": "RLIM_INFINITY" if request < 0 else f"current + {request}",
            "plus": f" + {request}" if request else "",
        }


#: Format of the calls, by kind.
_CALLS = {
    MALLOC: "{b} = malloc({size})",
    CALLOC: "{b} = calloc({members}, {each})",
    REALLOC: "{b} = realloc({b}, {size})",
    ALIGNED: "{b} = aligned_alloc({alignment}, {size})",
    FREE: "free({b})",
    USABLE: "malloc_usable_size({b})",
    TRIM: "malloc_trim(0)",
    USE: "",
    SBRK: "sbrk({n})",
    BLOCK: "mmap({extra} bytes, {n} above the break)",
    UNBLOCK: "munmap(mapping above the break)",
    LIMIT_DATA: "setrlimit(RLIMIT_DATA, {limit})",
    LIMIT_AS: "setrlimit(RLIMIT_AS, {limit})",
    STRAY: "free(last address of {b}{plus})",
    THREAD_START: "pthread_create(thread {n})",
    THREAD_END: "pthread_join(thread {n}, which returns)",
}
#: One operation.  ``request``: requested bytes; negative means above PTRDIFF_MAX (size_t is
#: unsigned).  ``extra``: log2 of an alignment, number of members of a calloc, or length of a
#: blocking mapping.  ``use``: LEAVE, WRITE or READ bytes [begin, begin + length) of the block.
#:
#: sbrk: the program itself moves the break by ``request``.  block: map memory ``request`` bytes
#: above the break, in the heap's way; unblock: unmap it.  limit_data, limit_as: limit the process
#: to its current size + ``request`` bytes; a negative value removes the limit.  stray: an invalid
#: free, of the address ``request`` bytes after the last block of the slot.
#:
#: ``thread``: the thread that acts; 0 (the first) if that thread does not exist.  thread_start,
#: thread_end: start thread ``request``, or let it return and join it; no effect if it already
#: exists, does not exist, or is the acting thread.
PROGRAM = np.dtype([(name, "i8") for name in Row._fields])


def to_rows(ops: list[Row]) -> np.ndarray:
    """Convert operations to an array of PROGRAM."""
    return np.array([tuple(op) for op in ops], PROGRAM)


def to_ops(rows: np.ndarray) -> list[Row]:
    """Convert an array of PROGRAM to operations."""
    return [Row(*row) for row in rows.tolist()]


def encode(row: Row) -> list[Any]:
    """Convert an operation to a row of JSON."""
    # Thread 0 is the default and is not stored.
    return [NAMES[row.kind], *row[1 : None if row.thread else -1]]


def decode(stored: list[Any]) -> Row:
    """Convert a row of JSON to an operation.  Raises ValueError."""
    name, *numbers = stored
    if name not in KINDS or len(PROGRAM.names) - len(numbers) not in (1, 2):
        raise ValueError("is not an operation")
    if not all(isinstance(x, int) and -(1 << 63) <= x < 1 << 63 for x in numbers):
        raise ValueError("has impossible numbers")
    row = Row(KINDS[name], *numbers)
    fits = 0 <= row.extra <= 62 if row.kind == ALIGNED else row.extra >= 0
    fits = fits and 0 <= row.thread < MAX_THREADS
    if not (fits and -1 <= row.slot < 1 << 24 and LEAVE <= row.use <= READ and row.begin >= GROWN):
        raise ValueError("has impossible numbers")
    return row


def variants(op: Row) -> Iterator[Row]:
    """Yield strictly simpler forms of an operation, the simplest first."""
    if op.use != LEAVE and op.kind != USE:
        yield op._replace(use=LEAVE, begin=0, length=0)
    if op.use != LEAVE and op.length > 8:
        yield op._replace(length=8)
    if op.begin > 0:
        yield op._replace(begin=0)
    if op.kind == CALLOC and op.extra > 1:
        yield op._replace(extra=1)
    if op.kind in ALLOCATING:
        for size in (
            24,
            op.request // 2 // 4096 * 4096 - 8,
            (op.request // 16) * 16 - 8,
            op.request - 16,
        ):
            if 24 <= size < op.request:
                yield op._replace(request=size)

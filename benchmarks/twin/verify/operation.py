"""An operation of a program: a row of numbers for both sides, words for people, text in a file.

Blocks are named by slots, as in benchmarks.events.events.  Any part of a program is a program: a
slot that holds nothing makes free a free(NULL) and realloc a malloc, and one that is filled again
has leaked what it held.
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
    STRAY,
    THREAD_END,
    TRIM,
    USABLE,
)
from kernel.linux.host.code import MAX_THREADS

#: Compiled code may name this module as a whole (kernel.engine.jit).
HEADER = True

#: What the program does beside the operations of allocators.base.operation.
USE, SBRK, BLOCK, UNBLOCK, LIMIT_DATA, LIMIT_AS, THREAD_START = range(16, 23)
#: By number, the names that stored programs have.
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

#: What the program does with a block afterwards.
LEAVE, WRITE, READ = range(3)
#: ``begin`` of a use that starts where the block ended before it was made larger.
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

    def words(self) -> str:
        """The operation as a C program would spell it, the block of slot 3 being ``b3``."""
        call = _CALLS[self.kind].format_map(self._spelled())
        if self.use != LEAVE:
            verb = "write" if self.use == WRITE else "read"
            begin = "old size" if self.begin == GROWN else str(self.begin)
            used = f"{verb} b{self.slot}[{begin} … +{self.length}]"
            call = f"{call}; {used}" if call else used
        by = f"[thread {self.thread}] " if self.thread else ""
        return by + (call or "nothing")

    def _spelled(self) -> dict[str, object]:
        """The parts of a call in words."""
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
            "limit": "RLIM_INFINITY" if request < 0 else f"what there is + {request}",
            "plus": f" + {request}" if request else "",
        }


#: The calls, by kind.
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
    UNBLOCK: "munmap(what lies above the break)",
    LIMIT_DATA: "setrlimit(RLIMIT_DATA, {limit})",
    LIMIT_AS: "setrlimit(RLIMIT_AS, {limit})",
    STRAY: "free(what {b} was last{plus})",
    THREAD_START: "pthread_create(thread {n})",
    THREAD_END: "pthread_join(thread {n}, which returns)",
}
#: One operation.  ``request``: bytes asked for, above PTRDIFF_MAX where negative (a C program's
#: size_t has no sign).  ``extra``: log2 of an alignment; the members of a calloc; the length of a
#: blocking area.  ``use``: LEAVE, WRITE or READ the bytes [begin, begin + length) of the block.
#:
#: sbrk: the program itself moves the break by ``request``.  block: a mapping comes into being that
#: many bytes above the break, in the heap's way; unblock: it goes.  limit_data, limit_as: the
#: process may grow by that many bytes more; without limit where negative.  stray: a free that no
#: program may do, of the address that many bytes from the block that the slot held last.
#:
#: ``thread``: by which thread; by the first, 0, where there is no such thread.  thread_start,
#: thread_end: that thread starts thread ``request``, or waits for its end: nothing where there is
#: one already, or none, or it is the thread itself.
PROGRAM = np.dtype([(name, "i8") for name in Row._fields])


def to_rows(ops: list[Row]) -> np.ndarray:
    """Operations as an array of PROGRAM."""
    return np.array([tuple(op) for op in ops], PROGRAM)


def to_ops(rows: np.ndarray) -> list[Row]:
    """The rows of an array of PROGRAM as operations."""
    return [Row(*row) for row in rows.tolist()]


def encode(row: Row) -> list[Any]:
    """The operation as a row of JSON."""
    # The first thread goes without saying.
    return [NAMES[row.kind], *row[1 : None if row.thread else -1]]


def decode(stored: list[Any]) -> Row:
    """An operation from a row of JSON.  Raises ValueError."""
    name, *numbers = stored
    if name not in KINDS or len(PROGRAM.names) - len(numbers) not in (1, 2):
        raise ValueError("is not one")
    if not all(isinstance(x, int) and -(1 << 63) <= x < 1 << 63 for x in numbers):
        raise ValueError("has impossible numbers")
    row = Row(KINDS[name], *numbers)
    fits = 0 <= row.extra <= 62 if row.kind == ALIGNED else row.extra >= 0
    fits = fits and 0 <= row.thread < MAX_THREADS
    if not (fits and -1 <= row.slot < 1 << 24 and LEAVE <= row.use <= READ and row.begin >= GROWN):
        raise ValueError("has impossible numbers")
    return row


def variants(op: Row) -> Iterator[Row]:
    """Simpler forms of an operation, the simplest first.  Each is strictly simpler."""
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

"""An operation of a program: a row of numbers for both sides, words for people, text in a file.

Blocks are named by slots, as in benchmarks.events.events.  Any part of a program is a program: a
slot that holds nothing makes free a free(NULL) and realloc a malloc, and one that is filled again
has leaked what it held.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from allocators.base.operation import (
    ALIGNED,
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

#: What the program does with a block afterwards.
LEAVE, WRITE, READ = range(3)
#: ``begin`` of a use that starts where the block ended before it was made larger.
GROWN = -1

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
PROGRAM = np.dtype(
    [
        ("kind", "i8"),
        ("slot", "i8"),
        ("request", "i8"),
        ("extra", "i8"),
        ("use", "i8"),
        ("begin", "i8"),
        ("length", "i8"),
        ("thread", "i8"),
    ]
)


class Op(NamedTuple):
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
        return f"[thread {self.thread}] {self._words()}" if self.thread else self._words()

    def _words(self) -> str:
        name, b = NAMES[self.kind], f"b{self.slot}" if self.slot >= 0 else "NULL"
        size = str(self.request) if self.request >= 0 else hex(self.request % (1 << 64))
        match self.kind:
            case _ if self.kind == MALLOC:
                call = f"{b} = malloc({size})"
            case _ if self.kind == CALLOC:
                members = self.extra or 1
                each = size if self.request < 0 else self.request // members
                call = f"{b} = calloc({members}, {each})"
            case _ if self.kind == REALLOC:
                call = f"{b} = realloc({b}, {size})"
            case _ if self.kind == ALIGNED:
                call = f"{b} = aligned_alloc({1 << self.extra}, {size})"
            case _ if self.kind in (FREE, USABLE):
                call = f"{name}({b})"
            case _ if self.kind == TRIM:
                call = "malloc_trim(0)"
            case _ if self.kind == SBRK:
                call = f"sbrk({self.request})"
            case _ if self.kind == BLOCK:
                call = f"mmap({self.extra} bytes, {self.request} above the break)"
            case _ if self.kind == UNBLOCK:
                call = "munmap(what lies above the break)"
            case _ if self.kind in (LIMIT_DATA, LIMIT_AS):
                which = "RLIMIT_DATA" if self.kind == LIMIT_DATA else "RLIMIT_AS"
                more = "RLIM_INFINITY" if self.request < 0 else f"what there is + {self.request}"
                call = f"setrlimit({which}, {more})"
            case _ if self.kind == STRAY:
                call = f"free(what {b} was last{f' + {self.request}' if self.request else ''})"
            case _ if self.kind == THREAD_START:
                call = f"pthread_create(thread {self.request})"
            case _ if self.kind == THREAD_END:
                call = f"pthread_join(thread {self.request}, which returns)"
            case _:
                call = ""
        if self.use == LEAVE:
            return call or "nothing"
        verb = "write" if self.use == WRITE else "read"
        begin = "old size" if self.begin == GROWN else str(self.begin)
        used = f"{verb} {b}[{begin} … +{self.length}]"
        return f"{call}; {used}" if call else used


def to_rows(ops: list[Op]) -> np.ndarray:
    """Operations as an array of PROGRAM."""
    return np.array([tuple(op) for op in ops], PROGRAM)


def to_ops(rows: np.ndarray) -> list[Op]:
    """The rows of an array of PROGRAM as operations."""
    return [Op(*row) for row in rows.tolist()]


def dump(path: Path, setting: dict, ops: list[Op]) -> None:
    """Store a program and what it runs under."""
    # The first thread goes without saying.
    rows = ([NAMES[op.kind], *op[1 : None if op.thread else -1]] for op in ops)
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    text = f'{{"setting": {json.dumps(setting)},\n"operations": [\n{lines}\n]}}\n'
    path.write_text(text, encoding="utf-8")


def load(path: Path) -> tuple[dict, list[Op]]:
    """Read a stored program; ValueError with the place of what is wrong."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        setting = dict(data["setting"])
        rows = [list(row) for row in data["operations"]]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a stored program ({error})") from None
    ops, kinds = [], {name: kind for kind, name in NAMES.items()}
    for n, (name, *numbers) in enumerate(rows):
        if name not in kinds or len(PROGRAM.names) - len(numbers) not in (1, 2):
            raise ValueError(f"{path}: operation {n} is not one")
        if not all(isinstance(x, int) and -(1 << 63) <= x < 1 << 63 for x in numbers):
            raise ValueError(f"{path}: operation {n} has impossible numbers")
        op = Op(kinds[name], *numbers)
        fits = 0 <= op.extra <= 62 if op.kind == ALIGNED else op.extra >= 0
        fits = fits and 0 <= op.thread < MAX_THREADS
        if not (fits and -1 <= op.slot < 1 << 24 and LEAVE <= op.use <= READ and op.begin >= GROWN):
            raise ValueError(f"{path}: operation {n} has impossible numbers")
        ops.append(op)
    return setting, ops

"""Make a program that shows a difference shorter: first without some operations, then simpler."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kernel.linux.verify.operation import OP_STORE, OP_SYSCALL, OP_TOUCH, Op
from kernel.uapi import MADV_DONTNEED, NR_MADVISE, NR_MMAP, NR_MPROTECT, NR_MREMAP, NR_MUNMAP

#: Runs a program; the operations up to the first difference, or None where there is none.
Shows = Callable[[list[Any]], list[Any] | None]
#: Simpler forms of an operation, the simplest first; each is strictly simpler.
Variants = Callable[[Any], Iterable[Any]]

_PAGE = 4096
#: Which argument of a call is a length in bytes.
_LENGTHS = {NR_MMAP: (1,), NR_MUNMAP: (1,), NR_MPROTECT: (1,), NR_MADVISE: (1,), NR_MREMAP: (1, 2)}


def shrink(
    ops: list[Any], shows: Shows, seconds: float = 60, variants: Variants | None = None
) -> list[Any]:
    """The shortest program found in ``seconds`` that shows a difference; ``ops`` does.

    Operations are Op unless ``variants`` knows others.
    """
    deadline = time.monotonic() + seconds
    ops = _fewer(ops, shows, deadline)
    ops = _simpler(ops, shows, variants or _variants, deadline)
    return _fewer(ops, shows, deadline)


def _fewer(ops: list[Any], shows: Shows, deadline: float) -> list[Any]:
    """Leave out runs of operations, half of them at first, in the end one."""
    size = max(len(ops) // 2, 1)
    while True:
        before = len(ops)
        end = len(ops) - 1  # the last one shows the difference
        while end > 0:
            start = max(end - size, 0)
            if time.monotonic() > deadline:
                return ops
            shorter = shows(ops[:start] + ops[end:])
            if shorter is not None:
                ops = shorter
                end = min(start, len(ops) - 1)
            else:
                end = start
        if size > 1:
            size = max(size // 2, 1)
        elif len(ops) == before:
            return ops


def _simpler(ops: list[Any], shows: Shows, variants: Variants, deadline: float) -> list[Any]:
    """Replace arguments by simpler ones where the difference stays."""
    n = len(ops) - 1
    while n >= 0:
        changed = True
        while changed and n < len(ops):
            changed = False
            for op in variants(ops[n]):
                if time.monotonic() > deadline:
                    return ops
                found = shows([*ops[:n], op, *ops[n + 1 :]])
                if found is not None:
                    ops, changed = found, True
                    break
        n = min(n, len(ops)) - 1
    return ops


def _variants(op: Op) -> Iterator[Op]:
    """Simpler forms of an operation, the simplest first.  Each is strictly simpler."""

    def with_argument(n: int, value: int) -> Op:
        return op._replace(args=(*op.args[:n], value, *op.args[n + 1 :]))

    if op.kind == OP_STORE and op.args[1] != 1:
        yield with_argument(1, 1)
    if op.kind == OP_TOUCH and op.args[1] > _PAGE:
        yield with_argument(1, _PAGE)
        yield with_argument(1, op.args[1] // 2 // _PAGE * _PAGE)
    if op.kind != OP_SYSCALL:
        return
    if op.nr == NR_MREMAP and op.args[1] == op.args[2] > _PAGE:
        for length in (_PAGE, op.args[1] // 2 // _PAGE * _PAGE):
            if length:
                yield op._replace(args=(op.args[0], length, length, *op.args[3:]))
    for n in _LENGTHS.get(op.nr, ()):
        length = op.args[n]
        if length > _PAGE:
            yield with_argument(n, _PAGE)
            yield with_argument(n, length // 2 // _PAGE * _PAGE or _PAGE)
            if length % _PAGE:
                yield with_argument(n, length // _PAGE * _PAGE)
            else:
                yield with_argument(n, length - _PAGE)
    if op.nr == NR_MMAP:
        flags = op.args[3]
        for bit in range(6, 21):
            if flags >> bit & 1:
                yield with_argument(3, flags & ~(1 << bit))
    if op.nr in (NR_MMAP, NR_MPROTECT) and op.args[2] not in (0, 3):
        yield with_argument(2, 3)
    if op.nr == NR_MADVISE and op.args[2] > MADV_DONTNEED:
        yield with_argument(2, MADV_DONTNEED)

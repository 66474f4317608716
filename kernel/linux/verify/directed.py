"""Handwritten programs for rules that random programs seldom exercise; every run includes them.

Each is a list of operations, compared like random ones.  A :class:`Crowd` is a batch of operations
of which only the final state is compared; it is needed to reach the limit on areas.
"""

from collections.abc import Iterator
from typing import NamedTuple

from kernel import uapi
from kernel.linux.verify.generator import Ground
from kernel.linux.verify.operation import OP_LOAD, OP_STORE, OP_TOUCH, Op, syscall

#: Label of all operations of these programs.
LABEL = "directed"
PAGE, SLOT, GIB = 4096, 2 << 20, 1 << 30
#: Addresses that the programs use: far from all other mappings, HERE a multiple of 1 GiB.
HERE, THERE = 0x600040000000, 0x6C8040000000
_FIXED = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS | uapi.MAP_FIXED
_MOVE = uapi.MREMAP_MAYMOVE | uapi.MREMAP_FIXED


class Crowd(NamedTuple):
    """Batch of operations of which only the final state is compared."""

    ops: list[Op]


def _map(addr: int, length: int, prot: int = 3, flags: int = _FIXED) -> Op:
    return syscall(LABEL, uapi.NR_MMAP, addr, length, prot, flags, -1, 0)


def _call(nr: int, *args: int) -> Op:
    return syscall(LABEL, nr, *args)


def _advise(addr: int, length: int, advice: int) -> Op:
    return _call(uapi.NR_MADVISE, addr, length, advice)


def _write(addr: int, pages: int = 1) -> Op:
    return Op(LABEL, OP_TOUCH, 0, (addr, pages * PAGE, 1, 77))


def whole_tables(ground: Ground) -> Iterator[Op]:
    """Move whole page tables: 1 GiB, 2 MiB, and a first slot that holds no other mapping."""
    yield _map(HERE, 2 * GIB)
    yield _write(HERE + 5 * SLOT)
    yield _write(HERE + GIB + 7 * SLOT + 3 * PAGE, 5)
    yield _call(uapi.NR_MREMAP, HERE, GIB, GIB, _MOVE, THERE)
    yield _call(
        uapi.NR_MREMAP, HERE + GIB, GIB, GIB, _MOVE | uapi.MREMAP_DONTUNMAP, THERE + 2 * GIB
    )
    yield _write(HERE + GIB, 2)
    yield _call(uapi.NR_MUNMAP, HERE, 2 * GIB)
    yield _call(uapi.NR_MUNMAP, THERE, 4 * GIB)
    for more in (0, SLOT, 3 * SLOT):
        for flags in (_MOVE, _MOVE | uapi.MREMAP_DONTUNMAP):
            yield _map(HERE + 16 * PAGE, 2 * SLOT + more)
            yield _write(HERE + 17 * PAGE, 3)
            length = SLOT - 16 * PAGE + more // 2
            yield _call(uapi.NR_MREMAP, HERE + 16 * PAGE, length, length, flags, THERE + 16 * PAGE)
            yield _call(uapi.NR_MUNMAP, THERE, 8 * SLOT)
            yield _call(uapi.NR_MUNMAP, HERE, 8 * SLOT)


def unwritten_moves(ground: Ground) -> Iterator[Op]:
    """Move areas: one never written merges at its destination, one written keeps its offset."""
    yield _map(HERE, 8 * PAGE)
    yield _map(THERE, PAGE)
    yield _call(uapi.NR_MREMAP, HERE, PAGE, PAGE, _MOVE, THERE + PAGE)
    yield _write(HERE + 2 * PAGE)
    yield _call(uapi.NR_MREMAP, HERE + 2 * PAGE, PAGE, PAGE, _MOVE, THERE + 2 * PAGE)
    yield _call(uapi.NR_MREMAP, THERE, PAGE, 2 * PAGE, 0, 0)
    yield _call(
        uapi.NR_MREMAP, HERE + 4 * PAGE, PAGE, PAGE, _MOVE | uapi.MREMAP_DONTUNMAP, THERE + 9 * PAGE
    )


def anon_vmas(ground: Ground) -> Iterator[Op]:
    """Write areas: neighbours that differ only in protection share an anon_vma.

    Others get separate ones and never merge again.
    """
    yield _map(HERE, 6 * PAGE)
    yield _call(uapi.NR_MPROTECT, HERE + 2 * PAGE, 2 * PAGE, 1)
    yield _write(HERE)
    yield _write(HERE + 4 * PAGE)
    yield _call(uapi.NR_MPROTECT, HERE + 2 * PAGE, 2 * PAGE, 3)
    yield _map(THERE, PAGE)
    yield _map(THERE + 2 * PAGE, PAGE)
    yield _write(THERE)
    yield _write(THERE + 2 * PAGE)
    yield _map(THERE + PAGE, PAGE)


def huge_pages(ground: Ground) -> Iterator[Op]:
    """Test deposited page tables, and huge pages after a part (written or not) is freed."""
    if not ground.thp:
        return
    yield _map(HERE, 4 * SLOT)
    yield _advise(HERE, 4 * SLOT, uapi.MADV_HUGEPAGE)
    yield _write(HERE + 5 * PAGE, 3)
    yield Op(LABEL, OP_LOAD, 0, (HERE + SLOT,))
    yield Op(LABEL, OP_STORE, 0, (HERE + SLOT + 8, 9))
    yield _advise(HERE + SLOT, PAGE, uapi.MADV_DONTNEED)
    yield _call(uapi.NR_MREMAP, HERE + SLOT + 4 * PAGE, 8 * PAGE, 8 * PAGE, _MOVE, THERE)
    yield _advise(HERE, 6 * PAGE, uapi.MADV_FREE)
    yield _advise(HERE + SLOT + 16 * PAGE, PAGE, uapi.MADV_FREE)
    yield _write(HERE + 2 * SLOT)
    yield _advise(HERE + 2 * SLOT, SLOT, uapi.MADV_FREE)
    yield _write(HERE + 2 * SLOT + PAGE)
    yield _advise(HERE + 2 * SLOT, SLOT, uapi.MADV_PAGEOUT)
    yield _advise(HERE + 2 * SLOT, SLOT, uapi.MADV_PAGEOUT)
    # A whole huge page that is mapped by small entries.
    yield _map(HERE + 3 * SLOT, SLOT)
    yield _advise(HERE + 3 * SLOT, SLOT, uapi.MADV_HUGEPAGE)
    yield _write(HERE + 3 * SLOT)
    yield _call(uapi.NR_MPROTECT, HERE + 3 * SLOT, PAGE, 1)
    yield _call(uapi.NR_MPROTECT, HERE + 3 * SLOT, PAGE, 3)
    yield _advise(HERE + 3 * SLOT, SLOT, uapi.MADV_FREE)
    yield _advise(HERE + 3 * SLOT, SLOT, uapi.MADV_PAGEOUT)
    # Two huge pages mapped by small entries are adjacent inside one slot.
    yield _map(HERE, 2 * SLOT)
    yield _advise(HERE, 2 * SLOT, uapi.MADV_HUGEPAGE)
    yield _write(HERE)
    yield _write(HERE + SLOT)
    yield _call(uapi.NR_MREMAP, HERE, 2 * SLOT, 2 * SLOT, _MOVE, THERE + PAGE)
    yield _advise(THERE + SLOT, 4 * PAGE, uapi.MADV_FREE)
    # Locked, partly moved, unlocked: the huge page that was locked in memory is not split.
    yield _map(HERE, SLOT)
    yield _advise(HERE, SLOT, uapi.MADV_HUGEPAGE)
    yield _call(uapi.NR_MLOCK, HERE, SLOT)
    yield _call(uapi.NR_MREMAP, HERE, PAGE, PAGE, uapi.MREMAP_MAYMOVE | uapi.MREMAP_DONTUNMAP, 0)
    yield _advise(HERE + PAGE, SLOT - PAGE, uapi.MADV_FREE)


def too_large(ground: Ground) -> Iterator[Op]:
    """Request more than RAM + swap, which overcommit mode 0 refuses to every call."""
    if not ground.memory:
        return
    more = ground.memory // PAGE * PAGE + 3 * PAGE
    yield _call(uapi.NR_BRK, ground.start_brk + more)
    yield _map(HERE, more)
    yield _map(HERE, more, 1)
    yield _call(uapi.NR_MPROTECT, HERE, more, 3)
    yield _map(HERE, PAGE)
    yield _call(uapi.NR_MREMAP, HERE, PAGE, more, uapi.MREMAP_MAYMOVE, 0)
    yield _call(uapi.NR_MUNMAP, HERE + PAGE, more)
    yield _call(uapi.NR_MREMAP, HERE, PAGE, more, 0, 0)
    yield _call(uapi.NR_MUNMAP, HERE, more)
    yield _map(HERE, more, 3, _FIXED | uapi.MAP_NORESERVE)
    yield _call(uapi.NR_MUNMAP, HERE, more)
    # No gap is that large.
    yield _map(HERE, PAGE, 0)
    yield _call(uapi.NR_MREMAP, HERE, PAGE, 0x7FF000000000, uapi.MREMAP_MAYMOVE, 0)


def beyond(ground: Ground) -> Iterator[Op]:
    """Use ranges that begin or end beyond user space."""
    yield _map(HERE, 4 * PAGE)
    for length in (-(1 << 62), 1 << 62):
        yield _call(uapi.NR_MUNLOCK, HERE, length)
        yield _call(uapi.NR_MPROTECT, HERE, length, 1)
        yield _call(uapi.NR_MLOCK, HERE, length)
        yield _call(uapi.NR_MUNMAP, HERE, length)
    yield _advise(-(1 << 47), PAGE, uapi.MADV_DONTNEED)
    yield _call(uapi.NR_MPROTECT, -(1 << 47), PAGE, 1)
    for addr in (1 << 47, -(1 << 47) - 4096, -(1 << 47), -4096):
        yield Op(LABEL, OP_LOAD, 0, (addr,))


def crowded(ground: Ground) -> Iterator[Op | Crowd]:
    """Reach the limit on areas: calls that need one more are refused, after partial effects."""
    most = 65530
    # Every second page, so that nothing merges.  The harness and the kernel have about ten areas.
    first, last = HERE, HERE + 2 * (most - 40) * PAGE
    yield Crowd([_map(addr, PAGE) for addr in range(first, last, 2 * PAGE)])
    tail = last + 16 * PAGE
    yield _map(tail, 9 * PAGE)
    yield _write(tail, 9)
    yield _map(tail + 200 * PAGE, 64 * PAGE)
    for n in range(40):
        yield _map(tail + (16 + 2 * n) * PAGE, PAGE, 1)
    yield _call(uapi.NR_MPROTECT, tail + PAGE, PAGE, 1)
    yield _call(uapi.NR_MPROTECT, tail + 3 * PAGE, 3 * PAGE, 1)
    yield _advise(tail + 3 * PAGE, PAGE, uapi.MADV_RANDOM)
    yield _call(uapi.NR_MLOCK, tail + 3 * PAGE, PAGE)
    yield _call(uapi.NR_MUNMAP, tail + 3 * PAGE, PAGE)
    yield _map(tail + 3 * PAGE, PAGE, 0)
    yield _call(uapi.NR_MREMAP, tail, PAGE, 2 * PAGE, uapi.MREMAP_MAYMOVE, 0)
    yield _call(uapi.NR_MREMAP, tail, PAGE, PAGE, _MOVE, THERE)
    yield _call(uapi.NR_MREMAP, tail, 9 * PAGE, 4 * PAGE, 0, 0)
    yield _call(uapi.NR_BRK, ground.start_brk + PAGE)
    for n in range(4):
        yield _call(uapi.NR_MUNMAP, tail + (16 + 2 * n) * PAGE, PAGE)
        yield _map(tail + PAGE, PAGE, 0)
        yield _call(uapi.NR_MREMAP, tail, PAGE, 2 * PAGE, uapi.MREMAP_MAYMOVE, 0)
        yield _call(uapi.NR_MREMAP, tail + 2 * PAGE, PAGE, PAGE, _MOVE, tail + 5 * PAGE)
        yield _call(uapi.NR_MPROTECT, tail + PAGE, PAGE, 5)
    # Two splits are needed but only one is possible: the first one is made.
    for n in range(4, 8):
        yield _call(uapi.NR_MUNMAP, tail + (16 + 2 * n) * PAGE, PAGE)
        yield _call(uapi.NR_MPROTECT, tail + (201 + 3 * n) * PAGE, PAGE, 1)
    yield Crowd([_call(uapi.NR_MUNMAP, first, last - first)])
    yield _call(uapi.NR_MPROTECT, tail, PAGE, uapi.PROT_READ)


def locked(ground: Ground) -> Iterator[Op]:
    """Unlock an area with MREMAP_DONTUNMAP: the pages that remain stay locked in memory."""
    yield _map(HERE, 4 * PAGE)
    yield _write(HERE, 4)
    yield _call(uapi.NR_MLOCK, HERE, 4 * PAGE)
    yield _call(uapi.NR_MREMAP, HERE, PAGE, PAGE, uapi.MREMAP_MAYMOVE | uapi.MREMAP_DONTUNMAP, 0)
    yield _advise(HERE + PAGE, 3 * PAGE, uapi.MADV_FREE)
    yield _advise(HERE + PAGE, 3 * PAGE, uapi.MADV_PAGEOUT)
    if ground.thp:
        yield _map(HERE, 2 * SLOT)
        yield _advise(HERE, 2 * SLOT, uapi.MADV_HUGEPAGE)
        yield _write(HERE)
        yield _write(HERE + SLOT)
        yield _call(uapi.NR_MLOCK, HERE, 2 * SLOT)
        yield _call(
            uapi.NR_MREMAP, HERE + SLOT, PAGE, PAGE, uapi.MREMAP_MAYMOVE | uapi.MREMAP_DONTUNMAP, 0
        )
        yield _advise(HERE, PAGE, uapi.MADV_FREE)


def populated(ground: Ground) -> Iterator[Op]:
    """Populate lazily freed pages for writing, which keeps them."""
    yield _map(HERE, 4 * PAGE)
    yield _write(HERE, 4)
    yield _advise(HERE, 4 * PAGE, uapi.MADV_FREE)
    yield _advise(HERE, 2 * PAGE, uapi.MADV_POPULATE_WRITE)
    yield _write(HERE + 2 * PAGE)
    yield _advise(HERE, 4 * PAGE, uapi.MADV_PAGEOUT)


#: All programs by name.
PROGRAMS = {
    make.__name__: make
    for make in (
        whole_tables,
        unwritten_moves,
        anon_vmas,
        beyond,
        huge_pages,
        too_large,
        locked,
        populated,
        crowded,
    )
}


def operations(name: str, ground: Ground) -> list[Op]:
    """Return all operations of a program, in order."""
    steps = PROGRAMS[name](ground)
    return [op for step in steps for op in (step.ops if isinstance(step, Crowd) else [step])]

"""The kernel model as replay uses it: rows of system calls in, states out and in again.

A state is small: the counters and the areas in use.  Pages are never mapped (``layout_only``), so
nothing else of the kernel's record changes.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.jit import build_once, jit
from kernel.merge import modify_vma
from kernel.syscall import syscall
from kernel.types import MM, VM_SPECIAL, VMA
from kernel.uapi import ENOMEM, RLIM_INFINITY
from kernel.vma import find_vma

#: The window is not used: the smallest will do.
WINDOW_BITS = 32

#: Columns of a row: the call, the answer expected, the file behind its descriptor (always 0 in the
#: model), the process's limits, the lowest address that it may map, and the answer got.
NUMBER, ARGUMENTS, EXPECTED, FILE_ID, FILE_MAY, FILE_ALIGN = 0, 1, 7, 8, 9, 10
LIMIT_AS, LIMIT_DATA, LIMIT_MEMLOCK, LOWEST, GOT = 11, 12, 13, 14, 15
COLUMNS = 16

#: Ids of open files; the model numbers those of the initial map and of shared memory from 1 on.
FIRST_FILE_ID = 1 << 32

Row = tuple[int, ...]

#: What areas carry beyond the model's flags, in bits that it leaves alone: attributes that it does
#: not act on, but that keep neighbours apart.
SEALED, FAULTED_BY_USER, MERGEABLE = 1 << 42, 1 << 43, 1 << 44
#: Shift and width of fields: protection key, number of a NUMA policy, number of a name.
PKEY, POLICY, NAME = (45, 4), (49, 6), (55, 7)


@jit
def mark_areas(k, start, end, clear, bits):
    """Clear and set bits in the flags of what lies in [start, end); 0 or -ENOMEM."""
    mm = k.mm
    i = find_vma(k, start)
    while i < mm.map_count and k.vma[i].vm_start < end:
        v = k.vma[i]
        flags = v.vm_flags & ~clear | bits
        if v.vm_flags & VM_SPECIAL == 0 and flags != v.vm_flags:
            i = modify_vma(k, i, max(start, v.vm_start), min(end, v.vm_end), flags)
            if i < 0:
                return -ENOMEM
        i += 1
    return 0


@jit
def replay_rows(k, rows, first, last):
    """Make the calls ``rows[first:last]``, (n, COLUMNS) i8, until one answers otherwise.

    Writes the answers into the column GOT; returns the index of the one that differs, or ``last``.
    """
    mm = k.mm
    for i in range(first, last):
        k.file[0].id = rows[i, FILE_ID]
        k.file[0].may = rows[i, FILE_MAY]
        k.file[0].thp_align = rows[i, FILE_ALIGN]
        mm.rlim_as = rows[i, LIMIT_AS]
        mm.rlim_data = rows[i, LIMIT_DATA]
        mm.rlim_memlock = rows[i, LIMIT_MEMLOCK]
        mm.dac_mmap_min_addr = rows[i, LOWEST]
        got = syscall(
            k, rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3], rows[i, 4], rows[i, 5], rows[i, 6]
        )
        rows[i, GOT] = got
        if got != rows[i, EXPECTED]:
            return i
    return last


@dataclass(frozen=True)
class SavedState:
    """All that calls have changed: ``mm`` () MM and ``vma`` (n,) VMA, both copies."""

    mm: np.ndarray
    vma: np.ndarray

    @cached_property
    def key(self) -> bytes:
        """A digest, equal for states that no later call could tell apart."""
        mm = self.mm
        fields = ("brk", "start_brk", "total_vm", "data_vm", "locked_vm", "committed")
        digest = hashlib.blake2b(self.vma.tobytes(), digest_size=16)
        digest.update(b"".join(mm[name].tobytes() for name in fields))
        return digest.digest()


def initial_state(config: KernelConfig) -> SavedState:
    """The state of a machine that has just been booted so."""
    machine = Machine(config)
    return _copy(machine.k)


def _copy(k: np.record) -> SavedState:
    mm = np.empty((), MM)
    mm[...] = k["mm"]  # np.array would share the record's memory
    return SavedState(mm, np.array(k["vma"][: int(mm["map_count"])], VMA))


class ReplayModel:
    """One kernel that takes on one state after the other."""

    def __init__(self) -> None:
        config = KernelConfig(layout_only=True, window_bits=WINDOW_BITS)
        self._machine = Machine(config)
        self.k = self._machine.k
        self._replay = build_once(replay_rows, **config.switches())
        self._mark = build_once(mark_areas, **config.switches())
        self._one = np.zeros((1, COLUMNS), "i8")

    def save(self) -> SavedState:
        """A copy of the present state."""
        return _copy(self.k)

    def load(self, state: SavedState) -> None:
        """Go to ``state``."""
        self.k["mm"] = state.mm
        self.k["vma"][: len(state.vma)] = state.vma

    def replay(self, rows: np.ndarray, first: int, last: int) -> int:
        """See :func:`replay_rows`."""
        return int(self._replay(self.k, rows, first, last))

    def call(self, row: Row) -> int:
        """Make one call; the answer."""
        self._one[0] = (*row, 0)
        self._replay(self.k, self._one, 0, 1)
        return int(self._one[0, GOT])

    def mark(self, start: int, end: int, clear: int, bits: int) -> int:
        """See :func:`mark_areas`."""
        return int(self._mark(self.k, start, end, clear, bits))

    def set_field(self, start: int, end: int, field: tuple[int, int], value: int) -> int:
        """Give the areas in [start, end) this value of a field."""
        shift, width = field
        return self.mark(start, end, ((1 << width) - 1) << shift, value << shift)

    @property
    def areas(self) -> np.ndarray:
        """The areas in use, a view of (n,) VMA."""
        return self.k["vma"][: int(self.k.mm.map_count)]

    def area_at(self, address: int) -> np.record | None:
        """The first area that ends above ``address``; None if there is none."""
        areas = self.areas
        i = int(np.searchsorted(areas["vm_end"], address, side="right"))
        return areas[i] if i < len(areas) else None

    def covered(self, start: int, end: int) -> bool:
        """Whether areas cover [start, end) without a hole."""
        while start < end:
            area = self.area_at(start)
            if area is None or area["vm_start"] > start:
                return False
            start = int(area["vm_end"])
        return True


def without_limits(row: Row) -> Row:
    """The row without its process's limits."""
    return (*row[:LIMIT_AS], RLIM_INFINITY, RLIM_INFINITY, RLIM_INFINITY, 0)


def without_sizes(row: Row) -> Row:
    """The row without the limits of sizes that calls of other areas count towards."""
    return (*row[:LIMIT_AS], RLIM_INFINITY, RLIM_INFINITY, *row[LIMIT_MEMLOCK:])


def field_of(flags: int, field: tuple[int, int]) -> int:
    """The value of a field in an area's flags."""
    shift, width = field
    return flags >> shift & ((1 << width) - 1)


def unlimited(value: int | None) -> int:
    """A limit as the model counts it."""
    return RLIM_INFINITY if value is None else min(value, RLIM_INFINITY)

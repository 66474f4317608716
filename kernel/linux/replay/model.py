"""Kernel model for replay: makes system calls given as rows, saves and restores its state.

A saved state is small: the counters and the areas in use.  The model never maps a page
(``layout_only``), so the rest of the kernel's record does not change.
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

#: Size of the memory window; replay does not use the window, so this is the smallest size.
WINDOW_BITS = 32

#: Columns of a row: the call's number and six arguments, the expected result, the mapped file (the
#: model's descriptor is always 0), the process's limits, the lowest address that the process may
#: map, and the model's result.
NUMBER, ARGUMENTS, EXPECTED, FILE_ID, FILE_MAY, FILE_ALIGN = 0, 1, 7, 8, 9, 10
LIMIT_AS, LIMIT_DATA, LIMIT_MEMLOCK, LOWEST, GOT = 11, 12, 13, 14, 15
COLUMNS = 16

#: First id of an opened file; from 1 on the model numbers files of the initial map and shared
#: memory.
FIRST_FILE_ID = 1 << 32

Row = tuple[int, ...]

#: Flags that replay adds to areas, in bits that the model does not use.  They mark attributes that
#: the model does not implement but that prevent neighbours from merging.
SEALED, FAULTED_BY_USER, MERGEABLE = 1 << 42, 1 << 43, 1 << 44
#: Shift and width of bit fields in an area's flags, for the same purpose: protection key, number of
#: a NUMA policy, number of a name.
PKEY, POLICY, NAME = (45, 4), (49, 6), (55, 7)


@jit
def mark_areas(k, start, end, clear, bits):
    """Clear and set bits in the flags of the areas in [start, end), splitting areas at its ends.

    Return 0, or -ENOMEM if an area cannot be split.
    """
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
    """Make the calls ``rows[first:last]`` until a result differs from the expected one.

    ``rows``: (n, COLUMNS) i8.  Write the results into the column GOT.  Return the index of the row
    that differs, or ``last`` if none does.
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
    """State that system calls can change: ``mm`` () MM and ``vma`` (n,) VMA, both copies."""

    mm: np.ndarray
    vma: np.ndarray

    @cached_property
    def key(self) -> bytes:
        """Digest of the state, equal for states that no later call can distinguish."""
        mm = self.mm
        fields = ("brk", "start_brk", "total_vm", "data_vm", "locked_vm", "committed")
        digest = hashlib.blake2b(self.vma.tobytes(), digest_size=16)
        digest.update(b"".join(mm[name].tobytes() for name in fields))
        return digest.digest()


def initial_state(config: KernelConfig) -> SavedState:
    """Return the state of a machine booted with ``config``."""
    machine = Machine(config)
    return _copy(machine.k)


def _copy(k: np.record) -> SavedState:
    mm = np.empty((), MM)
    mm[...] = k["mm"]  # np.array would share the record's memory
    return SavedState(mm, np.array(k["vma"][: int(mm["map_count"])], VMA))


class ReplayModel:
    """Kernel model whose state can be saved and loaded."""

    def __init__(self) -> None:
        config = KernelConfig(layout_only=True, window_bits=WINDOW_BITS)
        self._machine = Machine(config)
        self.k = self._machine.k
        self._replay = build_once(replay_rows, **config.switches())
        self._mark = build_once(mark_areas, **config.switches())
        self._one = np.zeros((1, COLUMNS), "i8")

    def save(self) -> SavedState:
        """Return a copy of the current state."""
        return _copy(self.k)

    def load(self, state: SavedState) -> None:
        """Make ``state`` the current state."""
        self.k["mm"] = state.mm
        self.k["vma"][: len(state.vma)] = state.vma

    def replay(self, rows: np.ndarray, first: int, last: int) -> int:
        """Call :func:`replay_rows` on this model."""
        return int(self._replay(self.k, rows, first, last))

    def call(self, row: Row) -> int:
        """Make one call and return its result."""
        self._one[0] = (*row, 0)
        self._replay(self.k, self._one, 0, 1)
        return int(self._one[0, GOT])

    def mark(self, start: int, end: int, clear: int, bits: int) -> int:
        """Call :func:`mark_areas` on this model."""
        return int(self._mark(self.k, start, end, clear, bits))

    def set_field(self, start: int, end: int, field: tuple[int, int], value: int) -> int:
        """Set a bit field of the areas in [start, end); return 0 or -ENOMEM."""
        shift, width = field
        return self.mark(start, end, ((1 << width) - 1) << shift, value << shift)

    @property
    def areas(self) -> np.ndarray:
        """Areas in use, a view of shape (n,) VMA."""
        return self.k["vma"][: int(self.k.mm.map_count)]

    def area_at(self, address: int) -> np.record | None:
        """Return the first area that ends above ``address``, or None if there is none."""
        areas = self.areas
        i = int(np.searchsorted(areas["vm_end"], address, side="right"))
        return areas[i] if i < len(areas) else None

    def covered(self, start: int, end: int) -> bool:
        """Return True if areas cover [start, end) without a hole."""
        while start < end:
            area = self.area_at(start)
            if area is None or area["vm_start"] > start:
                return False
            start = int(area["vm_end"])
        return True


def without_limits(row: Row) -> Row:
    """Return the row with all limits of its process lifted."""
    return (*row[:LIMIT_AS], RLIM_INFINITY, RLIM_INFINITY, RLIM_INFINITY, 0)


def without_size_limits(row: Row) -> Row:
    """Return the row with RLIMIT_AS and RLIMIT_DATA lifted: they depend on every area's size."""
    return (*row[:LIMIT_AS], RLIM_INFINITY, RLIM_INFINITY, *row[LIMIT_MEMLOCK:])


def field_of(flags: int, field: tuple[int, int]) -> int:
    """Return the value of a bit field in an area's flags."""
    shift, width = field
    return flags >> shift & ((1 << width) - 1)


def model_limit(value: int | None) -> int:
    """Convert a limit to the model's representation, where RLIM_INFINITY means none."""
    return RLIM_INFINITY if value is None else min(value, RLIM_INFINITY)

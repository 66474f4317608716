"""Make a kernel, and put it back to where it started.

A :class:`Machine` owns the reserved window and the state arrays; ``machine.k`` is what compiled
code sees.  The window is address space only: host memory is used where allocators keep words.
"""

import mmap
import re
import weakref
from dataclasses import dataclass, field

import numpy as np

from kernel.jit import build, jit
from kernel.memory import store_word, windows
from kernel.pgtable import pgd_shift, pmd_shift, pud_shift
from kernel.switches import PAGE_SHIFT
from kernel.types import (
    ADDRESS_BITS,
    MM,
    PTE_STALE,
    PTE_STORE,
    RLIM_INFINITY,
    TASK,
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    VMA,
    kernel_dtype,
)
from kernel.vma import account_vm

TASK_SIZE = (1 << ADDRESS_BITS) - 4096
MMAP_MIN_ADDR = 65536
MAX_MAP_COUNT = 65530
#: Where the host has huge pages, the window should be able to use them.
_HOST_HUGE_PAGE = 2 << 20
#: NumPy's record types end at 2 GiB, and the page states are part of the kernel's record.
MAX_WINDOW_BITS = 41
#: Python 3.11's mmap module lacks it on Linux; elsewhere the flag is not needed.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if hasattr(mmap, "MAP_POPULATE") else 0)

#: A small position-independent program right after exec, without address randomisation: its text
#: and data, the vdso below mmap_base, and the stack.  The heap starts behind the data.
FRESH_PROCESS = """
555555554000-555555558000 r-xp 00000000 00:01 1 program
555555558000-555555559000 rw-p 00004000 00:01 1 program
7ffff7ff7000-7ffff7ffb000 r--p 00000000 00:00 0 [vvar]
7ffff7ffb000-7ffff7ffd000 r--p 00000000 00:00 0 [vvar_vclock]
7ffff7ffd000-7ffff7fff000 r-xp 00000000 00:00 0 [vdso]
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
"""
MMAP_BASE = 0x7FFFF7FFF000

_MAPS_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-])([w-])([x-])([sp]) ([0-9a-f]+) \S+ (\d+)\s*(.*)"
)


@dataclass(frozen=True)
class KernelConfig:
    """Settings of a kernel; sizes in bytes, 0 for no limit.  Raises ValueError when impossible."""

    page_size: int = 4096
    memory: int = 0
    rlimit_as: int = 0
    rlimit_data: int = 0
    overcommit: int = 2
    max_map_count: int = MAX_MAP_COUNT
    window_bits: int = 39
    maps: str = field(default=FRESH_PROCESS, repr=False)

    def __post_init__(self) -> None:
        if self.page_size not in (4096, 16384, 65536):
            raise ValueError(f"page_size must be 4096, 16384 or 65536, not {self.page_size}")
        for name in ("memory", "rlimit_as", "rlimit_data"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must be 0 (no limit) or positive, not {getattr(self, name)}"
                )
        if 0 < self.memory < self.page_size:
            raise ValueError(f"memory ({self.memory}) is less than one page ({self.page_size})")
        if self.overcommit not in (0, 1, 2):
            raise ValueError(f"overcommit must be 0, 1 or 2, not {self.overcommit}")
        if not 8 <= self.max_map_count <= MAX_MAP_COUNT:
            raise ValueError(
                f"max_map_count must be 8 to {MAX_MAP_COUNT}, not {self.max_map_count}"
            )
        if not 32 <= self.window_bits <= MAX_WINDOW_BITS:
            raise ValueError(f"window_bits must be 32 to {MAX_WINDOW_BITS}, not {self.window_bits}")
        areas = parse_maps(self.maps, self.page_size).areas
        if len(areas) > self.max_map_count:
            raise ValueError(f"maps has {len(areas)} areas, max_map_count is {self.max_map_count}")
        check_window(areas, self.window_bits)

    @property
    def page_shift(self) -> int:
        """log2 of the page size."""
        return self.page_size.bit_length() - 1

    def switches(self) -> dict[str, int]:
        """The compile-time switches that this configuration fixes (kernel.switches)."""
        return {"PAGE_SHIFT": self.page_shift, "WINDOW_BITS": self.window_bits}


@dataclass(frozen=True)
class InitialMap:
    """A process right after exec: its areas, (n,) VMA, and where its data and heap lie."""

    areas: np.ndarray
    start_data: int
    end_data: int
    start_brk: int
    brk: int


def _reserve(size: int) -> np.ndarray:
    """Return ``size`` zero bytes of which only the touched pages cost memory.

    Raises MemoryError with a hint where the machine forbids such reservations.
    """
    try:
        if not _MAP_NORESERVE:
            raw = mmap.mmap(-1, size)
        else:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            raw = mmap.mmap(-1, size, flags=flags)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(
            f"cannot reserve {size >> 20} MiB of address space for simulated memory ({error}): "
            "vm.overcommit_memory=2 or ulimit -v forbids it; set kernel.window_bits lower "
            "(32: 4 GiB)"
        ) from None
    return np.frombuffer(raw, dtype="u1")


def record(dtype: np.dtype) -> np.record:
    """Return one zeroed record with attribute access, compiled or not.

    Raises ValueError for a field whose name NumPy's records use themselves (``base``, ``size`` …):
    compiled code would see the field, plain Python the attribute.
    """
    for name in dtype.names or ():
        if hasattr(np.record, name):
            raise ValueError(f"a record field cannot be called {name!r}: np.record has that name")
    return np.zeros(1, dtype).view(np.recarray)[0]


class Machine:
    """A simulated process on its own kernel.

    ``k`` is the state for compiled code.  ``reset()`` puts everything back to the moment after
    boot, clearing only what was touched.
    """

    def __init__(self, config: KernelConfig | None = None) -> None:
        self.config = config or KernelConfig()
        shift = self.config.page_shift
        bits = self.config.window_bits
        dtype = kernel_dtype(shift, bits, self.config.max_map_count)
        # One reservation, so that ``k`` keeps its window alive; the window aligned as the whole.
        offset = -(-dtype.itemsize // _HOST_HUGE_PAGE) * _HOST_HUGE_PAGE
        memory = _reserve(offset + (1 << bits))
        window = memory[offset:].view("i8")
        self.k = memory[: dtype.itemsize].view(dtype).view(np.recarray)[0]
        self.k.window = window.ctypes.data
        windows[window.ctypes.data] = window
        weakref.finalize(self, windows.pop, window.ctypes.data)
        self._initial = parse_maps(self.config.maps, self.config.page_size)
        self._clear = None
        self._boot()

    def _boot(self) -> None:
        config, initial, k = self.config, self._initial, self.k
        k["mm"] = np.zeros((), MM)
        k["task"] = np.zeros((), TASK)
        mm = k.mm
        mm.task_size = TASK_SIZE & -config.page_size
        mm.mmap_base = MMAP_BASE & -config.page_size
        mm.mmap_min_addr = MMAP_MIN_ADDR
        mm.max_map_count = config.max_map_count
        mm.rlim_as = config.rlimit_as or RLIM_INFINITY
        mm.rlim_data = config.rlimit_data or RLIM_INFINITY
        mm.memory = config.memory // config.page_size
        mm.overcommit = config.overcommit
        mm.start_data, mm.end_data = initial.start_data, initial.end_data
        mm.start_brk, mm.brk = initial.start_brk, initial.brk
        mm.map_count = len(initial.areas)
        k.vma[: mm.map_count] = initial.areas
        for v in initial.areas:
            pages = (v["vm_end"] - v["vm_start"]) // config.page_size
            account_vm(k, v["vm_flags"], pages)
            if v["vm_flags"] & VM_ACCOUNT:
                mm.committed += pages
        mm.start_vm = mm.total_vm - mm.reserved_vm

    def reset(self) -> None:
        """Return to the state after boot.  Host memory already in use stays warm."""
        if self._clear is None:
            self._clear = build(clear_touched, **self.config.switches())
        self._clear(self.k)
        self._boot()

    def maps(self) -> str:
        """The areas as /proc/PID/maps shows them."""
        lines = []
        mm = self.k.mm
        for v in self.k.vma[: mm.map_count]:
            f = int(v.vm_flags)
            prot = "".join(c if f & b else "-" for c, b in zip("rwx", (1, 2, 4), strict=True))
            kind = "s" if f & VM_SHARED else "p"
            heap = v.vm_start < mm.brk and v.vm_end > mm.start_brk and not v.vm_file
            name = " [heap]" if heap else " [stack]" if f & VM_GROWSDOWN else ""
            lines.append(f"{v.vm_start:012x}-{v.vm_end:012x} {prot}{kind}{name}")
        return "\n".join(lines)


@jit
def clear_touched(k):
    """Zero the page states, and the words behind them, of every slot touched since boot."""
    mm = k.mm
    fan_out = PAGE_SHIFT - 3
    for t in range(mm.nr_touched):
        slot = k.touched[t]
        k.slot_seen[slot] = 0
        for page in range(slot << fan_out, (slot + 1) << fan_out):
            if k.pte[page] & (PTE_STORE | PTE_STALE):
                for w in range(page << (PAGE_SHIFT - 3), (page + 1) << (PAGE_SHIFT - 3)):
                    store_word(k.window, w, 0)
            k.pte[page] = 0
    # Upper levels last: areas may share a PMD page, whose mark says where PTE pages can be.
    for i in range(mm.map_count):
        v = k.vma[i]
        _clear_pte_tables(k, v.vm_start, v.vm_end)
    for i in range(mm.map_count):
        v = k.vma[i]
        for slot in range(v.vm_start >> pud_shift(), ((v.vm_end - 1) >> pud_shift()) + 1):
            k.pmd_table[slot] = 0
        for slot in range(v.vm_start >> pgd_shift(), ((v.vm_end - 1) >> pgd_shift()) + 1):
            k.pud_table[slot] = 0


@jit
def _clear_pte_tables(k, start, end):
    """Forget the PTE pages of [start, end), skipping whole PMD slots that have none."""
    while start < end:
        stop = min(end, ((start >> pud_shift()) + 1) << pud_shift())
        if k.pmd_table[start >> pud_shift()]:
            for slot in range(start >> pmd_shift(), ((stop - 1) >> pmd_shift()) + 1):
                k.pte_table[slot] = 0
        start = stop


@dataclass(frozen=True)
class _Line:
    """One line of a maps text, aligned to pages; empty where the area below keeps its only page."""

    start: int
    end: int
    flags: int
    offset: int  # in the file, bytes
    file: str  # what is mapped; empty for anonymous memory
    name: str

    @property
    def is_data(self) -> bool:
        """Whether it is private and writable."""
        return self.flags & (VM_WRITE | VM_SHARED) == VM_WRITE


def _read_lines(text: str, page_size: int) -> list[_Line]:
    """Parse a maps text; what it raises is described at :func:`parse_maps`."""
    lines: list[_Line] = []
    task_size = TASK_SIZE // page_size * page_size
    above = 0
    for number, line in enumerate(text.strip().splitlines(), 1):
        match = _MAPS_LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(
                f"maps line {number}: expected 'start-end perms offset dev inode name': {line}"
            )
        first, last, r, w, x, share, offset, inode, name = match.groups()
        start, end = int(first, 16), int(last, 16)
        if not above <= start < end:
            raise ValueError(f"maps line {number}: not above the area before it: {line}")
        above = end
        if start >= task_size:
            continue
        flags = VM_READ * (r == "r") | VM_WRITE * (w == "w") | VM_EXEC * (x == "x")
        flags |= VM_SHARED * (share == "s") | VM_GROWSDOWN * (name == "[stack]")
        special = name.startswith("[") and name not in ("[heap]", "[stack]")
        file = (name or f"inode {inode}") if special or inode != "0" else ""
        low = max(start // page_size * page_size, lines[-1].end if lines else 0)
        high = min(-(-end // page_size) * page_size, task_size)
        lines.append(_Line(low, high, flags, int(offset, 16), file, name))
    return lines


def _place_heap(lines: list[_Line]) -> tuple[int, int, int, int]:
    """Return start_data, end_data, start_brk and brk of the program, the lowest file."""
    lowest = next((line.file for line in lines if line.file), None)
    program = [line for line in lines if line.file == lowest]
    data = [line for line in program if line.is_data] or program[-1:]
    start_data = data[0].start if data else MMAP_MIN_ADDR
    end_data = data[-1].end if data else MMAP_MIN_ADDR
    heap = [line for line in lines if line.name == "[heap]"]
    if heap:
        return start_data, end_data, heap[0].start, heap[-1].end
    bss = [line.end for line in lines if line.start == end_data and not line.file and line.is_data]
    brk = max([end_data, *bss])
    return start_data, end_data, brk, brk


def parse_maps(text: str, page_size: int = 4096) -> InitialMap:
    """Read a /proc/PID/maps text, its areas aligned outwards to ``page_size``.

    Where larger pages make two areas share one, the lower keeps it.  What lies beyond user space
    (vsyscall) is left out.  The heap is [heap], else empty and behind the program's data and bss.

    Raises ValueError for a line that is not of that form or not above the line before.
    """
    lines = _read_lines(text, page_size)
    ids: dict[str, int] = {"": 0}
    rows = [
        (
            line.start,
            line.end,
            line.flags | VM_ACCOUNT * line.is_data,
            (line.offset if line.file else line.start) // page_size,
            0,
            ids.setdefault(line.file, len(ids)),
        )
        for line in lines
        if line.start < line.end
    ]
    return InitialMap(np.array(rows, VMA), *_place_heap(lines))


def check_window(areas: np.ndarray, window_bits: int) -> None:
    """Raise ValueError when two of the ``areas`` share a place in the window."""
    size = 1 << window_bits
    folded = sorted((int(v["vm_start"]) % size, int(v["vm_end"] - v["vm_start"])) for v in areas)
    # Each may reach to where the next one starts, the last around the end to the first.
    limits = [start for start, _ in folded[1:]] + [start + size for start, _ in folded[:1]]
    if any(start + length > limit for (start, length), limit in zip(folded, limits, strict=True)):
        raise ValueError(
            f"maps has areas that share a place in the window of 2**{window_bits} bytes: "
            "set a larger window_bits"
        )

"""Make a kernel, and put it back to where it started.

A :class:`Machine` owns the reserved window and the state arrays; ``machine.k`` is what compiled
code sees.  The window is address space only: host memory is used where allocators keep words.
"""

import mmap
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter

import numpy as np

from kernel.frames import MAX_FRAMES, VMSTAT, default_min_free, init_frames
from kernel.huge import set_folio
from kernel.jit import build_once, disabled, jit
from kernel.memory import clear_page, windows
from kernel.pgtable import alloc_tables, pgd_shift, pmd_shift, pud_shift
from kernel.switches import PAGE_SHIFT
from kernel.tlb import check_geometry, init_tlb
from kernel.types import (
    ADDRESS_BITS,
    MM,
    PTE_WORDS,
    TASK,
    THP_ALWAYS,
    THP_MADVISE,
    THP_NEVER,
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WRITE,
    VMA,
    kernel_dtype,
)
from kernel.uapi import RLIM_INFINITY
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
#: What overcommit 2 keeps back, at most, bytes (vm.admin_reserve_kbytes, vm.user_reserve_kbytes).
_ADMIN_RESERVE, _USER_RESERVE = 8 << 20, 128 << 20

_MAPS_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-])([w-])([x-])([sp]) ([0-9a-f]+) \S+ (\d+)\s*(.*)"
)


#: Settings in bytes; 0: no limit (swap: none).
_SIZES = ("memory", "swap", "rlimit_as", "rlimit_data", "rlimit_memlock", "rlimit_stack")
_THP = {"never": THP_NEVER, "madvise": THP_MADVISE, "always": THP_ALWAYS}


@dataclass(frozen=True)
class KernelConfig:
    """Settings of a kernel; sizes in bytes, 0 for no limit.  Raises ValueError when impossible.

    ``maps``: the areas of the process when it begins, as /proc/PID/maps shows them.
    ``mmap_base``: where top-down search begins; 0: where the highest mapping below the stack ends.
    ``legacy_layout``: mappings are placed from the bottom up.  ``layout_only``: no page is ever
    mapped, so that any address will do; for replaying system calls whose touches are not known.

    ``frames``: every page takes a frame of ``memory`` (kernel.frames); ``fragmentation``: percent
    of its blocks of a huge page's size in which the rest of the system holds a frame;
    ``zone_boundary``: where the upper zone begins; ``min_free``: the min watermarks, 0 for Linux's
    formula.  ``tlb``: translations are cached (kernel.tlb), in tables of so many entries and ways.
    """

    page_size: int = 4096
    memory: int = 0
    swap: int = 0
    rlimit_as: int = 0
    rlimit_data: int = 0
    rlimit_memlock: int = 0
    rlimit_stack: int = 8 << 20
    overcommit: int = 2
    overcommit_ratio: int = 100
    thp: str = "never"
    legacy_layout: bool = False
    max_map_count: int = MAX_MAP_COUNT
    window_bits: int = 39
    layout_only: bool = False
    mmap_base: int = 0
    frames: bool = False
    fragmentation: int = 0
    zone_boundary: int = 4 << 30
    min_free: int = 0
    tlb: bool = False
    tlb_l1_entries: int = 64
    tlb_l1_ways: int = 4
    tlb_l1_huge_entries: int = 32
    tlb_l1_huge_ways: int = 4
    tlb_l2_entries: int = 1536
    tlb_l2_ways: int = 12
    maps: str = field(default=FRESH_PROCESS, repr=False)

    def __post_init__(self) -> None:
        if self.page_size not in (4096, 16384, 65536):
            raise ValueError(f"page_size must be 4096, 16384 or 65536, not {self.page_size}")
        for name in _SIZES:
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must be 0 (no limit) or positive, not {getattr(self, name)}"
                )
        if 0 < self.memory < self.page_size:
            raise ValueError(f"memory ({self.memory}) is less than one page ({self.page_size})")
        if self.overcommit not in (0, 1, 2):
            raise ValueError(f"overcommit must be 0, 1 or 2, not {self.overcommit}")
        if not 0 <= self.overcommit_ratio <= 1000:
            raise ValueError(f"overcommit_ratio must be 0 to 1000 %, not {self.overcommit_ratio}")
        if self.thp not in _THP:
            raise ValueError(f"thp must be {', '.join(_THP)}, not {self.thp}")
        if not 8 <= self.max_map_count <= MAX_MAP_COUNT:
            raise ValueError(
                f"max_map_count must be 8 to {MAX_MAP_COUNT}, not {self.max_map_count}"
            )
        if not 32 <= self.window_bits <= MAX_WINDOW_BITS:
            raise ValueError(f"window_bits must be 32 to {MAX_WINDOW_BITS}, not {self.window_bits}")
        areas = parse_maps(self.maps, self.page_size).areas
        if len(areas) > self.max_map_count:
            raise ValueError(f"maps has {len(areas)} areas, max_map_count is {self.max_map_count}")
        if not self.layout_only:
            check_window(areas, self.window_bits)
        if self.frames:
            self._check_frames()
        if self.tlb:
            for name in ("tlb_l1", "tlb_l1_huge", "tlb_l2"):
                check_geometry(
                    name, getattr(self, f"{name}_entries"), getattr(self, f"{name}_ways")
                )

    def _check_frames(self) -> None:
        """Raise ValueError when physical memory cannot be as the settings say."""
        if not self.memory:
            raise ValueError("frames needs memory, the bytes that there are frames of: it is 0")
        if self.layout_only:
            raise ValueError("frames and layout_only exclude each other: no page is ever mapped")
        for name in ("memory", "swap"):
            if getattr(self, name) // self.page_size > MAX_FRAMES:
                raise ValueError(
                    f"{name} is {getattr(self, name)} bytes: with frames at most "
                    f"{MAX_FRAMES} pages of {self.page_size}"
                )
        if not 0 <= self.fragmentation <= 100:
            raise ValueError(f"fragmentation must be 0 to 100 %, not {self.fragmentation}")
        block = self.page_size << max(10, self.page_shift - 3)
        if self.zone_boundary < 0 or self.zone_boundary % block:
            raise ValueError(
                f"zone_boundary must be a multiple of {block}, the largest block of frames, "
                f"not {self.zone_boundary}"
            )
        if self.min_free < 0 or self.min_free_bytes >= self.memory:
            raise ValueError(
                f"min_free ({self.min_free_bytes}) must be less than memory ({self.memory})"
            )

    @property
    def min_free_bytes(self) -> int:
        """Bytes of all min watermarks."""
        return self.min_free or default_min_free(self.memory)

    @property
    def page_shift(self) -> int:
        """log2 of the page size."""
        return self.page_size.bit_length() - 1

    def switches(self) -> dict[str, int]:
        """The compile-time switches that this configuration fixes (kernel.switches)."""
        switches = {"PAGE_SHIFT": self.page_shift, "WINDOW_BITS": self.window_bits}
        # What is off is left at its default.
        return switches | {n.upper(): True for n in ("frames", "tlb") if getattr(self, n)}


@dataclass(frozen=True)
class InitialMap:
    """A process right after exec: its areas, (n,) VMA, and where its data and heap lie."""

    areas: np.ndarray
    start_data: int
    end_data: int
    start_brk: int
    brk: int
    mmap_base: int  # where the highest mapping below the stack ends
    legacy_base: int  # where bottom-up search begins: the a third of the address space
    files: int  # ids of files in use


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
    return as_record(np.zeros(1, dtype))


def as_record(array: np.ndarray) -> np.record:
    """The one element of ``array``, a record whose fields, and theirs, are its attributes."""
    if disabled():
        return array.view(_plain_records(array.dtype))[0]
    return array.view(np.recarray)[0]


@cache
def _plain_records(dtype: np.dtype) -> np.dtype:
    """``dtype`` with a type of records that plain Python reads eight times faster.

    NumPy's own look each attribute up anew, and only after all others; here each field is a
    property.  Numba does not know these types.
    """

    def setter(name: str) -> Callable[[np.void, object], None]:
        def put(record: np.void, value: object) -> None:
            record[name] = value

        return put

    members = {name: property(itemgetter(name), setter(name)) for name in dtype.names}
    fields = [dtype.fields[name] for name in dtype.names]
    layout = {
        "names": dtype.names,
        "formats": [_plain_field(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
    }
    return np.dtype((type("record", (np.void,), {"__slots__": ()} | members), np.dtype(layout)))


def _plain_field(dtype: np.dtype) -> np.dtype | tuple[np.dtype, tuple[int, ...]]:
    base = _plain_records(dtype.base) if dtype.base.names else dtype.base
    return (base, dtype.shape) if dtype.shape else base


class Machine:
    """A simulated process on its own kernel.

    ``k`` is the state for compiled code.  ``reset()`` puts everything back to the moment after
    boot, clearing only what was touched.
    """

    def __init__(self, config: KernelConfig | None = None) -> None:
        self.config = config or KernelConfig()
        shift = self.config.page_shift
        bits = self.config.window_bits
        frames, tlb = self.config.frames, self.config.tlb
        dtype = kernel_dtype(shift, bits, self.config.max_map_count, frames=frames, tlb=tlb)
        # One reservation, so that ``k`` keeps its window alive; the window aligned as the whole.
        offset = -(-dtype.itemsize // _HOST_HUGE_PAGE) * _HOST_HUGE_PAGE
        # Behind it a word for each of its pages, once or twice.
        names = ["folio", "pfn"] if frames else ["folio"]
        words_size = 8 << (bits - shift)
        places = [("window", offset, offset + (1 << bits))]
        for name in names:
            end = places[-1][2]
            places.append((name, end, end + words_size))
        memory = _reserve(places[-1][2])
        self.k = as_record(memory[: dtype.itemsize].view(dtype))
        for name, start, end in places:
            words = memory[start:end]
            address = words.ctypes.data
            self.k[name] = address
            windows[address] = words.view("i8")
            weakref.finalize(self, windows.pop, address)
        self._initial = parse_maps(self.config.maps, self.config.page_size)
        self._clear = None
        self._assume = None
        self._frames = build_once(init_frames, **self.config.switches()) if frames else None
        self._boot()

    def _boot(self) -> None:
        config, initial, k = self.config, self._initial, self.k
        page = config.page_size
        k["mm"] = np.zeros((), MM)
        k["task"] = np.zeros((), TASK)
        mm = k.mm
        mm.task_size = TASK_SIZE & -page
        mm.mmap_base = (config.mmap_base or initial.mmap_base) & -page
        mm.mmap_legacy_base = -(-initial.legacy_base // page) * page
        mm.legacy = config.legacy_layout
        mm.layout_only = config.layout_only
        mm.mmap_min_addr = mm.dac_mmap_min_addr = MMAP_MIN_ADDR
        mm.max_map_count = config.max_map_count
        for name in ("rlimit_as", "rlimit_data", "rlimit_memlock", "rlimit_stack"):
            mm[name.replace("rlimit", "rlim")] = getattr(config, name) or RLIM_INFINITY
        mm.memory, mm.swap = config.memory // page, config.swap // page
        mm.overcommit = config.overcommit
        # Linux keeps a share back for root, and from a large process for the tools to end it.
        mm.commit_limit = mm.memory * config.overcommit_ratio // 100 + mm.swap
        mm.commit_limit -= min(mm.memory // 32, _ADMIN_RESERVE // page)
        mm.user_reserve = min(mm.memory // 32, _USER_RESERVE // page)
        mm.thp = _THP[config.thp]
        mm.start_data, mm.end_data = initial.start_data, initial.end_data
        mm.start_brk, mm.brk = initial.start_brk, initial.brk
        mm.files = initial.files
        mm.map_count = len(initial.areas)
        k.vma[: mm.map_count] = initial.areas
        for v in initial.areas:
            pages = (v["vm_end"] - v["vm_start"]) // page
            account_vm(k, v["vm_flags"], pages)
            if v["vm_flags"] & VM_ACCOUNT:
                mm.committed += pages
        mm.start_vm = mm.total_vm - mm.reserved_vm
        if config.frames:
            k["vmstat"] = np.zeros((), VMSTAT)
            self._frames(
                k,
                config.memory // page,
                config.zone_boundary // page,
                config.min_free_bytes // page,
                config.fragmentation,
                config.swap // page,
            )
        if config.tlb:
            names = ("tlb_l1", "tlb_l1_huge", "tlb_l2")
            init_tlb(
                k, [(getattr(config, f"{n}_entries"), getattr(config, f"{n}_ways")) for n in names]
            )

    def assume_tables(self, start: int, end: int) -> None:
        """Let the page tables of [start, end) exist, as for a process that has touched it all.

        Raises ValueError with frames: they would have none.
        """
        if self.config.frames:
            raise ValueError("page tables cannot be assumed with frames: each takes one")
        if self._assume is None:
            self._assume = build_once(assume_tables, **self.config.switches())
        self._assume(self.k, start, end)

    def reset(self) -> None:
        """Return to the state after boot.  Host memory already in use stays warm."""
        if self._clear is None:
            self._clear = build_once(clear_touched, **self.config.switches())
        self._clear(self.k)
        self._boot()

    def maps(self) -> str:
        """The areas as /proc/PID/maps shows them."""
        lines = []
        mm = self.k.mm
        for v in self.k.vma[: mm.map_count]:
            f = int(v.vm_flags)
            prot = "".join(c if f & b else "-" for c, b in zip("rwx", (1, 2, 4), strict=True))
            kind = "s" if f & VM_MAYSHARE else "p"
            heap = v.vm_start < mm.brk and v.vm_end > mm.start_brk and not v.vm_file
            name = " [heap]" if heap else " [stack]" if f & VM_GROWSDOWN else ""
            lines.append(f"{v.vm_start:012x}-{v.vm_end:012x} {prot}{kind}{name}")
        return "\n".join(lines)


@jit
def assume_tables(k, start, end):
    """Make the table pages of [start, end) exist."""
    for addr in range(start >> pmd_shift() << pmd_shift(), end, 1 << pmd_shift()):
        alloc_tables(k, addr)


@jit
def clear_touched(k):
    """Zero the page states, and the words behind them, of every slot touched since boot."""
    mm = k.mm
    fan_out = PAGE_SHIFT - 3
    for t in range(mm.nr_touched):
        slot = k.touched[t]
        k.slot_seen[slot] = 0
        for page in range(slot << fan_out, (slot + 1) << fan_out):
            if k.pte[page] & PTE_WORDS:
                clear_page(k, page)
            if mm.folios:
                set_folio(k, page, 0)
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


#: The stack's anon_vma, which no area has that the process writes later.
_EXEC_ANON_VMA = -1


@dataclass(frozen=True)
class _Line:
    """One line of a maps text, aligned to pages; empty where the area below keeps its only page."""

    start: int
    end: int
    flags: int
    last: int  # end as written, not aligned
    offset: int  # in the file, bytes
    file: str  # what is mapped; empty for anonymous memory
    name: str

    @property
    def is_data(self) -> bool:
        """Whether it is private and writable."""
        return self.flags & (VM_WRITE | VM_SHARED) == VM_WRITE

    @property
    def is_stack(self) -> bool:
        """Whether it is the stack that exec made."""
        return bool(self.flags & VM_GROWSDOWN)

    def pgoff(self, page_size: int) -> int:
        """The page offset, pages.

        Exec makes the stack at the end of user space, writes the arguments, and then moves it to
        its random place: its page offset remains.
        """
        if self.is_stack:
            return (TASK_SIZE // page_size * page_size - (self.end - self.start)) // page_size
        return (self.offset if self.file else self.start) // page_size


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
        flags |= VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
        flags |= (VM_SHARED | VM_MAYSHARE) * (share == "s") | VM_GROWSDOWN * (name == "[stack]")
        special = name.startswith("[") and name not in ("[heap]", "[stack]")
        flags |= VM_SPECIAL * special
        if name.startswith("[vvar"):
            flags = (flags | VM_PFNMAP) & ~VM_MAYWRITE
        file = (name or f"inode {inode}") if special or inode != "0" else ""
        low = max(start // page_size * page_size, lines[-1].end if lines else 0)
        high = min(-(-end // page_size) * page_size, task_size)
        lines.append(_Line(low, high, flags, end, int(offset, 16), file, name))
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
            line.pgoff(page_size),
            _EXEC_ANON_VMA * line.is_stack,
            ids.setdefault(line.file, len(ids)),
        )
        for line in lines
        if line.start < line.end
    ]
    base = max([v.last for v in lines if not v.flags & VM_GROWSDOWN], default=TASK_SIZE)
    return InitialMap(np.array(rows, VMA), *_place_heap(lines), base, TASK_SIZE // 3, len(ids))


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

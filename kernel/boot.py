"""Boot a machine, one simulated process on its own kernel, and reset it to its initial state.

A :class:`Machine` is one reservation of host address space, zero and free of cost until touched:

    ┌────────────────────┬───────────────────────────┬───────────────┬───────────────────┐
    │ k, the state       │ the window, the words of  │ folio, a word │ pfn, a word for   │
    │ (kernel.types)     │ simulated memory          │ for each page │ each, with FRAMES │
    └────────────────────┴───────────────────────────┴───────────────┴───────────────────┘

Compiled code receives ``machine.k`` and finds the rest through the addresses stored in it.  A reset
clears only the slots that were touched, so its cost depends on the run, not on the window's size.
"""

import mmap
import weakref

import numpy as np

from kernel.config import _THP, KernelConfig
from kernel.engine.jit import build_once, jit
from kernel.engine.memory import clear_page, windows
from kernel.engine.record import as_record
from kernel.frames import init_frames
from kernel.huge import set_folio
from kernel.maps import MMAP_MIN_ADDR, TASK_SIZE, parse_maps
from kernel.page import (
    pages_around,
    pgd_shift,
    pmd_order,
    pmd_shift,
    pmd_size,
    pud_addr_end,
    pud_shift,
    slot_start,
)
from kernel.pgtable import alloc_tables
from kernel.tlb import init_tlb
from kernel.types import (
    MM,
    PTE_WORDS,
    TASK,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_MAYSHARE,
    VMSTAT,
    kernel_dtype,
)
from kernel.uapi import RLIM_INFINITY
from kernel.vma import account_vm

#: The window is aligned to this, bytes, so that the host can back it with huge pages.
_HOST_HUGE_PAGE = 2 << 20
#: Python 3.11's mmap module does not define it on Linux; other systems do not need the flag.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if hasattr(mmap, "MAP_POPULATE") else 0)

#: Upper limits of overcommit 2's reserves, bytes (vm.admin_reserve_kbytes, user_reserve_kbytes).
_ADMIN_RESERVE, _USER_RESERVE = 8 << 20, 128 << 20


def _reserve(size: int) -> np.ndarray:
    """Reserve ``size`` zero bytes, (size,) uint8; only touched pages use host memory.

    Raises MemoryError with a hint where the host forbids the reservation.
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


class Machine:
    """A simulated process on its own kernel.

    ``k`` is the state for compiled code.  ``reset()`` restores the state right after boot and
    clears only what was touched.
    """

    def __init__(self, config: KernelConfig | None = None) -> None:
        self.config = config or KernelConfig()
        shift = self.config.page_shift
        bits = self.config.window_bits
        frames, tlb = self.config.frames, self.config.tlb
        dtype = kernel_dtype(shift, bits, self.config.max_map_count, frames=frames, tlb=tlb)
        # One reservation, so that ``k`` keeps its window alive; the window is huge-page aligned.
        offset = -(-dtype.itemsize // _HOST_HUGE_PAGE) * _HOST_HUGE_PAGE
        # The window is followed by one or two tables with a word for each of its pages.
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
        # Linux reserves a share for root, and a share for a user to recover from a large process.
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
        """Create the page tables of [start, end), as if the process had touched the whole range.

        Raises ValueError with frames: these page tables would have no frames.
        """
        if self.config.frames:
            raise ValueError("page tables cannot be assumed with frames: each table needs a frame")
        if self._assume is None:
            self._assume = build_once(assume_tables, **self.config.switches())
        self._assume(self.k, start, end)

    def reset(self) -> None:
        """Restore the state right after boot.  Host memory already in use stays warm."""
        if self._clear is None:
            self._clear = build_once(clear_touched, **self.config.switches())
        self._clear(self.k)
        self._boot()

    def revoke(self) -> None:
        """Take all memory from a process that still runs, so that its next access ends it.

        The machine is of no use afterwards.
        """
        self.k.mm.map_count = 0
        fan_out = self.config.page_shift - 3
        for slot in self.k.touched[: self.k.mm.nr_touched]:
            self.k.pte[slot << fan_out : (slot + 1) << fan_out] = 0

    def maps(self) -> str:
        """Return the areas in the format of /proc/PID/maps."""
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
    """Create all page-table pages that map [start, end)."""
    for addr in range(slot_start(start), end, pmd_size()):
        alloc_tables(k, addr)


@jit
def clear_touched(k):
    """Zero the page states and the window words of every slot touched since boot."""
    mm = k.mm
    for t in range(mm.nr_touched):
        slot = k.touched[t]
        k.slot_seen[slot] = 0
        for page in pages_around(slot << pmd_order()):
            if k.pte[page] & PTE_WORDS:
                clear_page(k, page)
            if mm.folios:
                set_folio(k, page, 0)
            k.pte[page] = 0
    # Upper levels last: areas may share a PMD page, and its mark shows where PTE pages can exist.
    for i in range(mm.map_count):
        v = k.vma[i]
        _clear_pte_tables(k, v.vm_start, v.vm_end)
    for i in range(mm.map_count):
        v = k.vma[i]
        for slot in range(v.vm_start >> pud_shift(), ((v.vm_end - 1) >> pud_shift()) + 1):
            k.pud[slot] = 0
        for slot in range(v.vm_start >> pgd_shift(), ((v.vm_end - 1) >> pgd_shift()) + 1):
            k.pgd[slot] = 0


@jit
def _clear_pte_tables(k, start, end):
    """Clear the PMD entries of [start, end), skipping ranges without a PMD page."""
    while start < end:
        stop = pud_addr_end(start, end)
        if k.pud[start >> pud_shift()]:
            for slot in range(start >> pmd_shift(), ((stop - 1) >> pmd_shift()) + 1):
                k.pmd[slot] = 0
        start = stop

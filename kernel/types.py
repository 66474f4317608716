"""Every record of the kernel model, field by field, and the constants that their fields hold.

In this order: areas, pages, the address space with all that is counted, the running thread and its
signals, physical memory, TLBs; at the end :func:`kernel_dtype`, the one record that holds them all.
The numbers that programs pass to system calls are in :mod:`kernel.uapi`.

All integers are int64: mixing in uint64 would turn sums into floats under the JIT.  Addresses and
lengths are bytes unless a field says pages.  Names are Linux's wherever Linux has one.
"""

import functools

import numpy as np

from kernel import counters

#: Compiled code may name this module as a whole (kernel.engine.jit).
HEADER = True

#: User space has addresses of this many bits.
ADDRESS_BITS = 47

# --- Areas --------------------------------------------------------------------------------------

#: vm_flags, the values of Linux.
VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 0x1, 0x2, 0x4, 0x8
#: What mprotect may turn the three rights into (VM_READ << 4 …); a file opened for reading
#: forbids VM_MAYWRITE to its shared mappings.
VM_MAYREAD, VM_MAYWRITE, VM_MAYEXEC = 0x10, 0x20, 0x40
#: The right to map shared, which outlives a mapping without VM_SHARED (a file opened read-only).
VM_MAYSHARE = 0x80
VM_GROWSDOWN = 0x100
VM_LOCKED = 0x2000
VM_SEQ_READ, VM_RAND_READ = 0x8000, 0x10000
VM_DONTCOPY = 0x20000
VM_LOCKONFAULT = 0x80000
VM_ACCOUNT = 0x100000
VM_NORESERVE = 0x200000
VM_SYNC = 0x800000
VM_WIPEONFORK = 0x2000000
VM_DONTDUMP = 0x4000000
VM_HUGEPAGE, VM_NOHUGEPAGE = 0x20000000, 0x40000000
#: No memory of the page allocator's (vvar): nothing to give back, to populate or to copy.
VM_PFNMAP = 0x400
#: A mapping of the kernel's own (vdso, vvar): never merged, split, locked or made larger.
VM_SPECIAL = 1 << 40
#: Of the model: the file's system aligns large mappings to huge pages.
VM_FILE_ALIGN = 1 << 41

#: One memory area.  ``k.vma[:mm.map_count]`` is sorted by address and never overlaps.
VMA = np.dtype(
    [
        ("vm_start", "i8"),  # first byte
        ("vm_end", "i8"),  # first byte behind it
        ("vm_flags", "i8"),  # VM_*; the low three bits are the protection
        ("vm_pgoff", "i8"),  # page of the file; anonymous: page number of vm_start when mapped
        ("anon_vma", "i8"),  # 0 until the first write fault; areas merge only if compatible
        ("vm_file", "i8"),  # 0 anonymous; else the id of the open file, or of shared memory
    ],
    align=True,
)

#: What a file descriptor names, for mmap.  ``k.file[fd]``; sizes do not matter to the layout.
FILE = np.dtype(
    [
        ("id", "i8"),  # of the open file description; 0: the descriptor is not open
        ("may", "i8"),  # VM_MAYREAD, VM_MAYWRITE: how it was opened; VM_MAYEXEC: not on noexec
        ("thp_align", "i8"),  # 1: the file system aligns large mappings to huge pages (ext4, xfs)
    ],
    align=True,
)
#: File descriptors that a simulated process may have.
NR_OPEN = 1024

# --- Pages and slots (kernel.page) --------------------------------------------------------------

#: The state of a page, ``k.pte``, 16 bits.  A read needs no fault.
PTE_READ = 0x01
#: A write needs no fault.
PTE_WRITE = 0x02
#: A write of real words needs nothing: the page is PTE_WRITE and known to hold host data.
PTE_STORE = 0x04
#: A frame of the process's own is mapped (counted in rss).
PTE_FRAME = 0x08
#: The shared zero page is mapped.
PTE_ZERO = 0x10
#: The window holds words of this page, or, when none is mapped, of an earlier one: clear them.
PTE_WORDS = 0x20
#: Mapped by a huge entry together with all pages of its slot (PTE_FRAME or PTE_ZERO says what).
PTE_HUGE = 0x40
#: The program has written to the frame, so that it cannot be all zeros.
PTE_DIRTY = 0x80
#: MADV_FREE was called since the last write: the frame may go without being saved.
PTE_LAZY = 0x100
#: A page of a file or of shared memory is mapped (counted in rss_file, not in rss).
PTE_FILE = 0x200
#: No page is mapped; its contents are in the swap area.
PTE_SWAP = 0x400
#: The frame is locked in memory (it may outlive its area's VM_LOCKED: MREMAP_DONTUNMAP).
PTE_MLOCK = 0x800
#: MADV_FREE took the huge page's claim to swap; paging it out after a write gives it back first.
PTE_UNBACKED = 0x1000
#: All bits of a state; PTE_ALL ^ X keeps what is not X (plain NumPy refuses a negative mask).
PTE_ALL = 0xFFFF
#: Any of these: a page is mapped.
PTE_PRESENT = PTE_FRAME | PTE_ZERO | PTE_FILE

#: What a PMD entry points at (``k.pmd``): nothing, a PTE page, a huge page.
PMD_NONE, PMD_TABLE, PMD_HUGE = 0, 1, 2

# --- The address space, and everything that is counted ------------------------------------------

#: Values of ``mm.thp``, Linux's /sys/kernel/mm/transparent_hugepage/enabled.
THP_NEVER, THP_MADVISE, THP_ALWAYS = 0, 1, 2

#: The address space of the process and everything that is counted about it.
MM = np.dtype(
    [
        # layout
        ("task_size", "i8"),  # first address that user space cannot map
        ("mmap_base", "i8"),  # mappings are placed top-down from here
        ("mmap_legacy_base", "i8"),  # bottom-up from here, when top-down fails or legacy is set
        ("legacy", "i8"),  # 1: bottom-up first, as after ulimit -s unlimited
        ("layout_only", "i8"),  # 1: no page is ever mapped, so the window cannot be in the way
        ("mmap_min_addr", "i8"),  # lowest address that is given to who asks for none below
        ("dac_mmap_min_addr", "i8"),  # lowest that MAP_FIXED may name (vm.mmap_min_addr)
        ("start_data", "i8"),
        ("end_data", "i8"),
        ("start_brk", "i8"),
        ("brk", "i8"),  # exact byte, as the caller set it
        # limits, bytes (RLIM_INFINITY: 2**63 - 1)
        ("rlim_as", "i8"),
        ("rlim_data", "i8"),
        ("rlim_memlock", "i8"),
        ("rlim_stack", "i8"),
        ("memory", "i8"),  # pages of physical memory; 0: no limit
        ("swap", "i8"),  # pages of the swap area
        ("overcommit", "i8"),  # Linux's vm.overcommit_memory: 0, 1, 2
        ("commit_limit", "i8"),  # pages, of overcommit 2
        ("user_reserve", "i8"),  # pages that overcommit 2 keeps from a large process
        ("max_map_count", "i8"),
        ("thp", "i8"),  # transparent huge pages: THP_NEVER, THP_MADVISE, THP_ALWAYS
        # accounting, pages
        ("map_count", "i8"),  # VMAs in use (a count, not pages)
        ("total_vm", "i8"),
        ("data_vm", "i8"),
        ("stack_vm", "i8"),
        ("locked_vm", "i8"),
        ("reserved_vm", "i8"),  # PROT_NONE, part of total_vm
        ("committed", "i8"),  # accounted against memory (VM_ACCOUNT)
        ("rss", "i8"),  # frames of the process's own mapped, without the zero page (RssAnon)
        ("rss_file", "i8"),  # pages of files and of shared memory mapped (RssFile + RssShmem)
        ("nr_ptes", "i8"),  # page-table pages by level
        ("nr_pmds", "i8"),
        ("nr_puds", "i8"),
        ("start_vm", "i8"),  # total_vm - reserved_vm at boot: what the allocator did not map
        ("hiwater_vm", "i8"),  # largest total_vm - reserved_vm
        ("hiwater_rss", "i8"),
        ("hiwater_pgtables", "i8"),
        *counters.fields("mm"),  # faults, system calls, accesses (kernel.counters)
        # bookkeeping
        ("anon_vmas", "i8"),  # last anon_vma id given out
        ("files", "i8"),  # last id of a file mapping given out
        ("folios", "i8"),  # last id of a huge page given out
        ("nr_touched", "i8"),  # window slots in k.touched since the last reset
    ],
    align=True,
)

# --- The running thread, and the signals that end it --------------------------------------------

#: The running thread, as Linux's ``current``; a policy may read now, tid and site.
TASK = np.dtype(
    [
        ("now", "i8"),  # number of the running event, from 0
        ("tid", "i8"),  # dense id of the thread that runs, from 0
        ("site", "i8"),  # call site of the running event, 0 unknown
        ("sig", "i8"),  # SIG* that ended the process, or SIGNONE
        ("si_code", "i8"),
        ("si_addr", "i8"),
        ("si_write", "i8"),  # SIGSEGV: 1 write, 0 read
    ],
    align=True,
)

#: Signals; SIGNONE while it runs.
SIGNONE, SIGABRT, SIGBUS, SIGKILL, SIGSEGV, SIGSYS = 0, 6, 7, 9, 11, 31
#: si_code of SIGSEGV: no VMA at the address; the VMA forbids the access.
SEGV_MAPERR, SEGV_ACCERR = 1, 2
#: si_code of SIGSEGV: not an address at all (between the halves of the address space).
SI_KERNEL = 128
#: si_code of SIGBUS: misaligned load or store (only when compiled with CHECKED).
BUS_ADRALN = 1
#: si_code of SIGSYS: an address that the simulated-memory window cannot hold beside another.
SYS_WINDOW = 1

#: si_code of SIGABRT: what an allocator can say about a bad call (see kernel.task.abort).
ABORT_DOUBLE_FREE, ABORT_BAD_POINTER, ABORT_CORRUPT = 1, 2, 3
#: The same signal when the program notices what its allocator gave it.
ABORT_MISALIGNED, ABORT_OUTSIDE = 4, 5
#: The same signal when frames are lost, doubled or mixed up; si_addr is the code of
#: kernel.conservation.CHECKS.
ABORT_FRAMES = 6
ABORT_CHECK = 7


class SimulatedSignal(Exception):
    """The simulated process was killed; ``k.task`` holds the signal, code and address."""


# --- Physical memory (kernel.frames, kernel.vmscan, kernel.swap) ---------------------------------

#: Frames and swap slots that a kernel may have: 32 GiB each of 4 KiB pages.  The records are
#: address space until they are used, and one size for all means one compilation for all.
MAX_FRAMES = 1 << 23

#: Orders 0 … max_order(); with 64 KiB pages a huge page is of order 13.
NR_ORDERS = 14

#: What a frame is; the states from TABLE on are also the numbers of its lists (``k.lru``).
INSIDE, FREE, TAKEN, OTHERS, TABLE, INACTIVE, ACTIVE, LAZY, UNEVICTABLE = range(9)
NR_STATES = 9

#: Zones from the bottom up, and their watermarks from the lowest up.
ZONE_DMA32, ZONE_NORMAL = 0, 1
NR_ZONES = 2
WMARK_MIN, WMARK_LOW, WMARK_HIGH = 0, 1, 2

FRAME = np.dtype(
    [
        ("next", "i4"),  # neighbours on its list, -1 at the ends
        ("prev", "i4"),
        ("page_low", "i4"),  # reverse map: page number of the (first) page that it is mapped at
        ("page_high", "i1"),
        ("state", "i1"),  # INSIDE: not the head of a block
        ("order", "i1"),  # log2 of the frames of its block
        ("referenced", "i1"),  # found accessed when it was last looked at (kernel.vmscan)
    ],
    align=True,
)

#: A doubly linked list of blocks, through the records of their heads.
LIST = np.dtype(
    [
        ("head", "i8"),  # -1 when empty
        ("tail", "i8"),
        ("blocks", "i8"),
        ("frames", "i8"),  # of all blocks together
    ],
    align=True,
)

ZONE = np.dtype(
    [
        ("start", "i8"),  # frames [start, end)
        ("end", "i8"),
        ("managed", "i8"),  # of these, not held by others
        ("free", "i8"),
        ("wmark", "i8", (3,)),  # WMARK_*, frames
        ("lowmem_reserve", "i8"),  # frames kept back from requests that the zone above may serve
    ],
    align=True,
)

#: Sizes and the swap area.  A slot's word in ``k.swap`` is the number of the page that it holds,
#: or, when free, minus the next free slot's number less 2; -1 ends the chain.
PHYS = np.dtype(
    [
        ("nr_frames", "i8"),
        ("others", "i8"),  # frames held by others since boot
        ("nr_swap", "i8"),  # slots, one page each
        ("swap_used", "i8"),
        ("swap_free", "i8"),  # first of the slots that were freed again, -1: none
        ("swap_fresh", "i8"),  # first of the slots that were never used
        ("bad", "i8"),  # frame, page or slot at which the last check failed
    ],
    align=True,
)

#: Events, by Linux's names in /proc/vmstat where it has one (kernel.counters).
VMSTAT = np.dtype(counters.fields("vmstat"), align=True)


# --- Translation lookaside buffers (kernel.tlb) -------------------------------------------------

#: Limits of one table; a table of no ways is not there.
MAX_TLB_SETS, MAX_TLB_WAYS = 4096, 32

#: The tables, by ``k.tlb_level`` index: L1 of base pages, L1 of huge pages, shared L2.
L1_BASE, L1_HUGE, L2 = range(3)
NR_TLBS = 3
MAX_TLB_ENTRIES = 16384

TLB_LEVEL = np.dtype(
    [
        ("sets", "i8"),  # a power of two
        ("ways", "i8"),
        ("hits", "i8"),
        ("misses", "i8"),
        ("tag", "i8", (MAX_TLB_ENTRIES,)),  # by set, the latest used first; 0: none
    ],
    align=True,
)

#: Page walks and flushes (kernel.counters).
TLB_STAT = np.dtype(counters.fields("tlb_stat"), align=True)


# --- The whole state ----------------------------------------------------------------------------


@functools.cache
def kernel_dtype(
    page_shift: int,
    window_bits: int,
    max_map_count: int,
    *,
    frames: bool = False,
    tlb: bool = False,
) -> np.dtype:
    """The whole state of one simulated process: one record, so that one pointer names it.

    Mostly address space that is never touched.  ``mm = k.mm; mm.brk += n`` mutates it.  ``frames``
    and ``tlb`` add what the switches FRAMES and TLB need.
    """
    fan_out = page_shift - 3  # log2 of entries per table page
    slots = 1 << (window_bits - page_shift - fan_out)

    def tables(levels: int) -> int:
        return 1 << max(ADDRESS_BITS - page_shift - levels * fan_out, 0)

    fields = [
        ("mm", MM),
        ("task", TASK),
        ("window", "i8"),  # host address of simulated memory (kernel.engine.memory)
        # host address of a word for each page of the window: 0, or the huge page it is part of
        # as its id << pmd_order() | its place therein (kernel.huge)
        ("folio", "i8"),
        # branches taken, in an instrumented build (kernel.engine.branches)
        ("hits", "i8", (4096,)),
        ("watch", "i8"),  # host address of words of whoever watches accesses and branches, if any
        ("file", FILE, (NR_OPEN,)),  # open files by descriptor
        ("vma", VMA, (max_map_count + 8,)),
        ("pte", "u2", (1 << (window_bits - page_shift),)),  # PTE_* by folded page number
        ("pmd", "u1", (tables(1),)),  # PMD_* by address >> pmd_shift() (kernel.page)
        ("pud", "u1", (tables(2),)),  # by address >> pud_shift(): 1 where a PMD page exists
        ("pgd", "u1", (tables(3),)),  # by address >> pgd_shift(): 1 where a PUD page exists
        ("slot_seen", "u1", (slots,)),  # by folded PTE table: 1 when listed in touched
        ("touched", "i8", (slots,)),  # folded PTE tables that held pages since the last reset
    ]
    if frames:
        fields += [
            ("pfn", "i8"),  # host address of an i8 for each page of the window: its frame or slot
            ("phys", PHYS),
            ("vmstat", VMSTAT),
            ("zone", ZONE, (NR_ZONES,)),
            ("free_area", LIST, (NR_ZONES * NR_ORDERS,)),  # by zone, then order
            ("lru", LIST, (NR_STATES,)),  # by state
            ("frame", FRAME, (MAX_FRAMES,)),
            ("swap", "i8", (MAX_FRAMES,)),
        ]
    if tlb:
        fields += [("tlb_level", TLB_LEVEL, (NR_TLBS,)), ("tlb_stat", TLB_STAT)]
    return np.dtype(fields, align=True)

"""All records of the kernel model, field by field, and the constants of their fields.

In this order: areas, pages, the address space with its counters, the running thread and its
signals, physical memory, TLBs, and :func:`kernel_dtype`, the one record that contains all others.
The numbers that programs pass to system calls are in :mod:`kernel.uapi`.

All arithmetic is in int64: mixing in uint64 would turn sums into floats under the JIT.  Addresses
and lengths are bytes unless a field says pages.  Names are Linux's where Linux has one.
"""

import functools

import numpy as np

from kernel import counters

#: Compiled code may refer to this module as a whole, as in types.VM_READ (kernel.engine.jit).
HEADER = True

#: Number of bits of a user-space address.
ADDRESS_BITS = 47

# --- Areas --------------------------------------------------------------------------------------

#: vm_flags with Linux's values.  An area is a VMA, one line of /proc/PID/maps.
VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 0x1, 0x2, 0x4, 0x8
#: Rights that mprotect may grant (VM_READ << 4 …); shared mappings of a file opened read-only
#: lack VM_MAYWRITE.
VM_MAYREAD, VM_MAYWRITE, VM_MAYEXEC = 0x10, 0x20, 0x40
#: Mapped with MAP_SHARED; unlike VM_SHARED also set if the file was opened read-only.
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
#: Not backed by pages of the page allocator (vvar): never freed, populated or copied.
VM_PFNMAP = 0x400
#: A mapping that the kernel created (vdso, vvar): never merged, split, locked or grown.
VM_SPECIAL = 1 << 40
#: Only in the model: the file system aligns large mappings to huge pages.
VM_FILE_ALIGN = 1 << 41

#: One memory area.  ``k.vma[:mm.map_count]`` is sorted by address and never overlaps.
VMA = np.dtype(
    [
        ("vm_start", "i8"),  # first byte
        ("vm_end", "i8"),  # first byte after the area
        ("vm_flags", "i8"),  # VM_*; the low three bits are the protection
        ("vm_pgoff", "i8"),  # page offset in the file; anonymous: page number when first mapped
        ("anon_vma", "i8"),  # 0 until the first write fault; areas merge only if compatible
        ("vm_file", "i8"),  # 0: anonymous; else the id of the open file or shared memory object
    ],
    align=True,
)

#: The file of an open descriptor, for mmap: ``k.file[fd]``.  File sizes do not affect the layout.
FILE = np.dtype(
    [
        ("id", "i8"),  # id of the open file description; 0: the descriptor is not open
        ("may", "i8"),  # VM_MAYREAD, VM_MAYWRITE: open mode; VM_MAYEXEC: mount without noexec
        ("thp_align", "i8"),  # 1: the file system aligns large mappings to huge pages (ext4, xfs)
    ],
    align=True,
)
#: Largest number of file descriptors of a simulated process.
NR_OPEN = 1024

# --- Pages and slots (kernel.page) --------------------------------------------------------------

#: State of a page, ``k.pte``, a set of these bits, 16 bits.  PTE_READ: a read needs no fault.
PTE_READ = 0x01
#: A write needs no fault.
PTE_WRITE = 0x02
#: A store to the window needs no check: the page has PTE_WRITE and PTE_WORDS.
PTE_STORE = 0x04
#: An anonymous frame of the process is mapped (counted in rss).
PTE_FRAME = 0x08
#: The shared zero page is mapped.
PTE_ZERO = 0x10
#: The window holds words of this page or, if none is mapped, of an earlier page, still to clear.
PTE_WORDS = 0x20
#: Mapped by a huge entry together with all pages of its slot (with PTE_FRAME or PTE_ZERO).
PTE_HUGE = 0x40
#: The program has written to the frame, so that it cannot be all zeros.
PTE_DIRTY = 0x80
#: MADV_FREE was called after the last write: reclaim may drop the frame without saving it.
PTE_LAZY = 0x100
#: A page of a file or of shared memory is mapped (counted in rss_file, not in rss).
PTE_FILE = 0x200
#: No page is mapped; its contents are in the swap area.
PTE_SWAP = 0x400
#: The frame is locked in memory (it may outlive its area's VM_LOCKED: MREMAP_DONTUNMAP).
PTE_MLOCK = 0x800
#: MADV_FREE cleared the huge page's swap-backed flag; MADV_PAGEOUT after a write restores it first.
PTE_UNBACKED = 0x1000
#: All bits of a state; PTE_ALL ^ X masks out X (NumPy refuses a negative mask for uint16).
PTE_ALL = 0xFFFF
#: The page is mapped if any of these bits is set.
PTE_PRESENT = PTE_FRAME | PTE_ZERO | PTE_FILE

#: Target of a PMD entry (``k.pmd``): none, a PTE page, a huge page.
PMD_NONE, PMD_TABLE, PMD_HUGE = 0, 1, 2

# --- The address space and its counters ---------------------------------------------------------

#: Values of ``mm.thp``, Linux's /sys/kernel/mm/transparent_hugepage/enabled.
THP_NEVER, THP_MADVISE, THP_ALWAYS = 0, 1, 2

#: The address space of the process: layout, limits, accounting and counters.
MM = np.dtype(
    [
        # layout
        ("task_size", "i8"),  # first address that user space cannot map
        ("mmap_base", "i8"),  # mappings are placed top-down from here
        ("mmap_legacy_base", "i8"),  # bottom-up from here, if top-down fails or legacy is set
        ("legacy", "i8"),  # 1: bottom-up first, as after ulimit -s unlimited
        ("layout_only", "i8"),  # 1: no page is ever mapped, so areas may overlap in the window
        ("mmap_min_addr", "i8"),  # lowest address that the search for a gap returns
        ("dac_mmap_min_addr", "i8"),  # lowest address that may be mapped (vm.mmap_min_addr)
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
        ("commit_limit", "i8"),  # overcommit 2: limit of committed, pages
        ("user_reserve", "i8"),  # overcommit 2: pages that a large process cannot commit
        ("max_map_count", "i8"),
        ("thp", "i8"),  # transparent huge pages: THP_NEVER, THP_MADVISE, THP_ALWAYS
        # accounting, pages
        ("map_count", "i8"),  # areas in use (a count, not pages)
        ("total_vm", "i8"),
        ("data_vm", "i8"),
        ("stack_vm", "i8"),
        ("locked_vm", "i8"),
        ("reserved_vm", "i8"),  # PROT_NONE, part of total_vm
        ("committed", "i8"),  # pages of areas with VM_ACCOUNT
        ("rss", "i8"),  # mapped anonymous frames, without the zero page (RssAnon)
        ("rss_file", "i8"),  # mapped pages of files and of shared memory (RssFile + RssShmem)
        ("nr_ptes", "i8"),  # page-table pages by level
        ("nr_pmds", "i8"),
        ("nr_puds", "i8"),
        ("start_vm", "i8"),  # total_vm - reserved_vm at boot: not mapped by the allocator
        ("hiwater_vm", "i8"),  # largest total_vm - reserved_vm
        ("hiwater_rss", "i8"),
        ("hiwater_pgtables", "i8"),
        *counters.fields("mm"),  # faults, system calls, accesses (kernel.counters)
        # bookkeeping
        ("anon_vmas", "i8"),  # last anon_vma id in use
        ("files", "i8"),  # last id of a file or shared memory object in use
        ("folios", "i8"),  # last huge-page id in use
        ("nr_touched", "i8"),  # window slots in k.touched since the last reset
    ],
    align=True,
)

# --- The running thread, and the signals that end it --------------------------------------------

#: The running thread, Linux's ``current``; an allocator's policy may read now, tid and site.
TASK = np.dtype(
    [
        ("now", "i8"),  # number of the running event, from 0
        ("tid", "i8"),  # dense id of the thread that runs, from 0
        ("site", "i8"),  # call site of the running event; 0: unknown
        ("sig", "i8"),  # SIG* that killed the process, or SIGNONE
        ("si_code", "i8"),
        ("si_addr", "i8"),
        ("si_write", "i8"),  # SIGSEGV: 1 write, 0 read
    ],
    align=True,
)

#: Signals; SIGNONE while the process runs.
SIGNONE, SIGABRT, SIGBUS, SIGKILL, SIGSEGV, SIGSYS = 0, 6, 7, 9, 11, 31
#: si_code of SIGSEGV: no area contains the address; the area forbids the access.
SEGV_MAPERR, SEGV_ACCERR = 1, 2
#: si_code of SIGSEGV: a non-canonical address, between the halves of the address space.
SI_KERNEL = 128
#: si_code of SIGBUS: misaligned load or store (only when compiled with CHECKED).
BUS_ADRALN = 1
#: si_code of SIGSYS: the mapping overlaps another one in the simulated-memory window.
SYS_WINDOW = 1

#: si_code of SIGABRT: errors that an allocator reports (see kernel.task.abort).
ABORT_DOUBLE_FREE, ABORT_BAD_POINTER, ABORT_CORRUPT = 1, 2, 3
#: si_code of SIGABRT: bad results of the allocator that the program detects.
ABORT_MISALIGNED, ABORT_OUTSIDE = 4, 5
#: si_code of SIGABRT: a check of the frames failed; si_addr is its code in
#: kernel.conservation.CHECKS.
ABORT_FRAMES = 6
ABORT_CHECK = 7
#: si_code of SIGABRT: a workload that makes one event at a time made an impossible one.
ABORT_EVENT = 8


class SimulatedSignal(Exception):
    """End of the simulated process by a signal; ``k.task`` holds signal, code and address."""


# --- Physical memory (kernel.frames, kernel.vmscan, kernel.swap) ---------------------------------

#: Largest number of frames, and of swap slots: 32 GiB each with 4 KiB pages.  Unused records are
#: only address space, and a fixed size means that all memory sizes share one compilation.
MAX_FRAMES = 1 << 23

#: Orders 0 … max_order(); with 64 KiB pages a huge page is of order 13.
NR_ORDERS = 14

#: States of a frame; the states from TABLE on are also the indices of its lists (``k.lru``).
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
        ("page_low", "i4"),  # reverse map: low bits of the number of its (first) page
        ("page_high", "i1"),  # high bits of that number
        ("state", "i1"),  # INSIDE: not the head of a block
        ("order", "i1"),  # log2 of the frames of its block
        ("referenced", "i1"),  # 1: the last scan found it accessed (kernel.vmscan)
    ],
    align=True,
)

#: A doubly linked list of blocks, linked through the records of their heads.
LIST = np.dtype(
    [
        ("head", "i8"),  # -1 when empty
        ("tail", "i8"),
        ("blocks", "i8"),
        ("frames", "i8"),  # total of all its blocks
    ],
    align=True,
)

ZONE = np.dtype(
    [
        ("start", "i8"),  # frames [start, end)
        ("end", "i8"),
        ("managed", "i8"),  # frames of the zone that others do not hold
        ("free", "i8"),
        ("wmark", "i8", (3,)),  # watermarks by WMARK_*, frames
        ("lowmem_reserve", "i8"),  # frames withheld from requests that the zone above may serve
    ],
    align=True,
)

#: Sizes, and the swap area.  ``k.swap[slot]`` is the number of the page in the slot or, in a free
#: slot, -next - 2, where next is the following slot of the free chain, -1 at its end.
PHYS = np.dtype(
    [
        ("nr_frames", "i8"),
        ("others", "i8"),  # frames held by others since boot
        ("nr_swap", "i8"),  # slots, one page each
        ("swap_used", "i8"),
        ("swap_free", "i8"),  # first slot of the free chain; -1: none
        ("swap_fresh", "i8"),  # first slot that was never used
        ("bad", "i8"),  # frame, page, slot or count at which the last check failed
    ],
    align=True,
)

#: Event counters, by their names in /proc/vmstat where Linux has one (kernel.counters).
VMSTAT = np.dtype(counters.fields("vmstat"), align=True)


# --- Translation lookaside buffers (kernel.tlb) -------------------------------------------------

#: Limits of one table; a table with 0 ways does not exist.
MAX_TLB_SETS, MAX_TLB_WAYS = 4096, 32

#: The tables, by index in ``k.tlb_level``: L1 of base pages, L1 of huge pages, shared L2.
L1_BASE, L1_HUGE, L2 = range(3)
NR_TLBS = 3
MAX_TLB_ENTRIES = 16384

TLB_LEVEL = np.dtype(
    [
        ("sets", "i8"),  # a power of two
        ("ways", "i8"),
        ("hits", "i8"),
        ("misses", "i8"),
        ("tag", "i8", (MAX_TLB_ENTRIES,)),  # by set, the most recently used first; 0: no entry
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
    """Return the type of the whole state of one simulated process: one record, so one pointer.

    Most of it is address space that is never touched.  ``mm = k.mm; mm.brk += n`` changes the
    state.  ``frames`` and ``tlb`` add the fields that the switches FRAMES and TLB need.
    """
    fan_out = page_shift - 3  # log2 of entries per table page
    slots = 1 << (window_bits - page_shift - fan_out)

    def tables(levels: int) -> int:
        return 1 << max(ADDRESS_BITS - page_shift - levels * fan_out, 0)

    fields = [
        ("mm", MM),
        ("task", TASK),
        ("window", "i8"),  # host address of simulated memory (kernel.engine.memory)
        # host address of a word for each page of the window: 0, or the huge page that contains it
        # as id << pmd_order() | position (kernel.huge)
        ("folio", "i8"),
        # branch counts of an instrumented build (kernel.engine.branches)
        ("hits", "i8", (4096,)),
        ("watch", "i8"),  # host address of the words of an access or branch instrument, if any
        ("file", FILE, (NR_OPEN,)),  # open files by descriptor
        ("vma", VMA, (max_map_count + 8,)),
        ("pte", "u2", (1 << (window_bits - page_shift),)),  # PTE_* by folded page number
        ("pmd", "u1", (tables(1),)),  # by address >> pmd_shift(): PMD_* (kernel.page)
        ("pud", "u1", (tables(2),)),  # by address >> pud_shift(): 1 where a PMD page exists
        ("pgd", "u1", (tables(3),)),  # by address >> pgd_shift(): 1 where a PUD page exists
        ("slot_seen", "u1", (slots,)),  # by folded slot: 1 if it is listed in touched
        ("touched", "i8", (slots,)),  # folded slots that have held pages since the last reset
    ]
    if frames:
        fields += [
            ("pfn", "i8"),  # host address of a word for each window page: its frame or swap slot
            ("phys", PHYS),
            ("vmstat", VMSTAT),
            ("zone", ZONE, (NR_ZONES,)),
            ("free_area", LIST, (NR_ZONES * NR_ORDERS,)),  # by zone, then order
            ("lru", LIST, (NR_STATES,)),  # by state
            ("frame", FRAME, (MAX_FRAMES,)),
            ("swap", "i8", (MAX_FRAMES,)),  # by swap slot (see PHYS)
        ]
    if tlb:
        fields += [("tlb_level", TLB_LEVEL, (NR_TLBS,)), ("tlb_stat", TLB_STAT)]
    return np.dtype(fields, align=True)

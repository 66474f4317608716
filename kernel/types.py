"""Every record of the kernel model, field by field, and the constants of its interface.

All integers are int64: mixing in uint64 would turn sums into floats under the JIT.  Addresses and
lengths are bytes unless a field says pages.  Names are Linux's wherever Linux has one.
"""

import functools

import numpy as np

# --- The system call interface -----------------------------------------------------------------

PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4

MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000
MAP_POPULATE = 0x8000
MAP_FIXED_NOREPLACE = 0x100000
#: Every flag that the model knows; mmap refuses others rather than ignore what they ask for.
MAP_KNOWN = (
    MAP_SHARED
    | MAP_PRIVATE
    | MAP_FIXED
    | MAP_ANONYMOUS
    | MAP_NORESERVE
    | MAP_POPULATE
    | MAP_FIXED_NOREPLACE
)

MADV_DONTNEED = 4

EPERM, ENOMEM, EEXIST, EINVAL, EOPNOTSUPP = 1, 12, 17, 22, 95

# --- vm_flags (the values of Linux) ------------------------------------------------------------

VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 0x1, 0x2, 0x4, 0x8
VM_GROWSDOWN = 0x100
VM_LOCKED = 0x2000
VM_ACCOUNT = 0x100000
VM_NORESERVE = 0x200000

# --- Page state: one byte for each page of the window (kernel.access) --------------------------

#: A read needs no fault.
PTE_READ = 0x01
#: A write needs no fault.
PTE_WRITE = 0x02
#: A write of real words needs nothing: the page is PTE_WRITE and known to hold host data.
PTE_STORE = 0x04
#: A frame of the process's own is mapped (counted in rss).
PTE_FRAME = 0x08
#: The shared zero page is mapped.
PTE_ZERO = 0x10
#: No page is mapped, but the window still holds words of an earlier one: clear before use.
PTE_STALE = 0x20

# --- Simulated signals: why a run ended --------------------------------------------------------

SIGNONE, SIGABRT, SIGBUS, SIGKILL, SIGSEGV, SIGSYS = 0, 6, 7, 9, 11, 31
#: si_code of SIGSEGV: no VMA at the address; the VMA forbids the access.
SEGV_MAPERR, SEGV_ACCERR = 1, 2
#: si_code of SIGBUS: misaligned load or store (only when compiled with CHECKED).
BUS_ADRALN = 1
#: si_code of SIGSYS: an address that the simulated-memory window cannot hold beside another.
SYS_WINDOW = 1

#: si_code of SIGABRT: what an allocator can say about a bad call (see kernel.task.abort).
ABORT_DOUBLE_FREE, ABORT_BAD_POINTER, ABORT_CORRUPT = 1, 2, 3
#: The same signal when the program notices what its allocator gave it.
ABORT_MISALIGNED, ABORT_OUTSIDE = 4, 5


class SimulatedSignal(Exception):
    """The simulated process was killed; ``kernel.task`` holds the signal, code and address."""


#: One memory area.  ``k.vma[:mm.map_count]`` is sorted by address and never overlaps.
VMA = np.dtype(
    [
        ("vm_start", "i8"),  # first byte
        ("vm_end", "i8"),  # first byte behind it
        ("vm_flags", "i8"),  # VM_*; the low three bits are the protection
        ("vm_pgoff", "i8"),  # page number of vm_start when it was mapped (anonymous: address)
        ("anon_vma", "i8"),  # 0 until the first write fault; areas merge only if compatible
        ("vm_file", "i8"),  # 0 anonymous; else the id of a file mapping, which never merges
    ],
    align=True,
)

#: The address space of the process and everything that is counted about it.
MM = np.dtype(
    [
        # layout
        ("task_size", "i8"),  # first address that user space cannot map
        ("mmap_base", "i8"),  # mappings are placed top-down from here
        ("mmap_min_addr", "i8"),
        ("start_data", "i8"),
        ("end_data", "i8"),
        ("start_brk", "i8"),
        ("brk", "i8"),  # exact byte, as the caller set it
        # limits, bytes (RLIM_INFINITY: 2**63 - 1)
        ("rlim_as", "i8"),
        ("rlim_data", "i8"),
        ("memory", "i8"),  # pages of physical memory; 0: no limit
        ("overcommit", "i8"),  # Linux's vm.overcommit_memory: 0, 1, 2
        ("max_map_count", "i8"),
        # accounting, pages
        ("map_count", "i8"),  # VMAs in use (a count, not pages)
        ("total_vm", "i8"),
        ("data_vm", "i8"),
        ("stack_vm", "i8"),
        ("locked_vm", "i8"),
        ("reserved_vm", "i8"),  # PROT_NONE, part of total_vm
        ("committed", "i8"),  # accounted against memory (VM_ACCOUNT)
        ("rss", "i8"),  # frames mapped, without the zero page
        ("nr_ptes", "i8"),  # page-table pages by level
        ("nr_pmds", "i8"),
        ("nr_puds", "i8"),
        ("start_vm", "i8"),  # total_vm - reserved_vm at boot: what the allocator did not map
        ("hiwater_vm", "i8"),  # largest total_vm - reserved_vm
        ("hiwater_rss", "i8"),
        ("hiwater_pgtables", "i8"),
        # minor faults, in all and by cause (pages)
        ("minflt", "i8"),
        ("flt_write", "i8"),  # first touch is a write: a zeroed frame
        ("flt_read", "i8"),  # first touch is a read: the shared zero page
        ("flt_cow", "i8"),  # write to a page that showed the zero page
        ("flt_populate", "i8"),  # mapped ahead by MAP_POPULATE
        ("zapped", "i8"),  # frames given back by munmap, brk and madvise
        # system calls by kind, failed ones included
        ("nr_brk", "i8"),
        ("nr_mmap", "i8"),
        ("nr_munmap", "i8"),
        ("nr_madvise", "i8"),
        ("nr_failed", "i8"),  # of these, how many returned an error
        # accesses, 8-byte words
        ("loads", "i8"),  # by the allocator, to its metadata
        ("stores", "i8"),
        ("payload_loads", "i8"),  # by the program, realloc's copy and calloc's clearing
        ("payload_stores", "i8"),
        # bookkeeping
        ("anon_vmas", "i8"),  # last anon_vma id given out
        ("nr_touched", "i8"),  # window slots in k.touched since the last reset
    ],
    align=True,
)

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

RLIM_INFINITY = 2**63 - 1

#: User space has addresses of this many bits.
ADDRESS_BITS = 47


@functools.cache
def kernel_dtype(page_shift: int, window_bits: int, max_map_count: int) -> np.dtype:
    """The whole state of one simulated process: one record, so that one pointer names it.

    Mostly address space that is never touched.  ``mm = k.mm; mm.brk += n`` mutates it.
    """
    fan_out = page_shift - 3  # log2 of entries per table page
    slots = 1 << (window_bits - page_shift - fan_out)

    def tables(levels: int) -> int:
        return 1 << max(ADDRESS_BITS - page_shift - levels * fan_out, 0)

    return np.dtype(
        [
            ("mm", MM),
            ("task", TASK),
            ("window", "i8"),  # host address of simulated memory (kernel.memory)
            ("vma", VMA, (max_map_count + 8,)),
            ("pte", "u1", (1 << (window_bits - page_shift),)),  # PTE_* by folded page number
            ("pte_table", "u1", (tables(1),)),  # by address >> pmd shift: 1 where a PTE page exists
            ("pmd_table", "u1", (tables(2),)),  # by address >> pud shift: 1 where a PMD page exists
            ("pud_table", "u1", (tables(3),)),  # by address >> pgd shift: 1 where a PUD page exists
            ("slot_seen", "u1", (slots,)),  # by folded PTE table: 1 when listed in touched
            ("touched", "i8", (slots,)),  # folded PTE tables that held pages since the last reset
        ],
        align=True,
    )

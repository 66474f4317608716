"""Every counter of the kernel model, in one table from which all else about it derives.

    kernel.types                 its field in a record
    kernel.cost                  kinds of work that have a price: the keys of conf/kernel/cost
    benchmarks.replay.measured   what that work costs, system calls over time
    benchmarks.replay.metrics    its metric, in the summary, the figure of faults and README.md
    benchmarks.real              whether a real process shows it, and in which system calls

To add one: a line here, and ``mm.FIELD += 1`` where it happens.  A price needs, besides, its value
in conf/kernel/cost and a way to measure it (kernel.linux.calibrate.measures).
"""

from typing import NamedTuple

from kernel import uapi


class Counter(NamedTuple):
    """A field that only counts, and everything that is said about it.

    ``field`` of ``record`` of the kernel's state, by Linux's name where Linux has one.  ``unit``:
    of the metric; the field of one in bytes counts pages.  ``metric``: its name among the results,
    "" if it has none.  ``better``: "lower", "higher" or "".  ``price``: the kind of work that it
    counts, of which a cost table has the nanoseconds, "" if none; ``priced``: what exactly.
    ``rare``: a summary leaves it out where it is 0.  ``real``: a run on a real library counts it
    too.  ``calls``: the numbers of the system calls that it counts.
    """

    field: str
    unit: str
    meaning: str
    metric: str = ""
    better: str = ""
    price: str = ""
    priced: str = ""
    rare: bool = False
    real: bool = False
    calls: tuple[int, ...] = ()
    record: str = "mm"


def _call(name: str, priced: str, *calls: int, meaning: str = "", rare: bool = False) -> Counter:
    """System calls of a kind, failed ones included."""
    names = f"syscalls_{name}", "lower", name if priced else "", priced
    return Counter(f"nr_{name}", "calls", meaning or name, *names, rare, real=True, calls=calls)


def _fault(cause: str, meaning: str, priced: str = "", *, rare: bool = False) -> Counter:
    """Minor faults by cause, pages."""
    names = f"faults_{cause}", "lower", f"fault_{cause}", priced or meaning
    return Counter(f"flt_{cause}", "faults", meaning, *names, rare)


def _event(field: str, unit: str, meaning: str, metric: str = "", **more: str) -> Counter:
    """An event of physical memory, by Linux's name in /proc/vmstat where it has one."""
    return Counter(field, unit, meaning, metric, record="vmstat", **more)


def _tlb(field: str, unit: str, meaning: str, **more: str) -> Counter:
    return Counter(field, unit, meaning, record="tlb_stat", **more)


CALLS = (
    _call("brk", "a call that grows the heap", uapi.NR_BRK),
    _call("mmap", "a call that makes an area", uapi.NR_MMAP),
    _call("munmap", "a call that takes away an area without pages", uapi.NR_MUNMAP),
    _call("madvise", "a call that finds no pages", uapi.NR_MADVISE),
    _call("mremap", "a call that grows or shrinks an area in place", uapi.NR_MREMAP, rare=True),
    _call("mprotect", "a call that changes an area without pages", uapi.NR_MPROTECT, rare=True),
    _call(
        "mlock",
        "a call of mlock or munlock whose page is there",
        *(uapi.NR_MLOCK, uapi.NR_MLOCK2, uapi.NR_MUNLOCK),
        meaning="mlock and munlock",
        rare=True,
    ),
)
FAILED = Counter(
    "nr_failed",
    "calls",
    "system calls that returned an error",
    metric="syscalls_failed",
    better="lower",
    real=True,
)
FAULTS = (
    Counter("minflt", "faults", "minor page faults in all", "faults", "lower", real=True),
    _fault("write", "first touch is a write: a zeroed frame"),
    _fault("read", "first touch is a read: the shared zero page"),
    _fault("cow", "write to a page that showed the zero page"),
    _fault("populate", "mapped ahead by MAP_POPULATE", "a page mapped ahead"),
    _fault("huge", "a huge page, mapped on touch or ahead", "a huge page of 2 MiB", rare=True),
    _fault(
        "file",
        "a page of a file or of shared memory",
        "a page of shared memory that exists already",
        rare=True,
    ),
    Counter(
        "majflt",
        "faults",
        "major: brought back from the swap area",
        metric="faults_major",
        better="lower",
        price="fault_major",
        priced="a page brought back from the swap area",
        rare=True,
        real=True,
    ),
)
SWAP = (
    _event(
        "pswpout",
        "pages",
        "moved to the swap area",
        metric="swap_outs",
        better="lower",
        price="swap_out",
        priced="a page moved to the swap area",
    ),
    _event("swap_peak", "bytes", "largest use of the swap area", "peak_swap", better="lower"),
)
RETURNED = (
    Counter(
        "zapped",
        "pages",
        "frames given back by munmap, brk and madvise",
        metric="pages_returned",
        price="page_returned",
        priced="a frame given back",
    ),
    # Its frames are among those above, but have one price together.
    Counter(
        "zapped_huge",
        "huge pages",
        "huge pages given back whole",
        price="huge_page_returned",
        priced="a huge page given back whole",
    ),
)
#: By the allocator, to its metadata; by the program.
STEPS = (
    Counter("loads", "loads", "8-byte loads of the allocator's metadata"),
    Counter("stores", "stores", "8-byte stores to the allocator's metadata"),
)
PAYLOAD = (
    Counter(
        "payload_loads",
        "loads",
        "8-byte loads by the program and by realloc's copying",
        metric="payload_loads",
    ),
    Counter(
        "payload_stores",
        "stores",
        "8-byte stores by the program, copying and clearing",
        metric="payload_stores",
    ),
)
FRAMES = (
    _event("pgalloc", "frames", "taken from the free blocks"),
    _event("pgfree", "frames", "given back to them"),
    _event("splits", "blocks", "free blocks halved"),
    _event("merges", "blocks", "buddies joined"),
    _event("kswapd_wake", "times", "free memory was below the low watermark"),
    _event("pgscan", "frames", "looked at by reclaim"),
    _event("pgsteal", "frames", "reclaimed: swapped out or dropped"),
    _event("pgactivate", "frames", "moved to the active list"),
    _event("pgdeactivate", "frames", "moved to the inactive list"),
    _event("pswpin", "frames", "brought back from the swap area"),
    _event("pglazyfreed", "pages", "dropped by reclaim after MADV_FREE", "pages_lazyfreed"),
    _event("thp_fault_alloc", "huge pages", "mapped by a fault"),
    _event(
        "thp_fault_fallback",
        "faults",
        "huge pages for which no block of frames was free",
        metric="huge_failures",
        better="lower",
    ),
    _event(
        "thp_split_page",
        "huge pages",
        "whose frames became single ones",
        metric="huge_splits",
        better="lower",
    ),
    _event("oom_kill", "processes", "killed for lack of memory"),
)
TLB = (
    _tlb(
        "walks",
        "accesses",
        "that had to walk the page tables",
        metric="page_walks",
        better="lower",
    ),
    _tlb("walk_loads", "loads", "page-table entries read by walks"),
    _tlb("flush_all", "flushes", "of everything"),
    _tlb("flush_pages", "flushes", "of one page"),
)

COUNTERS = (*CALLS, FAILED, *FAULTS, *SWAP, *RETURNED, *STEPS, *PAYLOAD, *FRAMES, *TLB)


def fields(record: str) -> list[tuple[str, str]]:
    """The counters in ``record``, as fields of a NumPy dtype."""
    return [(counter.field, "i8") for counter in COUNTERS if counter.record == record]

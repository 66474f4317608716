"""The table of all counters of the kernel model, from which other modules derive.

    kernel.types                 the counter's field in a record
    kernel.cost                  the operations that have a price: the keys of conf/kernel/cost
    benchmarks.replay.measured   modelled kernel time, system calls over time
    benchmarks.replay.metrics    metrics in the summary, the figure of faults and README.md
    benchmarks.real              which counters a real process reports, by which system calls

To add a counter, add a line here and ``mm.FIELD += 1`` where the event happens.  A price also needs
its value in conf/kernel/cost and a way to measure it (kernel.linux.calibrate.measures).
"""

from typing import NamedTuple

from kernel import uapi


class Counter(NamedTuple):
    """Description of one counter.

    ``field``: its field in ``record`` of the kernel's state, by Linux's name where Linux has one.
    ``unit``: unit of the metric; if it is bytes, the field counts pages.  ``metric``: name of the
    metric in the results, "" for none.  ``better``: "lower", "higher" or "".  ``price``: name in
    cost tables of the operation that it counts, "" for none; ``priced``: the exact operation that
    the price covers.  ``rare``: a summary omits it where it is 0.  ``real``: a run with a real
    library counts it too.  ``calls``: numbers of the system calls that it counts.
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
    """Return a counter of system calls, including failed ones."""
    names = f"syscalls_{name}", "lower", name if priced else "", priced
    return Counter(f"nr_{name}", "calls", meaning or name, *names, rare, real=True, calls=calls)


def _fault(cause: str, meaning: str, priced: str = "", *, rare: bool = False) -> Counter:
    """Return a counter of minor faults (pages mapped) with one cause."""
    names = f"faults_{cause}", "lower", f"fault_{cause}", priced or meaning
    return Counter(f"flt_{cause}", "faults", meaning, *names, rare)


def _event(field: str, unit: str, meaning: str, metric: str = "", **more: str) -> Counter:
    """Return a counter of a physical-memory event, by its name in /proc/vmstat where it has one."""
    return Counter(field, unit, meaning, metric, record="vmstat", **more)


def _tlb(field: str, unit: str, meaning: str, **more: str) -> Counter:
    return Counter(field, unit, meaning, record="tlb_stat", **more)


CALLS = (
    _call("brk", "a call that grows the heap", uapi.NR_BRK),
    _call("mmap", "a call that creates an area", uapi.NR_MMAP),
    _call("munmap", "a call that removes an area without pages", uapi.NR_MUNMAP),
    _call("madvise", "a call that finds no pages", uapi.NR_MADVISE),
    _call("mremap", "a call that grows or shrinks an area in place", uapi.NR_MREMAP, rare=True),
    _call("mprotect", "a call that changes an area without pages", uapi.NR_MPROTECT, rare=True),
    _call(
        "mlock",
        "a call of mlock or munlock on a resident page",
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
    Counter("minflt", "faults", "total minor page faults", "faults", "lower", real=True),
    _fault("write", "first touch is a write: maps a zeroed frame"),
    _fault("read", "first touch is a read: maps the shared zero page"),
    _fault("cow", "write to a page mapped to the zero page: copy-on-write"),
    _fault("populate", "pages mapped in advance by MAP_POPULATE", "a page mapped in advance"),
    _fault("huge", "huge pages mapped on touch or in advance", "a huge page of 2 MiB", rare=True),
    _fault(
        "file",
        "pages of files or shared memory mapped",
        "a page of shared memory that already exists",
        rare=True,
    ),
    Counter(
        "majflt",
        "faults",
        "major faults: pages read back from the swap area",
        metric="faults_major",
        better="lower",
        price="fault_major",
        priced="a page read back from the swap area",
        rare=True,
        real=True,
    ),
)
SWAP = (
    _event(
        "pswpout",
        "pages",
        "pages written to the swap area",
        metric="swap_outs",
        better="lower",
        price="swap_out",
        priced="a page written to the swap area",
    ),
    _event("swap_peak", "bytes", "largest use of the swap area", "peak_swap", better="lower"),
)
RETURNED = (
    Counter(
        "zapped",
        "pages",
        "frames returned by munmap, brk and madvise",
        metric="pages_returned",
        price="page_returned",
        priced="a frame returned",
    ),
    # ``zapped`` includes the frames of these huge pages, but a whole huge page has its own price.
    Counter(
        "zapped_huge",
        "huge pages",
        "huge pages returned whole",
        price="huge_page_returned",
        priced="a huge page returned whole",
    ),
)
#: Accesses by the allocator to its metadata (STEPS), and by the program (PAYLOAD).
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
        "8-byte stores by the program, by copying and by clearing",
        metric="payload_stores",
    ),
)
FRAMES = (
    _event("pgalloc", "frames", "frames allocated"),
    _event("pgfree", "frames", "frames freed"),
    _event("splits", "blocks", "free blocks split in half"),
    _event("merges", "blocks", "pairs of buddies merged"),
    _event("kswapd_wake", "runs", "reclaim runs: free memory was below the low watermark"),
    _event("pgscan", "frames", "frames scanned by reclaim"),
    _event("pgsteal", "frames", "frames reclaimed: swapped out or dropped"),
    _event("pgactivate", "frames", "frames moved to the active list"),
    _event("pgdeactivate", "frames", "frames moved to the inactive list"),
    _event("pswpin", "frames", "pages read back from the swap area"),
    _event("pglazyfreed", "pages", "pages dropped by reclaim after MADV_FREE", "pages_lazyfreed"),
    _event("thp_fault_alloc", "huge pages", "huge pages mapped by a fault"),
    _event(
        "thp_fault_fallback",
        "faults",
        "huge-page faults that found no free block of frames",
        metric="huge_failures",
        better="lower",
    ),
    _event(
        "thp_split_page",
        "huge pages",
        "huge pages split into single frames",
        metric="huge_splits",
        better="lower",
    ),
    _event("oom_kill", "processes", "processes killed because memory was exhausted"),
)
TLB = (
    _tlb(
        "walks",
        "accesses",
        "accesses that walk the page tables",
        metric="page_walks",
        better="lower",
    ),
    _tlb("walk_loads", "loads", "page-table entries read by walks"),
    _tlb("flush_all", "flushes", "flushes of all entries"),
    _tlb("flush_pages", "flushes", "flushes of one page"),
)

COUNTERS = (*CALLS, FAILED, *FAULTS, *SWAP, *RETURNED, *STEPS, *PAYLOAD, *FRAMES, *TLB)


def fields(record: str) -> list[tuple[str, str]]:
    """Return the counters of ``record`` as fields of a NumPy dtype."""
    return [(counter.field, "i8") for counter in COUNTERS if counter.record == record]

"""Timing of kernel work: the same work in batches of two sizes, in a tiny separate process.

The difference between the times of both sizes, divided by the difference in size, is the marginal
price of one unit: the clock, the call around it and all other fixed costs cancel out.  The clock is
the thread's CPU time, which excludes the time of other processes.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from kernel import uapi
from kernel.linux.host.code import OP, OP_CLOCK, OP_LOAD, OP_NOP, OP_STORE, OP_SYSCALL, OP_TOUCH
from kernel.linux.host.process import FIRST_FILE, HostProcess

PAGE = 4096
HUGE_PAGE = 2 << 20

#: Two addresses far from all other mappings, multiples of 1 GiB.
PLACE, ELSEWHERE = 0x2000_0000_0000, 0x2100_0000_0000
#: Units of a small and of a large batch.  Together with the one page touched beforehand, even a
#: large batch of PAGES fits into one page of page-table entries, so that the cost of a page table
#: does not enter the difference.
CALLS = (64, 320)
PAGES = (64, 448)
HUGE_PAGES = (1, 5)
#: Pages read back from swap in a batch, and the size of the separate neighbourhood around each,
#: pages: readahead in it brings in no other page of the batch.
SWAPPED = (16, 64)
NEIGHBOURHOOD = 64

#: CPU time of the thread, which excludes the time of other processes.
_CLOCK_THREAD_CPUTIME_ID = 3
_NR_GETPPID = 110
_READ_WRITE = uapi.PROT_READ | uapi.PROT_WRITE
_PRIVATE = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS
_MOVE = uapi.MREMAP_MAYMOVE | uapi.MREMAP_FIXED

Ops = list[tuple]


class NotMeasuredError(Exception):
    """Work that cannot be timed because the host does not do it as intended, with the reason."""


@dataclass(frozen=True)
class Measure:
    """Kind of work, measured in batches of ``sizes`` units.

    ``timed(n)``: operations of a batch of n units.  Not timed: ``before(n)``, and ``after``, which
    receives the values that the timed operations returned.  ``loop``: every unit is one operation,
    so that the overhead of executing an operation is subtracted.  ``faults``, ``majors``: expected
    minor and major faults of a unit; with any other number the work was not as intended.
    ``proof(n)``: operations that cause no fault if the work was done as intended.  ``needs``:
    earlier measure without which this one is meaningless.
    """

    name: str
    sizes: tuple[int, int]
    timed: Callable[[int], Ops]
    before: Callable[[int], Ops] = lambda n: []
    after: Callable[[Sequence[int]], Ops] = lambda returned: [_call(uapi.NR_MUNMAP, PLACE, 1 << 30)]
    proof: Callable[[int], Ops] = lambda n: []
    loop: bool = False
    faults: int = 0
    majors: int = 0
    needs: str = ""


def _call(nr: int, *args: int) -> tuple:
    return OP_SYSCALL, nr, (*args, *(0,) * (6 - len(args)))


def _touch(start: int, pages: int, write: int = 1) -> tuple:
    return OP_TOUCH, 0, (start, pages * PAGE, write, 7, 0, 0)


def _mmap(start: int, pages: int, prot: int = _READ_WRITE, flags: int = 0, fd: int = -1) -> tuple:
    kind = uapi.MAP_SHARED if fd >= 0 else _PRIVATE
    return _call(uapi.NR_MMAP, start, pages * PAGE, prot, kind | flags, fd)


def _area(pages: int, fd: int = -1, at: int = PLACE) -> Ops:
    """Return operations that map small pages and touch the first, which allocates a PTE page."""
    return [
        _mmap(at, pages, flags=uapi.MAP_FIXED, fd=fd),
        _call(uapi.NR_MADVISE, at, pages * PAGE, uapi.MADV_NOHUGEPAGE),
        _touch(at, 1),
    ]


def _resident(n: int) -> Ops:
    """Return operations that map and touch ``n`` pages after the first."""
    return [*_area(n + 1), _touch(PLACE, n + 1)]


def _untouched(n: int) -> Ops:
    """Return operations that map ``n`` adjacent areas of one page each."""
    return [_mmap(PLACE + i * PAGE, 1, _rights(i), uapi.MAP_FIXED) for i in range(n)]


def _rights(i: int) -> int:
    """Return alternating protections, so that neighbours do not merge."""
    return uapi.PROT_READ if i % 2 else _READ_WRITE


def _one_untouched(_n: int) -> Ops:
    return _untouched(1)


def _next_pages(n: int) -> Ops:
    """Return operations that map the pages for :func:`_writes` and :func:`_reads`."""
    return _area(n + 1)


def _writes(n: int) -> Ops:
    return [_touch(PLACE + PAGE, n)]


def _reads(n: int) -> Ops:
    return [_touch(PLACE + PAGE, n, write=0)]


def _grow_and_shrink(n: int) -> Ops:
    sizes = PAGE, 2 * PAGE
    return [_call(uapi.NR_MREMAP, PLACE, sizes[i % 2], sizes[1 - i % 2]) for i in range(n)]


def _to_and_fro(n: int) -> Ops:
    places = PLACE, ELSEWHERE
    return [
        _call(uapi.NR_MREMAP, places[i % 2], PAGE, PAGE, _MOVE, places[1 - i % 2]) for i in range(n)
    ]


def _protect_in_turn(n: int) -> Ops:
    rights = _READ_WRITE, uapi.PROT_NONE
    return [_call(uapi.NR_MPROTECT, PLACE, PAGE, rights[1 - i % 2]) for i in range(n)]


def _lock_in_turn(n: int) -> Ops:
    calls = uapi.NR_MLOCK, uapi.NR_MUNLOCK
    return [_call(calls[i % 2], PLACE, PAGE) for i in range(n)]


def _destination(n: int) -> Ops:
    """Return operations that make pages resident, and a PTE page at their destination."""
    return [*_resident(n), *_area(HUGE_PAGE // PAGE, at=ELSEWHERE)]


def _clear_both(_returned: Sequence[int]) -> Ops:
    return [_call(uapi.NR_MUNMAP, place, 1 << 30) for place in (PLACE, ELSEWHERE)]


def _huge_area(n: int) -> Ops:
    return [
        _mmap(PLACE, n * HUGE_PAGE // PAGE, flags=uapi.MAP_FIXED),
        _call(uapi.NR_MADVISE, PLACE, n * HUGE_PAGE, uapi.MADV_HUGEPAGE),
    ]


def _huge_stores(n: int) -> Ops:
    return [(OP_STORE, 0, (PLACE + i * HUGE_PAGE, 7, 0, 0, 0, 0)) for i in range(n)]


def _neighbourhoods(n: int) -> Ops:
    return _resident(n * NEIGHBOURHOOD - 1)


def _page_out(n: int) -> tuple:
    return _call(uapi.NR_MADVISE, PLACE, n * NEIGHBOURHOOD * PAGE, uapi.MADV_PAGEOUT)


def _out(n: int) -> Ops:
    return [_page_out(n)]


def _paged_out(n: int) -> Ops:
    return [*_neighbourhoods(n), _page_out(n)]


def _loads_apart(n: int) -> Ops:
    """Return one load in the middle of each neighbourhood."""
    step = NEIGHBOURHOOD * PAGE
    return [(OP_LOAD, 0, (PLACE + step // 2 + i * step, 0, 0, 0, 0, 0)) for i in range(n)]


def measures(start_brk: int, *, swap: bool) -> list[Measure]:
    """Return the measures for a process whose break starts at ``start_brk``.

    ``swap``: True if the host has swap.
    """
    call = partial(Measure, sizes=CALLS, loop=True)
    fault = partial(Measure, sizes=PAGES, before=_next_pages, faults=1)
    found = [
        Measure("loop", CALLS, lambda n: [(OP_NOP, 0, (0,) * 6)] * n),
        call("syscall_floor", timed=lambda n: [_call(_NR_GETPPID)] * n),
        call(
            "brk",
            timed=lambda n: [_call(uapi.NR_BRK, start_brk + i * PAGE) for i in range(1, n + 1)],
            after=lambda returned: [_call(uapi.NR_BRK, start_brk)],
        ),
        call(
            "mmap",
            timed=lambda n: [_mmap(0, 1, _rights(i)) for i in range(n)],
            after=lambda returned: [_call(uapi.NR_MUNMAP, start, PAGE) for start in returned],
        ),
        call(
            "munmap",
            timed=lambda n: [_call(uapi.NR_MUNMAP, PLACE + i * PAGE, PAGE) for i in range(n)],
            before=_untouched,
        ),
        call(
            "madvise",
            timed=lambda n: [_call(uapi.NR_MADVISE, PLACE, PAGE, uapi.MADV_DONTNEED)] * n,
            before=_one_untouched,
        ),
        call("mremap", timed=_grow_and_shrink, before=_one_untouched),
        call("mremap_move", timed=_to_and_fro, before=_one_untouched, after=_clear_both),
        Measure(
            "page_moved",
            PAGES,
            # The distance is not a multiple of 2 MiB, so no page table can be moved as a whole.
            lambda n: [
                _call(uapi.NR_MREMAP, PLACE + PAGE, n * PAGE, n * PAGE, _MOVE, ELSEWHERE + 2 * PAGE)
            ],
            before=_destination,
            after=_clear_both,
        ),
        call("mprotect", timed=_protect_in_turn, before=_one_untouched),
        call("mlock", timed=_lock_in_turn, before=lambda n: _area(1)),
        fault("fault_write", timed=_writes),
        fault("fault_read", timed=_reads),
        fault("fault_cow", timed=_writes, before=lambda n: [*_next_pages(n), *_reads(n)]),
        fault(
            "fault_populate",
            timed=lambda n: [_mmap(PLACE + PAGE, n, flags=uapi.MAP_FIXED | uapi.MAP_POPULATE)],
            before=lambda n: _area(1),
        ),
        Measure(
            *("fault_huge", HUGE_PAGES, _huge_stores),
            before=_huge_area,
            proof=lambda n: [_touch(PLACE, n * HUGE_PAGE // PAGE)],
            loop=True,
            faults=1,
        ),
        fault("fault_file", timed=_writes, before=lambda n: _area(n + 1, fd=FIRST_FILE)),
        Measure(
            *("returned_by_madvise", PAGES),
            lambda n: [_call(uapi.NR_MADVISE, PLACE + PAGE, n * PAGE, uapi.MADV_DONTNEED)],
            before=_resident,
        ),
        Measure(
            *("returned_by_munmap", PAGES),
            lambda n: [_call(uapi.NR_MUNMAP, PLACE + PAGE, n * PAGE)],
            before=_resident,
        ),
        Measure(
            *("huge_page_returned", HUGE_PAGES),
            lambda n: [_call(uapi.NR_MADVISE, PLACE, n * HUGE_PAGE, uapi.MADV_DONTNEED)],
            before=lambda n: [*_huge_area(n), *_huge_stores(n)],
            needs="fault_huge",
        ),
    ]
    if swap:
        found += [
            Measure("fault_major", SWAPPED, _loads_apart, before=_paged_out, loop=True, majors=1),
            Measure(
                "swapped_neighbourhood", SWAPPED, _out, before=_neighbourhoods, needs="fault_major"
            ),
        ]
    return found


def marginal(sizes: tuple[int, int], small: Sequence[float], large: Sequence[float]) -> float:
    """Return the cost of one unit: the difference of the medians by the difference of the sizes.

    ``small`` and ``large``: times of batches of ``sizes[0]`` and ``sizes[1]`` units.
    """
    return (median(large) - median(small)) / (sizes[1] - sizes[0])


def measure_process(rounds: int, *, swap: bool) -> Iterator[tuple[str, float | str]]:
    """Start a process and run all measures in it; yield each name with its result, in ns per unit.

    ``rounds``: number of batches timed of each size.  The result is a text with the reason if the
    work cannot be measured.  Raises HostError.
    """
    fd = os.memfd_create("calibrate", os.MFD_CLOEXEC)
    try:
        os.write(fd, bytes((PAGES[1] + 1) * PAGE))
        with HostProcess(files=[fd]) as host:
            yield from _measure_all(host, measures(host.start_brk, swap=swap), rounds)
    finally:
        os.close(fd)


def _measure_all(
    host: HostProcess, wanted: Sequence[Measure], rounds: int
) -> Iterator[tuple[str, float | str]]:
    found: dict[str, float | str] = {}
    for measure in wanted:
        try:
            found[measure.name] = _measure(host, measure, rounds, found)
        except NotMeasuredError as error:
            found[measure.name] = str(error)
            host.run(_as_array(_clear_both(())))
        yield measure.name, found[measure.name]


def _measure(
    host: HostProcess, measure: Measure, rounds: int, found: Mapping[str, float | str]
) -> float:
    """Return nanoseconds per unit.  Raises NotMeasuredError."""
    if isinstance(found.get(measure.needs), str):
        raise NotMeasuredError(found[measure.needs])
    for n in measure.sizes:
        _verify(host, measure, n)
    taken: tuple[list[int], list[int]] = [], []
    for _ in range(rounds):
        for n, column in zip(measure.sizes, taken, strict=True):
            column.append(_time(host, measure, n))
    price = marginal(measure.sizes, *taken)
    return price - found["loop"] if measure.loop else price


def _verify(host: HostProcess, measure: Measure, n: int) -> None:
    """Do the work once, untimed, and check its faults.  Raises NotMeasuredError."""
    _run(host, measure.before(n))
    results = _run(host, measure.timed(n), faults=True)
    minors, majors = int(results["minflt"].sum()), int(results["majflt"].sum())
    if (minors, majors) != (n * measure.faults, n * measure.majors):
        raise NotMeasuredError(
            f"{minors} minor and {majors} major faults instead of "
            f"{n * measure.faults} and {n * measure.majors}"
        )
    if _run(host, measure.proof(n), faults=True)["minflt"].sum():
        raise NotMeasuredError("the host maps small pages instead of huge ones")
    _run(host, measure.after(results["value"].tolist()))


def _time(host: HostProcess, measure: Measure, n: int) -> int:
    """Do the work once; return its time in nanoseconds, which includes one reading of the clock."""
    clock = (OP_CLOCK, 0, (_CLOCK_THREAD_CPUTIME_ID, 0, 0, 0, 0, 0))
    _run(host, measure.before(n))
    values = _run(host, [clock, *measure.timed(n), clock])["value"].tolist()
    _run(host, measure.after(values[1:-1]))
    return values[-1] - values[0]


def _as_array(ops: Ops) -> np.ndarray:
    return np.array(ops, OP) if ops else np.zeros(0, OP)


def _run(host: HostProcess, ops: Ops, *, faults: bool = False) -> np.ndarray:
    """Execute operations, all of which must succeed.  Raises NotMeasuredError."""
    prepared = _as_array(ops)
    results = host.run(prepared, faults=faults)
    values = results["value"]
    failed = (values < 0) & (values >= -4095) & (prepared["kind"] != OP_LOAD)
    failed |= results["sig"] != 0
    failed |= (
        (prepared["kind"] == OP_SYSCALL)
        & (prepared["nr"] == uapi.NR_BRK)
        & (values != prepared["args"][:, 0])
    )
    for i in np.flatnonzero(failed):
        _kind, nr, args = ops[i]
        # A kernel without huge pages refuses MADV_NOHUGEPAGE, but maps small pages anyway.
        if (nr, args[2], values[i]) != (uapi.NR_MADVISE, uapi.MADV_NOHUGEPAGE, -uapi.EINVAL):
            raise NotMeasuredError(_failure(nr, args, results[i]))
    return results


_NAMES = {
    uapi.NR_BRK: "brk",
    uapi.NR_MMAP: "mmap",
    uapi.NR_MUNMAP: "munmap",
    uapi.NR_MADVISE: "madvise",
    uapi.NR_MREMAP: "mremap",
    uapi.NR_MPROTECT: "mprotect",
    uapi.NR_MLOCK: "mlock",
    uapi.NR_MUNLOCK: "munlock",
}


def _failure(nr: int, args: Sequence[int], result: np.void) -> str:
    """Return the reason why an operation failed."""
    if result["sig"]:
        return f"an access ended in signal {result['sig']}"
    reason = errno.errorcode.get(-int(result["value"]), "refused")
    if nr == uapi.NR_MADVISE and args[2] == uapi.MADV_HUGEPAGE and reason == "EINVAL":
        return "the host has no transparent huge pages"
    return f"{_NAMES.get(nr, 'a system call')}: {reason}"

"""The model's side of a comparison: do an operation, and tell the state as the host tells it.

Both states are arrays of the same form, made by compiled code, so that comparing them is comparing
bytes.  What belongs to the harness in the real process is left out of both.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from kernel.access import access, load, store
from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.branches import Branch, instrument
from kernel.engine.jit import build_once, jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.fault import handle_mm_fault
from kernel.limits import setrlimit
from kernel.linux.host.observe import FILE, HUGE, KIND_HEAP, PRESENT, SWAPPED, ZERO
from kernel.linux.verify.operation import OP_LOAD, OP_SETRLIMIT, OP_STORE, OP_SYSCALL, OP_TOUCH, Op
from kernel.linux.verify.program import Area, View
from kernel.page import next_slot, page_of, page_size, pmd_addr_end, table_pages
from kernel.syscall import syscall
from kernel.types import (
    PTE_FILE,
    PTE_FRAME,
    PTE_HUGE,
    PTE_SWAP,
    PTE_ZERO,
    VM_MAYSHARE,
    SimulatedSignal,
)
from kernel.uapi import RLIM_INFINITY, RLIMIT_AS
from kernel.vma import find_vma

#: One area as both sides tell it.
AREA_ROW = np.dtype(
    [
        ("start", "i8"),
        ("end", "i8"),
        ("prot", "i8"),
        ("shared", "i8"),
        ("offset", "i8"),  # bytes, of files
        ("file", "i8"),  # 0 anonymous; files are numbered in the order of their first area
        ("kind", "i8"),  # AREA_*
    ]
)
AREA_ANON, AREA_HEAP, AREA_FILE, AREA_HARNESS = range(4)
AREA_KINDS = ("", "[heap]", "file", "(harness)")
#: A run of pages in one state (kernel.linux.host.observe), outside the harness.
REGION_ROW = np.dtype([("start", "i8"), ("end", "i8"), ("state", "i8")])
#: What is counted, bytes; the order of State.counters.
COUNTERS = ("VmSize", "VmData", "VmStk", "VmLck", "VmPTE", "RssAnon")
#: log2 of the window of these models, bytes: room for corners that are far apart.
WINDOW_BITS = 41
#: More than any program has.
MAX_AREAS, MAX_REGIONS = 70000, 200000


class Result(NamedTuple):
    """What one operation gave; ``value`` is 0 where a signal came instead."""

    value: int
    sig: int
    si_code: int
    si_addr: int
    minflt: int
    majflt: int


class State(NamedTuple):
    """Areas (AREA_ROW), resident pages outside the harness (REGION_ROW), COUNTERS in bytes."""

    areas: np.ndarray
    regions: np.ndarray
    counters: tuple[int, ...]


@jit
def _reach(k, addr, write):
    """Let the fault handler judge an address that is in no area.

    The hook of accesses alone would take one that folds onto a mapped page for that page: the
    price of its one AND (kernel.access), which is no rule of Linux's to compare.
    """
    i = find_vma(k, addr)
    if i == k.mm.map_count or k.vma[i].vm_start > addr:
        handle_mm_fault(k, addr, write)


@jit
def execute(k, kind, nr, a, b, c, d, e, f):
    """Do one operation; its value (of OP_TOUCH, of whole pages: their number).

    Raises SimulatedSignal as the process would be killed.
    """
    if kind == OP_SYSCALL:
        return syscall(k, nr, a, b, c, d, e, f)
    if kind == OP_LOAD:
        _reach(k, a, 0)
        return load(k, a)
    if kind == OP_STORE:
        _reach(k, a, 1)
        store(k, a, b)
    elif kind == OP_TOUCH:
        for addr in range(a, a + b, page_size()):
            _reach(k, addr, c)
            if c:
                store(k, addr, d)
            else:
                access(k, addr, 0)
        return b >> PAGE_SHIFT
    elif kind == OP_SETRLIMIT:
        return setrlimit(k, a, b)
    return 0


@jit
def _touches(protected, start, end):
    """Whether [start, end) meets the harness: ``protected``, (n, 2) addresses."""
    for i in range(len(protected)):
        if protected[i, 0] < end and start < protected[i, 1]:
            return True
    return False


@jit
def _within(protected, start, end):
    """Whether [start, end) lies in the harness.

    An area that only begins or ends there has grown out of it: what is beyond counts, and in the
    harness's part the model has no pages.
    """
    for i in range(len(protected)):
        if protected[i, 0] <= start and end <= protected[i, 1]:
            return True
    return False


@jit
def put_area(protected, rows, ids, n, start, end, prot, shared, offset, file, heap):
    """Write area row ``n``; ``file`` is an id of either side, numbered anew through ``ids``."""
    row = rows[n]
    row["start"] = start
    row["end"] = end
    row["prot"] = prot
    row["shared"] = shared
    row["offset"] = 0
    row["file"] = 0
    ids[n] = 0
    if _touches(protected, start, end):
        row["kind"] = AREA_HARNESS
    elif file:
        row["kind"] = AREA_FILE
        row["offset"] = offset
        ids[n] = file
        last = 0
        for i in range(n):
            last = max(last, rows[i]["file"])
            if ids[i] == file:
                row["file"] = rows[i]["file"]
        if row["file"] == 0:
            row["file"] = last + 1
    else:
        row["kind"] = AREA_HEAP if heap else AREA_ANON


@jit
def model_areas(k, protected, rows, ids):
    """Write the areas of the model to ``rows``; their number."""
    mm = k.mm
    for i in range(mm.map_count):
        v = k.vma[i]
        f = v.vm_flags
        heap = v.vm_start < mm.brk and v.vm_end > mm.start_brk
        shared = 1 if f & VM_MAYSHARE else 0
        offset = v.vm_pgoff << PAGE_SHIFT
        put_area(
            protected, rows, ids, i, v.vm_start, v.vm_end, f & 7, shared, offset, v.vm_file, heap
        )
    return mm.map_count


@jit
def _put_region(rows, n, start, end, state):
    """Append a run of pages, joined with the last where it goes on; the number of rows."""
    if n and rows[n - 1]["end"] == start and rows[n - 1]["state"] == state:
        rows[n - 1]["end"] = end
        return n
    rows[n]["start"] = start
    rows[n]["end"] = end
    rows[n]["state"] = state
    return n + 1


@jit
def _page_state(f):
    """What the host calls the state ``f`` of a page (host.observe); 0: nothing mapped."""
    state = 0
    if f & PTE_FRAME:
        state = PRESENT
    elif f & PTE_ZERO:
        state = PRESENT | ZERO
    elif f & PTE_FILE:
        state = PRESENT | FILE
    elif f & PTE_SWAP:
        state = SWAPPED
    if f & PTE_HUGE and state:
        state |= HUGE
    return state


@jit
def model_regions(k, protected, rows):
    """Write the runs of resident pages to ``rows``; their number."""
    n = 0
    for i in range(k.mm.map_count):
        end = k.vma[i].vm_end
        start = k.vma[i].vm_start
        if _within(protected, start, end):
            continue
        start = next_slot(k, start, end)
        while start < end:
            stop = pmd_addr_end(start, end)
            for addr in range(start, stop, page_size()):
                state = _page_state(k.pte[page_of(addr)])
                if state:
                    n = _put_region(rows, n, addr, addr + page_size(), state)
            start = next_slot(k, stop, end)
    return n


@jit
def observe(k, protected, rows, ids, regions, out):
    """Write everything that is compared: areas, regions, and the numbers of OBSERVED to ``out``."""
    mm = k.mm
    out[0] = model_areas(k, protected, rows, ids)
    out[1] = model_regions(k, protected, regions)
    out[2] = mm.total_vm << PAGE_SHIFT
    out[3] = mm.data_vm << PAGE_SHIFT
    out[4] = mm.stack_vm << PAGE_SHIFT
    out[5] = mm.locked_vm << PAGE_SHIFT
    out[6] = table_pages(mm) << PAGE_SHIFT
    out[7] = mm.rss << PAGE_SHIFT
    out[8] = mm.brk
    out[9] = mm.minflt
    out[10] = mm.majflt


#: Where COUNTERS begin in what :func:`observe` writes; behind them brk, minflt, majflt.
_COUNTERS_AT = 2
_BRK_AT = _COUNTERS_AT + len(COUNTERS)
_OBSERVED = _BRK_AT + 3


@cache
def _instrumented() -> tuple[Callable, list[Branch]]:
    return instrument(execute)


@jit
def host_areas(areas, protected, rows, ids):
    """Write what the host told (kernel.linux.host.observe.AREA) to ``rows``; their number."""
    n = 0
    for i in range(len(areas)):
        a = areas[i]
        if a.vm_start >= 0:  # vsyscall is beyond user space
            heap = a.kind == KIND_HEAP
            put_area(
                protected,
                rows,
                ids,
                n,
                a.vm_start,
                a.vm_end,
                a.prot,
                a.shared,
                a.offset,
                a.inode,
                heap,
            )
            n += 1
    return n


@jit
def host_regions(regions, protected, rows):
    """Write what the host told (host.observe.REGION), less the harness; their number."""
    n = 0
    for i in range(len(regions)):
        start = regions[i]["start"]
        end = regions[i]["end"]
        state = regions[i]["state"]
        while start < end:
            # Up to where the harness begins; then from where it ends.
            stop = end
            after = end
            for j in range(len(protected)):
                if protected[j, 0] < stop and start < protected[j, 1]:
                    stop = max(start, protected[j, 0])
                    after = protected[j, 1]
            if start < stop:
                n = _put_region(rows, n, start, stop, state)
            start = after
    return n


def counted_branches() -> list[Branch]:
    """The branches of the model, by their number in ``k.hits``."""
    return _instrumented()[1]


def warm(*, count_branches: bool) -> None:
    """Compile ahead what all programs use."""
    Model(KernelConfig(window_bits=WINDOW_BITS), count_branches=count_branches).compile()


class Model:
    """A simulated process as one side of a comparison.

    ``count_branches`` uses a build that counts them in ``k.hits``; ``bindings`` replace functions
    or constants of the kernel in a build of its own (mutation checks).
    """

    def __init__(
        self, config: KernelConfig, *, count_branches: bool = False, **bindings: Any
    ) -> None:
        self.machine = Machine(config)
        self.k = self.machine.k
        self.branches = _instrumented()[1] if count_branches else []
        switches = config.switches()
        if bindings:
            self._execute = build_once(execute, cache=False, **switches, **bindings)
        else:
            self._execute = build_once(
                _instrumented()[0] if count_branches else execute, **switches
            )
        self._observe = build_once(observe, **switches)
        self._rows = np.zeros(MAX_AREAS, AREA_ROW)
        self._ids = np.zeros(MAX_AREAS, "i8")
        self._regions = np.zeros(MAX_REGIONS, REGION_ROW)
        self._out = np.zeros(_OBSERVED, "i8")
        self._vma = self.k["vma"].view(np.ndarray)
        self.protected = np.zeros((0, 2), "i8")

    def reset(self) -> None:
        """Return to the state after boot."""
        self.machine.reset()

    def do(self, op: Op) -> Result:
        """Do one operation."""
        args = op.args + (0,) * (6 - len(op.args))
        out = self._out
        minflt, majflt = int(out[_BRK_AT + 1]), int(out[_BRK_AT + 2])
        value, sig = 0, (0, 0, 0)
        try:
            value = self._execute(self.k, op.kind, op.nr, *args)
        except SimulatedSignal:
            task = self.k.task
            sig = int(task.sig), int(task.si_code), int(task.si_addr)
            task.sig = 0
        self._look()
        faults = int(out[_BRK_AT + 1]) - minflt, int(out[_BRK_AT + 2]) - majflt
        return Result(int(value), *sig, *faults)

    def do_unseen(self, op: Op) -> int:
        """Do one system call without looking at the state; its value."""
        return int(self._execute(self.k, op.kind, op.nr, *op.args + (0,) * (6 - len(op.args))))

    def _look(self) -> None:
        self._observe(self.k, self.protected, self._rows, self._ids, self._regions, self._out)

    def state(self) -> State:
        """The state after the last operation.  Overwritten by the next."""
        out = self._out
        return State(
            self._rows[: out[0]],
            self._regions[: out[1]],
            tuple(out[_COUNTERS_AT:_BRK_AT].tolist()),
        )

    def view(self) -> View:
        """What the generator of programs sees."""
        out = self._out.tolist()
        areas = [Area(*row) for row in self._vma[: out[0]].tolist()]
        pages = [out[_COUNTERS_AT + COUNTERS.index(n)] >> 12 for n in _VIEWED]
        return View(areas, out[_BRK_AT], *pages)

    def compile(self) -> None:
        """Compile what has not been compiled."""
        self.do(Op("", OP_SETRLIMIT, 0, (RLIMIT_AS, RLIM_INFINITY)))

    def refresh(self) -> None:
        """Look at the state anew, after it was changed from outside."""
        self._look()


#: The counters that a View has, in its order.
_VIEWED = ("VmSize", "VmData", "VmLck", "RssAnon")

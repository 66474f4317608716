"""State of a process in the form that both sides share: areas, resident pages, counters.

Compiled code writes both states as arrays of the same layout, so that they can be compared byte by
byte.  Both omit the memory that belongs to the harness in the real process.
"""

import resource
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.jit import build_once, jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.linux.host.observe import (
    FILE,
    HUGE,
    KIND_HEAP,
    PRESENT,
    SWAPPED,
    ZERO,
    Observer,
    host_settings,
)
from kernel.linux.host.process import HostProcess
from kernel.maps import MMAP_MIN_ADDR
from kernel.page import next_slot, page_of, page_size, pmd_addr_end, table_pages
from kernel.types import PTE_FILE, PTE_FRAME, PTE_HUGE, PTE_SWAP, PTE_ZERO, VM_MAYSHARE
from kernel.uapi import RLIM_INFINITY

#: One area (VMA), in the form that both sides share.
AREA_ROW = np.dtype(
    [
        ("start", "i8"),
        ("end", "i8"),
        ("prot", "i8"),
        ("shared", "i8"),
        ("offset", "i8"),  # bytes; 0 if no file is mapped
        ("file", "i8"),  # 0 anonymous; files are numbered by first appearance
        ("kind", "i8"),  # AREA_*
    ]
)
AREA_ANON, AREA_HEAP, AREA_FILE, AREA_HARNESS = range(4)
AREA_KINDS = ("", "[heap]", "file", "(harness)")
#: A run of pages in the same state (kernel.linux.host.observe), outside the harness.
REGION_ROW = np.dtype([("start", "i8"), ("end", "i8"), ("state", "i8")])
#: Names of State.counters (bytes), in the same order.
COUNTERS = ("VmSize", "VmData", "VmStk", "VmLck", "VmPTE", "RssAnon")
#: log2 of the window of these models, bytes: large enough for mappings that are far apart.
WINDOW_BITS = 41
#: Capacities, larger than any program needs.
MAX_AREAS, MAX_REGIONS = 70000, 200000
#: The fields of kernel.linux.host.observe.STATUS that correspond to COUNTERS.
_FIELDS = ("vm_size", "vm_data", "vm_stk", "vm_lck", "vm_pte", "rss_anon")
#: The initial limits that the model copies from a process.
_RLIMITS = {
    "rlim_as": resource.RLIMIT_AS,
    "rlim_data": resource.RLIMIT_DATA,
    "rlim_memlock": resource.RLIMIT_MEMLOCK,
    "rlim_stack": resource.RLIMIT_STACK,
}


class State(NamedTuple):
    """State of a process: areas (AREA_ROW), resident pages (REGION_ROW), COUNTERS in bytes."""

    areas: np.ndarray
    regions: np.ndarray
    counters: tuple[int, ...]


@jit
def _touches(protected, start, end):
    """Return True if [start, end) overlaps the harness (``protected``, (n, 2) addresses)."""
    for i in range(len(protected)):
        if protected[i, 0] < end and start < protected[i, 1]:
            return True
    return False


@jit
def _within(protected, start, end):
    """Return True if [start, end) is entirely within the harness.

    An area that only begins or ends there has merged with one of the harness: the part outside is
    compared, and the model has no pages in the part inside.
    """
    for i in range(len(protected)):
        if protected[i, 0] <= start and end <= protected[i, 1]:
            return True
    return False


@jit
def put_area(protected, rows, ids, n, start, end, prot, shared, offset, file, heap):
    """Write area row ``n``; renumber ``file``, an id of either side, by first use in ``ids``."""
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
    """Write the areas of the model to ``rows`` and return their number."""
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
    """Append a run of pages, or extend the last run; return the number of rows."""
    if n and rows[n - 1]["end"] == start and rows[n - 1]["state"] == state:
        rows[n - 1]["end"] = end
        return n
    rows[n]["start"] = start
    rows[n]["end"] = end
    rows[n]["state"] = state
    return n + 1


@jit
def _page_state(f):
    """Return page-table entry ``f`` as a state of host.observe; 0 if nothing is mapped."""
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
    """Write the model's runs of resident pages to ``rows`` and return their number."""
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
    """Write the state that is compared: areas, regions, and to ``out`` all numbers."""
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


@jit
def host_areas(areas, protected, rows, ids):
    """Write the host's areas (kernel.linux.host.observe.AREA) to ``rows``; return their number."""
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
    """Write the host's regions (host.observe.REGION) outside the harness; return their number."""
    n = 0
    for i in range(len(regions)):
        start = regions[i]["start"]
        end = regions[i]["end"]
        state = regions[i]["state"]
        while start < end:
            # Keep the part before the harness, then continue after it.
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


#: Index of brk in the ``out`` of :func:`observe`, after COUNTERS; minflt and majflt follow.
_BRK_AT = 2 + len(COUNTERS)


class _Tables:
    """Buffers for the state of one side; ``protected``: (n, 2) addresses of the harness."""

    def __init__(self) -> None:
        self.protected = np.zeros((0, 2), "i8")
        self._rows = np.zeros(MAX_AREAS, AREA_ROW)
        self._ids = np.zeros(MAX_AREAS, "i8")
        self._regions = np.zeros(MAX_REGIONS, REGION_ROW)


class ModelSide(_Tables):
    """Simulated process that reports its state in the form of the host's."""

    def __init__(self, config: KernelConfig) -> None:
        super().__init__()
        self.machine = Machine(config)
        self.k = self.machine.k
        self._observe = build_once(observe, **config.switches())
        self._out = np.zeros(_BRK_AT + 3, "i8")

    def reset(self) -> None:
        """Return to the state after boot."""
        self.machine.reset()

    def refresh(self) -> None:
        """Read the state of the model."""
        self._observe(self.k, self.protected, self._rows, self._ids, self._regions, self._out)

    def state(self) -> State:
        """Return the state as of the last :meth:`refresh`, which overwrites the previous one."""
        areas, regions, *counters = self._out[:_BRK_AT].tolist()
        return State(self._rows[:areas], self._regions[:regions], tuple(counters))

    @property
    def brk(self) -> int:
        """Program break as of the last :meth:`refresh`."""
        return int(self._out[_BRK_AT])

    @property
    def faults(self) -> tuple[int, int]:
        """Total minor and major page faults as of the last :meth:`refresh`."""
        minflt, majflt = self._out[_BRK_AT + 1 :].tolist()
        return minflt, majflt


class RealSide(_Tables):
    """Real process, observed from outside."""

    def __init__(self, host: HostProcess) -> None:
        super().__init__()
        self.host = host
        self.observer = Observer(host.pid)
        self.base: tuple[int, ...] = (0,) * len(COUNTERS)
        self._host_areas = build_once(host_areas)
        self._host_regions = build_once(host_regions)

    def close(self) -> None:
        """Close the observer."""
        self.observer.close()

    def state(self) -> State:
        """Return the current state with ``base`` subtracted from its counters.

        The next call overwrites it.
        """
        areas = self.observer.areas().view(np.recarray)
        n = self._host_areas(areas, self.protected, self._rows, self._ids)
        m = self._host_regions(self.observer.residency(), self.protected, self._regions)
        status = self.observer.status()
        counters = tuple(int(status[f]) - b for f, b in zip(_FIELDS, self.base, strict=True))
        return State(self._rows[:n], self._regions[:m], counters)


def align(real: RealSide, model: ModelSide) -> None:
    """Set the model to the initial state of the real process, without the harness's pages."""
    host, k = real.host, model.k
    mm = k.mm
    areas = k.vma[: mm.map_count]
    spans = [(int(v.vm_start), int(v.vm_end)) for v in areas]
    real.protected = model.protected = np.array(spans, "i8")
    mm.start_brk = mm.brk = host.start_brk
    mm.end_data = mm.start_data + host.data_bytes
    mm.dac_mmap_min_addr = host_settings()["mmap_min_addr"] or 0
    # A kernel build may round hints up further than the setting.
    mm.mmap_min_addr = max(mm.dac_mmap_min_addr, MMAP_MIN_ADDR)
    for name, number in _RLIMITS.items():
        soft = resource.prlimit(host.pid, number)[0]
        mm[name] = RLIM_INFINITY if soft == resource.RLIM_INFINITY else soft
    for region in real.observer.residency():
        model.machine.assume_tables(int(region["start"]), int(region["end"]))
    model.refresh()
    # Linux counts the text, stack and shared memory of the harness, whose pages the model does not
    # have: compare only changes from here on.
    real.base = (0,) * len(COUNTERS)
    pairs = zip(real.state().counters, model.state().counters, strict=True)
    real.base = tuple(r - m for r, m in pairs)


def host_config(host: HostProcess, **more: Any) -> KernelConfig:
    """Return the configuration of the running kernel, for a process like ``host``."""
    found = host_settings()
    return KernelConfig(
        maps=host.maps,
        window_bits=WINDOW_BITS,
        overcommit=int(found["overcommit_memory"] or 0),
        memory=int(found["memory"]),
        swap=int(found["swap"]),
        thp=str(found["thp_enabled"] or "never"),
        max_map_count=min(int(found["max_map_count"] or 65530), 65530),
        **more,
    )


class Models:
    """Cache of models, keyed by their initial maps.  Resetting a model is faster than creating one.

    ``make``: creates a model from a configuration.
    """

    #: Maximum number of cached models: each occupies a separate address space.
    _CAPACITY = 4

    def __init__(self, make: Callable[[KernelConfig], Any]) -> None:
        self._make = make
        self._kept: dict[tuple, Any] = {}

    def forget(self) -> None:
        """Empty the cache.

        A model must not be reused if a loop still runs in it, or if a mutation may have corrupted
        the state on which its reset relies.
        """
        self._kept.clear()

    def model(self, host: HostProcess, **more: Any) -> Any:
        """Return a model of ``host`` in its initial state.

        ``more``: further fields of :class:`KernelConfig`.  Raises ValueError if the layout does not
        fit into the model's window.
        """
        # Leave out inodes, which differ at every start and are irrelevant here.
        lines = tuple(tuple(line.split()[:3]) for line in host.maps.splitlines())
        key = (lines, *sorted(more.items()))
        if key in self._kept:
            self._kept[key].reset()
            return self._kept[key]
        if len(self._kept) == self._CAPACITY:  # maps of a random layout do not recur
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = self._make(host_config(host, **more))
        return self._kept[key]


# --- text -----------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """Observable ``what`` on which both sides differ, with the value of each side."""

    what: str
    real: str
    model: str


def same(real: State, model: State) -> bool:
    """Return True if both sides are in the same state."""
    return (
        real.counters == model.counters
        and real.areas.tobytes() == model.areas.tobytes()
        and real.regions.tobytes() == model.regions.tobytes()
    )


def differences(real: State, model: State) -> Iterator[Difference]:
    """Yield the differences between two states."""
    for name, r, m in zip(COUNTERS, real.counters, model.counters, strict=True):
        if r != m:
            yield Difference(name, f"{r // 1024} kB", f"{m // 1024} kB")
    for what, r, m, lines in (
        ("areas", real.areas, model.areas, area_lines),
        ("residency", real.regions, model.regions, region_lines),
    ):
        if r.tobytes() != m.tobytes():
            ours, theirs = lines(m), lines(r)
            yield Difference(
                what,
                "; ".join(line for line in theirs if line not in ours) or "nothing more",
                "; ".join(line for line in ours if line not in theirs) or "nothing more",
            )


def area_lines(rows: np.ndarray) -> list[str]:
    """Return a line for each area, in a format similar to /proc/PID/maps."""
    lines = []
    for start, end, prot, shared, offset, file, kind in rows.tolist():
        rights = "".join(c if prot & b else "-" for c, b in zip("rwx", (1, 2, 4), strict=True))
        name = f"file {file} at {offset:#x}" if AREA_KINDS[kind] == "file" else AREA_KINDS[kind]
        lines.append(f"{start:012x}-{end:012x} {rights}{'s' if shared else 'p'} {name}".rstrip())
    return lines


def region_lines(rows: np.ndarray) -> list[str]:
    """Return a line for each run of resident pages."""
    lines = []
    for start, end, state in rows.tolist():
        huge = "huge " if state & HUGE else ""
        kind = "zero" if state & ZERO else "swapped" if state & SWAPPED else "frame"
        if state & FILE:
            kind = "file"
        if not state & (PRESENT | SWAPPED):
            kind = f"state {state}"
        lines.append(f"{start:012x}-{end:012x} {huge}{kind} ({(end - start) >> 12})")
    return lines


def side_by_side(real: State, model: State) -> list[str]:
    """Return both states as lines in two columns, with differences marked."""
    left = _state_lines(real)
    right = _state_lines(model)
    lines = [f"      {'Linux':<58} model"]
    rows = sorted(set(left) | set(right))
    for row in rows:
        ours, theirs = right.get(row, ""), left.get(row, "")
        mark = "  " if ours == theirs else "! "
        lines.append(f"    {mark}{theirs:<58} {ours}".rstrip())
    return lines


def _state_lines(state: State) -> dict[tuple[Any, ...], str]:
    """Return the lines of a state, keyed so that the lines of both sides can be paired."""
    lines: dict[tuple[Any, ...], str] = {}
    for n, (name, value) in enumerate(zip(COUNTERS, state.counters, strict=True)):
        lines[(0, n)] = f"{name} {value // 1024} kB"
    for row, line in zip(state.areas.tolist(), area_lines(state.areas), strict=True):
        lines[(1, row[0])] = line
    for row, line in zip(state.regions.tolist(), region_lines(state.regions), strict=True):
        lines[(2, row[0])] = line
    return lines

"""Simulated process under verification: runs parts of a plan and inspects the whole heap.

An error is raised as :class:`Violation`; the process cannot be used afterwards.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from allocators.base.contract import ALIGNMENT, BLOCK_FREE, BLOCK_HEADER, BLOCK_USED
from allocators.base.faults import located
from allocators.base.registry import Plugin
from allocators.verify import driver as dr
from allocators.verify.plan import SLOTS, Phase, Plan
from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.jit import build
from kernel.engine.record import record
from kernel.engine.watchdog import SoftLockup, watched
from kernel.task import reason
from kernel.types import VM_READ, VM_WRITE, SimulatedSignal
from kernel.vma import covered, heap_pages

#: Errors that the driver finds: the check's name, and the message for address, detail, request.
_FOUND = {
    dr.FOUND_NULL: ("null", "{request} bytes were refused although memory is available"),
    dr.FOUND_NEGATIVE: ("null", "returned {address}, which is neither an address nor NULL"),
    dr.FOUND_MISALIGNED: ("alignment", "the address is not a multiple of {detail}"),
    dr.FOUND_USABLE: ("usable_size", "usable_size is {detail}, less than the requested {request}"),
    dr.FOUND_UNMAPPED: (
        "mapping",
        "the block of {detail} usable bytes is not entirely in writable memory",
    ),
    dr.FOUND_DAMAGED: ("contents", "byte {detail} of a live block has been overwritten"),
    dr.FOUND_NOT_COPIED: ("realloc", "byte {detail} was not copied to the new block"),
    dr.FOUND_NOT_ZERO: ("calloc", "byte {detail} is not zero"),
    dr.FOUND_USABLE_CHANGED: ("usable_size", "usable_size of a live block changed to {detail}"),
}
_PIECES = {BLOCK_USED: "used block", BLOCK_FREE: "free block", BLOCK_HEADER: "header"}
#: Limit on the rows of a walk, far above any heap under verification.
MAX_ROWS = 1 << 24
_NO_ROWS = np.zeros((0, 3), "i8")


@dataclass(eq=False)
class Violation(Exception):
    """Breach of the contract: the check, the event, the address and a message."""

    check: str
    event: int
    address: int
    what: str


@dataclass(frozen=True)
class Build:
    """Build of the driver for a plugin and a page size.

    ``as_timed``: compile as for timed replays, without checks.
    """

    plugin: Plugin
    page_size: int = 4096
    as_timed: bool = False

    @property
    def config(self) -> KernelConfig:
        """Configuration of the simulated kernel."""
        return KernelConfig(page_size=self.page_size)

    def compile(self) -> Callable:
        """Return the specialised driver, compiled.  Raises any exception of the compiler."""
        checks = not self.as_timed
        driver = build(
            dr.drive,
            guard=(self.plugin.module.__name__,) if checks else (),
            **self.plugin.bindings(),
            **self.config.switches(),
            COUNT=checks,
            PAYLOAD=checks,
            CHECKED=checks,
        )
        nothing = np.zeros((0, dr.EVENT_WIDTH), "i8")
        tables = record(dr.DRIVER), _objects(), nothing, _NO_ROWS
        # Compile now, or the watchdog would count compile time as the allocator's.
        driver(Machine(self.config).k, self.plugin.state(), *tables, 0, 0)
        return driver


def _objects() -> np.ndarray:
    return np.zeros((SLOTS, dr.OBJECT_WIDTH), "i8")


class Process:
    """Execution of one plan on its own machine.  ``reuses``: the design reuses freed memory."""

    def __init__(
        self,
        built: Build,
        driver: Callable,
        plan: Plan,
        *,
        limits: dict[str, int] | None = None,
        reuses: bool = True,
        patience: float = 20.0,
    ) -> None:
        self.plan = plan
        self._reuses = reuses
        self._built = built
        self._driver = driver
        self._limits = limits
        self._patience = patience
        self._has_walk = hasattr(built.plugin.module, "walk")
        self._rows = np.zeros((4 * SLOTS, 3), "i8")
        self.restart()

    def restart(self) -> None:
        """Start over, before the first event."""
        self._machine = Machine(self._built.config)
        self.k = self._machine.k
        self.state = self._built.plugin.state()
        self.d = record(dr.DRIVER)
        self.objects = _objects()
        self.events = self.plan.events.copy()
        if not hasattr(self._built.plugin.module, "aligned_alloc"):
            self.events[:, dr.EVENT_ALIGNMENT] = ALIGNMENT
        mm = self.k.mm
        shift = self._built.config.page_shift
        for name, amount in (self._limits or {}).items():
            used = {"rlim_as": mm.total_vm << shift, "rlim_data": mm.data_vm << shift}
            used["max_map_count"] = mm.map_count
            mm[name] = amount >> shift if name == "memory" else used[name] + amount
        self.d.limited = self._limits is not None
        self._initial = self.k.vma[: mm.map_count].copy()

    @property
    def heap(self) -> int:
        """Bytes that the allocator has mapped."""
        return int(heap_pages(self.k.mm)) << self._built.config.page_shift

    def owns(self, address: int) -> bool:
        """Return True if the allocator has mapped ``address``."""
        start, end = self._initial["vm_start"], self._initial["vm_end"]
        foreign = np.any((start <= address) & (address < end))
        return not foreign and covered(self.k, address, address + 1, VM_READ)

    # --- Running ----------------------------------------------------------------------------------

    def call(self, begin: int, end: int, rows: np.ndarray = _NO_ROWS) -> int:
        """Perform the events [begin, end), and inspect if there are ``rows``.

        Return the index of the event with an error, or ``end``.  Raises SimulatedSignal when the
        process dies, and Violation when an event does not end or the plugin raises.
        """
        tables = self.d, self.objects, self.events, rows
        try:
            return watched(
                self.k,
                self._driver,
                self.k,
                self.state,
                *tables,
                begin,
                end,
                patience=self._patience,
            )
        except SimulatedSignal:
            raise
        except SoftLockup as lockup:
            self._machine.revoke()
            what = f"{self._doing} has not ended after {self._patience:g} s"
            raise Violation("lockup", lockup.event, 0, what) from None
        except Exception as error:
            place = located(error, self._built.plugin.module.__file__)
            what = f"{self._doing} raised at {place}"
            raise Violation("exception", self._now, 0, what) from None

    def run(self, begin: int, end: int, *, inspect: bool = True) -> None:
        """Perform the events [begin, end) and inspect the whole heap.  Raises Violation."""
        try:
            done = self.call(begin, end, self._rows if inspect else _NO_ROWS)
            while inspect and len(self._rows) < self.d.rows <= MAX_ROWS:
                self._rows = np.zeros((2 * int(self.d.rows), 3), "i8")
                self.call(end, end, self._rows)
        except SimulatedSignal:
            what = f"{reason(self.k)} (in {self._doing})"
            raise Violation("signal", self._now, int(self.k.task.si_addr), what) from None
        event = min(done, end - 1)
        if inspect:
            self._check_overlap(event)  # first: overlap explains damaged contents
        if self.d.found:
            self._raise_found(event)
        if inspect:
            self._check_foreign(event)
            if self._has_walk:
                self._check_walk(event)

    def phases(self, batch: int) -> Iterator[Phase]:
        """Run the plan and yield each phase when it is done.

        The heap is inspected every ``batch`` events (a large heap less often, so that inspection
        does not dominate) and at the end of a phase.  Raises Violation with the exact event.
        """
        begin = 0
        for phase in self.plan.phases:
            while begin < phase.end:
                end = min(begin + max(batch, int(self.d.rows) >> 4), phase.end)
                try:
                    self.run(begin, end)
                except Violation as violation:
                    raise self._narrowed(begin, violation) from None
                begin = end
            yield phase

    def _narrowed(self, good: int, violation: Violation) -> Violation:
        """Return the violation at the exact event that broke the heap; bisect the plan to find it.

        After ``good`` events the heap was sound.  Inspection covers only the end of a run, so each
        attempt restarts the plan.
        """
        while violation.event > good and violation.check != "lockup":
            middle = (good + violation.event + 1) // 2
            self.restart()
            try:
                self.run(0, middle)
                good = middle
            except Violation as earlier:
                violation = earlier
        return violation

    @property
    def _now(self) -> int:
        return int(self.k.task.now)

    @property
    def _doing(self) -> str:
        return dr.DOING_NAMES[int(self.d.doing)]

    def _raise_found(self, event: int) -> None:
        d = self.d
        request = int(self.events[event, dr.EVENT_SIZE])
        if d.found == dr.FOUND_CHECK:
            meaning = getattr(self._built.plugin.module, "CHECKS", {}).get(int(d.detail))
            raise Violation("check", event, 0, meaning or f"check() returned {d.detail}")
        check, text = _FOUND[int(d.found)]
        what = text.format(address=d.address, detail=d.detail, request=request)
        raise Violation(check, event, int(d.address), what)

    # --- The whole heap ---------------------------------------------------------------------------

    def _live(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the addresses of the live blocks, ascending, and their usable bytes."""
        live = self.objects[self.objects[:, dr.OBJECT_ADDRESS] != 0]
        live = live[np.argsort(live[:, dr.OBJECT_ADDRESS])]
        return live[:, dr.OBJECT_ADDRESS], live[:, dr.OBJECT_USABLE]

    def _check_overlap(self, event: int) -> None:
        start, usable = self._live()
        bad = np.flatnonzero(start[:-1] + np.maximum(usable[:-1], 1) > start[1:])
        if len(bad):
            i = bad[0]
            what = f"this live block of {usable[i]} bytes overlaps the one at {start[i + 1]:#x}"
            raise Violation("overlap", event, int(start[i]), what)

    def _check_foreign(self, event: int) -> None:
        """Check that writable memory mapped before the allocator started is untouched."""
        config = self._built.config
        for area in self._initial[self._initial["vm_flags"] & VM_WRITE != 0]:
            start, end = int(area["vm_start"]), int(area["vm_end"])
            first = (start & ((1 << config.window_bits) - 1)) >> config.page_shift
            pages = (end - start) >> config.page_shift
            touched = np.flatnonzero(self.k.pte[first : first + pages])
            if len(touched):
                address = start + (int(touched[0]) << config.page_shift)
                what = "this page, which is not the allocator's, was accessed"
                raise Violation("mapping", event, address, what)

    def _check_walk(self, event: int) -> None:
        """Compare the rows of walk with the live blocks and the mappings."""
        if not 0 <= self.d.rows <= len(self._rows):
            raise Violation("walk", event, 0, f"walk returned {self.d.rows} rows")
        start, size, kind = np.ascontiguousarray(self._rows[: self.d.rows].T)
        bad = np.flatnonzero(~np.isin(kind, list(_PIECES)) | (size < 0))
        if len(bad):
            what = f"walk lists an invalid row: {size[bad[0]]} bytes, kind {kind[bad[0]]}"
            raise Violation("walk", event, int(start[bad[0]]), what)
        if np.any(start[1:] < start[:-1]):
            order = np.argsort(start, kind="stable")
            start, size, kind = start[order], size[order], kind[order]
        used = kind == BLOCK_USED
        self._check_used(event, start[used], size[used])
        some = size > 0
        start, end, kind = start[some], (start + size)[some], kind[some]
        bad = np.flatnonzero(end[:-1] > start[1:])
        if len(bad):
            i = bad[0]
            what = f"walk: this {_PIECES[kind[i]]} overlaps the {_PIECES[kind[i + 1]]} at "
            raise Violation("walk", event, int(start[i]), what + f"{start[i + 1]:#x}")
        low, high = self._writable()
        area = np.searchsorted(low, start, side="right") - 1
        bad = np.flatnonzero((area < 0) | (end > high[area]))
        if len(bad):
            what = f"walk: this {_PIECES[kind[bad[0]]]} is not entirely in writable memory"
            raise Violation("walk", event, int(start[bad[0]]), what)

    def _check_used(self, event: int, used: np.ndarray, size: np.ndarray) -> None:
        """Check that the used rows are the live blocks, plus freed ones if nothing is reused."""
        live, usable = self._live()
        place = np.searchsorted(used, live)
        shown = np.append(used, 0)[place] == live
        if not shown.all():
            what = "walk does not list this live block as used"
            raise Violation("walk", event, int(live[~shown][0]), what)
        if self._reuses and len(used) > len(live):
            extra = np.setdiff1d(used, live)
            address = extra[0] if len(extra) else used[:-1][used[1:] == used[:-1]][0]
            what = "walk lists a block as used that is not live, or lists one twice"
            raise Violation("walk", event, int(address), what)
        wrong = np.flatnonzero(size[place] != usable)
        if len(wrong):
            i = wrong[0]
            what = f"walk lists {size[place][i]} usable bytes, usable_size returns {usable[i]}"
            raise Violation("usable_size", event, int(live[i]), what)

    def _writable(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the starts and ends of the ranges mapped readable and writable."""
        areas = self.k.vma[: self.k.mm.map_count]
        areas = areas[areas["vm_flags"] & (VM_READ | VM_WRITE) == VM_READ | VM_WRITE]
        inner = areas["vm_start"][1:] == areas["vm_end"][:-1]
        first = np.concatenate([[True], ~inner])
        last = np.concatenate([~inner, [True]])
        return areas["vm_start"][first], areas["vm_end"][last]

    # --- Results for comparing runs ---------------------------------------------------------------

    @property
    def addresses(self) -> np.ndarray:
        """Address that the allocator returned, by event."""
        return self.events[:, dr.EVENT_RESULT]

    @property
    def counters(self) -> dict[str, int]:
        """All counters of the simulated kernel, by name."""
        return {name: int(self.k.mm[name]) for name in self.k.mm.dtype.names}

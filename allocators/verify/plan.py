"""Plans of the verifier: seeded lists of operations, in phases.

The writer of a plan tracks which slots are live, so that the plan is valid for every allocator.  A
refused request (where memory is limited) leaves its slot empty: a later free of that slot is
skipped, and a later realloc becomes a malloc.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np

from allocators.base import operation as ops
from allocators.base.contract import ALIGNMENT
from allocators.verify.driver import EVENT_RESULT, EVENT_WIDTH

#: Maximum number of live objects.
SLOTS = 256
#: Objects requested under tight limits, 2.4 MB in total.
SCARCE = 120
#: Threads between which the driver switches.
THREADS = 4
#: An address in the program's stack (kernel.maps.FRESH_PROCESS).
_STACK = 0x7FFFFFFDF000
#: Bytes: the largest small request, the largest ordinary one, and one above the usual mmap
#: thresholds.
SMALL, MEDIUM, LARGE = 512, 8 << 10, 5 << 19


@dataclass(frozen=True)
class Phase:
    """Part of a plan: its name, the index after its last event, whether all objects are freed."""

    name: str
    end: int
    drained: bool


@dataclass(frozen=True)
class Plan:
    """Sequence of operations.  ``events``: (n, EVENT_WIDTH) int64, see allocators.verify.driver."""

    events: np.ndarray
    phases: tuple[Phase, ...]


class Writer:
    """Writer of a plan.  ``sizes`` maps each live slot to its requested bytes."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.sizes: dict[int, int] = {}
        self._rows: list[tuple[int, ...]] = []
        self._phases: list[Phase] = []
        self.op(ops.INIT)

    def op(self, op: int, slot: int = 0, size: int = 0, alignment: int = ALIGNMENT) -> None:
        """Append one operation."""
        self._rows.append((op, slot, size, alignment, 0))
        if op in ops.ALLOCATING:
            self.sizes[slot] = size
        elif op == ops.FREE:
            self.sizes.pop(slot, None)
        elif op == ops.RESET:
            self.sizes.clear()

    def free_all(self) -> None:
        """Free all live objects in random order, end every thread, and trim."""
        slots = list(self.sizes)
        self.random.shuffle(slots)
        for slot in slots:
            self.op(ops.FREE, slot)
        for _ in range(THREADS):
            self.op(ops.THREAD_END)
        self.op(ops.TRIM)

    def end_phase(self, name: str) -> None:
        """Close a phase."""
        drained = not self.sizes and self._rows[-1][0] == ops.TRIM
        self._phases.append(Phase(name, len(self._rows), drained))

    def plan(self) -> Plan:
        """Return the plan written so far."""
        events = np.array(self._rows, "i8").reshape(-1, EVENT_WIDTH)
        events[:, EVENT_RESULT] = 0
        return Plan(events, tuple(self._phases))

    # --- Requests ---------------------------------------------------------------------------------

    def size(self, low: int, high: int) -> int:
        """Return a log-uniform size from ``low`` to ``high``: mostly small, as in programs."""
        return min(int(low * (high / low) ** self.random.random()), high)

    def any_size(self) -> int:
        """Return a size, mostly small, sometimes zero or above the mmap threshold."""
        kind = self.random.random()
        if kind < 0.02:
            return 0
        if kind < 0.05:
            return self.size(MEDIUM, LARGE)
        return self.size(1, MEDIUM)

    def alignment(self) -> int:
        """Return a power of two, at least 16 bytes and rarely more than a page."""
        return ALIGNMENT << self.random.randrange(14 if self.random.random() < 0.05 else 8)

    # --- Phases: about n operations each ----------------------------------------------------------

    def churn(self, n: int) -> None:
        """Replace small objects at random."""
        for _ in range(n):
            slot = self.random.randrange(SLOTS)
            if slot in self.sizes:
                self.op(ops.FREE, slot)
            else:
                op = ops.CALLOC if self.random.random() < 0.25 else ops.MALLOC
                self.op(op, slot, self.size(1, SMALL) - 1)

    def mixed(self, n: int) -> None:
        """Mix all calls and all sizes."""
        for _ in range(n):
            slot = self.random.randrange(SLOTS)
            if slot not in self.sizes:
                op = self.random.choice((ops.MALLOC, ops.CALLOC, ops.ALIGNED))
                self.op(
                    op, slot, self.any_size(), self.alignment() if op == ops.ALIGNED else ALIGNMENT
                )
            elif self.random.random() < 0.2:
                self.op(ops.REALLOC, slot, self.any_size() or 1)
            else:
                self.op(ops.FREE, slot)

    def stack(self, n: int) -> None:
        """Free the youngest object first."""
        order = list(self.sizes)
        spare = [slot for slot in range(SLOTS) if slot not in self.sizes]
        for _ in range(n):
            if spare and (not order or self.random.random() < 0.5):
                order.append(spare.pop())
                self.op(ops.MALLOC, order[-1], self.size(1, MEDIUM))
            else:
                spare.append(order.pop())
                self.op(ops.FREE, spare[-1])

    def queue(self, n: int) -> None:
        """Free the oldest object first; the queue grows and shrinks periodically."""
        order = list(self.sizes)
        spare = [slot for slot in range(SLOTS) if slot not in self.sizes]
        for i in range(n):
            grow = self.random.random() < (0.7 if i // SLOTS % 2 else 0.3)
            if spare and (not order or grow):
                order.append(spare.pop(0))
                self.op(ops.MALLOC, order[-1], self.size(16, MEDIUM))
            else:
                spare.append(order.pop(0))
                self.op(ops.FREE, spare[-1])

    def resizing(self, n: int) -> None:
        """Grow and shrink a few objects by realloc, some from tiny to mapped and back."""
        for _ in range(n):
            slot = self.random.randrange(SLOTS // 16)
            old = self.sizes.get(slot, 0)
            if old > LARGE:
                self.op(ops.FREE, slot)
            elif self.random.random() < 0.03:
                self.op(ops.REALLOC, slot, self.any_size() or 1)
            elif self.random.random() < 0.3:
                self.op(ops.REALLOC, slot, old // 4 + 1)
            else:
                self.op(ops.REALLOC, slot, old + old // 2 + self.random.randrange(1, 40))

    def aligned(self, n: int) -> None:
        """Replace aligned and ordinary objects at random."""
        for _ in range(n):
            slot = self.random.randrange(SLOTS)
            if slot in self.sizes:
                self.op(ops.FREE, slot)
            elif self.random.random() < 0.7:
                self.op(ops.ALIGNED, slot, self.size(1, MEDIUM), self.alignment())
            else:
                self.op(ops.MALLOC, slot, self.size(1, MEDIUM))


@functools.lru_cache(maxsize=8)
def life(operations: int, seed: int) -> Plan:
    """Return a plan with every phase twice, all freed after each round; at least ``operations``."""
    w = Writer(seed)
    names = ("churn", "mixed", "stack", "queue", "resizing", "aligned")
    for _ in range(2):
        for name in names:
            getattr(w, name)(-(-operations // (2 * len(names))))
            w.end_phase(name)
        w.free_all()
        w.end_phase("drain")
    return w.plan()


def rounds(count: int, operations: int, seed: int) -> Plan:
    """Return a plan that repeats ``operations``, all freed after each round; two phases a round."""
    w = Writer(seed)
    for _ in range(count):
        w.random.seed(seed)
        w.churn(operations // 2)
        w.mixed(operations // 2)
        w.end_phase("fill")
        w.free_all()
        w.end_phase("drain")
    return w.plan()


def scarcity(seed: int) -> Plan:
    """Return a plan for tight limits: exhaust them by every call, free half, refill, free all.

    The last event repeats the first request (event 1).
    """
    w = Writer(seed)
    sizes = (24, 100, 600, 3000, 9000)
    for slot in range(SCARCE):
        if slot % 4 == 3:
            w.op(ops.MALLOC, slot, 70_000)
        else:
            op = (ops.MALLOC, ops.CALLOC, ops.ALIGNED)[slot % 3]
            w.op(op, slot, sizes[slot % len(sizes)], 256 if op == ops.ALIGNED else ALIGNMENT)
    w.end_phase("fill")
    for slot in range(0, SCARCE, 7):
        w.op(ops.REALLOC, slot, LARGE if slot % 4 == 3 else 4 * w.sizes[slot])
    w.end_phase("grow")
    for slot in range(0, SCARCE, 2):
        w.op(ops.FREE, slot)
    w.end_phase("free half")
    for slot in range(0, SCARCE, 2):
        w.op(ops.MALLOC, slot, w.size(1, MEDIUM))
    w.end_phase("refill")
    w.free_all()
    w.end_phase("drain")
    w.op(ops.MALLOC, 0, sizes[0])
    w.end_phase("after")
    return w.plan()


def impossible(sizes: tuple[int, ...]) -> Plan:
    """Return a plan of requests of ``sizes``, all to be refused, between two to be granted."""
    w = Writer(0)
    w.op(ops.MALLOC, 0, 100)
    w.end_phase("before")
    for size in sizes:
        w.op(ops.MALLOC, 1, size)
        w.op(ops.CALLOC, 2, size)
        w.op(ops.REALLOC, 0, size)
        w.op(ops.ALIGNED, 3, size, 64)
    w.op(ops.ALIGNED, 3, 1 << 62, 1 << 62)
    w.op(ops.ALIGNED, 3, 64, 1 << 62)
    w.end_phase("impossible")
    w.op(ops.MALLOC, 4, 100)
    w.end_phase("after")
    return w.plan()


def reuse(count: int, size: int) -> Plan:
    """Return a plan that allocates and frees one object, ``count`` times."""
    w = Writer(0)
    for _ in range(count):
        w.op(ops.MALLOC, 0, size)
        w.op(ops.FREE, 0)
    w.end_phase("reuse")
    return w.plan()


def emptying(seed: int) -> Plan:
    """Return a plan that fills the heap and drops all objects by reset, twice."""
    w = Writer(seed)
    for _ in range(2):
        w.churn(SLOTS)
        w.mixed(SLOTS // 2)
        w.end_phase("fill")
        w.op(ops.RESET)
        w.end_phase("reset")
        w.op(ops.TRIM)
        w.end_phase("trim")
    return w.plan()


def _misuse(*operations: tuple[int, ...]) -> Plan:
    """Return a plan whose last operation is a bad free."""
    w = Writer(0)
    for operation in operations:
        w.op(*operation)
    w.end_phase("misuse")
    return w.plan()


def double_frees() -> Iterator[tuple[str, Plan]]:
    """Yield descriptions and plans of double frees: at once, or after merging with neighbours."""
    for size in (1, 24, 200, 3000):
        objects = [(ops.MALLOC, slot, size) for slot in range(4)]
        twice = [(ops.STRAY, 0), (ops.STRAY, 0)]
        yield f"{size} bytes, at once", _misuse(*objects, *twice)
        merged = [(ops.STRAY, slot) for slot in (1, 0, 2, 1)]
        yield f"{size} bytes, after the neighbours", _misuse(*objects, *merged)
    aligned = [(ops.ALIGNED, 0, 100, 256), (ops.MALLOC, 1, 100)]
    yield "aligned", _misuse(*aligned, *twice)
    for size in (100, LARGE):
        yield f"{size} bytes, the only object", _misuse((ops.MALLOC, 0, size), *twice)


def wild_frees() -> Iterator[tuple[str, Plan]]:
    """Yield descriptions and plans of frees of addresses that are no block."""
    for size, offsets in ((200, (1, 8, 16, 64)), (LARGE, (16, 4096, 1 << 20))):
        objects = [(ops.MALLOC, slot, size) for slot in range(3)]
        for offset in offsets:
            yield f"{offset} into {size} bytes", _misuse(*objects, (ops.STRAY, 1, offset))
    for what, address in (("page zero", 4096), ("the stack", _STACK)):
        # The last slot holds nothing: 0 + address.
        yield f"an address in {what}", _misuse(*objects, (ops.STRAY, SLOTS - 1, address))

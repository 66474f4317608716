"""Random programs: modes, their phases, and the compiled loop that fills a phase with operations.

A program is a sequence of phases.  Each phase has its own sizes (a range, or a few sizes repeated),
target number of live blocks, order of frees, and way of using blocks::

    grow ▁▃▅▇   steady ▇▆▇▆   drain ▇▅▃▁   burst: grow ▁▇, drain ▇▁, grow ▁▇ with the same sizes

Sizes at which a rule of glibc changes (_RULES) and impossible sizes are mixed in.  One program in
four is hostile: it maps memory between the break and the mappings, sets and lifts limits, and moves
the break itself.  Threads, if any, start and end between phases.
"""

import random
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.twin.verify import operation as ops
from benchmarks.twin.verify.schedule import Schedule
from benchmarks.workloads.base.prng import Random
from kernel.engine.jit import build_once, jit
from kernel.engine.record import record

_PAGE = 4096
#: Number of slots for blocks; the slots above hold mappings placed in the heap's way.
SLOTS = 1 << 13
_OBSTACLES = 4
TABLE = SLOTS + _OBSTACLES

#: Sizes at which a rule of glibc changes, drawn ± 1; and impossible sizes.
_RULES = (
    *(0, 1, 8, 9, 23, 24, 25, 40, 41, 56, 88, 104, 120, 121, 128, 136, 152, 160, 168),
    *(1000, 1007, 1008, 1009, 1016, 1023, 1024, 1025, 1032, 1033, 1040, 1048),
    *(2032, 3056, 3072, 3120, 4064, 4072, 4080, 4088, 4096, 8168, 10224, 10752, 12264, 32752),
    *(40960, 45056, 65488, 65496, 65504, 65512, 65520, 65528, 65536, 131016, 131032),
    *(131040, 131048, 131056, 131057, 131064, 131072, 131080, 135144, 135152, 163840),
    *(262120, 262144, 266232, 524264, 524288, 1048552, 1048560, 1048576, 2097128, 2097152),
    *(4194280, 4194304, 33554384, 33554400, 33554408, 33554416, 33554424, 33554432, 33554433),
)
_IMPOSSIBLE = (1 << 47, (1 << 63) - 1, (1 << 63) - 32, (1 << 63) - 4096, -1, -24, -4096, -(1 << 63))


@dataclass(frozen=True)
class Mode:
    """Ranges of a mode's programs; sizes in bytes, each pair an inclusive range."""

    name: str
    about: str
    sizes: tuple[int, int]
    phases: tuple[int, int]  # operations of a phase
    live: tuple[int, int]  # target number of live blocks of a phase
    length: tuple[int, int]  # operations of a program
    budget: int  # maximum of live bytes
    used: int  # maximum of bytes of a block that the program touches at a time
    threads: int = 1  # maximum number at a time
    tunables: tuple[dict[str, int], ...] = ({},)  # used by its programs in turn

    def describe(self) -> str:
        """Describe the ranges on one line."""
        ranges = (("sizes", self.sizes, " bytes"), ("phases", self.phases, " operations"))
        parts = [f"{what} {low:,} to {high:,}{unit}" for what, (low, high), unit in ranges]
        parts.append(f"live {self.live[0]:,} to {self.live[1]:,} blocks")
        parts.append(f"programs {self.length[0]:,} to {self.length[1]:,}")
        if self.threads > 1:
            parts.append(f"2 to {self.threads} threads")
        return f"{self.name}: {self.about}; " + ", ".join(parts)


#: By mode: sizes, phases, live blocks, lengths of programs, budget, bytes used at a time.
_RANGES = {
    "small": ((0, 1100), (20, 3000), (1, 4000), (500, 20_000), 16 << 20, 2048),
    "mixed": ((0, 160 << 10), (20, 2000), (1, 1500), (500, 12_000), 128 << 20, 64 << 10),
    "big": ((64 << 10, 64 << 20), (10, 400), (1, 60), (200, 3000), 1 << 30, 256 << 10),
    "burst": ((0, 2200), (8, 400), (4, 120), (500, 12_000), 8 << 20, 4096),
    "threads": ((0, 1 << 20), (20, 1000), (1, 2000), (500, 12_000), 512 << 20, 32 << 10),
}
_ABOUT = {
    "small": "tcache, fastbins, small bins",
    "mixed": "unsorted list, large bins, consolidation, top, trimming",
    "big": "mappings, dynamic threshold, mremap, trimming",
    "burst": "many blocks of few sizes freed and allocated again: tcache refills",
    "threads": "arenas of threads, their heaps, frees by other threads",
}
MODES = {name: Mode(name, _ABOUT[name], *ranges) for name, ranges in _RANGES.items()}
# Fewer arenas than threads; heaps that are trimmed at once.
_ARENAS = ({}, {"arena_max": 2}, {}, {"arena_max": 3, "top_pad": 0})
MODES["threads"] = replace(MODES["threads"], threads=6, tunables=_ARENAS)

# --- Filling a phase ----------------------------------------------------------------------------

#: Order in which a phase frees blocks: random, newest first, oldest first, every other one by age.
ANY, NEWEST, OLDEST, ALTERNATE = range(4)

#: Parameters of a phase; shares are in 1/1024.
PHASE = np.dtype(
    [
        ("alloc", "i8"),  # of allocations among allocations and frees, below the target
        ("target", "i8"),  # live blocks
        ("budget", "i8"),  # live bytes
        ("order", "i8"),
        ("realloc", "i8"),
        ("calloc", "i8"),  # of allocations
        ("aligned", "i8"),
        ("usable", "i8"),
        ("use", "i8"),  # of operations that only use a block
        ("null", "i8"),  # free(NULL)
        ("trim", "i8"),  # in 1/65536
        ("write", "i8"),  # of new blocks that are written
        ("read", "i8"),  # of new blocks that are read
        ("used", "i8"),  # maximum of bytes touched
    ]
)
#: The live blocks.  ``order`` (4 × SLOTS,): slots by age, -1 for a freed block.
LIVE = np.dtype(
    [
        ("count", "i8"),
        ("held", "i8"),  # bytes
        ("head", "i8"),
        ("tail", "i8"),
        ("cursor", "i8"),
        ("spare", "i8"),
        ("order", "i8", (4 * SLOTS,)),
        ("place", "i8", (SLOTS,)),  # of a slot in order
        ("bytes", "i8", (SLOTS,)),  # requested
        ("free", "i8", (SLOTS,)),  # stack of empty slots
    ]
)
#: Number of 32-bit random numbers that one operation consumes.
DRAWS = 8


@jit(inline=True)
def _scaled(draw, bound):
    """Scale a 32-bit random number to [0, bound); bound < 2**31."""
    return (draw * bound) >> 32


@jit
def _born(live, size):
    """Add a new block.  Returns its slot."""
    if live.tail == 4 * SLOTS:
        _compact(live)
    live.spare -= 1
    slot = live.free[live.spare]
    live.order[live.tail] = slot
    live.place[slot] = live.tail
    live.bytes[slot] = size
    live.tail += 1
    live.count += 1
    live.held += size
    return slot


@jit
def _compact(live):
    """Remove the gaps from ``order``."""
    n = 0
    for i in range(live.head, live.tail):
        slot = live.order[i]
        if slot >= 0:
            live.order[n] = slot
            live.place[slot] = n
            n += 1
    live.head = 0
    live.tail = n
    live.cursor = 0


@jit
def _gone(live, slot):
    """Remove a block."""
    live.order[live.place[slot]] = -1
    live.free[live.spare] = slot
    live.spare += 1
    live.count -= 1
    live.held -= live.bytes[slot]
    while live.head < live.tail and live.order[live.head] < 0:
        live.head += 1
    while live.tail > live.head and live.order[live.tail - 1] < 0:
        live.tail -= 1


@jit
def _pick(live, order, draw):
    """Choose a live block, of which there is at least one.  Returns its slot."""
    if order == NEWEST:
        return live.order[live.tail - 1]
    if order == OLDEST:
        return live.order[live.head]
    if order == ALTERNATE:
        i = live.cursor + 1
        while i < live.tail and live.order[max(i, 0)] < 0:
            i += 1
        i += 1
    else:
        i = live.head + _scaled(draw, live.tail - live.head)
    i = max(i, live.head)
    while i < live.tail and live.order[i] < 0:
        i += 1
    if i >= live.tail:
        i = live.head
    live.cursor = i
    return live.order[i]


@jit
def _choose_use(phase, op, size, draw, where, length):
    """Choose whether and how the program touches a block of ``size`` bytes after the operation."""
    kind = _scaled(draw, 1024)
    if size <= 0 or kind >= phase.write + phase.read:
        return
    op.use = ops.WRITE if kind < phase.write else ops.READ
    most = min(size, phase.used)
    # Half of the uses begin at the start, the others anywhere; one in four has maximum length.
    op.begin = 0 if where & 1 else _scaled(where, min(size, 1 << 30))
    op.length = most if length & 3 == 0 else 1 + _scaled(length, most)


@jit
def _new_size(old, draw, fresh):
    """Choose the new size for the realloc of a block of ``old`` bytes."""
    way = draw & 7
    step = _scaled(draw, 1 << 16)
    if way == 0:
        return old + 1 + (step & 31)
    if way == 1:
        return max(old - 1 - (step & 31), 0)
    if way == 2:
        return old + (old >> 1) + (step & 255)
    if way == 3:
        return old >> 1
    if way == 4:
        return old + (step & 4095)
    return fresh


@jit
def _resize(phase, live, op, d, size):
    """Make ``op`` a realloc of a live block, to ``size`` bytes or to a size near its own."""
    op.kind = ops.REALLOC
    op.slot = _pick(live, phase.order if d[2] & 1 else ANY, d[3])
    old = live.bytes[op.slot]
    op.request = _new_size(old, d[7], size)
    if live.held - old + op.request > phase.budget and 0 < op.request < 1 << 40:
        op.request = old >> 1
    if op.request == 0:
        _gone(live, op.slot)
    elif 0 < op.request < 1 << 40:  # else refused
        live.held += op.request - old
        live.bytes[op.slot] = op.request
        _choose_use(phase, op, op.request, d[4], d[5], d[6])


@jit
def _request(phase, live, op, d, size, align):
    """Make ``op`` a request for a new block of ``size`` bytes."""
    possible = 0 <= size < 1 << 40
    op.slot = _born(live, size if possible else 0)
    op.request = size
    how = _scaled(d[3], 1024)
    op.kind = ops.MALLOC
    if how < phase.calloc:
        op.kind = ops.CALLOC
        # Eight members if they divide the size: only the product matters.
        op.extra = 8 if size & 7 == 0 else 1
    elif how < phase.calloc + phase.aligned:
        op.kind = ops.ALIGNED
        op.extra = align
    if possible:
        _choose_use(phase, op, size, d[4], d[5], d[6])


@jit
def fill(phase, live, draws, sizes, aligns, program, begin, end):
    """Fill rows [begin, end) of ``program``.  Returns the first row that was not filled.

    A phase with target 0 ends when no block is live.  ``draws`` (n, DRAWS), ``sizes`` and
    ``aligns`` (n,): random numbers, sizes and log2 of alignments for each row.
    """
    for i in range(begin, end):
        if phase.target == 0 and live.count == 0:
            return i
        op = program[i]
        d = draws[i - begin]
        size = sizes[i - begin]
        op.slot = -1
        op.request = 0
        op.extra = 0
        op.use = ops.LEAVE
        op.begin = 0
        op.length = 0
        way = _scaled(d[0], 1024)
        if _scaled(d[1], 65536) < phase.trim:
            op.kind = ops.TRIM
        elif way < phase.null:
            op.kind = ops.FREE
        elif live.count and way < phase.null + phase.usable:
            op.kind = ops.USABLE
            op.slot = _pick(live, ANY, d[2])
        elif live.count and way < phase.null + phase.usable + phase.use:
            op.kind = ops.USE
            op.slot = _pick(live, ANY, d[2])
            _choose_use(phase, op, live.bytes[op.slot], d[4] >> 1, d[5], d[6])
        elif live.count and way < phase.null + phase.usable + phase.use + phase.realloc:
            _resize(phase, live, op, d, size)
        elif live.count and (
            live.count >= phase.target
            or live.held >= phase.budget
            or live.count >= SLOTS - 1
            or _scaled(d[2], 1024) >= phase.alloc
        ):
            op.kind = ops.FREE
            op.slot = _pick(live, phase.order, d[3])
            _gone(live, op.slot)
        else:
            _request(phase, live, op, d, size, aligns[i - begin])
    return end


# --- Choosing phases ------------------------------------------------------------------------------


class Generator:
    """Generator of the one random program defined by ``mode`` and ``seed``."""

    def __init__(self, mode: Mode, seed: str) -> None:
        self._mode = mode
        self._choice = random.Random(f"{mode.name} {seed}")
        self._random = Random(self._choice.getrandbits(64))
        self._fill = build_once(fill)
        self._live = record(LIVE)
        self._live.spare = SLOTS
        self._live["free"] = np.arange(SLOTS)[::-1]
        self._hostile = self._choice.random() < 0.25
        self._schedule = None
        if mode.threads > 1:
            most = self._choice.randint(2, mode.threads)
            self._schedule = Schedule(self._choice, self._random, most, SLOTS)
        #: Length of the program in rows, unless it is cut off.
        self.length = self._between(*mode.length)

    def program(self, most: int) -> np.ndarray:
        """Generate the program, (n,) PROGRAM, of at most ``most`` rows."""
        choice, length = self._choice, min(self.length, most)
        rows = np.zeros(length, ops.PROGRAM).view(np.recarray)
        n = 0
        while n < length:
            if self._hostile and choice.random() < 0.3:
                rows[n] = self._hostility()
                n += 1
            first = n
            for row in self._schedule.changes()[: length - n] if self._schedule else ():
                rows[n] = row
                n += 1
                first = n
            for phase, sizes in self._phases(length - n):
                n = self._fill_phase(phase, sizes, rows, n, length)
            if self._schedule:
                self._schedule.assign(rows[first:n])
        return rows.view(np.ndarray)

    def _between(self, low: int, high: int) -> int:
        """Draw an integer in [low, high], log-uniformly."""
        return min(int((low + 1) * ((high + 2) / (low + 1)) ** self._choice.random()) - 1, high)

    def _fill_phase(
        self, phase: np.record, sizes: np.ndarray, rows: np.recarray, n: int, end: int
    ) -> int:
        end = min(n + len(sizes), end)
        count = end - n
        draws = self._random.below(max(count, 1) * DRAWS, 1 << 32).reshape(-1, DRAWS)
        largest = 21 if self._choice.random() < 0.05 else 13
        aligns = self._random.below(max(count, 1), largest - 3) + 4
        return self._fill(phase, self._live, draws, sizes, aligns, rows, n, end)

    def _phases(self, most: int) -> list[tuple[np.record, np.ndarray]]:
        """Choose the next phases, each with a size for every operation."""
        choice, mode = self._choice, self._mode
        n = self._between(*mode.phases)
        live = min(self._between(*mode.live), SLOTS // 2)
        kind = choice.random()
        burst = 0.8 if mode.name == "burst" else 0.15
        if kind < burst:
            sizes = self._some_sizes(few=choice.randint(1, 3), n=n)
            number = min(choice.randint(3, 40) if choice.random() < 0.7 else live, n)
            rounds = []
            for _ in range(choice.randint(1, 4)):
                rounds += [
                    (self._phase(alloc=1024, target=1 << 20, pure=True), sizes[:number]),
                    (self._phase(target=0, pure=True), sizes[: choice.randint(1, number)]),
                ]
            return rounds
        sizes = self._some_sizes(few=choice.choice((0, 0, 0, 1, 2, 6)), n=n)
        if kind < burst + (1 - burst) * 0.25:
            return [(self._phase(alloc=choice.choice((700, 900, 1024)), target=live), sizes)]
        if kind < burst + (1 - burst) * 0.4:
            return [(self._phase(target=0), sizes)]
        return [(self._phase(alloc=choice.choice((300, 500, 560, 700)), target=live), sizes)]

    def _phase(self, *, target: int, alloc: int = 0, pure: bool = False) -> np.record:
        """Choose a phase's record.  ``pure``: almost only malloc, calloc and free."""
        choice, mode = self._choice, self._mode
        phase = record(PHASE)
        phase.alloc, phase.target, phase.budget = alloc, target, mode.budget
        phase.order = choice.choice((ANY, ANY, NEWEST, OLDEST, ALTERNATE))
        phase.calloc = choice.choice((0, 100, 400)) if not pure or choice.random() < 0.2 else 0
        phase.aligned = choice.choice((0, 30, 300)) if not pure else choice.choice((0, 0, 30))
        if not pure:
            phase.realloc = choice.choice((0, 50, 200, 400))
            phase.usable = choice.choice((0, 10))
            phase.use = choice.choice((0, 20, 150))
            phase.null = choice.choice((0, 5))
            phase.trim = choice.choice((0, 0, 20, 200))
        style = choice.random()
        if style > 0.2:
            phase.write = choice.choice((300, 700, 1024))
            phase.read = choice.choice((0, 0, 300)) if phase.write < 1024 else 0
        # Large blocks are rarely touched as a whole, because page faults are slow.
        phase.used = mode.used * 16 if choice.random() < 0.05 else mode.used
        return phase

    def _some_sizes(self, *, few: int, n: int) -> np.ndarray:
        """Draw ``n`` sizes from a range within the mode's, or from only ``few`` sizes if not 0."""
        choice, mode = self._choice, self._mode
        low, high = mode.sizes
        a, b = sorted((self._between(low, high), self._between(low, high)))
        if few:
            kinds = np.array([self._between(a, b) for _ in range(few)], "i8")
            sizes = kinds[self._random.below(n, few)]
        elif choice.random() < 0.5:
            sizes = a + self._random.below(n, b - a + 1)
        else:
            exponents = self._random.below(n, 1 << 20) / (1 << 20)
            sizes = ((a + 1) * ((b + 1) / (a + 1)) ** exponents).astype("i8") - 1
        edges = choice.choice((0, 0, 8, 64))  # of 1024
        if edges:
            near = [s for s in _RULES if low // 2 <= s <= high + 64]
            table = np.array([*near * 4, *_IMPOSSIBLE], "i8")
            chosen = self._random.below(n, 1024) < edges
            values = table[self._random.below(n, len(table))]
            near_by = self._random.below(n, 3) - 1
            values = np.where((values > 0) & (values < 1 << 40), values + near_by, values)
            sizes = np.where(chosen, np.where(values == 0, 0, values), sizes)
        return sizes

    def _hostility(self) -> tuple[int, ...]:
        """Choose a row of PROGRAM that adds or removes an obstacle or limit, or moves the break."""
        choice = self._choice
        slot = SLOTS + choice.randrange(_OBSTACLES)
        room = choice.choice((0, 1, 2, 33, 64, 300, 1000)) * _PAGE
        match choice.randrange(9):
            case 0 | 1:
                return ops.BLOCK, slot, room, choice.randint(1, 20) * _PAGE, ops.LEAVE, 0, 0, 0
            case 2:
                return ops.UNBLOCK, slot, 0, 0, ops.LEAVE, 0, 0, 0
            case 3:
                return ops.LIMIT_DATA, -1, room, 0, ops.LEAVE, 0, 0, 0
            case 4:
                return ops.LIMIT_DATA, -1, -1, 0, ops.LEAVE, 0, 0, 0
            case 5:
                return ops.LIMIT_AS, -1, room + choice.choice((0, 1 << 20)), 0, ops.LEAVE, 0, 0, 0
            case 6:
                return ops.LIMIT_AS, -1, -1, 0, ops.LEAVE, 0, 0, 0
            case _:
                step = choice.choice((8, 16, 24, 100, _PAGE, 3 * _PAGE, 132 << 10, 5000))
                return ops.SBRK, -1, step, 0, ops.LEAVE, 0, 0, 0

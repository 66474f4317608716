"""Random operations aimed at existing areas, their edges, and the free space next to them.

A program works in two or three *corners* of the address space (near the boundaries of a PTE, a PMD
and a PUD page, the heap, the mmap area, below the stack …), so that its mappings become adjacent.
Kinds are drawn from a deck that is dealt completely before it is reshuffled, so their shares are
exact.  The seed and the model's state determine everything; the operations are plain numbers.

:func:`permitted` rejects operations that the real process must not execute; the shrinker uses it
too.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from kernel import uapi
from kernel.linux.verify.operation import (
    OP_LOAD,
    OP_SETRLIMIT,
    OP_STORE,
    OP_SYSCALL,
    OP_TOUCH,
    Op,
    syscall,
)
from kernel.maps import MMAP_MIN_ADDR, TASK_SIZE
from kernel.types import VM_GROWSDOWN, VM_HUGEPAGE, VM_LOCKED, VM_SHARED

PAGE = 4096
SLOT = 2 << 20  # bytes mapped by a PTE page, and the size of a huge page
#: Maximum sizes of one area and of all, bytes: areas must not collide in the model's window.
MAX_AREA, MAX_TOTAL = 8 << 30, 40 << 30
#: Minimum distance of corners in the window, bytes.
CORNER_DISTANCE = 64 << 30
#: Number of areas above which a program unmaps some.
MAX_AREAS = 40
_ANONYMOUS = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS
#: Descriptors that the real process inherits (kernel.linux.verify.compare opens the files).
FDS = (10, 11, 12, 13, 14)
_CLOSED_FD = 999


@dataclass(frozen=True)
class Area:
    """Area of the model: addresses in bytes, ``flags`` VM_*, ``file`` an id or 0."""

    start: int
    end: int
    flags: int
    pgoff: int
    anon_vma: int
    file: int

    @property
    def plain(self) -> bool:
        """True if the area is private anonymous memory, which may be touched."""
        return not self.file and not self.flags & VM_SHARED


@dataclass
class View:
    """State of the model that a generator uses.  Addresses are in bytes, counters in pages."""

    areas: list[Area]
    brk: int
    total_vm: int
    data_vm: int
    locked_vm: int
    rss: int


@dataclass(frozen=True)
class Ground:
    """Constants of the environment in which a program runs."""

    protected: tuple[tuple[int, int], ...]  # areas of the harness in the real process
    stack: int  # lowest address of its stack
    start_brk: int
    mmap_base: int
    legacy_base: int
    window: int  # bytes of the model's window
    memlock: int  # RLIMIT_MEMLOCK at the start, bytes
    memory: int  # MemTotal + swap, bytes, in overcommit mode 0, which checks it; else 0
    thp: bool
    randomized: bool

    @property
    def max_populate(self) -> int:
        """Maximum number of pages that one operation may fault in."""
        return 1600 if self.thp else 200

    @property
    def max_rss(self) -> int:
        """Number of resident pages above which a program unmaps some."""
        return 10000 if self.thp else 500

    def is_protected(self, start: int, end: int) -> bool:
        """Return True if [start, end) overlaps the harness."""
        return any(low < end and start < high for low, high in self.protected)


def _aligned(value: int) -> bool:
    return value % PAGE == 0


def _span(addr: int, length: int) -> tuple[int, int]:
    """Return the range of whole pages that contains [addr, addr + length)."""
    return addr // PAGE * PAGE, -(-(addr + length) // PAGE) * PAGE


def _touchable(view: View, ground: Ground, start: int, end: int) -> bool:
    """Return True if [start, end) has only plain areas and gaps, and grows no harness stack."""
    if ground.is_protected(start, end):
        return False
    for area in view.areas:
        if area.end > start:
            if area.start >= end:
                # A touch in the gap below may make this area grow down.
                foreign = ground.is_protected(area.start, area.end)
                return not (area.flags & VM_GROWSDOWN and foreign)
            if not area.plain:
                return False
    return True


def _room(view: View, ground: Ground, length: int, *, charged: bool) -> bool:
    """Return True if ``length`` more bytes fit into the model's window or are surely refused."""
    if length > TASK_SIZE or length < 0:
        return True
    if charged and ground.memory and length > 2 * ground.memory:
        return True
    return length <= MAX_AREA and view.total_vm * PAGE + length <= MAX_TOTAL


def _mmap_permitted(view: View, ground: Ground, args: tuple[int, ...]) -> bool:
    addr, length, prot, flags, fd, _offset = args
    kind = flags & uapi.MAP_TYPE
    if flags & uapi.MAP_HUGETLB and flags & uapi.MAP_ANONYMOUS:
        return False
    if flags & (uapi.MAP_POPULATE | uapi.MAP_LOCKED):
        if not flags & uapi.MAP_ANONYMOUS and fd in FDS and kind:
            return False
        shared = kind in (uapi.MAP_SHARED, uapi.MAP_SHARED_VALIDATE)
        if shared or length > ground.max_populate * PAGE:
            return False
    fixed, gentle = flags & uapi.MAP_FIXED, flags & uapi.MAP_FIXED_NOREPLACE
    if ground.randomized and flags & uapi.MAP_32BIT and not (fixed or gentle):
        return False  # Linux starts its search at a random address
    if fixed and not gentle and ground.is_protected(*_span(addr, length)):
        if _aligned(addr) and 0 < length <= TASK_SIZE - addr:
            return False
    charged = kind == uapi.MAP_PRIVATE and prot & uapi.PROT_WRITE and not flags & uapi.MAP_NORESERVE
    return _room(view, ground, length, charged=bool(charged))


def _mremap_permitted(view: View, ground: Ground, args: tuple[int, ...]) -> bool:
    addr, old_len, new_len, flags, new_addr = args
    if ground.is_protected(*_span(addr, max(old_len, 1))) and _aligned(addr):
        return False
    if flags & uapi.MREMAP_FIXED and ground.is_protected(*_span(new_addr, new_len)):
        if _aligned(new_addr) and new_len > 0 and flags & uapi.MREMAP_MAYMOVE:
            return False
    if new_len > old_len:
        for area in view.areas:
            if area.start <= addr < area.end and area.flags & VM_LOCKED:
                if new_len - old_len > ground.max_populate * PAGE:
                    return False
    return _room(view, ground, new_len, charged=False)


def permitted(op: Op, view: View, ground: Ground) -> bool:
    """Return True if the real process survives ``op`` and the model covers it.

    Not permitted: operations that unmap or change the harness's memory, touch shared or file memory
    (of which only the layout is modelled), or do not fit into the model's window.
    """
    args = op.args
    if op.kind in (OP_LOAD, OP_STORE):
        return args[0] >= 0 and _touchable(view, ground, *_span(args[0], 8))
    if op.kind == OP_TOUCH:
        small = 0 <= args[1] <= ground.max_populate * PAGE
        return small and args[0] >= 0 and _touchable(view, ground, *_span(args[0], args[1]))
    if op.kind == OP_SETRLIMIT:
        return True
    if op.nr == uapi.NR_MMAP:
        return _mmap_permitted(view, ground, args)
    if op.nr == uapi.NR_MREMAP:
        return _mremap_permitted(view, ground, args)
    if op.nr == uapi.NR_BRK:
        # A break at or above the stack's start collides with the stack and is refused.
        return args[0] < ground.start_brk + MAX_AREA or args[0] >= ground.stack
    addr, length = args[:2]
    start, end = _span(addr, length)
    if op.nr == uapi.NR_MUNMAP:
        harmless = not _aligned(addr) or length <= 0 or end > TASK_SIZE + PAGE
        return harmless or not ground.is_protected(start, end)
    if op.nr in (uapi.NR_MLOCK, uapi.NR_MLOCK2):
        if length < 0:
            return True
        small = length <= ground.max_populate * PAGE
        return small and addr >= 0 and _touchable(view, ground, start, end)
    if op.nr == uapi.NR_MADVISE and args[2] in (uapi.MADV_POPULATE_READ, uapi.MADV_POPULATE_WRITE):
        if not _aligned(addr) or length <= 0:
            return True
        small = length <= ground.max_populate * PAGE
        return small and addr >= 0 and _touchable(view, ground, start, end)
    if op.nr != uapi.NR_MUNLOCK and not _aligned(addr):
        return True
    if length < 0:
        # The length is unsigned: refused if the sum wraps, else it covers all addresses from addr.
        wraps = addr < 0 or addr + length >= 0 or length > -PAGE
        return wraps or not ground.is_protected(start, 1 << 64)
    return not ground.is_protected(start, end)


#: For each kind of operation: its constructor, its share of the deck, True if it needs huge pages.
_KINDS: dict[str, tuple[Callable, float, bool]] = {}


def _kind(label: str, share: float = 1.5, *, thp: bool = False) -> Callable:
    def register(make: Callable) -> Callable:
        _KINDS[label] = (make, share, thp)
        return make

    return register


def _advising(advice: int) -> Callable:
    """Return a constructor of madvise calls with ``advice``."""
    return lambda self, label: self._madvise(label, advice)


class Generator:
    """Generator of operations, each determined by the seed and the current state of the model."""

    def __init__(self, seed: str, ground: Ground) -> None:
        self.rng = random.Random(seed)
        self.ground = ground
        self.view = View([], 0, 0, 0, 0, 0)
        self.own: list[Area] = []
        self.focus = 0
        self.deck: list[str] = []
        self.planned: list[tuple[int, Op]] = []  # (number, operation) to insert at that number
        self.made = 0
        self.word = 0
        self.corners = self._choose_corners()

    def next(self, view: View) -> Op:
        """Return the next operation, generated for the state ``view``."""
        self.view = view
        self.own = [a for a in view.areas if not self.ground.is_protected(a.start, a.end)]
        self.made += 1
        if self.planned and self.planned[0][0] <= self.made:
            return self.planned.pop(0)[1]
        if len(self.own) > MAX_AREAS or view.rss > self.ground.max_rss:
            op = self._clear_up()
            if permitted(op, view, self.ground):
                return op
        for _ in range(200):
            if not self.deck:
                self._shuffle()
            label = self.deck.pop()
            for _ in range(12):
                op = _KINDS[label][0](self, label)
                if permitted(op, view, self.ground):
                    if op.kind != OP_SETRLIMIT and op.args[0] > 0:
                        self.focus = op.args[0]
                    return op
        return syscall("brk_grow", uapi.NR_BRK, 0)

    def _shuffle(self) -> None:
        for label, (_, share, thp) in _KINDS.items():
            if self.ground.thp or not thp:
                count = int(share) + (self.rng.random() < share % 1)
                self.deck += [label] * count
        self.rng.shuffle(self.deck)

    def _clear_up(self) -> Op:
        """Return an munmap of consecutive areas, starting at a random one."""
        first = self.rng.randrange(len(self.own)) if self.own else 0
        group = self.own[first : first + self.rng.randint(3, 20)]
        while len(group) > 1 and self.ground.is_protected(group[0].start, group[-1].end):
            group = group[: len(group) // 2]
        if not group:
            return syscall("munmap", uapi.NR_MUNMAP, MMAP_MIN_ADDR, PAGE)
        return syscall("munmap", uapi.NR_MUNMAP, group[0].start, group[-1].end - group[0].start)

    # --- places -------------------------------------------------------------------------------

    def _choose_corners(self) -> list[int]:
        """Choose up to three addresses that are far enough apart in the model's window."""
        g = self.ground
        fixed = [start for start, _ in g.protected]
        candidates = {
            "lowest": MMAP_MIN_ADDR + 4 * PAGE,
            "heap": g.start_brk,
            "top": g.mmap_base - 64 * PAGE,
            "below the stack": g.stack - 260 * PAGE,
            "legacy": g.legacy_base + 16 * PAGE,
            "32 bit": 0x40000000 + 16 * PAGE,
            "slot": 0x600000000000 + 300 * (1 << 30) + 5 * SLOT,
            "1 GiB": 0x600000000000 + 700 * (1 << 30),
            "512 GiB": 0x680000000000 + 2 * (512 << 30),
            "512 GiB in the heap's half": 0x300000000000 + (512 << 30),
        }
        chosen: list[int] = []
        for name in self.rng.sample(sorted(candidates), len(candidates)):
            place = candidates[name]
            near = [a for a in fixed if abs(a - place) < CORNER_DISTANCE]
            folds = [a % g.window for a in [*fixed, *chosen] if a not in near]
            distances = [min((place - f) % g.window, (f - place) % g.window) for f in folds]
            if min(distances, default=CORNER_DISTANCE) >= CORNER_DISTANCE:
                chosen.append(place)
            if len(chosen) == 3:
                break
        return chosen or [g.mmap_base - 64 * PAGE]

    def _corner(self) -> int:
        rng = self.rng
        place = rng.choice(self.corners)
        kind = rng.random()
        if kind < 0.75:
            return place + rng.randrange(-20, 40) * PAGE
        return (place // SLOT + rng.randrange(-2, 4)) * SLOT + rng.choice((0, 0, -1, 1)) * PAGE

    def _area(self) -> Area | None:
        """Choose an area of the program, often the one last used."""
        if not self.own:
            return None
        if self.rng.random() < 0.3:
            return min(self.own, key=lambda a: abs(a.start - self.focus))
        return self.rng.choice(self.own)

    def _huge_area(self) -> Area | None:
        """Choose an area that contains a whole slot and may have huge pages, if there is one."""
        found = [
            a
            for a in self.own
            if a.plain and a.end // SLOT - -(-a.start // SLOT) > 0 and a.flags & VM_HUGEPAGE
        ]
        return self.rng.choice(found) if found else self._area()

    def _inside(self, area: Area) -> int:
        """Choose a page of the area: near an end, at a slot boundary, or anywhere."""
        rng = self.rng
        pages = (area.end - area.start) // PAGE
        kind = rng.random()
        if kind < 0.25:
            return area.start + min(rng.randrange(3), pages - 1) * PAGE
        if kind < 0.45:
            return area.end - min(rng.randint(1, 3), pages) * PAGE
        if kind < 0.6 and area.end // SLOT > area.start // SLOT:
            slot = rng.randint(-(-area.start // SLOT), area.end // SLOT) * SLOT
            addr = slot + rng.choice((0, 0, -1, 1)) * PAGE
            return min(max(addr, area.start), area.end - PAGE)
        return area.start + rng.randrange(min(pages, 1 << 18)) * PAGE

    def _place(self) -> int:
        """Choose an address: an edge of an area or a neighbour of it, or a corner."""
        rng = self.rng
        area = self._area()
        if area is None or rng.random() < 0.3:
            return self._corner()
        return max(
            rng.choice((area.start, area.end, area.end, self._inside(area)))
            + rng.choice((0, 0, 0, 0, 1, -1, 2, -3)) * PAGE,
            PAGE,
        )

    def _perhaps(self, flag: int, share: float) -> int:
        """Return ``flag`` with probability ``share``, else 0."""
        return flag if self.rng.random() < share else 0

    def _length(self) -> int:
        rng = self.rng
        kind = rng.random()
        if kind < 0.78:
            pages = rng.choice((1, 1, 1, 2, 2, 3, 4, 5, 7, 12))
        elif kind < 0.88:
            pages = rng.choice((16, 33, 60, 130))
        elif kind < 0.97:
            pages = 512 * rng.randint(1, 3) + rng.choice((0, 0, -1, 1, 7))
        else:
            pages = rng.choice((1 << 17, 1 << 18, (1 << 18) + 512, 1 << 19))
        if rng.random() < 0.1:
            return pages * PAGE - rng.randrange(1, PAGE)
        return pages * PAGE

    def _touched_length(self) -> int:
        """Choose the length of a range that will be faulted in."""
        if self.ground.thp and self.rng.random() < 0.3:
            return self.rng.choice((511, 512, 513, 520, 1024)) * PAGE
        return min(self._length(), self.rng.choice((8, 30, 100)) * PAGE)

    def _new_place(self, length: int) -> int:
        """Choose an address where a mapping of ``length`` is often adjacent to others."""
        area = self._area()
        if area and self.rng.random() < 0.25:
            return area.start - -(-length // PAGE) * PAGE
        return self._place()

    def _range(self) -> tuple[int, int]:
        """Choose a range related to areas: a whole one, part of one, several, or beyond one."""
        rng = self.rng
        area = self._area()
        kind = rng.random()
        if area is None or kind < 0.08:
            return self._place(), self._length()
        if kind < 0.28:
            return area.start, area.end - area.start
        if kind < 0.40:
            return area.start, self._length()
        if kind < 0.52:
            start = self._inside(area)
            return start, area.end - start
        if kind < 0.78 or len(self.own) < 2:
            start = self._inside(area)
            return start, min(self._length(), area.end - start)
        i = self.own.index(area)
        other = self.own[min(i + rng.randint(1, 3), len(self.own) - 1)]
        if rng.random() < 0.5:
            start, end = area.start, other.end
        else:
            start, end = self._inside(area), self._inside(other) + PAGE
        if end - start <= 0 or end - start > 64 << 20:
            return area.start, area.end - area.start
        return start, end - start

    def _huge_range(self) -> tuple[int, int]:
        """Choose whole or partial slots of an area that may have huge pages."""
        rng = self.rng
        area = self._huge_area()
        if area is None or rng.random() < 0.15:
            return self._range()
        slot = rng.randint(area.start // SLOT, max(area.end // SLOT, area.start // SLOT)) * SLOT
        kind = rng.random()
        if kind < 0.35:
            return slot, rng.randint(1, 2) * SLOT
        if kind < 0.75:
            pages = rng.choice((1, 1, 2, 8, 64, 256, 511))
            return slot + rng.choice((0, 1, 100, 512 - pages)) * PAGE, pages * PAGE
        return slot - rng.randint(0, 20) * PAGE, rng.choice((20, 512, 540)) * PAGE

    def _some_range(self) -> tuple[int, int]:
        if self.ground.thp and self.rng.random() < 0.4:
            addr, length = self._huge_range()
        else:
            addr, length = self._range()
        return self._spoil(max(addr, 0), length)

    def _spoil(self, addr: int, length: int) -> tuple[int, int]:
        """Make the arguments of one call in twenty invalid or odd."""
        rng = self.rng
        kind = rng.randrange(120)
        if kind == 0:
            return addr + rng.randrange(1, PAGE), length
        if kind == 1:
            return addr, 0
        if kind == 2:
            return addr, length + rng.randrange(1, PAGE)
        if kind == 3:
            return addr, rng.choice((-PAGE, -1, 1 << 47, (1 << 63) - 1))
        if kind == 4:
            return rng.choice((-PAGE, TASK_SIZE, TASK_SIZE - PAGE, 0)), length
        if kind == 5:
            return addr + PAGE, length
        return addr, length

    def _prot(self) -> int:
        return self.rng.choices((3, 1, 0, 7, 2, 5, 4, 6), weights=(60, 14, 12, 4, 4, 2, 2, 2))[0]

    def _word(self) -> int:
        """Return a word to store, never 0: Linux may take a zero page for one never written."""
        self.word += 1
        return self.word

    def _slots(self) -> int:
        return self.rng.choice((1, 1, 2, 2, 3)) * SLOT

    # --- operations ---------------------------------------------------------------------------

    def _mmap(self, label: str, addr: int, length: int, prot: int, flags: int) -> Op:
        return syscall(label, uapi.NR_MMAP, addr, length, prot, flags, -1, 0)

    @_kind("mmap", 4)
    def _mmap_anywhere(self, label: str) -> Op:
        flags = _ANONYMOUS | self._perhaps(uapi.MAP_ABOVE4G, 0.05)
        return self._mmap(label, 0, self._length(), self._prot(), flags)

    @_kind("mmap_aligned", 2)
    def _mmap_aligned(self, label: str) -> Op:
        length = self._slots() + (PAGE if self.rng.random() < 0.15 else 0)
        return self._mmap(label, 0, length, self._prot(), _ANONYMOUS)

    @_kind("mmap_hint", 4)
    def _mmap_hint(self, label: str) -> Op:
        length = self._length()
        addr, length = self._spoil(self._new_place(length), length)
        if self.rng.random() < 0.05:
            addr = self.rng.choice((1, PAGE, MMAP_MIN_ADDR - PAGE, TASK_SIZE - PAGE))
        return self._mmap(label, addr, length, self._prot(), _ANONYMOUS)

    @_kind("mmap_fixed", 8)
    def _mmap_fixed(self, label: str) -> Op:
        addr, length = self._range() if self.rng.random() < 0.4 else (0, self._length())
        addr, length = self._spoil(addr or self._new_place(length), length)
        if self.rng.random() < 0.03:
            addr = self.rng.choice((0, PAGE, MMAP_MIN_ADDR - PAGE, TASK_SIZE - PAGE))
        return self._mmap(label, addr, length, self._prot(), _ANONYMOUS | uapi.MAP_FIXED)

    @_kind("mmap_noreplace", 2)
    def _mmap_noreplace(self, label: str) -> Op:
        length = self._length()
        addr, length = self._spoil(self._new_place(length), length)
        flags = _ANONYMOUS | uapi.MAP_FIXED_NOREPLACE | self._perhaps(uapi.MAP_FIXED, 0.2)
        return self._mmap(label, addr, length, self._prot(), flags)

    @_kind("mmap_noreserve", 2)
    def _mmap_noreserve(self, label: str) -> Op:
        length = self._length()
        fixed = self._perhaps(uapi.MAP_FIXED, 0.7)
        addr = self._new_place(length)
        flags = _ANONYMOUS | uapi.MAP_NORESERVE | fixed
        return self._mmap(label, addr, length, self._prot(), flags)

    @_kind("mmap_populate", 2)
    def _mmap_populate(self, label: str) -> Op:
        length = self._touched_length()
        flags = _ANONYMOUS | uapi.MAP_POPULATE | self._perhaps(uapi.MAP_FIXED, 0.6)
        flags |= self._perhaps(uapi.MAP_NONBLOCK, 0.1)
        return self._mmap(label, self._new_place(length), length, self._prot(), flags)

    @_kind("mmap_locked", 2)
    def _mmap_locked(self, label: str) -> Op:
        length = self._touched_length()
        flags = _ANONYMOUS | uapi.MAP_LOCKED | self._perhaps(uapi.MAP_FIXED, 0.6)
        return self._mmap(label, self._new_place(length), length, self._prot(), flags)

    @_kind("mmap_growsdown")
    def _mmap_growsdown(self, label: str) -> Op:
        length = self._length()
        kind = self.rng.choice((*[uapi.MAP_PRIVATE] * 4, uapi.MAP_SHARED))
        flags = kind | uapi.MAP_ANONYMOUS | uapi.MAP_GROWSDOWN
        flags |= self._perhaps(uapi.MAP_FIXED, 0.7)
        return self._mmap(label, self._new_place(length), length, self._prot(), flags)

    @_kind("mmap_32bit")
    def _mmap_32bit(self, label: str) -> Op:
        addr = 0x40000000 + self.rng.randrange(40) * PAGE if self.rng.random() < 0.4 else 0
        flags = _ANONYMOUS | uapi.MAP_32BIT
        if self.ground.randomized:
            flags |= uapi.MAP_FIXED  # only fixed addresses are permitted then
            addr = addr or self._new_place(PAGE)
        return self._mmap(label, addr, self._length(), self._prot(), flags)

    @_kind("mmap_stack")
    def _mmap_stack(self, label: str) -> Op:
        length = self._length()
        flags = _ANONYMOUS | uapi.MAP_STACK | self._perhaps(uapi.MAP_FIXED, 0.6)
        return self._mmap(label, self._new_place(length), length, self._prot(), flags)

    @_kind("mmap_shared", 2)
    def _mmap_shared(self, label: str) -> Op:
        length = self._length()
        flags = uapi.MAP_SHARED | uapi.MAP_ANONYMOUS
        flags |= self._perhaps(uapi.MAP_FIXED, 0.6)
        flags |= self._perhaps(uapi.MAP_NORESERVE, 0.3)
        return self._mmap(label, self._new_place(length), length, self._prot(), flags)

    def _mmap_file(self, label: str, kind: int) -> Op:
        rng = self.rng
        length = self._slots() if rng.random() < 0.3 else self._length()
        fixed = self._perhaps(uapi.MAP_FIXED, 0.5)
        addr = self._new_place(length) if rng.random() < 0.8 else 0
        area = self._area()
        if area and area.file and rng.random() < 0.3:
            pages = area.pgoff + (area.end - area.start) // PAGE  # continue at that area's end
            addr, fixed, offset = area.end, uapi.MAP_FIXED, pages * PAGE
        else:
            offset = rng.choice((0, 0, 0, 1, 2, 5, 512, 511)) * PAGE
        offset += rng.choice((0,) * 30 + (1, PAGE // 2))
        prot = self._prot() if rng.random() < 0.5 else uapi.PROT_READ
        fd = rng.choice((*FDS, *FDS[:2])) if rng.random() < 0.97 else rng.choice((-1, _CLOSED_FD))
        flags = kind | fixed | self._perhaps(uapi.MAP_NORESERVE, 0.1)
        return syscall(label, uapi.NR_MMAP, addr, length, prot, flags, fd, offset)

    @_kind("mmap_file_private", 2)
    def _mmap_file_private(self, label: str) -> Op:
        return self._mmap_file(label, uapi.MAP_PRIVATE)

    @_kind("mmap_file_shared", 2)
    def _mmap_file_shared(self, label: str) -> Op:
        kind = uapi.MAP_SHARED_VALIDATE if self.rng.random() < 0.3 else uapi.MAP_SHARED
        return self._mmap_file(label, kind)

    @_kind("mmap_wrong", 2)
    def _mmap_wrong(self, label: str) -> Op:
        rng = self.rng
        addr, length, prot = self._place(), self._length(), self._prot()

        def mmap(*args: int) -> Op:
            return syscall(label, uapi.NR_MMAP, *args)

        match rng.randrange(10):
            case 0:
                return mmap(addr, length, prot, uapi.MAP_ANONYMOUS, -1, 0)
            case 1:
                return mmap(addr, length, prot, _ANONYMOUS, -1, 1)
            case 2:
                flags = uapi.MAP_SHARED_VALIDATE | uapi.MAP_ANONYMOUS
                return mmap(addr, length, prot, flags, -1, 0)
            case 3:
                flags = uapi.MAP_SHARED_VALIDATE | uapi.MAP_SYNC
                return mmap(0, length, uapi.PROT_READ, flags, rng.choice(FDS), 0)
            case 4:
                return mmap(0, length, prot, 4, rng.choice(FDS), 0)
            case 5:
                flags = uapi.MAP_PRIVATE | uapi.MAP_GROWSDOWN
                return mmap(0, length, prot, flags, rng.choice(FDS), 0)
            case 6:
                flags = uapi.MAP_PRIVATE | uapi.MAP_HUGETLB
                return mmap(0, length, prot, flags, rng.choice(FDS), 0)
            case 7:
                length = rng.choice((1 << 46, 1 << 47, -PAGE, TASK_SIZE, TASK_SIZE - PAGE))
                return self._mmap(label, 0, length, 3, _ANONYMOUS)
            case 8:
                length = rng.choice((1 << 46, (1 << 47) - PAGE))
                return self._mmap(label, addr, length, 3, _ANONYMOUS | uapi.MAP_FIXED)
            case _:
                return mmap(0, length, prot, uapi.MAP_PRIVATE, _CLOSED_FD, 0)

    @_kind("munmap", 7)
    def _munmap(self, label: str) -> Op:
        return syscall(label, uapi.NR_MUNMAP, *self._some_range())

    @_kind("brk_grow", 3)
    def _brk_grow(self, label: str) -> Op:
        more = self._length() if self.rng.random() < 0.9 else self.rng.randrange(PAGE)
        return syscall(label, uapi.NR_BRK, self.view.brk + more)

    @_kind("brk_shrink", 2)
    def _brk_shrink(self, label: str) -> Op:
        size = self.view.brk - self.ground.start_brk
        less = min(self._length(), size) if self.rng.random() < 0.7 else size
        return syscall(label, uapi.NR_BRK, self.view.brk - less)

    @_kind("brk_refused")
    def _brk_refused(self, label: str) -> Op:
        rng = self.rng
        above = [a.start for a in self.view.areas if a.start >= self.view.brk]
        if above and rng.random() < 0.6 and above[0] - self.view.brk < MAX_AREA:
            # Up to the next area or one page below it, which is also refused, or two pages below.
            return syscall(label, uapi.NR_BRK, above[0] - rng.choice((0, 0, 1, 1, 2)) * PAGE)
        place = rng.choice((0, self.ground.start_brk - 1, PAGE, TASK_SIZE, 1 << 47, -PAGE))
        return syscall(label, uapi.NR_BRK, place)

    def _mremap(self, label: str, flags: int, *args: int) -> Op:
        addr, old_len, new_len, new_addr = args
        rng = self.rng
        kind = rng.randrange(150)
        if kind == 0:
            addr += 8
        elif kind == 1:
            new_len = rng.choice((0, 1 << 47, -PAGE))
        elif kind == 2:
            flags ^= rng.choice((1, 2, 4, 8))
        elif kind == 3:
            new_addr = rng.choice((addr, new_addr + 1, TASK_SIZE - PAGE, -PAGE, 0, PAGE))
        elif kind == 4:
            old_len = rng.choice((old_len + PAGE, old_len - PAGE, -PAGE, 0))
        elif kind == 5:
            addr = self._place()
        return syscall(label, uapi.NR_MREMAP, addr, old_len, new_len, flags, new_addr)

    @_kind("mremap_grow", 2)
    def _mremap_grow(self, label: str) -> Op:
        area = self._area()
        addr, length = self._range()
        if area and self.rng.random() < 0.7:
            addr = area.start if self.rng.random() < 0.6 else self._inside(area)
            length = area.end - addr
        return self._mremap(label, 0, addr, length, length + self._length(), 0)

    @_kind("mremap_shrink", 2)
    def _mremap_shrink(self, label: str) -> Op:
        addr, length = self._range()
        less = min(self._length(), length - 1) if self.rng.random() < 0.8 else 0
        flags = uapi.MREMAP_MAYMOVE * self.rng.randrange(2)
        return self._mremap(label, flags, addr, length, max(length - less, 1), 0)

    def _moved_range(self) -> tuple[int, int]:
        """Choose a range to move in one area; with huge pages often whole slots."""
        if self.ground.thp and self.rng.random() < 0.5:
            return self._huge_range()
        area = self._area()
        if area is None or self.rng.random() < 0.1:
            return self._range()
        kind = self.rng.random()
        if kind < 0.4:
            return area.start, area.end - area.start
        start = self._inside(area)
        return start, min(area.end - start, self._length())

    def _resized(self, length: int) -> int:
        kind = self.rng.random()
        if kind < 0.5:
            return length
        if kind < 0.85:
            return length + self._length()
        return max(length - self._length(), 1)

    @_kind("mremap_move", 3)
    def _mremap_move(self, label: str) -> Op:
        addr, length = self._moved_range()
        return self._mremap(label, uapi.MREMAP_MAYMOVE, addr, length, length + self._length(), 0)

    def _destination(self, addr: int, length: int) -> int:
        """Choose a destination: any address, or one with the same offset in a slot as ``addr``."""
        rng = self.rng
        if rng.random() < (0.6 if self.ground.thp else 0.3):
            return self._corner() // SLOT * SLOT + addr % SLOT
        return self._new_place(length)

    @_kind("mremap_fixed", 4)
    def _mremap_fixed(self, label: str) -> Op:
        addr, length = self._moved_range()
        flags = uapi.MREMAP_MAYMOVE | uapi.MREMAP_FIXED
        return self._mremap(
            label, flags, addr, length, self._resized(length), self._destination(addr, length)
        )

    @_kind("mremap_dontunmap", 2)
    def _mremap_dontunmap(self, label: str) -> Op:
        addr, length = self._moved_range()
        flags = uapi.MREMAP_MAYMOVE | uapi.MREMAP_DONTUNMAP
        new_addr = self._destination(addr, length) if self.rng.random() < 0.7 else 0
        flags |= uapi.MREMAP_FIXED * (self.rng.random() < 0.4)
        new_len = length if self.rng.random() < 0.97 else length + PAGE
        return self._mremap(label, flags, addr, length, new_len, new_addr)

    @_kind("mremap_areas", 2)
    def _mremap_areas(self, label: str) -> Op:
        rng = self.rng
        near = [
            (a, b)
            for i, a in enumerate(self.own)
            for b in self.own[i + 1 : i + 4]
            if b.end - a.start < 16 << 20
        ]
        if not near:
            return self._mremap_fixed(label)
        first, last = rng.choice(near)
        start = first.start if rng.random() < 0.7 else self._inside(first)
        end = last.end if rng.random() < 0.7 else self._inside(last) + PAGE
        if rng.random() < 0.1:
            start -= PAGE
        if rng.random() < 0.1:
            end += PAGE
        length = max(end - start, PAGE)
        flags = uapi.MREMAP_MAYMOVE | uapi.MREMAP_FIXED
        flags |= uapi.MREMAP_DONTUNMAP * (rng.random() < 0.15)
        return self._mremap(label, flags, start, length, length, self._destination(start, length))

    @_kind("mremap_zero")
    def _mremap_zero(self, label: str) -> Op:
        shared = [a for a in self.own if a.flags & VM_SHARED]
        area = self.rng.choice(shared) if shared and self.rng.random() < 0.8 else self._area()
        addr = self._inside(area) if area else self._place()
        flags = self.rng.choice((0, 1, 1, 3, 3, 5))
        length = self._length()
        if area and self.rng.random() < 0.5:
            length = min(length, area.end - addr)
        return self._mremap(label, flags, addr, 0, length, self._new_place(length))

    @_kind("mprotect", 9)
    def _mprotect(self, label: str) -> Op:
        prot = self._prot()
        if self.rng.random() < 0.02:
            down, up = uapi.PROT_GROWSDOWN, uapi.PROT_GROWSUP
            prot |= self.rng.choice((down, up, down | up, 0x100, 8))
        area = self._area()
        if area and area.flags & VM_GROWSDOWN and self.rng.random() < 0.3:
            down = self._inside(area), PAGE, self._prot() | uapi.PROT_GROWSDOWN
            return syscall(label, uapi.NR_MPROTECT, *down)
        return syscall(label, uapi.NR_MPROTECT, *self._some_range(), prot)

    def _lock_range(self) -> tuple[int, int]:
        addr, length = self._some_range()
        if self.rng.random() < 0.1:
            addr, length = addr + self.rng.randrange(PAGE), max(length - PAGE, 1)
        return addr, length

    @_kind("mlock", 2)
    def _mlock(self, label: str) -> Op:
        return syscall(label, uapi.NR_MLOCK, *self._lock_range())

    @_kind("mlock2", 2)
    def _mlock2(self, label: str) -> Op:
        flags = self.rng.choices((1, 0, 2), weights=(80, 15, 5))[0]
        return syscall(label, uapi.NR_MLOCK2, *self._lock_range(), flags)

    @_kind("munlock", 3)
    def _munlock(self, label: str) -> Op:
        locked = [a for a in self.own if a.flags & VM_LOCKED]
        if locked and self.rng.random() < 0.5:
            area = self.rng.choice(locked)
            return syscall(label, uapi.NR_MUNLOCK, area.start, area.end - area.start)
        return syscall(label, uapi.NR_MUNLOCK, *self._lock_range())

    def _madvise(self, label: str, advice: int) -> Op:
        return syscall(label, uapi.NR_MADVISE, *self._some_range(), advice)

    _kind("dontneed", 5)(_advising(uapi.MADV_DONTNEED))
    _kind("dontneed_locked")(_advising(uapi.MADV_DONTNEED_LOCKED))
    _kind("free", 4)(_advising(uapi.MADV_FREE))
    _kind("cold")(_advising(uapi.MADV_COLD))
    _kind("pageout")(_advising(uapi.MADV_PAGEOUT))
    _kind("willneed")(_advising(uapi.MADV_WILLNEED))
    _kind("nohugepage", 2)(_advising(uapi.MADV_NOHUGEPAGE))

    @_kind("hugepage", 5, thp=True)
    def _hugepage(self, label: str) -> Op:
        large = [a for a in self.own if a.plain and a.end - a.start >= SLOT]
        if large and self.rng.random() < 0.7:
            area = self.rng.choice(large)
            length = area.end - area.start
            return syscall(label, uapi.NR_MADVISE, area.start, length, uapi.MADV_HUGEPAGE)
        return self._madvise(label, uapi.MADV_HUGEPAGE)

    @_kind("mmap_slots", 5, thp=True)
    def _mmap_slots(self, label: str) -> Op:
        """Return a mapping large enough for huge pages."""
        rng = self.rng
        length = self._slots() + rng.choice((0, 0, 0, PAGE, -PAGE, 17 * PAGE))
        addr = self._corner() // SLOT * SLOT + rng.choice((0, 0, 0, PAGE, -PAGE)) * (
            rng.random() < 0.5
        )
        fixed = self._perhaps(uapi.MAP_FIXED, 0.7)
        prot = uapi.PROT_READ | uapi.PROT_WRITE
        return self._mmap(label, addr if fixed else 0, length, prot, _ANONYMOUS | fixed)

    @_kind("touch_slot", 6, thp=True)
    def _touch_slot(self, label: str) -> Op:
        area = self._huge_area()
        if area is None:
            return self._touch(label, 1)
        slot = self.rng.randint(area.start // SLOT, (area.end - 1) // SLOT) * SLOT
        addr = slot + self.rng.choice((0, 1, 5, 300, 511)) * PAGE
        pages = self.rng.choice((1, 1, 1, 2, 8, 100, 512))
        write = int(self.rng.random() < 0.7)
        return Op(label, OP_TOUCH, 0, (addr, pages * PAGE, write, self._word()))

    _kind("populate_read", 2)(_advising(uapi.MADV_POPULATE_READ))
    _kind("populate_write", 2)(_advising(uapi.MADV_POPULATE_WRITE))

    @_kind("advise_flags", 5)
    def _advise_flags(self, label: str) -> Op:
        advice = self.rng.choice(
            (
                uapi.MADV_NORMAL,
                uapi.MADV_NORMAL,
                uapi.MADV_RANDOM,
                uapi.MADV_SEQUENTIAL,
                uapi.MADV_DONTFORK,
                uapi.MADV_DOFORK,
                uapi.MADV_DONTDUMP,
                uapi.MADV_DODUMP,
                uapi.MADV_WIPEONFORK,
                uapi.MADV_KEEPONFORK,
                *((5, 99, -1) if self.rng.random() < 0.1 else ()),
            )
        )
        return self._madvise(label, advice)

    def _limit(self, label: str, resource: int, soft: int, otherwise: int) -> Op:
        """Return a setrlimit, and usually plan to lift the limit some operations later."""
        if self.rng.random() < 0.15:
            return Op(label, OP_SETRLIMIT, 0, (resource, otherwise))
        lift = Op(label, OP_SETRLIMIT, 0, (resource, otherwise))
        self.planned.append((self.made + self.rng.randint(2, 12), lift))
        self.planned.sort(key=lambda plan: plan[0])
        return Op(label, OP_SETRLIMIT, 0, (resource, max(soft, 0)))

    def _near(self, pages: int) -> int:
        """Return a limit near ``pages``, in bytes: slightly lower, or up to 520 pages higher."""
        more = self.rng.choice((-20, -1, 0, 1, 2, 3, 5, 8, 20, 520))
        return (pages + more) * PAGE + self.rng.choice((0, 0, 1, PAGE - 1))

    @_kind("rlimit_as", 0.9)
    def _rlimit_as(self, label: str) -> Op:
        soft = self._near(self.view.total_vm)
        return self._limit(label, uapi.RLIMIT_AS, soft, uapi.RLIM_INFINITY)

    @_kind("rlimit_data", 0.9)
    def _rlimit_data(self, label: str) -> Op:
        pages = self.view.data_vm
        if self.rng.random() < 0.4:
            pages = (self.view.brk - self.ground.start_brk) // PAGE + self.rng.randrange(4)
        soft = self._near(pages) if self.rng.random() < 0.9 else 0
        return self._limit(label, uapi.RLIMIT_DATA, soft, uapi.RLIM_INFINITY)

    @_kind("rlimit_memlock", 0.9)
    def _rlimit_memlock(self, label: str) -> Op:
        soft = self._near(self.view.locked_vm) if self.rng.random() < 0.85 else 0
        soft = min(soft, self.ground.memlock)
        return self._limit(label, uapi.RLIMIT_MEMLOCK, soft, self.ground.memlock)

    @_kind("rlimit_stack", 0.9)
    def _rlimit_stack(self, label: str) -> Op:
        soft = self._near(self.rng.choice((8, 20, 130, 256)))
        return self._limit(label, uapi.RLIMIT_STACK, soft, 8 << 20)

    def _touched_place(self) -> int:
        """Choose an address to touch: mostly in an area, sometimes below one that grows down."""
        rng = self.rng
        plain = [a for a in self.own if a.plain]
        if not plain or rng.random() < 0.06:
            return self._place()
        growing = [a for a in plain if a.flags & VM_GROWSDOWN]
        if growing and rng.random() < 0.25:
            area = rng.choice(growing)
            return area.start - rng.choice((1, 1, 2, 3, 100, 255, 256, 257, 300)) * PAGE
        if rng.random() < 0.35:
            return self._inside(min(plain, key=lambda a: abs(a.start - self.focus)))
        return self._inside(rng.choice(plain))

    @_kind("load", 4)
    def _load(self, label: str) -> Op:
        addr = max(self._touched_place(), 0) + self.rng.choice((0, 0, 0, 8, 4088))
        return Op(label, OP_LOAD, 0, (addr,))

    @_kind("store", 5)
    def _store(self, label: str) -> Op:
        addr = max(self._touched_place(), 0) + self.rng.choice((0, 0, 0, 8, 4088))
        return Op(label, OP_STORE, 0, (addr, self._word()))

    def _touch(self, label: str, write: int) -> Op:
        length = max(self._touched_length() // PAGE, 1) * PAGE
        return Op(label, OP_TOUCH, 0, (max(self._touched_place(), 0), length, write, self._word()))

    @_kind("touch_read", 4)
    def _touch_read(self, label: str) -> Op:
        return self._touch(label, 0)

    @_kind("touch_write", 7)
    def _touch_write(self, label: str) -> Op:
        return self._touch(label, 1)


assert OP_SYSCALL == 0, "OP_SYSCALL must be 0, as in kernel.linux.host.code"

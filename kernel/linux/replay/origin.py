"""Build the state in which an address space begins: from a snapshot, a maps file, or its calls.

A log without the areas at exec is *anchored* to the results of two calls.  The first mapping that
the kernel placed tells where free addresses end: everything from its end up to ``mmap_base`` is
marked as occupied.  The first result of brk is the start of the heap.  Addresses below the heap
that calls use but no call has mapped are taken to be the program.  The rest of the program is
unknown.  Therefore a hint into it may or may not have met an existing area, and RLIMIT_AS and
RLIMIT_DATA cannot be checked.
"""

import bisect
from dataclasses import dataclass, field, replace

import numpy as np

from kernel import types
from kernel.config import KernelConfig
from kernel.linux.replay.log import (
    Area,
    Call,
    Exec,
    Image,
    Log,
    MachineSettings,
    Snapshot,
    parse_area,
)
from kernel.linux.replay.model import (
    FIRST_FILE_ID,
    WINDOW_BITS,
    SavedState,
    initial_state,
    without_size_limits,
)
from kernel.linux.replay.plan import PAGE, PlannedCall
from kernel.linux.replay.table import ADDR_COMPAT_LAYOUT, ADDR_NO_RANDOMIZE
from kernel.maps import MMAP_MIN_ADDR, TASK_SIZE
from kernel.uapi import MAP_32BIT, MAP_FIXED, MAP_FIXED_NOREPLACE

_STACK_TOP = 0x7FFFFFFFF000
_STACK_GUARD = 256 * PAGE
_MIN_GAP = 128 << 20
#: Assumed size in bytes of the areas between the first mapping and mmap_base if the log does not
#: show it; less than the gap that the kernel leaves below the stack.
_OCCUPIED_SIZE = 64 << 20
#: Assumed upper bound of a program's size in bytes.
_MAX_PROGRAM_SIZE = 4 << 30

#: The model's flags by their two-letter names in smaps.
FLAGS = {
    "sh": types.VM_SHARED,
    "mr": types.VM_MAYREAD,
    "mw": types.VM_MAYWRITE,
    "me": types.VM_MAYEXEC,
    "ms": types.VM_MAYSHARE,
    "gd": types.VM_GROWSDOWN,
    "lo": types.VM_LOCKED,
    "sr": types.VM_SEQ_READ,
    "rr": types.VM_RAND_READ,
    "dc": types.VM_DONTCOPY,
    "ac": types.VM_ACCOUNT,
    "nr": types.VM_NORESERVE,
    "wf": types.VM_WIPEONFORK,
    "dd": types.VM_DONTDUMP,
    "hg": types.VM_HUGEPAGE,
    "nh": types.VM_NOHUGEPAGE,
}
_FLAGS_IN_SMAPS = sum(FLAGS.values())


#: Calls that act on existing memory, given by their first two arguments.
_ACTING = {"mprotect", "pkey_mprotect", "madvise", "mlock", "mlock2", "munlock", "munmap", "mremap"}
_ACTING |= {"msync", "mincore"}
_FOREIGN = "the call acts on memory that the log did not create"


class _Created:
    """Ranges of addresses that a log is known to have mapped at some time."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges: list[tuple[int, int]] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add a range; it is merged with those that it touches."""
        low = bisect.bisect_left(self._ranges, start, key=lambda r: r[1])
        high = bisect.bisect_right(self._ranges, end, key=lambda r: r[0])
        touched = [*self._ranges[low:high], (start, end)]
        merged = min(r[0] for r in touched), max(r[1] for r in touched)
        self._ranges[low:high] = [merged]

    def covers(self, start: int, end: int) -> bool:
        """Return True if the whole range has been mapped at some time."""
        i = bisect.bisect_right(self._ranges, start, key=lambda r: r[0]) - 1
        return i >= 0 and end <= self._ranges[i][1]


def _ranges(state: SavedState) -> tuple[tuple[int, int], ...]:
    """Return start and end of each area of a state."""
    return tuple((int(area["vm_start"]), int(area["vm_end"])) for area in state.vma)


@dataclass(frozen=True)
class UnknownProgram:
    """Program of an anchored space, whose areas and sizes are unknown.

    ``known``: start and end of the areas that are assumed.
    """

    low: int  # lowest address at which the program may begin
    heap: int  # start of the heap, above the program
    occupied: int  # an address that is certainly not free
    known: tuple[tuple[int, int], ...] = ()

    def with_areas(self, state: SavedState) -> "UnknownProgram":
        """Return the program of a copy that begins in ``state``, whose areas are known too."""
        return replace(self, known=self.known + _ranges(state))

    def exempt_foreign(self, ops: list[PlannedCall]) -> bool:
        """Give calls on memory that no call of the log created a reason not to be compared.

        Returns True if there are any.  Their effects on known areas are still applied.
        """
        created, found = _Created(list(self.known)), False
        for op in ops:
            if op.step.child is not None:
                continue
            call, result = op.call, op.call.result
            start, length = call.args[:2]
            end = start + -(-length // PAGE) * PAGE
            foreign = call.name in _ACTING and length > 0 and not created.covers(start, end)
            foreign |= call.name == "brk" and 0 < start < self.heap
            if foreign and not op.reason:
                op.reason, found = _FOREIGN, True
            if result is None or result < 0:
                continue
            if call.name == "brk" and self.heap:
                created.add(self.heap // PAGE * PAGE, max(result, self.heap))
            elif call.name in ("mmap", "mremap", "shmat"):
                size = {"mmap": length, "mremap": call.args[2]}.get(call.name)
                size = call.extra.get("size", 0) if size is None else size
                created.add(result, result + -(-size // PAGE) * PAGE)
        return found

    def allow_for(self, ops: list[PlannedCall]) -> None:
        """Lift the size limits of the ops, and let hints into the program fail or succeed."""
        for op in ops:
            if op.step.child is not None:
                continue
            op.rows = [without_size_limits(row) for row in op.rows]
            if op.call.name == "mmap" and len(op.rows) == 1:
                hint, length, _, flags = op.call.args[:4]
                plain = not flags & (MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT)
                inside = hint < self.heap and self.low < hint + length
                if plain and inside and op.call.result != hint:
                    row = op.rows[0]
                    op.rows.append((row[0], self.occupied, *row[2:]))


@dataclass
class Origin:
    """State in which a space begins, and the calls whose results define it."""

    state: SavedState
    anchors: list[PlannedCall] = field(default_factory=list)
    unknown: UnknownProgram | None = None


def _mappings(areas: list[Area], image: Image) -> list[Area]:
    """Return the areas placed below mmap_base: all except the program, the heap and the stack."""
    stacks = [area.start for area in areas if area.name == "[stack]"]
    ceiling = min(stacks, default=_STACK_TOP)
    own = {image.path, "[heap]", "[stack]"}
    placed = [area for area in areas if area.end <= ceiling and area.name not in own]
    # The program's bss is an area without a name directly after its data.
    ends = {area.end for area in areas if area.name == image.path}
    return [area for area in placed if area.name or area.start not in ends]


def _computed_base(image: Image) -> int:
    """Return mmap_base without address randomisation, computed from the stack limit."""
    gap = image.stack_limit
    if gap < 0:
        gap = _STACK_TOP
    elif gap + _STACK_GUARD > gap:
        gap += _STACK_GUARD
    gap = min(max(gap, _MIN_GAP), _STACK_TOP // 6 * 5)
    return -(-(_STACK_TOP - gap) // PAGE) * PAGE


def _mmap_base(areas: list[Area], image: Image) -> int:
    """Return the address where top-down placement begins, or 0 if the areas do not show it."""
    top = max((area.end for area in _mappings(areas, image)), default=0)
    if image.personality & ADDR_NO_RANDOMIZE:
        return max(top, _computed_base(image))
    return top


def _is_free_choice(op: PlannedCall) -> bool:
    """Return True for a successful mmap whose address the kernel chose."""
    event = op.step.event
    if not isinstance(event, Call) or event.name != "mmap" or event.result is None:
        return False
    anywhere = event.args[0] == 0 and not event.args[3] & (MAP_FIXED | MAP_32BIT)
    return event.result > 0 and anywhere


def _first(ops: list[PlannedCall], name: str) -> PlannedCall | None:
    return next((op for op in ops if not op.step.child and op.call.name == name), None)


def _first_brk(ops: list[PlannedCall]) -> PlannedCall | None:
    op = _first(ops, "brk")
    return op if op and op.call.result is not None else None


def _end_of(op: PlannedCall) -> int:
    assert op.call.result is not None
    return op.call.result + -(-op.call.args[1] // PAGE) * PAGE


def _named_ranges(ops: list[PlannedCall]) -> list[tuple[int, int]]:
    """Return start and end of every range that a call expects to be mapped already."""
    ranges = []
    for op in ops:
        if op.step.child is None and op.call.name in ("mprotect", "madvise", "mlock", "munmap"):
            start, length = op.call.args[:2]
            if length > 0:
                ranges.append((start, start + -(-length // PAGE) * PAGE))
    return ranges


def _line(start: int, end: int, rights: str, name: str) -> str:
    return Area(start, end, rights, 0, "00:00", 0, name).line()


def _anchored(ops: list[PlannedCall]) -> tuple[str, int, int, list[PlannedCall]]:
    """Derive the maps text, mmap_base and heap start from the calls; also return those calls."""
    lines: list[tuple[int, str]] = []
    anchors = []
    base = 0
    first = next((op for op in ops if _is_free_choice(op)), None)
    if first is not None:
        anchors.append(first)
        low = _end_of(first)
        unrandomised = _computed_base(Image(""))
        near = unrandomised - _OCCUPIED_SIZE < low < unrandomised
        base = unrandomised if near else low + _OCCUPIED_SIZE
        lines.append((low, _line(low, base, "rwxp", "[taken]")))
    heap = 0
    grown = _first_brk(ops)
    if grown is not None:
        anchors.append(grown)
        assert grown.call.result is not None
        heap = grown.call.result
        below = heap // PAGE * PAGE
        lowest = below - _MAX_PROGRAM_SIZE
        named = [r for r in _named_ranges(ops) if lowest < r[0] < r[1] <= below]
        if named:
            start, end = min(r[0] for r in named), max(r[1] for r in named)
            lines.append((start, _line(start, end, "rwxp", "[program]")))
    text = "\n".join(line for _, line in sorted(lines))
    return text, base, heap, anchors


def _config(machine: MachineSettings, text: str, *, legacy: bool) -> KernelConfig:
    thp = machine.thp if machine.thp in ("never", "madvise", "always") else "never"
    return KernelConfig(
        maps=text,
        layout_only=True,
        window_bits=WINDOW_BITS,
        memory=machine.memory,
        overcommit=machine.overcommit,
        thp=thp,
        legacy_layout=legacy,
    )


def _boot(machine: MachineSettings, areas: list[Area], *, legacy: bool = False) -> SavedState:
    """Boot a model with these areas and the flags that smaps showed; return its state."""
    user = [area for area in areas if area.start < TASK_SIZE]
    text = "\n".join(area.line() for area in user)
    state = initial_state(_config(machine, text, legacy=legacy))
    for row, area in zip(state.vma, user, strict=True):
        if area.flags is not None:
            flags = sum(FLAGS.get(letters, 0) for letters in area.flags.split())
            row["vm_flags"] = (int(row["vm_flags"]) & ~_FLAGS_IN_SMAPS) | flags
    mm = state.mm
    mm["max_map_count"] = min(machine.max_map_count, int(mm["max_map_count"]))
    # The kernel may have been built with a higher minimum for hints than the setting.
    mm["mmap_min_addr"] = max(machine.mmap_min_addr, MMAP_MIN_ADDR)
    accounted = (state.vma["vm_flags"] & types.VM_ACCOUNT) != 0
    mm["committed"] = _pages(state.vma[accounted])
    return state


def _pages(vma: np.ndarray) -> int:
    return int((vma["vm_end"] - vma["vm_start"]).sum()) // PAGE


def _from_snapshot(
    machine: MachineSettings, image: Image, snapshot: Snapshot, ops: list[PlannedCall]
) -> Origin:
    legacy = machine.legacy_layout or bool(image.personality & ADDR_COMPAT_LAYOUT)
    origin = Origin(_boot(machine, snapshot.areas, legacy=legacy))
    mm = origin.state.mm
    mm["start_data"], mm["end_data"] = image.start_data, image.end_data
    mm["start_brk"] = mm["brk"] = image.start_brk
    if legacy:
        lowest = min((a.start for a in _mappings(snapshot.areas, image)), default=0)
        if lowest and not image.personality & ADDR_NO_RANDOMIZE:
            mm["mmap_legacy_base"] = lowest
        mm["mmap_base"] = mm["mmap_legacy_base"]
        return origin
    base = _mmap_base(snapshot.areas, image)
    if not base:
        base = _anchor_base(origin, ops)
    mm["mmap_base"] = base
    return origin


def _anchor_base(origin: Origin, ops: list[PlannedCall]) -> int:
    """Return mmap_base from the first mapping that the kernel placed; add the call to anchors."""
    first = next((op for op in ops if _is_free_choice(op)), None)
    if first is None:
        return _computed_base(Image(""))
    origin.anchors.append(first)
    return _end_of(first)


def _from_maps(
    machine: MachineSettings, areas: list[Area], image: Image, ops: list[PlannedCall]
) -> Origin:
    """Build the origin from a maps file; take the heap's start from brk if the file has no heap."""
    origin = Origin(_boot(machine, areas))
    mm = origin.state.mm
    program = next((area.name for area in areas if area.inode and area.name), image.path)
    base = _mmap_base(areas, Image(program))
    mm["mmap_base"] = base or _anchor_base(origin, ops)
    grown = _first_brk(ops)
    heap = any(area.name == "[heap]" for area in areas)
    if grown is not None and not heap:
        assert grown.call.result is not None
        if grown.call.result != int(mm["brk"]):
            origin.anchors.append(grown)
        mm["start_brk"] = mm["brk"] = grown.call.result
    return origin


def begin(log: Log, exec_: Exec | None, ops: list[PlannedCall], maps: list[Area] | None) -> Origin:
    """Return the origin of a space that an exec (or the start of the log) begins.

    ``ops``: the calls made in it.  ``maps``: its areas at that time, read from a maps file.  Raises
    ValueError for areas that the model cannot have.
    """
    image = exec_.image if exec_ and exec_.image else Image("program")
    if exec_ is not None and exec_.snapshot is not None:
        return _from_snapshot(log.machine, image, exec_.snapshot, ops)
    if maps is not None:
        return _from_maps(log.machine, maps, image, ops)
    text, base, heap, anchors = _anchored(ops)
    areas = [area for area in map(parse_area, text.splitlines()) if area is not None]
    origin = Origin(_boot(log.machine, areas), anchors)
    mm, vma = origin.state.mm, origin.state.vma
    # Each of these replaces areas of unknown kinds.  They allow every change and can be split, but
    # merge with nothing: each has a file id of its own.
    for n, row in enumerate(vma):
        row["vm_flags"] = 7 | types.VM_MAYREAD | types.VM_MAYWRITE | types.VM_MAYEXEC
        row["vm_file"] = FIRST_FILE_ID - 1 - n
    mm["mmap_base"] = base or _computed_base(Image(""))
    low = max(heap - _MAX_PROGRAM_SIZE, PAGE)
    occupied = int(mm["mmap_base"]) - PAGE
    origin.unknown = UnknownProgram(low, heap, occupied, _ranges(origin.state))
    mm["start_brk"] = mm["brk"] = heap
    mm["start_data"] = mm["end_data"] = heap
    return origin


def fork(state: SavedState) -> SavedState:
    """Return the child's state after a fork: without MADV_DONTFORK areas, nothing locked."""
    kept = state.vma[(state.vma["vm_flags"] & types.VM_DONTCOPY) == 0].copy()
    dropped = state.vma[(state.vma["vm_flags"] & types.VM_DONTCOPY) != 0]
    mm = state.mm.copy()
    mm["map_count"] = len(kept)
    mm["total_vm"] -= _pages(dropped)
    flags = dropped["vm_flags"]
    stack = (flags & types.VM_GROWSDOWN) != 0
    data = ~stack & ((flags & (2 | types.VM_SHARED)) == 2)
    mm["stack_vm"] -= _pages(dropped[stack])
    mm["data_vm"] -= _pages(dropped[data])
    mm["reserved_vm"] -= _pages(dropped[(flags & 7) == 0])
    mm["committed"] = _pages(kept[(kept["vm_flags"] & types.VM_ACCOUNT) != 0])
    kept["vm_flags"] &= ~(types.VM_LOCKED | types.VM_LOCKONFAULT)
    mm["locked_vm"] = 0
    return SavedState(mm, kept)

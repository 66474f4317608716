"""A snapshot of a real process against the model: areas, sizes, and the range of page tables.

What a log of calls does not tell is left open, and nothing else:

- Where the stack (or any area that grows downwards) begins is taken from the snapshot: it grows by
  being touched, not by a call.
- Linux keeps two neighbours apart that nothing visible distinguishes when each has been written to
  on its own (anon_vma), or when they map one file that was opened twice.  Such a boundary, which
  only the snapshot has, is ignored.  An area that was never writable has no anon_vma: there the
  boundaries must agree.
- The page tables lie between those of the pages that are certainly there (resident ones) and those
  of every mapped page.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from kernel.linux.replay.log import Area, FileInfo, Snapshot
from kernel.linux.replay.model import FIRST_FILE_ID, NAME, SavedState, field_of
from kernel.linux.replay.origin import FLAGS
from kernel.linux.replay.plan import HUGE_PAGE, PAGE, SEGMENT
from kernel.types import VM_EXEC, VM_MAYSHARE, VM_READ, VM_SPECIAL, VM_WRITE

_PMD, _PUD, _PGD = 21, 30, 39
USER_END = 1 << 47

#: Flags of smaps that are compared; "ac" only where it cannot depend on what was written.
_COMPARED_FLAGS = ("gd", "lo", "sr", "rr", "dc", "wf", "dd", "hg", "nh", "nr")


@dataclass(slots=True)
class View:
    """An area as both sides can show it."""

    start: int
    end: int
    rights: str
    offset: int  # bytes; 0 for anonymous memory
    kind: str  # anonymous, heap, stack, file, shared, special
    file: tuple[str, str, int] = ("", "", 0)  # path, device, inode
    flags: frozenset[str] | None = None  # those compared; None: unknown
    separable: bool = True  # may lie apart from an equal neighbour

    def __str__(self) -> str:
        name = self.file[0] or {"anonymous": "", "shared": "shared"}.get(self.kind, self.kind)
        text = f"{self.start:012x}-{self.end:012x} {self.rights} {self.offset:08x}"
        flags = " ".join(sorted(self.flags or ()))
        return f"{text} {name}{f' ({flags})' if flags else ''}".rstrip()

    def same(self, other: Self) -> bool:
        """Whether nothing distinguishes the two but their places."""
        if (self.rights, self.kind) != (other.rights, other.kind):
            return False
        if self.flags is not None and other.flags is not None and self.flags != other.flags:
            return False
        return same_file(self.file, other.file)

    def continues(self, other: Self) -> bool:
        """Whether ``other``, the next, is the same thing going on."""
        if self.end != other.start or not self.same(other):
            return False
        return self.kind != "file" or other.offset == self.offset + self.end - self.start


def same_file(a: tuple[str, str, int], b: tuple[str, str, int]) -> bool:
    """Whether two names of files mean one; its path may have changed, or its device be hidden."""
    if a[2] and b[2] and a[2] != b[2]:
        return False
    return a[0].removesuffix(" (deleted)") == b[0].removesuffix(" (deleted)") or (
        a[1:] == b[1:] and a[2] != 0
    )


@dataclass(slots=True)
class SnapshotDifference:
    """A snapshot that the model does not agree with."""

    what: str
    real: list[str] = field(default_factory=list)  # lines around the place
    model: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Comparison:
    """A snapshot held against the model's state."""

    line: int
    areas: int = 0
    joined: int = 0  # boundaries that the log does not tell of
    grown: int = 0  # kB by which stacks have grown
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # real and model's, kB
    tables: tuple[int, int, int] | None = None  # real, least, most, kB
    difference: SnapshotDifference | None = None


def real_views(snapshot: Snapshot) -> list[View]:
    """The areas of a snapshot, without what lies beyond user space."""
    views = []
    for area in snapshot.areas:
        if area.start >= USER_END:
            continue
        name = area.name
        file = ("", "", 0)
        if name in ("[heap]", "[stack]"):
            kind = name.strip("[]")
        elif name.startswith("[anon") or (not name and not area.inode):
            kind, file = "anonymous", (name, "", 0)
        elif name.startswith("[") and not area.inode:
            kind, file = "special", (name, "", 0)
        elif name.startswith("/dev/zero") and area.rights[3] == "s":
            kind = "shared"
        elif name.startswith(SEGMENT):
            kind, file = "file", (SEGMENT, "", 0)  # the segment's key does not matter
        else:
            kind, file = "file", (name, area.device, area.inode)
        views.append(
            View(
                area.start,
                area.end,
                area.rights,
                area.offset if kind == "file" else 0,
                kind,
                file,
                _flags_of_smaps(area, kind),
                _separable(area, kind),
            )
        )
    return views


def _flags_of_smaps(area: Area, kind: str) -> frozenset[str] | None:
    if area.flags is None or kind == "special":
        return None
    letters = set(area.flags.split())
    names = set(_COMPARED_FLAGS)
    if area.rights[1] == "w" and area.rights[3] == "p":
        names.add("ac")
    return frozenset(letters & names)


def _separable(area: Area, kind: str) -> bool:
    """Whether the area may have an anon_vma, or be a file that was opened twice."""
    if kind == "file":
        return True
    if area.rights[3] == "s":
        return False
    letters = (area.flags or "ac").split()
    return area.rights[1] == "w" or "ac" in letters or "nr" in letters


@dataclass
class Names:
    """What the model's file ids stand for."""

    opened: dict[int, FileInfo]
    initial: dict[int, Area]  # of the areas that were there at the beginning
    labels: list[str]  # given to anonymous areas, from number 1 on

    def file(self, number: int) -> tuple[str, tuple[str, str, int]]:
        """Kind of an area of that file, and the file's path, device and inode."""
        if number >= FIRST_FILE_ID and number in self.opened:
            info = self.opened[number]
            return "file", (info.path, info.device, info.inode)
        area = self.initial.get(number)
        if area is None or (area.name.startswith("/dev/zero") and area.rights[3] == "s"):
            return "shared", ("", "", 0)
        if area.name.startswith("[") and not area.inode:
            return "special", (area.name, "", 0)
        return "file", (area.name, area.device, area.inode)


def model_views(state: SavedState, names: Names, start_stack: int) -> list[View]:
    """The model's areas."""
    mm = state.mm
    start_brk, brk = int(mm["start_brk"]), int(mm["brk"])
    views = []
    for row in state.vma:
        start, end = int(row["vm_start"]), int(row["vm_end"])
        bits, number = int(row["vm_flags"]), int(row["vm_file"])
        rights = "".join(
            letter if bits & bit else "-"
            for letter, bit in zip("rwx", (VM_READ, VM_WRITE, VM_EXEC), strict=True)
        )
        rights += "s" if bits & VM_MAYSHARE else "p"
        file = ("", "", 0)
        if number:
            kind, file = names.file(number)
            if file[0] == "/dev/zero" and rights[3] == "s":
                kind, file = "shared", ("", "", 0)
        elif start < brk and end > start_brk:
            kind = "heap"
        elif start <= start_stack <= end:
            kind = "stack"
        else:
            kind = "anonymous"
            label = field_of(bits, NAME)
            file = (f"[anon:{names.labels[label - 1]}]" if label else "", "", 0)
        offset = int(row["vm_pgoff"]) * PAGE if kind == "file" else 0
        flags = None if bits & VM_SPECIAL else _flags_of_model(bits, rights)
        views.append(View(start, end, rights, offset, kind, file, flags, kind == "file"))
    return views


def _flags_of_model(bits: int, rights: str) -> frozenset[str]:
    names = {name for name in _COMPARED_FLAGS if bits & FLAGS[name]}
    if rights[1] == "w" and rights[3] == "p" and bits & FLAGS["ac"]:
        names.add("ac")
    return frozenset(names)


def _joined(views: list[View], boundaries: set[int]) -> Iterator[View]:
    """The views, joined where they may be and the other side has no such boundary."""
    last: View | None = None
    for view in views:
        if last is None:
            last = view
        elif (
            view.start not in boundaries
            and last.continues(view)
            and (last.separable or view.separable)
        ):
            last = View(last.start, view.end, *_rest(last))
        else:
            yield last
            last = view
    if last is not None:
        yield last


def _rest(v: View) -> tuple:
    return v.rights, v.offset, v.kind, v.file, v.flags, v.separable


def _grow_stacks(real: list[View], model: list[View]) -> int:
    """Let the model's growing areas begin where the real ones do; kilobytes that they gained."""
    begins = {view.end: view.start for view in real}
    gained = 0
    for view in model:
        grows = view.kind == "stack" or (view.flags and "gd" in view.flags)
        start = begins.get(view.end, view.start)
        if grows and start < view.start:
            gained += view.start - start
            view.start = start
    return gained >> 10


def compare(
    snapshot: Snapshot,
    state: SavedState,
    names: Names,
    start_stack: int,
    line: int,
    *,
    tainted: bool,
) -> Comparison:
    """Hold a snapshot against the model's state.  ``tainted``: sizes only."""
    result = Comparison(line)
    real, model = real_views(snapshot), model_views(state, names, start_stack)
    result.areas = len(real)
    result.grown = _grow_stacks(real, model)
    if not tainted:
        real_starts, model_starts = {v.start for v in real}, {v.start for v in model}
        joined = list(_joined(real, model_starts))
        result.joined = len(real) - len(joined)
        result.difference = _first_difference(joined, list(_joined(model, real_starts)))
    mm = state.mm
    counted = {
        "VmSize": (int(mm["total_vm"]) << 2) + result.grown,
        "VmData": int(mm["data_vm"]) << 2,
        "VmLck": int(mm["locked_vm"]) << 2,
    }
    for name, value in counted.items():
        if name in snapshot.sizes and not (tainted and name == "VmLck"):
            result.sizes[name] = snapshot.sizes[name], value
            if snapshot.sizes[name] != value and result.difference is None:
                what = f"{name} is {snapshot.sizes[name]} kB, the model's {value} kB"
                result.difference = SnapshotDifference(what)
    if "VmPTE" in snapshot.sizes:
        least, most = tables_range(snapshot)
        result.tables = snapshot.sizes["VmPTE"], least, most
        if not least <= snapshot.sizes["VmPTE"] <= most and result.difference is None:
            result.difference = SnapshotDifference(
                f"VmPTE is {snapshot.sizes['VmPTE']} kB, not within {least} to {most} kB"
            )
    return result


def _first_difference(real: list[View], model: list[View]) -> SnapshotDifference | None:
    """The first place where the lists disagree, with some lines around it."""
    for i in range(max(len(real), len(model))):
        a = real[i] if i < len(real) else None
        b = model[i] if i < len(model) else None
        if a and b and (a.start, a.end, a.offset) == (b.start, b.end, b.offset) and a.same(b):
            continue
        place = min(v.start for v in (a, b) if v)
        around = slice(max(0, i - 2), i + 4)
        return SnapshotDifference(
            f"the areas differ from {place:#x} on",
            [str(v) for v in real[around]],
            [str(v) for v in model[around]],
        )
    return None


def tables_range(snapshot: Snapshot) -> tuple[int, int]:
    """Least and most kilobytes of page tables that such areas can have.

    Least: one page of each level for the resident pages of each area, where no neighbour can
    share it.  Most: all slots that an area overlaps.
    """
    slots: dict[int, set[int]] = {_PMD: set(), _PUD: set(), _PGD: set()}
    least: dict[int, int] = dict.fromkeys(slots, 0)
    certain: dict[int, set[int]] = {shift: set() for shift in slots}
    most_tables = 0
    for area in snapshot.areas:
        if area.start >= USER_END:
            continue
        first, last = area.start >> _PMD, (area.end - 1) >> _PMD
        most_tables += last - first + 1
        # Neighbours share at most the slot where they meet.
        if slots[_PMD] and first == max(slots[_PMD]):
            most_tables -= 1
        slots[_PMD] = {last}
        for shift in (_PUD, _PGD):
            slots[shift].update(range(area.start >> shift, ((area.end - 1) >> shift) + 1))
        if area.rss:
            _certain(area, certain, least)
    tables = len(certain[_PMD]) + least[_PMD]
    upper = len(certain[_PUD]) + len(certain[_PGD])
    most = most_tables + len(slots[_PUD]) + len(slots[_PGD])
    return (tables + upper) * PAGE >> 10, most * PAGE >> 10


def _certain(area: Area, certain: dict[int, set[int]], least: dict[int, int]) -> None:
    """Add the table pages that an area with resident pages must have."""
    for shift, slots in certain.items():
        if area.start >> shift == (area.end - 1) >> shift:
            slots.add(area.start >> shift)
    if area.start >> _PMD != (area.end - 1) >> _PMD:
        # So many slots at the least hold its pages; those at its ends may be its neighbours'.
        needed = -(-(area.rss or 0) * 1024 // HUGE_PAGE)
        least[_PMD] += max(0, needed - 2)

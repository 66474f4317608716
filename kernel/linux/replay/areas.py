"""Compare a snapshot of a real process with the model: areas, sizes, range of page tables.

The comparison allows only for facts that a log of calls cannot show:

- The start of the stack (or of any area that grows downwards) is taken from the snapshot, because
  such an area grows when it is touched, not by a call.
- Linux does not merge two neighbours with equal attributes if each was written to before they met
  (they have different anon_vmas), or if they map a file that was opened twice.  A boundary of this
  kind that only the snapshot has is ignored.  An area that was never writable has no anon_vma:
  there the boundaries must agree.
- The size of the page tables must lie between what the resident pages need and what all mapped
  pages would need.
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

#: Flags of smaps that are compared.  "ac" is added for private writable areas only: elsewhere it
#: depends on whether the area was written to.
_COMPARED_FLAGS = ("gd", "lo", "sr", "rr", "dc", "wf", "dd", "hg", "nh", "nr")


@dataclass(slots=True)
class View:
    """Area in a form that a snapshot and the model have in common."""

    start: int
    end: int
    rights: str
    offset: int  # bytes; 0 for anonymous memory
    kind: str  # anonymous, heap, stack, file, shared, special
    file: tuple[str, str, int] = ("", "", 0)  # path, device, inode
    flags: frozenset[str] | None = None  # of smaps, only those compared; None: unknown
    separable: bool = True  # Linux may keep it separate from a neighbour with equal attributes

    def __str__(self) -> str:
        name = self.file[0] or {"anonymous": "", "shared": "shared"}.get(self.kind, self.kind)
        text = f"{self.start:012x}-{self.end:012x} {self.rights} {self.offset:08x}"
        flags = " ".join(sorted(self.flags or ()))
        return f"{text} {name}{f' ({flags})' if flags else ''}".rstrip()

    def same_attributes(self, other: Self) -> bool:
        """Return True if the two differ at most in their addresses and offsets."""
        if (self.rights, self.kind) != (other.rights, other.kind):
            return False
        if self.flags is not None and other.flags is not None and self.flags != other.flags:
            return False
        return same_file(self.file, other.file)

    def is_continued_by(self, other: Self) -> bool:
        """Return True if ``other`` begins where this area ends and differs in nothing else."""
        if self.end != other.start or not self.same_attributes(other):
            return False
        return self.kind != "file" or other.offset == self.offset + self.end - self.start


def same_file(a: tuple[str, str, int], b: tuple[str, str, int]) -> bool:
    """Return True if two (path, device, inode) may be one file.

    The path may have changed; the device and inode may be unknown.
    """
    if a[2] and b[2] and a[2] != b[2]:
        return False
    return a[0].removesuffix(" (deleted)") == b[0].removesuffix(" (deleted)") or (
        a[1:] == b[1:] and a[2] != 0
    )


@dataclass(slots=True)
class SnapshotDifference:
    """First difference between a snapshot and the model."""

    message: str
    real: list[str] = field(default_factory=list)  # Linux's areas around the difference
    model: list[str] = field(default_factory=list)  # the model's


@dataclass(slots=True)
class Comparison:
    """Result of comparing a snapshot with the model's state."""

    line: int  # of the snapshot in the log
    areas: int = 0
    ignored_boundaries: int = 0  # boundaries of Linux's that a log of calls cannot show
    stack_growth: int = 0  # kB by which stacks have grown
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # Linux's and the model's, kB
    page_tables: tuple[int, int, int] | None = None  # real, least, most, kB
    difference: SnapshotDifference | None = None


def real_views(snapshot: Snapshot) -> list[View]:
    """Return the areas of a snapshot that lie in user space."""
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
            kind, file = "file", (SEGMENT, "", 0)  # ignore the segment's key
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
    """Return True if the area may have an anon_vma or map a file that was opened twice."""
    if kind == "file":
        return True
    if area.rights[3] == "s":
        return False
    letters = (area.flags or "ac").split()
    return area.rights[1] == "w" or "ac" in letters or "nr" in letters


@dataclass
class Names:
    """Names of the files and labels that the model knows by number."""

    opened: dict[int, FileInfo]  # files opened by the program, by file id
    initial: dict[int, Area]  # areas of files mapped at the start, by file id
    labels: list[str]  # names of anonymous areas, from number 1 on

    def file(self, number: int) -> tuple[str, tuple[str, str, int]]:
        """Return the kind of an area that maps the file, and its path, device and inode."""
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
    """Return the model's areas."""
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


def _join(views: list[View], boundaries: set[int]) -> Iterator[View]:
    """Yield the views; join separable neighbours where ``boundaries`` (of the other side) allow."""
    last: View | None = None
    for view in views:
        if last is None:
            last = view
        elif (
            view.start not in boundaries
            and last.is_continued_by(view)
            and (last.separable or view.separable)
        ):
            last = View(last.start, view.end, *_attributes(last))
        else:
            yield last
            last = view
    if last is not None:
        yield last


def _attributes(v: View) -> tuple:
    return v.rights, v.offset, v.kind, v.file, v.flags, v.separable


def _grow_stacks(real: list[View], model: list[View]) -> int:
    """Extend the model's areas that grow downwards to the real ones; return the kB added."""
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
    """Compare a snapshot with the model's state.

    ``tainted``: an unmodelled call may have changed areas; compare only VmSize, VmData, VmPTE.
    """
    result = Comparison(line)
    real, model = real_views(snapshot), model_views(state, names, start_stack)
    result.areas = len(real)
    result.stack_growth = _grow_stacks(real, model)
    if not tainted:
        real_starts, model_starts = {v.start for v in real}, {v.start for v in model}
        joined = list(_join(real, model_starts))
        result.ignored_boundaries = len(real) - len(joined)
        result.difference = _first_difference(joined, list(_join(model, real_starts)))
    mm = state.mm
    counted = {
        "VmSize": (int(mm["total_vm"]) << 2) + result.stack_growth,
        "VmData": int(mm["data_vm"]) << 2,
        "VmLck": int(mm["locked_vm"]) << 2,
    }
    for name, value in counted.items():
        if name in snapshot.sizes and not (tainted and name == "VmLck"):
            result.sizes[name] = snapshot.sizes[name], value
            if snapshot.sizes[name] != value and result.difference is None:
                message = f"{name} is {snapshot.sizes[name]} kB, the model's {value} kB"
                result.difference = SnapshotDifference(message)
    if "VmPTE" in snapshot.sizes:
        least, most = tables_range(snapshot)
        result.page_tables = snapshot.sizes["VmPTE"], least, most
        if not least <= snapshot.sizes["VmPTE"] <= most and result.difference is None:
            result.difference = SnapshotDifference(
                f"VmPTE is {snapshot.sizes['VmPTE']} kB, not between {least} and {most} kB"
            )
    return result


def _first_difference(real: list[View], model: list[View]) -> SnapshotDifference | None:
    """Return the first difference of the two lists with the areas around it, or None."""
    for i in range(max(len(real), len(model))):
        a = real[i] if i < len(real) else None
        b = model[i] if i < len(model) else None
        if (
            a
            and b
            and (a.start, a.end, a.offset) == (b.start, b.end, b.offset)
            and a.same_attributes(b)
        ):
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
    """Return the smallest and largest size in kB of the page tables of these areas.

    Smallest: one table page of each level for the resident pages of each area, unless a neighbour
    may share the page.  Largest: one table page for each slot that an area overlaps.
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
            _add_certain_tables(area, certain, least)
    tables = len(certain[_PMD]) + least[_PMD]
    upper = len(certain[_PUD]) + len(certain[_PGD])
    most = most_tables + len(slots[_PUD]) + len(slots[_PGD])
    return (tables + upper) * PAGE >> 10, most * PAGE >> 10


def _add_certain_tables(area: Area, certain: dict[int, set[int]], least: dict[int, int]) -> None:
    """Add the table pages that an area with resident pages certainly needs."""
    for shift, slots in certain.items():
        if area.start >> shift == (area.end - 1) >> shift:
            slots.add(area.start >> shift)
    if area.start >> _PMD != (area.end - 1) >> _PMD:
        # The resident pages fill at least this many slots; two of them, at the area's ends, may
        # already be counted for its neighbours.
        needed = -(-(area.rss or 0) * 1024 // HUGE_PAGE)
        least[_PMD] += max(0, needed - 2)

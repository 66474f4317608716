"""Initial state of a process: its areas right after exec, parsed from a /proc/PID/maps text.

A maps text contains the bounds and rights of areas.  The kernel's other attributes of them (flags,
page offsets, start of data and heap) are inferred here from names and positions.  The default is
FRESH_PROCESS; a recorded program has its own text (kernel.linux.replay).
"""

import re
from dataclasses import dataclass

import numpy as np

from kernel import types
from kernel.types import VMA

#: First address that user space cannot map, with pages of 4 KiB.
TASK_SIZE = (1 << types.ADDRESS_BITS) - 4096

#: Lowest address that a process may map (vm.mmap_min_addr).
MMAP_MIN_ADDR = 65536

#: A small position-independent program right after exec, without address randomisation: its text
#: and data, the vdso below mmap_base, and the stack.  The heap starts where the data ends.
FRESH_PROCESS = """
555555554000-555555558000 r-xp 00000000 00:01 1 program
555555558000-555555559000 rw-p 00004000 00:01 1 program
7ffff7ff7000-7ffff7ffb000 r--p 00000000 00:00 0 [vvar]
7ffff7ffb000-7ffff7ffd000 r--p 00000000 00:00 0 [vvar_vclock]
7ffff7ffd000-7ffff7fff000 r-xp 00000000 00:00 0 [vdso]
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
"""

_MAPS_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-])([w-])([x-])([sp]) ([0-9a-f]+) \S+ (\d+)\s*(.*)"
)


@dataclass(frozen=True)
class InitialMap:
    """State of a process right after exec: its areas, (n,) VMA, and the bounds of data and heap."""

    areas: np.ndarray
    start_data: int
    end_data: int
    start_brk: int
    brk: int
    mmap_base: int  # end of the highest mapping below the stack
    legacy_base: int  # start of the bottom-up search: a third of the address space
    files: int  # number of file ids in use


#: anon_vma of the initial stack; negative, so that no area created later has the same one.
_EXEC_ANON_VMA = -1


@dataclass(frozen=True)
class _Line:
    """One line of a maps text, aligned to pages; empty if the area below owns its only page."""

    start: int
    end: int
    flags: int
    last: int  # end as written in the text, not aligned
    offset: int  # in the file, bytes
    file: str  # name of the mapped file; empty for anonymous memory
    name: str

    @property
    def is_data(self) -> bool:
        """True if the area is private and writable."""
        return self.flags & (types.VM_WRITE | types.VM_SHARED) == types.VM_WRITE

    @property
    def is_stack(self) -> bool:
        """True if the area is the stack that exec created."""
        return bool(self.flags & types.VM_GROWSDOWN)

    def pgoff(self, page_size: int) -> int:
        """Return the page offset, pages.

        Exec creates the stack at the end of user space, writes the arguments, and then moves the
        stack to its random address; the page offset of its first address remains.
        """
        if self.is_stack:
            return (TASK_SIZE // page_size * page_size - (self.end - self.start)) // page_size
        return (self.offset if self.file else self.start) // page_size


def _read_lines(text: str, page_size: int) -> list[_Line]:
    """Parse the lines of a maps text; raises what :func:`parse_maps` documents."""
    lines: list[_Line] = []
    task_size = TASK_SIZE // page_size * page_size
    above = 0
    for number, line in enumerate(text.strip().splitlines(), 1):
        match = _MAPS_LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(
                f"maps line {number}: expected 'start-end perms offset dev inode name': {line}"
            )
        first, last, r, w, x, share, offset, inode, name = match.groups()
        start, end = int(first, 16), int(last, 16)
        if not above <= start < end:
            raise ValueError(f"maps line {number}: not above the area before it: {line}")
        above = end
        if start >= task_size:
            continue
        flags = (
            types.VM_READ * (r == "r") | types.VM_WRITE * (w == "w") | types.VM_EXEC * (x == "x")
        )
        flags |= types.VM_MAYREAD | types.VM_MAYWRITE | types.VM_MAYEXEC
        flags |= (types.VM_SHARED | types.VM_MAYSHARE) * (share == "s") | types.VM_GROWSDOWN * (
            name == "[stack]"
        )
        special = name.startswith("[") and name not in ("[heap]", "[stack]")
        flags |= types.VM_SPECIAL * special
        if name.startswith("[vvar"):
            flags = (flags | types.VM_PFNMAP) & ~types.VM_MAYWRITE
        file = (name or f"inode {inode}") if special or inode != "0" else ""
        low = max(start // page_size * page_size, lines[-1].end if lines else 0)
        high = min(-(-end // page_size) * page_size, task_size)
        lines.append(_Line(low, high, flags, end, int(offset, 16), file, name))
    return lines


def _place_heap(lines: list[_Line]) -> tuple[int, int, int, int]:
    """Return start_data, end_data, start_brk and brk of the program, the file mapped lowest."""
    lowest = next((line.file for line in lines if line.file), None)
    program = [line for line in lines if line.file == lowest]
    data = [line for line in program if line.is_data] or program[-1:]
    start_data = data[0].start if data else MMAP_MIN_ADDR
    end_data = data[-1].end if data else MMAP_MIN_ADDR
    heap = [line for line in lines if line.name == "[heap]"]
    if heap:
        return start_data, end_data, heap[0].start, heap[-1].end
    bss = [line.end for line in lines if line.start == end_data and not line.file and line.is_data]
    brk = max([end_data, *bss])
    return start_data, end_data, brk, brk


def parse_maps(text: str, page_size: int = 4096) -> InitialMap:
    """Parse a /proc/PID/maps text and align its areas outwards to ``page_size``.

    If two areas then share a page, the lower one keeps it.  Areas beyond user space (vsyscall) are
    omitted.  The heap is [heap]; without one it is empty and starts at the end of the program's
    data and bss.

    Raises ValueError for a line of another form, or one that does not lie above the previous line.
    """
    lines = _read_lines(text, page_size)
    ids: dict[str, int] = {"": 0}
    rows = [
        (
            line.start,
            line.end,
            line.flags | types.VM_ACCOUNT * line.is_data,
            line.pgoff(page_size),
            _EXEC_ANON_VMA * line.is_stack,
            ids.setdefault(line.file, len(ids)),
        )
        for line in lines
        if line.start < line.end
    ]
    base = max([v.last for v in lines if not v.flags & types.VM_GROWSDOWN], default=TASK_SIZE)
    return InitialMap(np.array(rows, VMA), *_place_heap(lines), base, TASK_SIZE // 3, len(ids))


def check_window(areas: np.ndarray, window_bits: int) -> None:
    """Raise ValueError if two of the ``areas`` overlap in the folded window."""
    size = 1 << window_bits
    folded = sorted((int(v["vm_start"]) % size, int(v["vm_end"] - v["vm_start"])) for v in areas)
    # Each may extend up to the start of the next one, the last around the end to the first.
    limits = [start for start, _ in folded[1:]] + [start + size for start, _ in folded[:1]]
    if any(start + length > limit for (start, length), limit in zip(folded, limits, strict=True)):
        raise ValueError(
            f"maps: two areas overlap in the simulated-memory window of 2**{window_bits} bytes; "
            "set a larger window_bits"
        )

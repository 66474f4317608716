"""Records of a log of memory system calls, as both readers (recording.py, strace.py) make them.

Times (``entry``, ``exit``) are positions in the log, not clock times.  An event that ends before
another begins happened before it; events that overlap may have happened in either order.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kernel.engine.foreign import WIDTH, printable

#: Exit time of a call that never returned.
NEVER = 1 << 62

_MAPS_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+)\s*(.*)"
)


@dataclass(slots=True)
class Area:
    """One line of /proc/PID/maps; ``rss`` and ``flags`` are known if smaps was read instead."""

    start: int
    end: int
    rights: str  # "rw-p"
    offset: int  # bytes
    device: str  # "fe:00"
    inode: int
    name: str
    rss: int | None = None  # kB
    flags: str | None = None  # "rd wr mr mw me ac"

    def line(self) -> str:
        """Return the area as a line of /proc/PID/maps."""
        text = f"{self.start:012x}-{self.end:012x} {self.rights} {self.offset:08x} "
        return f"{text}{self.device} {self.inode} {self.name}".rstrip()


@dataclass(slots=True)
class Snapshot:
    """Areas of an address space at one time, and sizes from /proc/PID/status in kB."""

    areas: list[Area]
    sizes: dict[str, int] = field(default_factory=dict)  # VmSize, VmData, VmLck, VmPTE


@dataclass(frozen=True, slots=True)
class Limits:
    """Soft limits in bytes (None: unlimited), and the capabilities that exempt from limits."""

    address_space: int | None = None
    data: int | None = None
    memlock: int | None = None
    may_lock: bool = True  # CAP_IPC_LOCK: RLIMIT_MEMLOCK does not apply
    may_map_low: bool = False  # CAP_SYS_RAWIO: MAP_FIXED may go below vm.mmap_min_addr


@dataclass(slots=True)
class Image:
    """Program that an exec started."""

    path: str
    bits: int = 64
    personality: int = 0
    start_data: int = 0
    end_data: int = 0
    start_brk: int = 0
    start_stack: int = 0
    stack_limit: int = 8 << 20  # bytes; -1: unlimited
    limits: Limits = Limits()


@dataclass(slots=True)
class FileInfo:
    """File behind a descriptor at the time of mmap; unknown fields are None or empty."""

    path: str
    kind: str = "file"
    device: str = ""
    inode: int = 0
    size: int | None = None
    file_system: str = ""
    access: int | None = None  # O_RDONLY 0, O_WRONLY 1, O_RDWR 2
    no_exec: bool = False


@dataclass(slots=True)
class MachineSettings:
    """Settings of the machine on which the log was made."""

    kernel: str = ""
    overcommit: int = 1
    memory: int = 0  # bytes of RAM and swap; 0: unknown
    max_map_count: int = 65530
    mmap_min_addr: int = 65536
    legacy_layout: bool = False
    thp: str = "madvise"
    thp_shared: str = "never"


@dataclass(slots=True, kw_only=True)
class Event:
    """Event of a log: ``line`` of the file, thread, earliest and latest possible time."""

    line: int
    tid: int
    entry: int
    exit: int


@dataclass(slots=True, kw_only=True)
class Call(Event):
    """Memory system call.  ``result`` is a value or a negative errno; None if it never returned."""

    name: str
    args: tuple[int, ...]
    result: int | None
    file: FileInfo | None = None
    #: Other data that the result or the effect depends on, by name (see the readers).
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Clone(Event):
    """Creation of a thread or process, with the flags of clone(2)."""

    flags: int
    child: int


@dataclass(slots=True, kw_only=True)
class Exec(Event):
    """Start of a program; ``tid`` is the process, ``former`` the thread that called exec.

    ``snapshot`` shows the new address space.  ``before`` shows the old one just before the exec, if
    no other thread used it.
    """

    former: int
    image: Image | None = None
    snapshot: Snapshot | None = None
    before: Snapshot | None = None


@dataclass(slots=True, kw_only=True)
class Exit(Event):
    """End of a thread, with a snapshot of its address space if no other thread used it."""

    snapshot: Snapshot | None = None


@dataclass(slots=True, kw_only=True)
class SetLimit(Event):
    """Change of a process's soft limit; ``target`` 0 is the calling process."""

    target: int
    resource: int
    soft: int | None


@dataclass
class Log:
    """Contents of one file."""

    path: str
    kind: str  # "recording" or "strace"
    events: list[Event] = field(default_factory=list)
    machine: MachineSettings = field(default_factory=MachineSettings)
    command: list[str] = field(default_factory=list)
    complete: bool = True
    #: Number of lines that are neither memory calls nor needed to follow processes, by kind.
    others: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def calls(self) -> Iterator[Call]:
        """Iterate over the memory calls in the order of the file."""
        return (event for event in self.events if isinstance(event, Call))


class LogError(Exception):
    """File that cannot be read as a log; the message names the file and the line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def parse_area(line: str) -> Area | None:
    """Parse one line of /proc/PID/maps; return None if it has another form."""
    match = _MAPS_LINE.fullmatch(line.strip())
    if match is None:
        return None
    start, end, rights, offset, device, inode, name = match.groups()
    return Area(int(start, 16), int(end, 16), rights, int(offset, 16), device, int(inode), name)


def parse_areas(text: str) -> list[Area]:
    """Parse the text of /proc/PID/maps or smaps.

    Raises ValueError, with the line number, for a line that is neither or areas out of order.
    """
    areas: list[Area] = []
    for number, line in enumerate(text.splitlines(), 1):
        key, colon, value = line.partition(":")
        if colon and key.isidentifier():
            if areas and key == "Rss":
                areas[-1].rss = int(value.split()[0])
            elif areas and key == "VmFlags":
                areas[-1].flags = value.strip()
            continue
        if not line.strip():
            continue
        area = parse_area(line)
        if area is None:
            shown = printable(line.strip(), WIDTH)
            raise ValueError(f"{number}: expected 'start-end perms offset dev inode name': {shown}")
        if not in_order(areas, area):
            shown = printable(line.strip(), WIDTH)
            raise ValueError(f"{number}: not above the previous area: {shown}")
        areas.append(area)
    return areas


def in_order(areas: list[Area], area: Area) -> bool:
    """Return True if ``area`` is not empty and begins at or above the end of the last area."""
    return (areas[-1].end if areas else 0) <= area.start < area.end

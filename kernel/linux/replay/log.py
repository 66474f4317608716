"""A log of memory calls, whatever file it came from: the records that readers make.

Times (``entry``, ``exit``, ``at``) are positions in the log, not clock times: what ends before
another begins happened before it; what overlaps may have happened in any order.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: The exit time of a call that never returned.
NEVER = 1 << 62

_MAPS_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+)\s*(.*)"
)


@dataclass(slots=True)
class Area:
    """One line of /proc/PID/maps, with what smaps adds where it was read."""

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
        """As maps shows it."""
        text = f"{self.start:012x}-{self.end:012x} {self.rights} {self.offset:08x} "
        return f"{text}{self.device} {self.inode} {self.name}".rstrip()


@dataclass(slots=True)
class Snapshot:
    """The areas of an address space at one time, and sizes of /proc/PID/status in kB."""

    areas: list[Area]
    sizes: dict[str, int] = field(default_factory=dict)  # VmSize, VmData, VmLck, VmPTE


@dataclass(frozen=True, slots=True)
class Limits:
    """Soft limits in bytes, None for none, and the capabilities that lift two others."""

    address_space: int | None = None
    data: int | None = None
    memlock: int | None = None
    may_lock: bool = True  # RLIMIT_MEMLOCK does not apply
    may_map_low: bool = False  # neither does vm.mmap_min_addr, to MAP_FIXED


@dataclass(slots=True)
class Image:
    """A program that an exec has started."""

    path: str
    bits: int = 64
    personality: int = 0
    start_data: int = 0
    end_data: int = 0
    start_brk: int = 0
    start_stack: int = 0
    stack_limit: int = 8 << 20  # bytes; -1 for none
    limits: Limits = Limits()


@dataclass(slots=True)
class FileInfo:
    """What a file descriptor named when it was given to mmap; unknown parts are None or empty."""

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
    """Settings of the machine that the log was taken on."""

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
    """Something in a log: ``line`` of the file, the thread, first and last possible time."""

    line: int
    tid: int
    entry: int
    exit: int


@dataclass(slots=True, kw_only=True)
class Call(Event):
    """A system call on memory.  ``result`` is the register's: a value or a negative errno."""

    name: str
    args: tuple[int, ...]
    result: int | None
    file: FileInfo | None = None
    #: What else the answer or effect depends on, by name (see the readers).
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Clone(Event):
    """A thread or process was made, with the flags of clone(2)."""

    flags: int
    child: int


@dataclass(slots=True, kw_only=True)
class Exec(Event):
    """A program was started; ``tid`` is the process, ``former`` the thread that called.

    ``before`` is the last look at the memory that the exec gave up, where nobody else used it.
    """

    former: int
    image: Image | None = None
    snapshot: Snapshot | None = None
    before: Snapshot | None = None


@dataclass(slots=True, kw_only=True)
class Exit(Event):
    """A thread ended; with the last look at its memory, where it was the last to use it."""

    snapshot: Snapshot | None = None


@dataclass(slots=True, kw_only=True)
class SetLimit(Event):
    """A process's soft limit was changed; ``target`` 0 is the caller's own."""

    target: int
    resource: int
    soft: int | None


@dataclass
class Log:
    """Everything that a file holds."""

    path: str
    kind: str  # "recording" or "strace"
    events: list[Event] = field(default_factory=list)
    machine: MachineSettings = field(default_factory=MachineSettings)
    command: list[str] = field(default_factory=list)
    complete: bool = True
    #: Lines that are neither calls on memory nor needed to follow processes, by kind.
    others: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def calls(self) -> Iterator[Call]:
        """The memory calls, in the order of the file."""
        return (event for event in self.events if isinstance(event, Call))


class LogError(Exception):
    """A file that cannot be read as a log; the message names file and line."""


def parse_area(line: str) -> Area | None:
    """One line of a maps text; None when it is not one."""
    match = _MAPS_LINE.fullmatch(line.strip())
    if match is None:
        return None
    start, end, rights, offset, device, inode, name = match.groups()
    return Area(int(start, 16), int(end, 16), rights, int(offset, 16), device, int(inode), name)


def parse_areas(text: str) -> list[Area]:
    """Read /proc/PID/maps or smaps.  Raises ValueError, with the line's number, for what is not."""
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
            raise ValueError(
                f"{number}: expected 'start-end perms offset dev inode name': {line.strip()[:100]}"
            )
        if not in_order(areas, area):
            raise ValueError(f"{number}: not above the area before it: {line.strip()[:100]}")
        areas.append(area)
    return areas


def in_order(areas: list[Area], area: Area) -> bool:
    """Whether an area may follow these."""
    return (areas[-1].end if areas else 0) <= area.start < area.end

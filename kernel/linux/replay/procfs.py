"""Read the state of a traced program and its machine from /proc and statfs."""

import os
import platform
import re
import resource
import stat
from pathlib import Path
from typing import Any

from kernel.linux.host.files import file_system
from kernel.linux.replay.log import FileInfo, Image, Limits, MachineSettings, Snapshot, parse_areas

#: Fields of /proc/PID/status that a snapshot contains.
_SIZES = ("VmSize", "VmData", "VmLck", "VmPTE")
_CAP_IPC_LOCK, _CAP_SYS_RAWIO = 14, 17


def _status(tid: int) -> dict[str, str]:
    lines = Path(f"/proc/{tid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def snapshot(tid: int) -> Snapshot | None:
    """Return the areas and sizes of a stopped thread's memory, or None if its memory is gone."""
    try:
        status = _status(tid)
        try:
            text = Path(f"/proc/{tid}/smaps").read_text()
        except OSError:  # a kernel built without smaps
            text = Path(f"/proc/{tid}/maps").read_text()
    except OSError:
        return None
    areas = parse_areas(text)
    if not areas:
        return None
    sizes = {name: int(status[name].split()[0]) for name in _SIZES if name in status}
    return Snapshot(areas, sizes)


def limits(tid: int) -> Limits:
    """Return the soft limits and capabilities that affect memory calls."""
    values = [
        resource.prlimit(tid, kind)[0]
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_MEMLOCK)
    ]
    capable = int(_status(tid)["CapEff"], 16)
    may = (bool(capable >> bit & 1) for bit in (_CAP_IPC_LOCK, _CAP_SYS_RAWIO))
    return Limits(*(None if v == resource.RLIM_INFINITY else v for v in values), *may)


def image(tid: int) -> Image:
    """Return the facts about a just started program that its areas do not show."""
    # The name in parentheses may itself contain spaces and parentheses.
    fields = Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()
    start_stack = int(fields[25])
    start_data, end_data, start_brk = (int(x) for x in fields[42:45])
    try:
        personality = int(Path(f"/proc/{tid}/personality").read_text(), 16)
    except OSError:
        personality = 0
    try:
        path = str(Path(f"/proc/{tid}/exe").readlink())
        with Path(f"/proc/{tid}/exe").open("rb") as program:
            head = program.read(20)
    except OSError:
        path, head = "?", b""
    bits = 32 if head[:4] == b"\x7fELF" and head[4] == 1 else 64
    stack = resource.prlimit(tid, resource.RLIMIT_STACK)[0]
    if stack == resource.RLIM_INFINITY:
        stack = -1
    return Image(
        path, bits, personality, start_data, end_data, start_brk, start_stack, stack, limits(tid)
    )


def read_words(tid: int, address: int, count: int) -> list[int] | None:
    """Read ``count`` unsigned 8-byte words of the program's memory; None if it is not mapped."""
    try:
        with Path(f"/proc/{tid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            data = memory.read(8 * count)
    except (OSError, OverflowError, ValueError):
        return None
    if len(data) != 8 * count:
        return None
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]


def read_text(tid: int, address: int, size: int) -> str | None:
    """Read the string at ``address``, at most ``size`` bytes; None if it is not mapped."""
    words = read_words(tid, address, size // 8)
    if words is None:
        return None
    data = b"".join(word.to_bytes(8, "little") for word in words)
    return data.partition(b"\0")[0].decode(errors="replace")


def open_file(tid: int, fd: int) -> FileInfo | None:
    """Describe the file behind a descriptor as far as mmap depends on it; None if not open."""
    link = f"/proc/{tid}/fd/{fd}"
    try:
        path = str(Path(link).readlink())
        info = os.stat(link)  # noqa: PTH116 - only the link itself reaches a deleted file
        flags = int(re.search(r"^flags:\s*(\d+)", _fdinfo(tid, fd), re.M)[1], 8)
    except (OSError, TypeError):
        return None
    kind = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "block device",
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
    }.get(stat.S_IFMT(info.st_mode), "other")
    device = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}"
    return FileInfo(
        path=path,
        kind=kind,
        device=device,
        inode=info.st_ino,
        size=info.st_size,
        file_system=file_system(link),
        access=flags & os.O_ACCMODE,
        no_exec=_no_exec(link),
    )


def _no_exec(path: str) -> bool:
    """Return True if the file system that holds an open file is mounted noexec."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_NOEXEC)
    except OSError:
        return False


def _fdinfo(tid: int, fd: int) -> str:
    return Path(f"/proc/{tid}/fdinfo/{fd}").read_text()


def _sysctl(path: str, default: int) -> int:
    try:
        return int(Path("/proc/sys", path).read_text())
    except (OSError, ValueError):
        return default


def _bracketed_choice(path: str) -> str:
    """Return the choice in brackets of a file like transparent_hugepage/enabled."""
    try:
        match = re.search(r"\[(\w+)\]", Path(path).read_text())
    except OSError:
        match = None
    return match[1] if match else "never"


def machine() -> MachineSettings:
    """Return the settings of this machine on which memory calls depend."""
    amounts: dict[str, Any] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        amounts[key] = int(value.split()[0]) << 10
    thp = "/sys/kernel/mm/transparent_hugepage"
    return MachineSettings(
        kernel=platform.release(),
        overcommit=_sysctl("vm/overcommit_memory", 0),
        memory=amounts["MemTotal"] + amounts.get("SwapTotal", 0),
        max_map_count=_sysctl("vm/max_map_count", 65530),
        mmap_min_addr=_sysctl("vm/mmap_min_addr", 65536),
        legacy_layout=bool(_sysctl("vm/legacy_va_layout", 0)),
        thp=_bracketed_choice(f"{thp}/enabled"),
        thp_shared=_bracketed_choice(f"{thp}/shmem_enabled"),
    )

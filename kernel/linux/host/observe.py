"""Observation of a process from outside: mappings, resident pages, memory counters.

Observation does not disturb the process.  Accuracy:

* The list of mappings and the state of every page are exact.
* VmSize, VmLck, VmData, VmStk and VmPTE are plain counters: exact.
* RssAnon, RssFile and RssShmem: since Linux 6.17 /proc/PID/status sums the counters of all
  processors, so it is exact right after an operation.  From 6.2 to 6.16 it reads only the shared
  part of each counter, while each processor batches up to max(32, 2 × processors) pages; before 6.2
  each thread batches up to 64 events.  On these kernels RssAnon comes from /proc/PID/smaps_rollup,
  which walks the page tables; the other two remain inexact.  See :attr:`Observer.exact_rss`.
* VmHWM and ru_maxrss lag, so they are not read.

khugepaged may collapse pages asynchronously: compare :func:`thp_counters` before and after.
"""

import fcntl
import os
import re
import struct
from pathlib import Path

import numpy as np

from kernel.engine.jit import build_once, jit
from kernel.linux.host import kernel_version

PAGE_SIZE = 4096
PMD_SIZE = 2 << 20
#: End of user space with four levels of page tables.
USER_END = 0x7FFF_FFFF_F000

KIND_ANONYMOUS, KIND_HEAP, KIND_STACK, KIND_SPECIAL, KIND_FILE = range(5)

#: One line of /proc/PID/maps.  ``prot``: read 1, write 2, exec 4.  ``offset`` in bytes.  Shared
#: anonymous memory (an unlinked /dev/zero) has kind KIND_ANONYMOUS.  The addresses of [vsyscall]
#: exceed the range of i8 and wrap to negative numbers.
AREA = np.dtype(
    [
        ("vm_start", "i8"),
        ("vm_end", "i8"),
        ("prot", "i8"),
        ("shared", "i8"),
        ("offset", "i8"),
        ("inode", "i8"),
        ("kind", "i8"),
    ]
)

PRESENT, ZERO, HUGE, FILE, SWAPPED = 1, 2, 4, 8, 16

#: A run of pages in the same state (bits above).  ZERO | HUGE: the huge zero page.
REGION = np.dtype([("start", "i8"), ("end", "i8"), ("state", "i8")])

#: Memory counters of a process, in bytes.
STATUS = np.dtype(
    [
        ("vm_size", "i8"),
        ("vm_lck", "i8"),
        ("vm_data", "i8"),
        ("vm_stk", "i8"),
        ("vm_pte", "i8"),
        ("rss_anon", "i8"),
        ("rss_file", "i8"),
        ("rss_shmem", "i8"),
    ]
)

#: The PAGEMAP_SCAN ioctl and its argument (Linux documentation, admin-guide/mm/pagemap).
_PAGEMAP_SCAN = 0xC060_6610
_SCAN = np.dtype(
    [
        (name, "u8")
        for name in (
            "size",
            "flags",
            "start",
            "end",
            "walk_end",
            "vec",
            "vec_len",
            "max_pages",
            "category_inverted",
            "category_mask",
            "category_anyof_mask",
            "return_mask",
        )
    ]
)
_IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_ZERO, _IS_HUGE = 4, 8, 16, 32, 64
_IS_ANY = _IS_FILE | _IS_PRESENT | _IS_SWAPPED | _IS_ZERO | _IS_HUGE
#: State of a region (bits above) by the category bits of the ioctl.
_STATES = np.array(
    [
        PRESENT * bool(c & _IS_PRESENT)
        | ZERO * bool(c & _IS_ZERO)
        | HUGE * bool(c & _IS_HUGE)
        | FILE * bool(c & _IS_FILE)
        | SWAPPED * bool(c & _IS_SWAPPED)
        for c in range(2 * _IS_HUGE)
    ]
)

#: Bits of an entry of /proc/PID/pagemap.
_PM_PRESENT, _PM_SWAP, _PM_FILE, _PM_EXCLUSIVE = 1 << 63, 1 << 62, 1 << 61, 1 << 56
_PM_FRAME = (1 << 55) - 1
#: Bit of /proc/kpageflags: part of a transparent huge page.
_KPF_THP = 1 << 22

#: Shortest line of /proc/PID/maps.
_SHORTEST_LINE = 40
#: Length of "/dev/zero (deleted)"; only this length, the d and the z are compared.
_ZERO_NAME = 19
_LAST_LINE = b"[vsyscall]\n"

_STATUS_LINES = re.compile(
    rb"VmSize:\s*(\d+).*?VmLck:\s*(\d+).*?RssAnon:\s*(\d+).*?RssFile:\s*(\d+).*?RssShmem:\s*(\d+)"
    rb".*?VmData:\s*(\d+).*?VmStk:\s*(\d+).*?VmPTE:\s*(\d+)",
    re.DOTALL,
)
_ANONYMOUS_LINE = re.compile(rb"Anonymous:\s*(\d+)")


@jit
def _kind(text, begin, end):
    """Return the kind of an area whose name is text[begin:end]."""
    if begin == end:
        return KIND_ANONYMOUS
    second = np.int64(text[begin + 1])
    if np.int64(text[begin]) == 91:  # [
        if second == 104:  # [heap]
            return KIND_HEAP
        if second == 115:  # [stack]
            return KIND_STACK
        # [anon:…] and [anon_shmem:…] are names set by the program.
        return KIND_ANONYMOUS if second == 97 else KIND_SPECIAL
    if end - begin == _ZERO_NAME and second == 100 and np.int64(text[begin + 5]) == 122:
        return KIND_ANONYMOUS
    return KIND_FILE


@jit
def _parse_maps(text, length, areas):
    """Fill ``areas`` from ``text`` (u1 array, ``length`` bytes); return the number of lines."""
    at = np.int64(0)
    count = np.int64(0)
    while at < length:
        area = areas[count]
        number = np.int64(0)
        field = 0  # 0 start, 1 end, 2 rights, 3 offset, 4 device, 5 inode
        prot = 0
        while field < 6:
            c = np.int64(text[at])
            at += 1
            if c == 32 or (c == 45 and field == 0):  # space, '-'
                if field == 0:
                    area.vm_start = number
                elif field == 1:
                    area.vm_end = number
                elif field == 2:
                    area.prot = prot
                elif field == 3:
                    area.offset = number
                elif field == 5:
                    area.inode = number
                number = np.int64(0)
                field += 1
            elif field == 2:
                if c == 114:  # r
                    prot |= 1
                elif c == 119:  # w
                    prot |= 2
                elif c == 120:  # x
                    prot |= 4
                elif c != 45:  # s or p
                    area.shared = 1 if c == 115 else 0
            elif field == 5:
                number = number * 10 + (c - 48)
            elif field != 4:
                number = (number << 4) | (c - 48 if c < 58 else c - 87)
        while np.int64(text[at]) == 32:
            at += 1
        name = at
        while np.int64(text[at]) != 10:
            at += 1
        area.kind = _kind(text, name, at)
        at += 1
        count += 1
    return count


class Observer:
    """Observer of one process, a context manager.

    It keeps the files of /proc/PID open, so that each observation is cheap.  Raises OSError if the
    process has ended or must not be observed.
    """

    def __init__(self, pid: int, *, scan: bool | None = None) -> None:
        """Open the files.  ``scan``: use PAGEMAP_SCAN; None: use it if the kernel supports it."""
        folder = f"/proc/{pid}"
        self._maps = os.open(f"{folder}/maps", os.O_RDONLY | os.O_CLOEXEC)
        self._status = os.open(f"{folder}/status", os.O_RDONLY | os.O_CLOEXEC)
        self._pagemap = os.open(f"{folder}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        #: True if the kernel's RssAnon is exact; otherwise smaps_rollup walks the page tables.
        self.exact_rss = kernel_version() >= (6, 17)
        self._rollup = (
            -1 if self.exact_rss else os.open(f"{folder}/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC)
        )
        self._kpageflags = -1
        self._reserve_text(1 << 16)
        self._parse = build_once(_parse_maps)
        self._regions = np.zeros(4096, REGION)
        self._scan = np.zeros(1, _SCAN)
        self._scan_record = self._scan[0]
        self._scan_record["size"] = _SCAN.itemsize
        self._scan_record["vec"] = self._regions.ctypes.data
        self._scan_record["vec_len"] = len(self._regions)
        self._scan_record["category_anyof_mask"] = _IS_PRESENT | _IS_SWAPPED
        self._scan_record["return_mask"] = _IS_ANY
        #: True if residency comes from the ioctl; otherwise it comes from /proc/PID/pagemap.
        self.scans = self._can_scan() if scan is None else scan
        if not self.scans:
            try:
                self._kpageflags = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self._kpageflags = -1

    @property
    def sees_huge(self) -> bool:
        """True if residency distinguishes huge pages (HUGE) from small ones."""
        return self.scans or self._kpageflags >= 0

    def close(self) -> None:
        """Close the files."""
        for fd in (self._maps, self._status, self._pagemap, self._rollup, self._kpageflags):
            if fd >= 0:
                os.close(fd)
        self._maps = self._status = self._pagemap = self._rollup = self._kpageflags = -1

    def __enter__(self) -> "Observer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- mappings -----------------------------------------------------------------------------

    def maps_text(self) -> str:
        """Return the text of /proc/PID/maps."""
        return bytes(self._text[: self._read_maps()]).decode()

    def areas(self) -> np.ndarray:
        """Return the mappings, dtype AREA, in ascending order of address."""
        length = self._read_maps()
        if length // _SHORTEST_LINE >= len(self._areas):
            self._reserve_areas(2 * (length // _SHORTEST_LINE) + 1)
        return self._areas[: self._parse(self._bytes, length, self._records)].copy()

    def _reserve_text(self, size: int) -> None:
        self._text = bytearray(size)
        self._view = memoryview(self._text)
        self._bytes = np.frombuffer(self._text, "u1")
        self._reserve_areas(size // _SHORTEST_LINE + 1)

    def _reserve_areas(self, count: int) -> None:
        self._areas = np.zeros(count, AREA)
        self._records = self._areas.view(np.recarray)  # for field access with the JIT disabled

    def _read_maps(self) -> int:
        """Read /proc/PID/maps, which returns at most a page per read; return its length."""
        length = 0
        while got := os.preadv(self._maps, [self._view[length:]], length):
            length += got
            if self._view[length - len(_LAST_LINE) : length] == _LAST_LINE:
                break  # saves the read that would return 0 bytes
            if length + PAGE_SIZE > len(self._text):
                self._reserve_text(2 * len(self._text))
                length = 0
        return length

    # --- pages --------------------------------------------------------------------------------

    def residency(self, start: int = 0, end: int = USER_END) -> np.ndarray:
        """Return the pages of [start, end) that are present or swapped out, dtype REGION.

        Adjacent pages in the same state form one region; absent pages are omitted.  ``start`` and
        ``end`` must be multiples of the page size; the default is all of user space.
        """
        if not self.scans:
            return self._read_pagemap(start, end)
        parts = []
        while True:
            count = self._ioctl(start, end)
            found = self._regions[:count].copy()
            found["state"] = _STATES[found["state"]]
            if count < len(self._regions):
                break
            parts.append(found)
            # Do not continue at walk_end, where the kernel reports that it stopped: after a full
            # walk that address may be lower than the last region, which would then be repeated.
            start = int(found["end"][-1])
        return _merge(np.concatenate([*parts, found])) if parts else found

    def _ioctl(self, start: int, end: int) -> int:
        """Fill ``_regions`` from index 0 and return the number of regions found."""
        record = self._scan_record
        record["start"] = start
        record["end"] = end
        return fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, self._scan, True)

    def _can_scan(self) -> bool:
        try:
            self._ioctl(0, PAGE_SIZE)
        except OSError:
            return False
        return True

    def _read_pagemap(self, start: int, end: int) -> np.ndarray:
        """Return the regions from /proc/PID/pagemap, which has an 8-byte entry for each page.

        pagemap does not identify the zero page, but a present page of private memory that is not
        exclusive to the process must be that.  Huge pages are visible only to root, in
        /proc/kpageflags: a slot of contiguous aligned frames of one huge page in one mapping.
        (A huge page whose mapping was split in place still looks huge.)
        """
        parts = [np.zeros(0, REGION)]
        for area in self.areas():
            low, high = max(int(area["vm_start"]), start), min(int(area["vm_end"]), end)
            if low < high:
                parts.append(self._read_area(low, high, area))
        return _merge(np.concatenate(parts))

    def _read_area(self, start: int, end: int, area: np.void) -> np.ndarray:
        parts = [np.zeros(0, REGION)]
        step = 64 * PMD_SIZE
        # Read whole huge-page slots; regions outside [start, end) are discarded below.
        for low in range(start - start % PMD_SIZE, end, step):
            first, last = max(low, int(area["vm_start"])), min(low + step, int(area["vm_end"]))
            size = (last - first) // PAGE_SIZE * 8
            entries = np.frombuffer(os.pread(self._pagemap, size, first // PAGE_SIZE * 8), "u8")
            pages = np.flatnonzero(entries & (_PM_PRESENT | _PM_SWAP))
            held = entries[pages]
            state = np.where(held & _PM_PRESENT, PRESENT, SWAPPED)
            if area["inode"] or area["kind"] == KIND_SPECIAL:
                state |= np.where(held & _PM_FILE, FILE, 0)
            else:  # ignore _PM_FILE, which pagemap sets for the huge zero page
                state |= np.where(held & (_PM_PRESENT | _PM_EXCLUSIVE) == _PM_PRESENT, ZERO, 0)
            if self._kpageflags >= 0:
                state |= np.where(self._huge(entries, first)[pages], HUGE, 0)
            region = np.zeros(len(pages), REGION)
            region["start"] = first + pages * PAGE_SIZE
            region["end"] = region["start"] + PAGE_SIZE
            region["state"] = state
            parts.append(region[(region["start"] >= start) & (region["end"] <= end)])
        return _merge(np.concatenate(parts))

    def _huge(self, entries: np.ndarray, start: int) -> np.ndarray:
        """Return a bool array: True for each page from ``start`` that a huge entry maps."""
        huge = np.zeros(len(entries), bool)
        per_slot = PMD_SIZE // PAGE_SIZE
        skipped = -start % PMD_SIZE // PAGE_SIZE
        slots = (len(entries) - skipped) // per_slot
        if slots <= 0:
            return huge
        whole = entries[skipped : skipped + slots * per_slot].reshape(slots, per_slot)
        frames = (whole & _PM_FRAME).astype("i8")
        alike = (whole & _PM_PRESENT).all(axis=1) & (frames[:, 0] % per_slot == 0)
        alike &= (np.diff(frames, axis=1) == 1).all(axis=1) & (frames[:, 0] > 0)
        for slot in np.flatnonzero(alike):
            data = os.pread(self._kpageflags, 8, int(frames[slot, 0]) * 8)
            if struct.unpack("<Q", data)[0] & _KPF_THP:
                first = skipped + slot * per_slot
                huge[first : first + per_slot] = True
        return huge

    # --- counters -----------------------------------------------------------------------------

    def status(self) -> np.ndarray:
        """Return the memory counters, one record of dtype STATUS, in bytes."""
        found = _STATUS_LINES.search(os.pread(self._status, 4096, 0))
        if not found:
            raise ProcessLookupError("the process has ended: its status has no memory counters")
        size, locked, anon, file, shmem, data, stack, tables = map(int, found.groups())
        if not self.exact_rss:
            anon = int(_ANONYMOUS_LINE.search(os.pread(self._rollup, 4096, 0))[1])
        counters = (size, locked, data, stack, tables, anon, file, shmem)
        return np.array(tuple(1024 * x for x in counters), STATUS)[()]


def _merge(regions: np.ndarray) -> np.ndarray:
    """Join adjacent regions in the same state; ``regions`` are sorted by address."""
    if len(regions) < 2:
        return regions
    joins = (regions["start"][1:] == regions["end"][:-1]) & (
        regions["state"][1:] == regions["state"][:-1]
    )
    first = np.flatnonzero(np.concatenate(([True], ~joins)))
    merged = regions[first]
    merged["end"] = regions["end"][np.append(first[1:] - 1, len(regions) - 1)]
    return merged


def thp_counters() -> dict[str, int]:
    """Return the host's counters of huge pages (``thp_*`` of /proc/vmstat).

    If ``thp_collapse_alloc`` changes during a run, khugepaged may have interfered.
    """
    lines = Path("/proc/vmstat").read_text().splitlines()
    pairs = (line.split() for line in lines if line.startswith("thp_"))
    return {name: int(value) for name, value in pairs}


def pages_out() -> bool:
    """Return True if DAMON is active: it may page out memory that is not accessed.

    It then splits huge pages and discards lazily freed ones.  This is a setting of the host
    (/sys/kernel/mm/damon), observed on virtual machines that return memory to their host.
    """
    for state in Path("/sys/kernel/mm/damon/admin/kdamonds").glob("*/state"):
        if _choice(state) == "on":
            return True
    return False


def host_settings() -> dict[str, object]:
    """Return the host's settings of memory management; the value of an absent setting is None.

    Sizes are in bytes.  A THP setting is the selected word (``always``, ``madvise``, …);
    ``thp_sizes`` maps the size of a huge page to its setting.
    """
    thp = Path("/sys/kernel/mm/transparent_hugepage")
    vm = Path("/proc/sys/vm")
    memory = {
        name.rstrip(":"): int(value) * 1024
        for name, value, *_unit in map(str.split, Path("/proc/meminfo").read_text().splitlines())
    }
    return {
        "kernel": kernel_version(),
        "release": os.uname().release,
        "overcommit_memory": _number(vm / "overcommit_memory"),
        "overcommit_ratio": _number(vm / "overcommit_ratio"),
        "overcommit_kbytes": _number(vm / "overcommit_kbytes"),
        "user_reserve_kbytes": _number(vm / "user_reserve_kbytes"),
        "admin_reserve_kbytes": _number(vm / "admin_reserve_kbytes"),
        "max_map_count": _number(vm / "max_map_count"),
        "mmap_min_addr": _number(vm / "mmap_min_addr"),
        "legacy_va_layout": _number(vm / "legacy_va_layout"),
        "randomize_va_space": _number(Path("/proc/sys/kernel/randomize_va_space")),
        "numa_balancing": _number(Path("/proc/sys/kernel/numa_balancing")),
        "ksm_run": _number(Path("/sys/kernel/mm/ksm/run")),
        "thp_enabled": _choice(thp / "enabled"),
        "thp_defrag": _choice(thp / "defrag"),
        "thp_shmem_enabled": _choice(thp / "shmem_enabled"),
        "thp_use_zero_page": _number(thp / "use_zero_page"),
        "thp_sizes": {
            int(re.search(r"(\d+)kB", folder.name)[1]) * 1024: _choice(folder / "enabled")
            for folder in sorted(thp.glob("hugepages-*kB"))
        },
        "khugepaged_defrag": _number(thp / "khugepaged" / "defrag"),
        "khugepaged_scan_sleep_ms": _number(thp / "khugepaged" / "scan_sleep_millisecs"),
        "memory": memory["MemTotal"],
        "swap": memory["SwapTotal"],
        "commit_limit": memory["CommitLimit"],
        "committed": memory["Committed_AS"],
    }


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _choice(path: Path) -> str | None:
    """Return the selected value of a setting, the word in brackets."""
    try:
        found = re.search(r"\[(\S+)\]", path.read_text())
    except OSError:
        return None
    return found[1] if found else None

"""A slow model of a Linux process with private anonymous memory, page by page.

It shares nothing with kernel/, not even constants.  Its only table is ``area``: page number ->
:class:`Area`.  All pages of one contiguous run share an Area object, so the VMAs follow from the
table: a split gives part of a run a new object, a merge lets two runs share one.  All counts that
follow from the tables are recomputed from them each time.
"""

from dataclasses import dataclass, replace

EPERM, ENOMEM, EEXIST, EINVAL = 1, 12, 17, 22
READ, WRITE, EXEC = 1, 2, 4
SHARED, PRIVATE, FIXED, ANONYMOUS = 0x1, 0x2, 0x10, 0x20
NORESERVE, POPULATE, FIXED_NOREPLACE = 0x4000, 0x8000, 0x100000
DONTNEED = 4
SIGKILL, SIGSEGV = 9, 11
MAPERR, ACCERR = 1, 2
GUARD_PAGES = 256


class Killed(Exception):
    """Death of the process: signal, code, address, and 1 for a write."""

    def __init__(self, signal, code, address, write):
        super().__init__(signal, code, hex(address), write)
        self.why = (signal, code, address, write)


@dataclass(eq=False)
class Area:
    """Attributes shared by all pages of one area; areas are equal only to themselves."""

    prot: int
    account: bool = False
    noreserve: bool = False
    stack: bool = False
    file: str = ""
    special: bool = False  # created by the kernel: never split
    pfnmap: bool = False  # vvar: its pages are never freed
    anon: int = 0

    def like(self, other):
        """Return True if the two differ at most in protection."""
        return (self.account, self.noreserve, self.stack, self.file) == (
            other.account,
            other.noreserve,
            other.stack,
            other.file,
        )

    def merges(self, other):
        """Return True if the two may merge."""
        return (
            self.like(other)
            and self.prot == other.prot
            and not self.file
            and (self.anon == 0 or other.anon == 0 or self.anon == other.anon)
        )

    @property
    def is_data(self):
        """Return True if RLIMIT_DATA counts the area."""
        return bool(self.prot & WRITE) and not self.stack


class Oracle:
    """A process with ``areas``: (start, end, Area) in bytes; limits in bytes, 0 for none."""

    task_size = 0x7FFFFFFFF000
    vdso_end = 0x7FFFF7FFF000
    min_addr = 0x10000
    admin_reserve, user_reserve = 8 << 20, 128 << 20

    def __init__(self, page, areas, data, brk, *, rlim_as=0, rlim_data=0, memory=0, overcommit=2):
        self.page = page
        self.fan_out = page // 8
        self.task_size = self.task_size // page * page
        self.mmap_base = self.vdso_end // page * page
        self.area = {p: a for lo, hi, a in areas for p in range(lo // page, hi // page)}
        self.data = data
        self.start_brk = self.break_ = brk
        self.rlim_as, self.rlim_data = rlim_as, rlim_data
        self.memory, self.overcommit = memory // page, overcommit
        self.max_map_count = 65530
        self.frames, self.zeros, self.filed, self.words = set(), set(), set(), {}
        self.tables = [set(), set(), set()]  # PTE, PMD and PUD pages by slot
        self.anons = 0
        names = (
            "minflt write read cow file populate zapped brk mmap munmap madvise failed loads stores"
        )
        self.counts = dict.fromkeys(names.split(), 0)
        self.counts |= {"payload_loads": 0, "payload_stores": 0}
        self.peaks = {"vm": 0, "rss": 0, "tables": 0}
        self._runs = None
        self._note_peaks()

    # --- Reading the tables ----------------------------------------------------------------------

    def runs(self):
        """Return [(first page, end page, Area)] in address order; the end is exclusive."""
        if self._runs is None:
            runs = []
            for p in sorted(self.area):
                if runs and runs[-1][1] == p and runs[-1][2] is self.area[p]:
                    runs[-1][1] = p + 1
                else:
                    runs.append([p, p + 1, self.area[p]])
            self._runs = runs
        return self._runs

    def pages(self, wanted=lambda area: True):
        """Return the number of mapped pages whose area is ``wanted``."""
        return sum(hi - lo for lo, hi, a in self.runs() if wanted(a))

    def overlap(self, first, end, wanted=lambda area: True):
        """Return the number of pages in [first, end) whose area is ``wanted``."""
        return sum(max(0, min(hi, end) - max(lo, first)) for lo, hi, a in self.runs() if wanted(a))

    def resident(self):
        """Return {page: 'frame', 'zero' or 'file'}."""
        kinds = {"frame": self.frames, "zero": self.zeros, "file": self.filed}
        return {page: kind for kind, pages in kinds.items() for page in pages}

    def state(self):
        """Return all values that a comparison checks, by name."""
        none = self.pages(lambda a: a.prot == 0)
        vm, rss, _ = self._levels()
        return {
            "areas": [
                (lo * self.page, hi * self.page, a.prot, a.account, a.noreserve, a.stack)
                for lo, hi, a in self.runs()
            ],
            "brk": self.break_,
            "map_count": len(self.runs()),
            "total_vm": vm + none,
            "reserved_vm": none,
            "data_vm": self.pages(lambda a: a.is_data),
            "stack_vm": self.pages(lambda a: a.stack),
            "committed": self.pages(lambda a: a.account),
            "rss": rss,
            "rss_file": len(self.filed),
            "nr_ptes": len(self.tables[0]),
            "nr_pmds": len(self.tables[1]),
            "nr_puds": len(self.tables[2]),
            "hiwater_vm": self.peaks["vm"],
            "hiwater_rss": self.peaks["rss"],
            "hiwater_pgtables": self.peaks["tables"],
            "minflt": self.counts["minflt"],
            "zapped": self.counts["zapped"],
            "loads": self.counts["loads"],
            "stores": self.counts["stores"],
            "payload_loads": self.counts["payload_loads"],
            "payload_stores": self.counts["payload_stores"],
            "nr_failed": self.counts["failed"],
            **{f"flt_{c}": self.counts[c] for c in ("write", "read", "cow", "file", "populate")},
            **{f"nr_{c}": self.counts[c] for c in ("brk", "mmap", "munmap", "madvise")},
        }

    def _levels(self):
        vm = self.pages(lambda a: a.prot != 0)
        return vm, len(self.frames), sum(map(len, self.tables))

    def _note_peaks(self):
        for name, level in zip(self.peaks, self._levels(), strict=True):
            self.peaks[name] = max(self.peaks[name], level)

    def _up(self, address):
        return -(-address // self.page)

    # --- Areas -----------------------------------------------------------------------------------

    def _cut(self, first, end):
        """Split the areas that straddle the ends of [first, end); return 0 or a negative errno."""
        get = self.area.get
        low = get(first) is not None and get(first) is get(first - 1)
        high = get(end) is not None and get(end) is get(end - 1)
        hole = low and high and get(first) is get(end)
        if low and get(first).special:
            return -EINVAL
        if hole and len(self.runs()) >= self.max_map_count:
            return -ENOMEM
        if low:
            self._new_token(first)
        if high and get(end).special:
            return -EINVAL
        if high:
            self._new_token(end)
        return 0

    def _new_token(self, page):
        old = self.area[page]
        new = replace(old)
        while self.area.get(page) is old:
            self.area[page] = new
            page += 1
        self._runs = None

    def _join(self, page):
        """Merge the areas on both sides of the start of ``page`` if they may merge."""
        below, above = self.area.get(page - 1), self.area.get(page)
        if below and above and below is not above and below.merges(above):
            below.anon = below.anon or above.anon
            while self.area.get(page) is above:
                self.area[page] = below
                page += 1
            self._runs = None

    def _unmap(self, first, end):
        for p in range(first, end):
            self._zap(p)
            self.area.pop(p, None)
        self._runs = None
        for level, tables in enumerate(self.tables, 1):
            size = self.fan_out**level
            for slot in [s for s in tables if s * size < end and first < (s + 1) * size]:
                if not self.overlap(slot * size, (slot + 1) * size):
                    tables.discard(slot)

    def _zap(self, page):
        if page in self.frames:
            self.frames.discard(page)
            self.counts["zapped"] += 1
        self.zeros.discard(page)
        self.filed.discard(page)
        start = page * self.page
        for address in [a for a in self.words if start <= a < start + self.page]:
            del self.words[address]

    def _allowed(self, area, first, end):
        """Return True if the limits allow ``area`` at [first, end), replacing existing areas."""
        pages = end - first
        more = pages - self.overlap(first, end)
        if self.rlim_as and self.pages() + more > self.rlim_as // self.page:
            return False
        data = self.pages(lambda a: a.is_data)
        if self.rlim_data and area.is_data and data + more > self.rlim_data // self.page:
            return False
        charged = pages - self.overlap(first, end, lambda a: a.account)
        if not area.account or not self.memory or not charged or self.overcommit == 1:
            return True
        if self.overcommit == 0:
            return charged <= self.memory
        share = self.memory // 32
        allowed = self.memory - min(share, self.admin_reserve // self.page)
        allowed -= min(self.pages() // 32, share, self.user_reserve // self.page)
        return self.pages(lambda a: a.account) + charged < allowed

    def _enter(self, area, first, end):
        for p in range(first, end):
            self.area[p] = area
        self._runs = None

    # --- System calls ----------------------------------------------------------------------------

    def _counted(self, name, result, failed):
        self.counts[name] += 1
        self.counts["failed"] += failed
        self._note_peaks()
        return result

    def brk(self, address):
        """Move the break; return the resulting break."""
        if self._move_break(address):
            self.break_ = address
        return self._counted("brk", self.break_, address != 0 and self.break_ != address)

    def sbrk(self, increment):
        """Move the break; return the old break or -ENOMEM."""
        old = self.break_
        if increment and self.brk(old + increment) != old + increment:
            return -ENOMEM
        return old

    def _move_break(self, address):
        if not self.start_brk <= address <= self.task_size:
            return False
        if self.rlim_data and address - self.start_brk + self.data > self.rlim_data:
            return False
        old, new = self._up(self.break_), self._up(address)
        if new <= old:
            if new < old and (not self.overlap(new, old) or self._cut(new, old)):
                return False
            self._unmap(new, old)
            return True
        above = min(
            (lo - GUARD_PAGES * a.stack for lo, hi, a in self.runs() if hi > old), default=1e99
        )
        area = Area(READ | WRITE, account=True)
        if above < new + 1 or len(self.runs()) > self.max_map_count:
            return False
        if not self._allowed(area, old, new):
            return False
        self._enter(area, old, new)
        if old * self.page > self.start_brk:
            self._join(old)
        return True

    def mmap(self, address, length, prot, flags):
        """Map memory; return the address or a negative errno."""
        result = self._mmap(address, length, prot, flags)
        return self._counted("mmap", result, result < 0)

    def _mmap(self, address, length, prot, flags):
        if length == 0:
            return -EINVAL
        if not 0 < length <= self.task_size or len(self.runs()) > self.max_map_count:
            return -ENOMEM
        pages = self._up(length)
        if flags & (FIXED | FIXED_NOREPLACE):
            if not 0 <= address <= self.task_size - pages * self.page:
                return -ENOMEM
            if address % self.page:
                return -EINVAL
            if address < self.min_addr:
                return -EPERM
            first = address // self.page
            if flags & FIXED_NOREPLACE and self.overlap(first, first + pages):
                return -EEXIST
        else:
            first = self._choose(address // self.page, pages)
            if first is None:
                return -ENOMEM
        if not flags & PRIVATE:
            return -EINVAL
        end = first + pages
        noreserve = bool(flags & NORESERVE) and self.overcommit != 2
        area = Area(prot, account=bool(prot & WRITE) and not noreserve, noreserve=noreserve)
        error = self._cut(first, end)
        if error or not self._allowed(area, first, end):
            return error or -ENOMEM
        self._unmap(first, end)
        self._enter(area, first, end)
        self._join(first)
        self._join(end)
        if flags & POPULATE and prot:
            for p in range(first, end):
                self._map_page(p, bool(prot & WRITE), "populate")
        return first * self.page

    def _choose(self, hint, pages):
        """Return the first page of a free gap; None if there is none."""
        minimum, task = self.min_addr // self.page, self.task_size // self.page
        if hint:
            if 0 < hint < minimum:
                hint = minimum
            if 0 < hint <= task - pages and self._fits(hint, pages):
                return hint
        elif pages % self.fan_out == 0:
            first = self._highest(pages + self.fan_out)
            if first is not None:
                return first + (-first % self.fan_out or self.fan_out)
        return self._highest(pages)

    def _fits(self, first, pages):
        above = [(lo, a) for lo, hi, a in self.runs() if hi > first]
        if not above:
            return True
        low, area = above[0]
        return first + pages <= low - GUARD_PAGES * area.stack

    def _highest(self, pages):
        """Return the highest gap: it ends at mmap_base or at the start of an area or its guard."""
        base = self.mmap_base // self.page
        ends = [base] + [lo - GUARD_PAGES * a.stack for lo, hi, a in self.runs()]
        starts = [end - pages for end in ends if end <= base]
        minimum = self.min_addr // self.page
        return max((s for s in starts if s >= minimum and self._fits(s, pages)), default=None)

    def munmap(self, address, length):
        """Unmap a range; return 0 or a negative errno."""
        result = self._munmap(address, length)
        return self._counted("munmap", result, result < 0)

    def _munmap(self, address, length):
        if address % self.page or length <= 0 or address < 0 or address + length > self.task_size:
            return -EINVAL
        first, end = address // self.page, self._up(address + length)
        if self.overlap(first, end) == 0:
            return 0
        error = self._cut(first, end)
        if error:
            return error
        self._unmap(first, end)
        return 0

    def madvise(self, address, length, advice):
        """Apply advice; return 0 or a negative errno."""
        result = self._madvise(address, length, advice)
        return self._counted("madvise", result, result < 0)

    def _madvise(self, address, length, advice):
        if advice != DONTNEED or address % self.page or length < 0:
            return -EINVAL
        first, end = address // self.page, self._up(address + length)
        for lo, hi, area in self.runs():
            start, stop = max(lo, first), min(hi, end)
            if start < stop and area.pfnmap:
                return -EINVAL
            for p in range(start, stop):
                self._zap(p)
            fan = self.fan_out
            self.tables[0] -= {
                s for s in self.tables[0] if start <= s * fan and (s + 1) * fan <= stop
            }
        return 0 if self.overlap(first, end) == end - first else -ENOMEM

    # --- Faults ----------------------------------------------------------------------------------

    def _map_page(self, page, write, cause):
        for level, tables in enumerate(self.tables, 1):
            tables.add(page // self.fan_out**level)
        if write:
            self._give_anon(page)
            self.zeros.discard(page)
            self.filed.discard(page)
            self._need_frame(page)
            self.frames.add(page)
        elif self.area[page].file:
            self._need_frame(page)
            self.filed.add(page)
        else:
            self.zeros.add(page)
        self.counts["minflt"] += 1
        self.counts[cause] += 1

    def _need_frame(self, page):
        if self.memory and len(self.frames) + len(self.filed) >= self.memory:
            raise Killed(SIGKILL, 0, page * self.page, 1)

    def _give_anon(self, page):
        own = self.area[page]
        if own.anon:
            return
        lo, hi = next((lo, hi) for lo, hi, a in self.runs() if a is own)
        for other in (self.area.get(hi), self.area.get(lo - 1)):
            if other and other.anon and own.like(other):
                own.anon = other.anon
                return
        self.anons += 1
        own.anon = self.anons

    def access(self, address, write):
        """Run one access of the program, and the fault that it may cause."""
        page = address // self.page
        if page in self.frames or (not write and (page in self.zeros or page in self.filed)):
            return
        area = self.area.get(page)
        if area is None:
            raise Killed(SIGSEGV, MAPERR, address, write)
        if not area.prot & (WRITE if write else READ | WRITE | EXEC):
            raise Killed(SIGSEGV, ACCERR, address, write)
        cause = "write" if write else "read"
        if area.file:
            cause = "cow" if write else "file"
        elif page in self.zeros:
            cause = "cow"
        try:
            self._map_page(page, write, cause)
        except Killed as killed:
            raise Killed(*killed.why[:2], address, 1) from None
        finally:
            self._note_peaks()

    def touch(self, address, length, write):
        """Access every page of a range as the program does."""
        if length <= 0:
            return 0
        self.counts["payload_stores" if write else "payload_loads"] += -(-length // 8)
        end = address + length
        while address < end:
            self.access(address, write)
            address = (address // self.page + 1) * self.page
        return 0

    def load(self, address):
        """Return a word of allocator metadata."""
        self.counts["loads"] += 1
        self.access(address, 0)
        return self.words.get(address, 0)

    def store(self, address, word):
        """Set a word of allocator metadata."""
        self.counts["stores"] += 1
        self.access(address, 1)
        self.words[address] = word
        return 0

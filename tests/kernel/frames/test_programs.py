"""Random programs: frames are conserved, contents are correct, no translation is stale."""

import random

import pytest

from kernel import uapi
from kernel.engine.jit import disabled
from tests.kernel.frames.process import HUGE, PAGE, Process, at

PRIVATE = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS
ARENA = 4096

#: Operations and their relative frequencies.
KINDS = {
    "store": 20,
    "load": 12,
    "touch": 16,
    "read": 8,
    "mmap": 9,
    "munmap": 5,
    "advise": 18,
    "mprotect": 4,
    "mlock": 4,
    "munlock": 4,
    "mremap": 9,
    "brk": 3,
}
ADVICE = (
    uapi.MADV_DONTNEED,
    uapi.MADV_FREE,
    uapi.MADV_FREE,
    uapi.MADV_COLD,
    uapi.MADV_PAGEOUT,
    uapi.MADV_PAGEOUT,
    uapi.MADV_HUGEPAGE,
    uapi.MADV_NOHUGEPAGE,
    uapi.MADV_POPULATE_READ,
    uapi.MADV_POPULATE_WRITE,
)


class Program:
    """A random program, and the words that its pages must hold.

    ``words``: by page; None if a failed call leaves it undefined.  ``lazy``: pages that may have
    been dropped since MADV_FREE.
    """

    def __init__(self, process, seed):
        self.process, self.rng = process, random.Random(seed)
        self.words, self.lazy, self.serial = {}, set(), 0
        process.call(uapi.NR_MMAP, at(0), ARENA * PAGE, 3, PRIVATE | uapi.MAP_FIXED)

    def range(self, most=2 * HUGE):
        """Return a first page and a number of pages, often at or near the bounds of slots."""
        rng = self.rng
        first = rng.choice((rng.randrange(ARENA), HUGE * rng.randrange(8), rng.randrange(64)))
        first = max(0, first - rng.choice((0, 0, 0, 1, 3)))
        n = rng.choice((1, 1, 2, 5, 40, HUGE, HUGE, 2 * HUGE, rng.randrange(1, 2 * HUGE)))
        return first, min(n, most, ARENA - first)

    def forget(self, first, n, word=0):
        """Expect zeros in the pages, or anything if ``word`` is None."""
        for page in range(first, first + n):
            self.lazy.discard(page)
            if word is None:
                self.words[page] = None
            else:
                self.words.pop(page, None)

    def step(self):
        """Run one operation."""
        kind = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
        getattr(self, f"do_{kind}")()

    def do_store(self):
        page, _ = self.range()
        self.serial += 1
        if self.process.store(page, self.serial) == 0:
            self.words[page] = self.serial
            self.lazy.discard(page)

    def do_load(self):
        known = list(self.words)
        page = self.rng.choice(known) if known and self.rng.random() < 0.8 else self.range()[0]
        word = self.process.load(page)
        if word <= -10000:
            return
        expected = self.words.get(page, 0)
        if expected is not None:
            assert word == expected or (page in self.lazy and word == 0), page
        if page in self.lazy and word == 0:
            self.forget(page, 1)
        else:
            self.words[page] = word

    def do_touch(self):
        self.process.touch(*self.range(700), 1)

    def do_read(self):
        self.process.touch(*self.range(), 0)

    def do_mmap(self):
        first, n = self.range()
        more = self.rng.choice((0, 0, 0, 0, uapi.MAP_POPULATE, uapi.MAP_LOCKED, uapi.MAP_NORESERVE))
        flags = PRIVATE | uapi.MAP_FIXED | more
        done = self.process.call(uapi.NR_MMAP, at(first), n * PAGE, 3, flags)
        self.forget(first, n, 0 if done >= 0 else None)

    def do_munmap(self):
        first, n = self.range(HUGE)
        done = self.process.call(uapi.NR_MUNMAP, at(first), n * PAGE)
        self.forget(first, n, 0 if done >= 0 else None)

    def do_advise(self):
        (first, n), advice = self.range(), self.rng.choice(ADVICE)
        if advice == uapi.MADV_POPULATE_WRITE:
            n = min(n, 300)
        done = self.process.call(uapi.NR_MADVISE, at(first), n * PAGE, advice)
        if advice == uapi.MADV_DONTNEED:
            self.forget(first, n, 0 if done >= 0 else None)
        elif advice == uapi.MADV_FREE:
            self.lazy.update(page for page in range(first, first + n) if page in self.words)

    def do_mprotect(self):
        first, n = self.range()
        self.process.call(uapi.NR_MPROTECT, at(first), n * PAGE, self.rng.choice((3, 3, 1, 0)))

    def do_mlock(self):
        first, n = self.range(self.rng.choice((3, 60, HUGE)))
        self.process.call(uapi.NR_MLOCK, at(first), n * PAGE)

    def do_munlock(self):
        first, n = self.range()
        self.process.call(uapi.NR_MUNLOCK, at(first), n * PAGE)

    def do_mremap(self):
        (first, n), rng = self.range(), self.rng
        to = self.range()[0]
        if rng.random() < 0.6:
            to = to // HUGE * HUGE + first % HUGE
        new = rng.choice((n, n, n, max(1, n // 2)))
        new = min(new, ARENA - to)
        flags = uapi.MREMAP_MAYMOVE | uapi.MREMAP_FIXED
        if new == n and rng.random() < 0.3:
            flags |= uapi.MREMAP_DONTUNMAP
        done = self.process.call(uapi.NR_MREMAP, at(first), n * PAGE, new * PAGE, flags, at(to))
        if done != at(to):
            self.forget(to, new, None)
            self.forget(first, n, None)
            return
        moved = {
            page - first + to: self.words.get(page)
            for page in range(first, first + new)
            if page in self.words
        }
        lazy = {page - first + to for page in range(first, first + new) if page in self.lazy}
        self.forget(first, n)
        self.forget(to, new)
        self.words |= moved
        self.lazy |= lazy

    def do_brk(self):
        mm = self.process.mm
        pages = self.rng.choice((0, 3, 200, 700))
        self.process.call(uapi.NR_BRK, int(mm.start_brk) + pages * PAGE)
        if pages and mm.brk > mm.start_brk:
            begin = (int(mm.start_brk) - at(0)) // PAGE
            self.process.touch(begin, (int(mm.brk) - int(mm.start_brk)) // PAGE, 1)


#: Settings of four programs: MiB of memory and swap, huge pages, fragmentation.
SHAPES = (
    (6, 32, "always", 0),
    (4, 32, "always", 60),
    (3, 4, "never", 0),
    (8, 2, "madvise", 0),
)


@pytest.mark.parametrize("seed", range(len(SHAPES)))
def test_random_programs_conserve_frames(seed):
    memory, swap, thp, fragmentation = SHAPES[seed]
    process = Process(
        memory,
        swap,
        thp=thp,
        fragmentation=fragmentation,
        zone_boundary=4 << 20,
        rlimit_memlock=1 << 20,
        min_free=1 << 17,
    )
    steps, kills = 25 if disabled() else 2500, 0
    program = Program(process, seed)
    for step in range(steps):
        program.step()
        if process.killed:
            kills += 1
            assert process.why().startswith("SIGKILL: out of memory on a page fault at 0x")
            assert process.k.vmstat.oom_kill == 1
            process.machine.reset()
            process.killed = False
            process.verify(0, 1 << 62)
            program = Program(process, seed + 100 * step)
    if not disabled():
        assert bool(kills) == (swap < 32), "little swap, and only that, ends in a kill"
        assert swap < 32 or process.mm.majflt > 1000, "too tame to say anything"


def test_all_frames_are_freed_at_the_end():
    process = Process(4, 16, thp="always")
    program = Program(process, 5)
    for _ in range(5 if disabled() else 300):
        program.step()
    process.call(uapi.NR_MUNMAP, at(0), ARENA * PAGE)
    process.call(uapi.NR_BRK, int(process.mm.start_brk))
    mm = process.mm
    assert (process.k.phys.swap_used, mm.rss) == (0, 0)
    # Tables of the heap: the program's data, which stays mapped, uses the same ones.
    heap = 0 if disabled() else 3
    assert int(process.k.zone[0].free) + heap == process.k.phys.nr_frames

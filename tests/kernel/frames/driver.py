"""Physical memory without a whole process: all functions are called through one compiled entry.

A minimal page-fault handler replaces the real one, so that reclaim can be tested in isolation.
"""

import weakref

import numpy as np

from kernel.conservation import CHECKS, check_counts, check_frames
from kernel.engine.jit import build_once, jit
from kernel.engine.memory import windows
from kernel.engine.record import as_record
from kernel.frames import (
    alloc_frames,
    free_frames,
    free_table_frames,
    init_frames,
    map_frame,
    move_frame,
    munlock_frame,
)
from kernel.huge import folio_of, set_folio, split_huge_slot
from kernel.page import page_of, set_pmd
from kernel.pgtable import alloc_tables
from kernel.swap import move_slot
from kernel.types import (
    ACTIVE,
    INACTIVE,
    LAZY,
    PMD_HUGE,
    PTE_DIRTY,
    PTE_FRAME,
    PTE_HUGE,
    PTE_LAZY,
    PTE_MLOCK,
    PTE_READ,
    PTE_SWAP,
    PTE_WRITE,
    UNEVICTABLE,
    VM_LOCKED,
    VM_READ,
    VM_WRITE,
    kernel_dtype,
)
from kernel.vmscan import balance, get_frame, get_huge_frame, lazy_page, release_page, swap_in

PAGE = 4096
WINDOW_BITS = 32
#: Address at which tests map pages; its page number needs more than 31 bits.
BASE = 0x7FF000000000

CALLS = (
    "init",
    "alloc",
    "free",
    "touch",
    "touch_huge",
    "zap",
    "lazy",
    "split",
    "move",
    "balance",
    "check",
    "check_counts",
    "munlock",
    "free_tables",
)
(
    _INIT,
    _ALLOC,
    _FREE,
    _TOUCH,
    _TOUCH_HUGE,
    _ZAP,
    _LAZY,
    _SPLIT,
    _MOVE,
    _BALANCE,
    _CHECK,
    _CHECK_COUNTS,
    _MUNLOCK,
    _FREE_TABLES,
) = range(len(CALLS))


@jit
def touch(k, addr, write):
    """Access the page of ``addr``; return 1 if it got a new frame, 2 if swapped in, else 0."""
    page = page_of(addr)
    kind = 0
    if k.pte[page] & PTE_SWAP:
        swap_in(k, addr)
        kind = 2
    elif not k.pte[page] & PTE_FRAME:
        alloc_tables(k, addr)
        map_frame(k, get_frame(k, addr), addr)
        k.pte[page] = PTE_FRAME
        k.mm.rss += 1
        kind = 1
    if write:
        f = int(k.pte[page]) & (0xFFFF & ~PTE_LAZY)
        k.pte[page] = f | PTE_READ | PTE_WRITE | PTE_DIRTY
    else:
        k.pte[page] |= PTE_READ
    return kind


@jit
def touch_huge(k, addr, dirty):
    """Map a huge page at ``addr``, whose slot is empty, with all pages dirty if ``dirty``.

    Returns 0 if no block is free.
    """
    alloc_tables(k, addr)
    pfn = get_huge_frame(k)
    if pfn < 0:
        return 0
    set_pmd(k, addr, PMD_HUGE)
    map_frame(k, pfn, addr)
    page = page_of(addr)
    k.mm.folios += 1
    for p in range(page, page + 512):
        k.pte[p] = PTE_FRAME | PTE_HUGE | PTE_READ | PTE_WRITE | (PTE_DIRTY if dirty else 0)
        set_folio(k, p, (k.mm.folios << 9) + p - page)
    k.mm.rss += 512
    return 1


@jit
def zap(k, addr, pages):
    """Unmap the pages; a huge page only as a whole."""
    for page in range(page_of(addr), page_of(addr) + pages):
        f = int(k.pte[page])
        release_page(k, page, f)
        set_folio(k, page, 0)
        if f & PTE_FRAME:
            k.mm.rss -= 1
        k.pte[page] = 0


@jit
def lazy(k, addr, pages):
    """Free mapped pages lazily, as MADV_FREE does."""
    for page in range(page_of(addr), page_of(addr) + pages):
        f = int(k.pte[page])
        if f & PTE_FRAME:
            k.pte[page] = f & (0xFFFF & ~(PTE_READ | PTE_WRITE)) | PTE_LAZY
            lazy_page(k, page)


@jit
def move(k, addr, to):
    """Move a huge, mapped or swapped-out page, as mremap does."""
    old = page_of(addr)
    new = page_of(to)
    f = int(k.pte[old])
    if f & PTE_SWAP:
        alloc_tables(k, to)
        move_slot(k, old, to)
        k.pte[new] = k.pte[old]
        k.pte[old] = 0
    elif f & PTE_FRAME:
        alloc_tables(k, to)
        for n in range(512 if f & PTE_HUGE else 1):
            move_frame(k, old + n, to + (n << 12))
            set_folio(k, new + n, folio_of(k, old + n))
            set_folio(k, old + n, 0)
            k.pte[new + n] = k.pte[old + n]
            k.pte[old + n] = 0


@jit
def munlock(k, addr, pages):
    """Unlock the pages."""
    for page in range(page_of(addr), page_of(addr) + pages):
        k.pte[page] &= 0xFFFF ^ PTE_MLOCK
        if k.pte[page] & PTE_FRAME:
            munlock_frame(k, page)


@jit
def enter(k, call, a, b, c, d, e):
    """Run one call of CALLS; return its result, 0 for a call without one."""
    if call == _INIT:
        init_frames(k, a, b, c, d, e)
    elif call == _ALLOC:
        return alloc_frames(k, a, b)
    elif call == _FREE:
        free_frames(k, a, b)
    elif call == _TOUCH:
        return touch(k, a, b)
    elif call == _TOUCH_HUGE:
        return touch_huge(k, a, b)
    elif call == _ZAP:
        zap(k, a, b)
    elif call == _LAZY:
        lazy(k, a, b)
    elif call == _SPLIT:
        split_huge_slot(k, a)
    elif call == _MOVE:
        move(k, a, b)
    elif call == _BALANCE:
        balance(k)
    elif call == _CHECK:
        return check_frames(k)
    elif call == _CHECK_COUNTS:
        return check_counts(k)
    elif call == _MUNLOCK:
        munlock(k, a, b)
    elif call == _FREE_TABLES:
        free_table_frames(k, a)
    return 0


def compiled():
    """Return the compiled entry."""
    return build_once(enter, PAGE_SHIFT=12, WINDOW_BITS=WINDOW_BITS, FRAMES=True)


class Memory:
    """A machine of ``frames`` frames and ``swap`` slots; one writable area of 64 MiB at BASE."""

    def __init__(self, frames, *, boundary=1 << 22, min_free=0, percent=0, swap=0):
        self.k = as_record(np.zeros(1, kernel_dtype(12, WINDOW_BITS, 64, frames=True)))
        self._words = {}
        for name in ("pfn", "folio"):
            words = np.zeros(1 << (WINDOW_BITS - 12), "i8")
            self.k[name] = words.ctypes.data
            windows[words.ctypes.data] = self._words[name] = words
            weakref.finalize(self, windows.pop, words.ctypes.data)
        self.k.mm.map_count = 2
        for i in range(2):  # the upper area is the locked one
            v = self.k.vma[i]
            v.vm_start = BASE + (i << 25)
            v.vm_end = BASE + ((i + 1) << 25)
            v.vm_flags = VM_READ | VM_WRITE | (VM_LOCKED if i else 0)
        self.init(frames, boundary, min_free, percent, swap)

    def __getattr__(self, name):
        if name not in CALLS:
            raise AttributeError(name)
        return lambda *args: compiled()(self.k, CALLS.index(name), *args, *[0] * (5 - len(args)))

    def verify(self):
        """Assert that all frames are conserved."""
        code = self.check()
        assert code == 0, f"{CHECKS[code]}: {self.k.phys.bad}"
        assert self.check_counts() == 0

    def blocks(self, zone=None):
        """Return the free blocks as {(first frame, order)}, found by walking the lists."""
        found = set()
        for n, area in enumerate(self.k.free_area):
            pfn = int(area.head)
            while pfn >= 0:
                if zone in (None, n // 14):
                    found.add((pfn, n % 14))
                pfn = int(self.k.frame[pfn].next)
        return found

    def listed(self, state):
        """Return the page numbers, relative to BASE, of the blocks on a list from head to tail."""
        pages = []
        pfn = int(self.k.lru[state].head)
        while pfn >= 0:
            f = self.k.frame[pfn]
            pages.append((int(f.page_high) << 31) + int(f.page_low) - (BASE >> 12))
            pfn = int(f.next)
        return pages

    def lists(self):
        """Return the four lists of mapped pages."""
        return {
            "inactive": self.listed(INACTIVE),
            "active": self.listed(ACTIVE),
            "lazy": self.listed(LAZY),
            "unevictable": self.listed(UNEVICTABLE),
        }

    def state(self, page):
        """Return 'frame', 'swap' or '' for page number ``page``, relative to BASE."""
        f = int(self.k.pte[((BASE >> 12) + page) & ((1 << (WINDOW_BITS - 12)) - 1)])
        return "frame" if f & PTE_FRAME else "swap" if f & PTE_SWAP else ""


def address(page):
    """Return the address of page number ``page``, relative to BASE."""
    return BASE + page * PAGE

"""The hook that every simulated access passes through, and the loads and stores built on it.

Addresses are real Linux addresses.  A reserved window of 2**WINDOW_BITS bytes holds their words,
indexed by ``addr & (2**WINDOW_BITS - 1)``: one AND, no table walk.  kernel.mmap refuses a mapping
whose folded range overlaps that of another, so the fold of a mapped address is never ambiguous.
The AND cannot detect a wild address at a multiple of 2**WINDOW_BITS from a resident page.

By default the hook is only the page check.  Instruments that watch accesses (the TLB; cache lines
or an event log in future) attach here, each enabled by a compile-time switch.
"""

from kernel.engine.jit import jit
from kernel.engine.memory import (
    load_half_word,
    load_word,
    prefetch_word,
    store_half_word,
    store_word,
)
from kernel.engine.switches import CHECKED, COUNT, FRAMES, PAYLOAD
from kernel.fault import handle_mm_fault
from kernel.page import fold, page_of, page_size, page_start
from kernel.task import kill
from kernel.tlb import tlb_access
from kernel.types import BUS_ADRALN, PTE_HUGE, PTE_READ, PTE_STORE, PTE_WORDS, PTE_WRITE, SIGBUS


@jit(inline=True)
def make_present(k, addr, write):
    """Make ``addr`` accessible to the program (write: 1 or 0); fault where the MMU would."""
    need = PTE_WRITE if write else PTE_READ
    if not k.pte[page_of(addr)] & need:
        handle_mm_fault(k, addr, write)


@jit(inline=True, when="TLB")
def translate(k, addr):
    """Look up ``addr``, whose page is mapped, in the TLBs and count hits, misses and walks."""
    tlb_access(k, addr, k.pte[page_of(addr)] & PTE_HUGE)


@jit(inline=True)
def access(k, addr, write):
    """Access ``addr`` as the program does (write: 1 or 0); every access instrument counts it."""
    make_present(k, addr, write)
    translate(k, addr)


@jit(cold=True)
def _prepare_store(k, addr):
    """Make the page of ``addr`` writable and mark it as holding host data to clear later."""
    make_present(k, addr, 1)
    k.pte[page_of(addr)] |= PTE_STORE | PTE_WORDS


@jit(inline=True)
def _is_held(held):
    """Return True if the page check can be skipped for a page that the caller holds.

    False under FRAMES, where any fault in between may reclaim the frame, and under CHECKED.
    """
    return held and not FRAMES and not CHECKED


@jit(inline=True)
def hold(k, addr):
    """Prepare the page of ``addr``, already stored to before, for accesses with ``held=True``.

    Use it for words that are loaded and then stored: the page state is checked once instead of at
    every access.  Valid until the allocator calls the kernel or returns.
    """
    if _is_held(True) and not k.pte[page_of(addr)] & PTE_STORE:
        _prepare_store(k, addr)


@jit(inline=True)
def _loads(k, addr, size, held):
    """Check, count and translate an allocator's load of ``size`` bytes at aligned ``addr``."""
    if CHECKED and addr & (size - 1):
        kill(k, SIGBUS, BUS_ADRALN, addr, 0)
    if COUNT:
        k.mm.loads += 1
    if not _is_held(held):
        make_present(k, addr, 0)
    translate(k, addr)


@jit(inline=True)
def _stores(k, addr, size, held):
    """Check, count and translate an allocator's store of ``size`` bytes at aligned ``addr``."""
    if CHECKED and addr & (size - 1):
        kill(k, SIGBUS, BUS_ADRALN, addr, 1)
    if COUNT:
        k.mm.stores += 1
    if not _is_held(held) and not k.pte[page_of(addr)] & PTE_STORE:
        _prepare_store(k, addr)
    translate(k, addr)


@jit(inline=True)
def load(k, addr, held=False):
    """Return the 8-byte metadata word at ``addr`` (a multiple of 8)."""
    _loads(k, addr, 8, held)
    return load_word(k.window, fold(addr) >> 3)


@jit(inline=True)
def store(k, addr, word, held=False):
    """Set the 8-byte metadata word at ``addr`` (a multiple of 8)."""
    _stores(k, addr, 8, held)
    store_word(k.window, fold(addr) >> 3, word)


@jit(inline=True)
def load_half(k, addr, held=False):
    """Return the 2-byte metadata value at ``addr`` (a multiple of 2), 0 to 65535."""
    _loads(k, addr, 2, held)
    return load_half_word(k.window, fold(addr) >> 1)


@jit(inline=True)
def store_half(k, addr, value, held=False):
    """Set the 2-byte metadata value at ``addr`` (a multiple of 2) to ``value``, 0 to 65535."""
    _stores(k, addr, 2, held)
    store_half_word(k.window, fold(addr) >> 1, value)


@jit(inline=True)
def prefetch(k, addr):
    """Prefetch into the host's caches for a later store near ``addr``; not a simulated access."""
    prefetch_word(k.window, fold(addr) >> 3)


@jit
def touch(k, addr, length, write):
    """Read or write ``length`` bytes of payload as the program does: fault and count words."""
    if length <= 0:
        return
    mm = k.mm
    words = (length + 7) >> 3
    if write:
        mm.payload_stores += words
    else:
        mm.payload_loads += words
    end = addr + length
    while addr < end:
        access(k, addr, write)
        addr = page_start(addr) + page_size()


@jit
def copy(k, dst, src, length):
    """Copy ``length`` bytes of payload (memcpy): dst and src are multiples of 8, no overlap."""
    touch(k, src, length, 0)
    touch(k, dst, length, 1)
    if PAYLOAD:
        for offset in range(0, length, 8):
            poke(k, dst + offset, load_word(k.window, fold(src + offset) >> 3))


@jit
def clear(k, addr, length):
    """Zero ``length`` bytes of payload at ``addr``, a multiple of 8 (memset)."""
    touch(k, addr, length, 1)
    if PAYLOAD:
        for offset in range(0, length, 8):
            poke(k, addr + offset, 0)


@jit
def poke(k, addr, word):
    """Store a payload word in host memory without counting it (for content checks)."""
    if not k.pte[page_of(addr)] & PTE_STORE:
        _prepare_store(k, addr)
    store_word(k.window, fold(addr) >> 3, word)


@jit
def peek(k, addr):
    """Return a payload word from host memory without counting it (for content checks)."""
    make_present(k, addr, 0)
    return load_word(k.window, fold(addr) >> 3)

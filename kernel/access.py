"""The one hook that every simulated access passes, and the loads and stores built on it.

Addresses are real Linux addresses.  A reserved window of 2**WINDOW_BITS bytes holds their words,
indexed by ``addr & (2**WINDOW_BITS - 1)``: one AND, no table walk.  Two areas whose folds collide
are refused when they are mapped (kernel.mmap), so the fold of a mapped address is never ambiguous.
What that AND cannot see is a wild address a multiple of 2**WINDOW_BITS from a resident page.

The hook is nothing but the page check.  What watches accesses (the TLB; one day cache lines, an
event log) goes here, behind a compile-time switch.
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
    """Make ``addr`` accessible to the program (write: 1 or 0), faulting as the MMU would."""
    need = PTE_WRITE if write else PTE_READ
    if not k.pte[page_of(addr)] & need:
        handle_mm_fault(k, addr, write)


@jit(inline=True, when="TLB")
def translate(k, addr):
    """Count the translation of ``addr``, whose page is mapped."""
    tlb_access(k, addr, k.pte[page_of(addr)] & PTE_HUGE)


@jit(inline=True)
def access(k, addr, write):
    """One access of the program to ``addr`` (write: 1 or 0), seen by all that watches accesses."""
    make_present(k, addr, write)
    translate(k, addr)


@jit(cold=True)
def _prepare_store(k, addr):
    """Make a page fit for real words: writable, and remembered as one to clear later."""
    make_present(k, addr, 1)
    k.pte[page_of(addr)] |= PTE_STORE | PTE_WORDS


@jit(inline=True)
def _is_held(held):
    """Whether a page need not be looked at again: a frame may go with any fault in between."""
    return held and not FRAMES and not CHECKED


@jit(inline=True)
def hold(k, addr):
    """Make the page at ``addr``, which was stored to before, ready for loads and stores ``held``.

    For words that are loaded and soon stored: the page's state is looked at once, not every time.
    Holds until the allocator calls the kernel or returns.
    """
    if _is_held(True) and not k.pte[page_of(addr)] & PTE_STORE:
        _prepare_store(k, addr)


@jit(inline=True)
def _loads(k, addr, size, held):
    """Let the allocator load ``size`` bytes at ``addr``, a multiple of it."""
    if CHECKED and addr & (size - 1):
        kill(k, SIGBUS, BUS_ADRALN, addr, 0)
    if COUNT:
        k.mm.loads += 1
    if not _is_held(held):
        make_present(k, addr, 0)
    translate(k, addr)


@jit(inline=True)
def _stores(k, addr, size, held):
    """Let the allocator store ``size`` bytes at ``addr``, a multiple of it."""
    if CHECKED and addr & (size - 1):
        kill(k, SIGBUS, BUS_ADRALN, addr, 1)
    if COUNT:
        k.mm.stores += 1
    if not _is_held(held) and not k.pte[page_of(addr)] & PTE_STORE:
        _prepare_store(k, addr)
    translate(k, addr)


@jit(inline=True)
def load(k, addr, held=False):
    """Return the 8-byte word at ``addr`` (a multiple of 8) of the allocator's metadata."""
    _loads(k, addr, 8, held)
    return load_word(k.window, fold(addr) >> 3)


@jit(inline=True)
def store(k, addr, word, held=False):
    """Set the 8-byte word at ``addr`` (a multiple of 8) of the allocator's metadata."""
    _stores(k, addr, 8, held)
    store_word(k.window, fold(addr) >> 3, word)


@jit(inline=True)
def load_half(k, addr, held=False):
    """Return the 2 bytes at ``addr`` (a multiple of 2) of the allocator's metadata: 0 to 65535."""
    _loads(k, addr, 2, held)
    return load_half_word(k.window, fold(addr) >> 1)


@jit(inline=True)
def store_half(k, addr, value, held=False):
    """Set the 2 bytes at ``addr`` (a multiple of 2) of the allocator's metadata: 0 to 65535."""
    _stores(k, addr, 2, held)
    store_half_word(k.window, fold(addr) >> 1, value)


@jit(inline=True)
def prefetch(k, addr):
    """Warm the host's caches for a coming store near ``addr``; no access of the model."""
    prefetch_word(k.window, fold(addr) >> 3)


@jit
def touch(k, addr, length, write):
    """The program reads or writes ``length`` bytes of its own block: faults, counted words."""
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
    """memcpy of payload between blocks that do not overlap: dst, src multiples of 8."""
    touch(k, src, length, 0)
    touch(k, dst, length, 1)
    if PAYLOAD:
        for offset in range(0, length, 8):
            poke(k, dst + offset, load_word(k.window, fold(src + offset) >> 3))


@jit
def clear(k, addr, length):
    """memset(addr, 0, length) of payload, addr a multiple of 8."""
    touch(k, addr, length, 1)
    if PAYLOAD:
        for offset in range(0, length, 8):
            poke(k, addr + offset, 0)


@jit
def poke(k, addr, word):
    """Set a word of payload for real, outside all counters (content checks)."""
    if not k.pte[page_of(addr)] & PTE_STORE:
        _prepare_store(k, addr)
    store_word(k.window, fold(addr) >> 3, word)


@jit
def peek(k, addr):
    """Return a word of payload, outside all counters (content checks)."""
    make_present(k, addr, 0)
    return load_word(k.window, fold(addr) >> 3)

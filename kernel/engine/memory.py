"""Words of simulated memory, accessed by a base address instead of through an array.

Each access is one machine instruction in compiled code (kernel.engine.link binds these names to
intrinsics); the functions below define their results and run with the JIT off.  An array argument
would pass seven machine words at every call; with a base address the whole kernel state is one
pointer.

Callers fold the address first (kernel.page), so ``index`` is always inside the window.
"""

import numpy as np

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT

#: Windows by base address, (2**WINDOW_BITS / 8,) int64; also k.folio and k.pfn, one word per page.
windows: dict[int, np.ndarray] = {}


@jit(intrinsic=True)
def load_word(base, index):
    """Return word ``index`` of the window at address ``base``."""
    return int(windows[int(base)][index])


@jit(intrinsic=True)
def store_word(base, index, word):
    """Set word ``index`` of the window at address ``base``."""
    windows[int(base)][index] = word


@jit(intrinsic=True)
def load_half_word(base, index):
    """Return half-word ``index``, 2 unsigned bytes, of the window at address ``base``."""
    return int(windows[int(base)].view("u2")[index])


@jit(intrinsic=True)
def store_half_word(base, index, value):
    """Set half-word ``index`` of the window at address ``base`` to ``value``, 0 to 65535."""
    windows[int(base)].view("u2")[index] = value


@jit(intrinsic=True)
def prefetch_word(base, index):
    """Prefetch word ``index`` into the host's caches for a write; does nothing with the JIT off."""


@jit(cold=True)
def clear_page(k, page):
    """Zero the words of folded page number ``page``."""
    words = 1 << (PAGE_SHIFT - 3)
    first = page << (PAGE_SHIFT - 3)
    for w in range(first, first + words):
        store_word(k.window, w, 0)


@jit(cold=True)
def copy_page(k, dst, src):
    """Copy the words of folded page number ``src`` to ``dst``."""
    words = 1 << (PAGE_SHIFT - 3)
    for w in range(words):
        store_word(
            k.window,
            (dst << (PAGE_SHIFT - 3)) + w,
            load_word(k.window, (src << (PAGE_SHIFT - 3)) + w),
        )

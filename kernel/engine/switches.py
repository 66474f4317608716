"""Compile-time switches: names that :func:`kernel.engine.jit.build` may bind to another constant.

A compiled function that mentions one of them is specialised for its value, and what the value
rules out is folded away.  The values below are the defaults.  Constants *derived* from a switch
are computed inside functions (the compiler folds them), never at module level, where they would
keep the default.  What runs only where a switch is on is a hook of it, ``@jit(when="FRAMES")``: its
callers do not ask.
"""

#: log2 of the page size in bytes: 12, 14 or 16.
PAGE_SHIFT = 12
#: log2 of the simulated-memory window in bytes; addresses are folded into it (kernel.access).
WINDOW_BITS = 39
#: Count the allocator's simulated loads and stores.
COUNT = True
#: Move and clear real bytes in copy() and clear(); otherwise only pages and counters follow.
PAYLOAD = False
#: Refuse misaligned loads and stores of the allocator's metadata.
CHECKED = False
#: Physical memory (kernel.frames): every page takes a frame, reclaim, swap.
FRAMES = False
#: Translation lookaside buffers (kernel.tlb).
TLB = False

#: Every name in this module that is a switch, in the order of their declaration.
NAMES = ("PAGE_SHIFT", "WINDOW_BITS", "COUNT", "PAYLOAD", "CHECKED", "FRAMES", "TLB")

"""Compile-time switches: names that :func:`kernel.engine.jit.build` can bind to another constant.

A compiled function that uses a switch is specialised for its value, and the compiler removes the
code that the value excludes.  The values below are the defaults.  Compute a constant *derived* from
a switch inside a function (the compiler folds it), never at module level, where it would keep the
default.  A function that only runs if a switch is on is a hook of it, ``@jit(when="FRAMES")``: its
callers do not test the switch.
"""

#: log2 of the page size in bytes: 12, 14 or 16.
PAGE_SHIFT = 12
#: log2 of the simulated-memory window in bytes; addresses are folded into it (kernel.access).
WINDOW_BITS = 39
#: Count the allocator's simulated loads and stores.
COUNT = True
#: Copy and clear host bytes in copy() and clear(); otherwise only page states and counters change.
PAYLOAD = False
#: Refuse misaligned loads and stores of the allocator's metadata.
CHECKED = False
#: Model physical memory (kernel.frames): a frame for every page, reclaim, swap.
FRAMES = False
#: Model translation lookaside buffers (kernel.tlb).
TLB = False

#: Names of all switches, in the order of declaration.
NAMES = ("PAGE_SHIFT", "WINDOW_BITS", "COUNT", "PAYLOAD", "CHECKED", "FRAMES", "TLB")

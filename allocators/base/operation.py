"""Numbers of the operations on an allocator, the same in traces, replays and verifiers.

The first eight are stored in traces (benchmarks.events.parquet): their numbers never change.
:func:`allocators.base.contract.perform` performs an operation.
"""

#: Compiled code may name this module as a whole (kernel.engine.jit).
HEADER = True

MALLOC, FREE, REALLOC, CALLOC, ALIGNED, TOUCH_READ, TOUCH_WRITE, THREAD_END = range(8)
#: Never in a trace.  STRAY is a deliberate misuse: a free of an address that is no live block.
USABLE, TRIM, STRAY, INIT, RESET = range(8, 13)

#: Names of the operations in traces, by number.
OP_NAMES = (
    "malloc",
    "free",
    "realloc",
    "calloc",
    "aligned",
    "touch_read",
    "touch_write",
    "thread_end",
)
#: Operations that return a block.
ALLOCATING = (MALLOC, REALLOC, CALLOC, ALIGNED)
#: The contract's function for each operation; touches have none.
FUNCTIONS = {
    MALLOC: "malloc",
    FREE: "free",
    REALLOC: "realloc",
    CALLOC: "calloc",
    ALIGNED: "aligned_alloc",
    THREAD_END: "thread_exit",
    USABLE: "usable_size",
    TRIM: "trim",
    STRAY: "free",
    INIT: "init",
    RESET: "reset",
}

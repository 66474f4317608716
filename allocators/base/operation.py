"""Numbers of the operations on an allocator, the same in traces, replays and verifiers.

Those in OP_NAMES are stored in traces (benchmarks.events.parquet): their numbers never change.
:func:`allocators.base.contract.perform` performs an operation.
"""

#: Compiled code may name this module as a whole (kernel.engine.jit).
HEADER = True

MALLOC, FREE, REALLOC, CALLOC, ALIGNED, TOUCH_READ, TOUCH_WRITE, THREAD_END = range(8)
#: malloc_trim, mallopt, and the program's own moves of the break.  Like THREAD_END, they concern
#: no object: in a trace, every operation from THREAD_END on has slot -1.
TRIM, MALLOPT, SBRK = range(8, 11)
#: Never in a trace.  STRAY is a deliberate misuse: a free of an address that is no live block.
USABLE, STRAY, INIT, RESET = range(11, 15)

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
    "malloc_trim",
    "mallopt",
    "sbrk",
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

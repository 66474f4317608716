"""What a program asks of its allocator, in one numbering for traces, replays and verifiers.

The first eight are stored in traces (benchmarks.events.parquet): their numbers never change.
:func:`allocators.base.contract.perform` does an operation.
"""

#: Compiled code may name this module as a whole (kernel.engine.jit).
HEADER = True

MALLOC, FREE, REALLOC, CALLOC, ALIGNED, TOUCH_READ, TOUCH_WRITE, THREAD_END = range(8)
#: What no trace has: STRAY is a free of what is no live block, a misuse on purpose.
USABLE, TRIM, STRAY, INIT, RESET = range(8, 13)

#: Those in traces, by number.
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
#: Those that ask for a block.
ALLOCATING = (MALLOC, REALLOC, CALLOC, ALIGNED)
#: The contract's function behind each; a touch has none.
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

"""The compiled half of the verifier: does operations, and checks what one operation can show.

Every live object is filled with a pattern of its own, so that a write into it, a lost copy and a
block handed out twice all show in its words.  The first thing found wrong is written into the
record ``d`` and ends the run; what needs the whole heap at once (overlap, walk) is left to
:mod:`allocators.verify.process`, which sees the tables that :func:`inspect_heap` fills.
"""

import numpy as np

from allocators.base import operation as ops
from allocators.base.contract import (
    MAX_THREADS,
    check,
    free,
    init,
    perform,
    reset,
    usable_size,
    walk,
)
from kernel.access import peek, poke
from kernel.engine.jit import jit
from kernel.engine.switches import PAYLOAD
from kernel.types import VM_READ, VM_WRITE
from kernel.vma import covered

#: Columns of the events, (n, 5) int64: what to do, to which object, and the address that came back.
EVENT_OP, EVENT_SLOT, EVENT_SIZE, EVENT_ALIGNMENT, EVENT_RESULT = range(5)
EVENT_WIDTH = 5
#: Columns of the table of objects, (slots, 4) int64; an address of 0 means that there is none.
OBJECT_ADDRESS, OBJECT_SIZE, OBJECT_USABLE, OBJECT_SEED = range(4)
OBJECT_WIDTH = 4

#: What the driver may be doing beside an operation (allocators.base.operation; STRAY frees the
#: slot's address plus the size).
DOING_CHECK, DOING_WALK, DOING_CONTENTS = range(16, 19)
DOING_NAMES = ops.FUNCTIONS | {
    DOING_CHECK: "check",
    DOING_WALK: "walk",
    DOING_CONTENTS: "looking at contents",
}

#: What a run can find wrong; ``d.detail`` explains (see allocators.verify.process._FOUND).
FOUND_NOTHING, FOUND_NULL, FOUND_NEGATIVE, FOUND_MISALIGNED, FOUND_USABLE = range(5)
FOUND_UNMAPPED, FOUND_DAMAGED, FOUND_NOT_COPIED, FOUND_NOT_ZERO = range(5, 9)
FOUND_CHECK, FOUND_USABLE_CHANGED = range(9, 11)

#: Blocks of up to this many words are filled whole; of larger ones both edges and a few between.
DENSE_WORDS = 32
EDGE_WORDS = 6

#: State of the driver; the fields of what it found are 0 while all is well.
DRIVER = np.dtype(
    [
        ("found", "i8"),  # FOUND_*
        ("address", "i8"),  # of the block that is wrong
        ("detail", "i8"),  # bytes, offset or code, by kind
        ("doing", "i8"),  # an operation or DOING_*: the call that is running
        ("limited", "i8"),  # 1: memory is scarce, NULL is an answer
        ("refused", "i8"),  # requests answered with NULL
        ("serial", "i8"),  # objects born so far; seeds their patterns
        ("rows", "i8"),  # rows of the last walk, may be more than fit
    ]
)


@jit(cold=True)
def find(d, what, address, detail):
    """Write down the first thing found wrong."""
    if d.found == FOUND_NOTHING:
        d.found = what
        d.address = address
        d.detail = detail


@jit(inline=True)
def next_word(i, words):
    """The word after ``i`` that is filled and checked in a block of ``words``."""
    if words <= DENSE_WORDS or i < EDGE_WORDS or i >= words - EDGE_WORDS:
        return i + 1
    return min(i + (words >> 3), words - EDGE_WORDS)


@jit(inline=True)
def pattern(seed, i):
    """Word ``i`` of an object; no product leaves 63 bits."""
    return seed * 0x9E3779B1 ^ i * 0x85EBCA6B


@jit
def fill(k, p, words, seed):
    """Write the pattern into a block of ``words``."""
    i = 0
    while i < words:
        poke(k, p + 8 * i, pattern(seed, i))
        i = next_word(i, words)


@jit
def damaged_word(k, p, words, kept, seed):
    """Index of the first of the ``kept`` words at ``p`` that is not as fill left it, or -1.

    ``words`` is the number that was filled: it decides which words were.
    """
    i = 0
    while i < kept:
        if peek(k, p + 8 * i) != pattern(seed, i):
            return i
        i = next_word(i, words)
    return -1


@jit
def check_contents(k, d, objects, slot):
    """Check that the object still holds what was written."""
    if PAYLOAD:
        p = int(objects[slot, OBJECT_ADDRESS])
        words = int(objects[slot, OBJECT_USABLE]) >> 3
        i = damaged_word(k, p, words, words, int(objects[slot, OBJECT_SEED]))
        if i >= 0:
            find(d, FOUND_DAMAGED, p, 8 * i)


@jit
def check_copied(k, d, objects, slot, q, size):
    """Check that realloc to ``size`` bytes at ``q`` brought along what the object held."""
    words = int(objects[slot, OBJECT_USABLE]) >> 3
    seed = int(objects[slot, OBJECT_SEED])
    kept = min(size, int(objects[slot, OBJECT_SIZE]))
    i = damaged_word(k, q, words, kept >> 3, seed)
    if i < 0 and kept & 7 and kept >> 3 < words <= DENSE_WORDS:
        last = kept >> 3
        if (peek(k, q + 8 * last) ^ pattern(seed, last)) & ((1 << 8 * (kept & 7)) - 1):
            i = last
    if i >= 0:
        find(d, FOUND_NOT_COPIED, q, 8 * i)


@jit
def check_zero(k, d, p, size):
    """Check that calloc's block is clear."""
    words = size >> 3
    i = 0
    while i < words:
        if peek(k, p + 8 * i) != 0:
            find(d, FOUND_NOT_ZERO, p, 8 * i)
            return
        i = next_word(i, words)


@jit
def acceptable(k, d, p, size, usable, alignment):
    """Return whether a new block is aligned, large enough and in writable memory."""
    if p & (alignment - 1):
        find(d, FOUND_MISALIGNED, p, alignment)
    elif usable < size:
        find(d, FOUND_USABLE, p, usable)
    elif not covered(k, p, p + max(usable, 1), VM_READ | VM_WRITE):
        find(d, FOUND_UNMAPPED, p, usable)
    return d.found == FOUND_NOTHING


@jit
def born(k, d, objects, slot, p, size, usable):
    """Enter a block as object ``slot`` and fill it."""
    d.serial += 1
    objects[slot, OBJECT_ADDRESS] = p
    objects[slot, OBJECT_SIZE] = size
    objects[slot, OBJECT_USABLE] = usable
    objects[slot, OBJECT_SEED] = d.serial
    if PAYLOAD:
        fill(k, p, usable >> 3, int(d.serial))


@jit
def allocate(k, a, d, objects, op, slot, size, alignment):
    """Do an event that asks for memory; returns what the allocator answered."""
    old = int(objects[slot, OBJECT_ADDRESS])
    if old:
        check_contents(k, d, objects, slot)
        op = ops.REALLOC
    p = perform(k, a, op, old, size, alignment)
    if p < 0:
        find(d, FOUND_NEGATIVE, p, size)
    elif p == 0:
        d.refused += 1
        if not d.limited:
            find(d, FOUND_NULL, 0, size)
    else:
        d.doing = ops.USABLE
        usable = usable_size(k, a, p)
        if acceptable(k, d, p, size, usable, alignment):
            if PAYLOAD and old:
                check_copied(k, d, objects, slot, p, size)
            elif PAYLOAD and op == ops.CALLOC:
                check_zero(k, d, p, size)
            born(k, d, objects, slot, p, size, usable)
    return p


@jit
def do_event(k, a, d, objects, op, slot, size, alignment):
    """Do one event; returns what the allocator answered, or 0."""
    d.doing = op
    if op in ops.ALLOCATING:
        return allocate(k, a, d, objects, op, slot, size, alignment)
    p = int(objects[slot, OBJECT_ADDRESS])
    if op == ops.INIT:
        init(k, a)
    elif op == ops.STRAY:
        free(k, a, p + size)
    elif op == ops.RESET:
        for i in range(objects.shape[0]):
            objects[i, OBJECT_ADDRESS] = 0
        reset(k, a)
    else:
        if op == ops.FREE and p:
            check_contents(k, d, objects, slot)
            objects[slot, OBJECT_ADDRESS] = 0
        perform(k, a, op, p, 0, 0)
    return 0


@jit
def inspect_heap(k, a, d, objects, rows):
    """Look at every live object, ask the allocator's own check, and list its heap in ``rows``."""
    for slot in range(objects.shape[0]):
        p = int(objects[slot, OBJECT_ADDRESS])
        if p:
            d.doing = DOING_CONTENTS
            check_contents(k, d, objects, slot)
            d.doing = ops.USABLE
            usable = usable_size(k, a, p)
            if usable != objects[slot, OBJECT_USABLE]:
                find(d, FOUND_USABLE_CHANGED, p, usable)
    d.doing = DOING_CHECK
    code = check(k, a)
    if code:
        find(d, FOUND_CHECK, 0, code)
    d.doing = DOING_WALK
    d.rows = walk(k, a, rows)


@jit
def drive(k, a, d, objects, events, rows, begin, end):
    """Do the events [begin, end) until something is found, then inspect if rows has room.

    Returns the number of events done.
    """
    task = k.task
    for i in range(begin, end):
        task.now = i
        turn = i >> 6 & 3
        task.tid = turn if turn < 3 else MAX_THREADS - 1
        events[i, EVENT_RESULT] = do_event(
            k,
            a,
            d,
            objects,
            int(events[i, EVENT_OP]),
            int(events[i, EVENT_SLOT]),
            int(events[i, EVENT_SIZE]),
            int(events[i, EVENT_ALIGNMENT]),
        )
        if d.found:
            return i
    if rows.shape[0]:
        inspect_heap(k, a, d, objects, rows)
    return end

"""Replay loop, specialised and compiled for each allocator, kind of workload and set of switches.

``replay_events`` walks stored events; ``replay_program`` gets each event from a compiled generator
and passes back the address that the allocator returned.  Both hand each event to :func:`apply`,
which plays the program: it calls the allocator, keeps the table of live objects, and touches their
memory according to the setting TOUCH.

With OBSERVE, the statistics are exact per event, not sampled: peaks, the four Johnstone-Wilson
measures, histograms of loads + stores per operation.  TIMELINE adds rows over time; when the table
is full, every other row is dropped and the stride doubles, so that any length fits.
"""

import numpy as np

from allocators.base import operation as ops
from allocators.base.contract import (
    ALIGNMENT,
    aligned_alloc,
    calloc,
    check,
    free,
    init,
    malloc,
    realloc,
    thread_exit,
    trim,
)
from benchmarks.events.facts import impossible, malformed
from benchmarks.events.histogram import bucket, bucket_count
from benchmarks.events.touch import TOUCH_ALL, TOUCH_ALL_READ, TOUCH_FIRST
from kernel.access import touch
from kernel.conservation import check_frames
from kernel.counters import CALLS
from kernel.engine.jit import jit
from kernel.engine.record import field_sum
from kernel.engine.switches import COUNT, PAGE_SHIFT
from kernel.page import table_pages
from kernel.task import abort
from kernel.types import (
    ABORT_CHECK,
    ABORT_EVENT,
    ABORT_FRAMES,
    ABORT_MISALIGNED,
    ABORT_OUTSIDE,
    VM_READ,
    VM_WRITE,
)
from kernel.vma import covered, heap_pages

# --- Switches of the loop (bound by build, like those of kernel.engine.switches) -----------------

TOUCH = TOUCH_ALL
#: Execute the touch events of a trace; without, only the allocator's events are.
TOUCH_EVENTS = True
#: Collect exact per-event statistics.
OBSERVE = True
#: Record rows over time.
TIMELINE = True
#: Check physical memory after every event (needs kernel.engine.switches.FRAMES).
CHECK_FRAMES = False
#: Call the plugin's check() after every so many events; 0: never.
CHECK_EVERY = 0
#: True if the stored events have the column.
HAS_ALIGN = False
HAS_THREAD = False
HAS_OFFSET = False
HAS_SITE = False
#: True if the allocator has a malloc_trim of its own.
TRIMS = False

# --- Results of a run ----------------------------------------------------------------------------

#: Histogram of steps (loads + stores): exact below 2**10, above that 2**6 buckets per power of two
#: (within 1.6 %).
STEPS_EXACT, STEPS_PARTS = 10, 6
STEP_BUCKETS = bucket_count(STEPS_EXACT, STEPS_PARTS)

#: Columns of the timeline, in the order of :func:`timeline_row`, and those measured in pages.
TIMELINE_COLUMNS = (
    "event",
    "live",
    "heap",
    "rss",
    "reserved",
    "page_tables",
    "minor_faults",
    "syscalls",
    "steps",
)
TIMELINE_PAGES = ("heap", "rss", "reserved", "page_tables")
TIMELINE_ROWS = 4096
TIMELINE_WIDTH = len(TIMELINE_COLUMNS)

RUN = np.dtype(
    [
        ("live", "i8"),  # requested bytes of live objects
        ("live_objects", "i8"),
        ("peak_live", "i8"),
        ("peak_live_objects", "i8"),
        ("heap_at_peak_live", "i8"),
        ("live_at_peak_heap", "i8"),
        ("peak_heap", "i8"),
        ("allocated", "i8"),  # total bytes requested; a realloc counts as free then malloc
        ("operations", "i8"),  # allocator events that were not skipped
        ("failed", "i8"),  # operations that returned NULL
        ("skipped", "i8"),  # events on objects whose allocation had failed
        ("ignored", "i8", (3,)),  # malloc_trim, mallopt and sbrk events that were not performed
        ("first_failure", "i8"),  # event number of the first NULL, -1 if none
        ("ratio_events", "i8"),  # events with live > 0, over which heap / live is averaged
        ("ratio_sum", "f8"),  # sum of heap / live over these events
        ("ratio_sum_rss", "f8"),
        ("live_sum", "f8"),  # sum of live over all events
        ("heap_sum", "f8"),
        ("rss_sum", "f8"),
        ("checksum", "i8"),  # sum of all addresses returned
        ("steps", "i8"),  # loads + stores before the current event
        ("max_steps", "i8"),
        ("rows", "i8"),  # timeline rows filled
        ("stride", "i8"),  # events between rows
        ("next_row", "i8"),  # event of the next row
        ("last", "i8"),  # address returned to a program's latest event
        ("generating", "i8"),  # 1 while a program's next_event runs in an observed replay
        ("frames_checks", "i8"),  # number of checks of physical memory that passed
        ("histogram", "i8", (2, STEP_BUCKETS)),  # steps of allocations and of frees
        ("timeline", "i8", (TIMELINE_ROWS, TIMELINE_WIDTH)),
    ],
    align=True,
)


#: Return the number of system calls counted in an MM record.
system_calls = field_sum(counter.field for counter in CALLS)


@jit(cold=True)
def verify_frames(k, r):
    """Count a check of physical memory; abort if a frame is lost, duplicated or misfiled."""
    code = check_frames(k)
    if code:
        abort(k, ABORT_FRAMES, code)
    r.frames_checks += 1


@jit(cold=True)
def verify_heap(k, a):
    """Abort if the plugin's check() finds a broken invariant; its accesses are not counted."""
    mm = k.mm
    loads, stores = mm.loads, mm.stores
    code = check(k, a)
    mm.loads = loads
    mm.stores = stores
    if code:
        abort(k, ABORT_CHECK, code)


@jit
def timeline_row(k, r, event):
    """Return the values of TIMELINE_COLUMNS after ``event``."""
    mm = k.mm
    return (
        event,
        r.live,
        heap_pages(mm),
        mm.rss,
        mm.reserved_vm,
        table_pages(mm),
        mm.minflt,
        system_calls(mm),
        mm.loads + mm.stores,
    )


@jit(cold=True)
def sample(k, r, event):
    """Append a timeline row; if the table is full, drop every other row first."""
    if r.rows == TIMELINE_ROWS:
        r.rows >>= 1
        for i in range(r.rows):
            for j in range(TIMELINE_WIDTH):
                r.timeline[i, j] = r.timeline[2 * i, j]
        r.stride <<= 1
    row = r.rows
    r.rows += 1
    r.next_row = event + r.stride
    values = timeline_row(k, r, event)
    for j in range(TIMELINE_WIDTH):
        r.timeline[row, j] = values[j]


@jit(inline=True)
def observe(k, r, op):
    """Update the exact statistics after one allocator event."""
    mm = k.mm
    heap = heap_pages(mm) << PAGE_SHIFT
    if r.live > r.peak_live:
        r.peak_live = r.live
        r.heap_at_peak_live = heap
    if heap > r.peak_heap:
        r.peak_heap = heap
        r.live_at_peak_heap = r.live
    if r.live_objects > r.peak_live_objects:
        r.peak_live_objects = r.live_objects
    if r.live > 0:
        r.ratio_events += 1
        r.ratio_sum += heap / r.live
    r.live_sum += r.live
    r.heap_sum += heap
    r.rss_sum += mm.rss
    if COUNT:
        total = mm.loads + mm.stores
        steps = total - r.steps
        r.steps = total
        r.histogram[1 if op == ops.FREE else 0, bucket(steps, STEPS_EXACT, STEPS_PARTS)] += 1
        if steps > r.max_steps:
            r.max_steps = steps


@jit(inline=True)
def use_block(k, p, begin, end):
    """Touch bytes [begin, end) of the new block at ``p`` as the program would, by TOUCH."""
    if TOUCH == TOUCH_FIRST:
        if begin == 0 and end > 0:
            touch(k, p, 8, 1)
    elif TOUCH == TOUCH_ALL:
        touch(k, p + begin, end - begin, 1)
    elif TOUCH == TOUCH_ALL_READ:
        touch(k, p + begin, end - begin, 0)


@jit(inline=True)
def born(k, r, objects, slot, p, size):
    """Record the block at ``p`` (0: allocation failed) as object ``slot``, and use it.

    The program uses every new block alike, however it was allocated; calloc's clearing is the
    allocator's work, done before.  Returns ``p`` or 0.
    """
    objects[slot, 0] = p
    objects[slot, 1] = size
    if p <= 0:
        fail(k, r, p)
        objects[slot, 0] = 0
        objects[slot, 1] = -1
        return 0
    r.checksum += p
    if OBSERVE or TIMELINE:
        r.live += size
    if OBSERVE:
        r.operations += 1
        r.live_objects += 1
        r.allocated += size
        inspect(k, p, size, ALIGNMENT)
    use_block(k, p, 0, size)
    return p


@jit(cold=True)
def inspect(k, p, size, alignment):
    """Abort if the block of ``size`` bytes at ``p`` is misaligned or outside mapped memory."""
    if p & (alignment - 1):
        abort(k, ABORT_MISALIGNED, p)
    if not covered(k, p, p + max(size, 1), VM_READ | VM_WRITE):
        abort(k, ABORT_OUTSIDE, p)


@jit(cold=True)
def fail(k, r, p):
    """Record that a request returned NULL; abort if it returned the negative ``p``."""
    if p < 0:
        abort(k, ABORT_OUTSIDE, p)
    if r.failed == 0:
        r.first_failure = k.task.now
    r.failed += 1


@jit
def do_realloc(k, a, r, objects, slot, size):
    """realloc by the C library's rules: NULL allocates, size 0 frees, failure keeps the block."""
    p = objects[slot, 0]
    old = objects[slot, 1]
    if p == 0:
        if old < 0:
            r.skipped += 1
            return 0
        return born(k, r, objects, slot, malloc(k, a, size), size)
    if size == 0:
        died(r, objects, slot)
        free(k, a, p)
        return 0
    if OBSERVE:
        r.operations += 1
    q = realloc(k, a, p, size)
    if q <= 0:
        fail(k, r, q)
        return 0
    r.checksum += q
    if OBSERVE or TIMELINE:
        r.live += size - old
    if OBSERVE:
        r.allocated += size
        inspect(k, q, size, ALIGNMENT)
    objects[slot, 0] = q
    objects[slot, 1] = size
    if size > old:
        use_block(k, q, old, size)
    return q


@jit(inline=True)
def died(r, objects, slot):
    """Remove object ``slot`` from the table, before its block is freed."""
    if OBSERVE or TIMELINE:
        r.live -= objects[slot, 1]
    if OBSERVE:
        r.operations += 1
        r.live_objects -= 1
    objects[slot, 0] = 0


@jit(inline=True)
def apply(k, a, r, objects, op, slot, size, align, offset):
    """Execute one event of the program.  Returns the address allocated, or 0."""
    if op == ops.MALLOC:
        return born(k, r, objects, slot, malloc(k, a, size), size)
    if op == ops.FREE:
        if slot < 0:  # free(NULL) counts as an event, but the allocator is not called
            if OBSERVE:
                r.operations += 1
            return 0
        p = objects[slot, 0]
        if p == 0:
            r.skipped += 1
            objects[slot, 1] = 0
            return 0
        died(r, objects, slot)
        free(k, a, p)
        return 0
    return apply_rare(k, a, r, objects, op, slot, size, align, offset)


@jit(cold=True)
def apply_rare(k, a, r, objects, op, slot, size, align, offset):
    """Execute an event other than malloc and free.  Returns the address allocated, or 0."""
    if op == ops.REALLOC:
        return do_realloc(k, a, r, objects, slot, size)
    if op == ops.CALLOC:
        return born(k, r, objects, slot, calloc(k, a, size), size)
    if op == ops.ALIGNED:
        p = born(k, r, objects, slot, aligned_alloc(k, a, 1 << int(align), size), size)
        if OBSERVE and p:
            inspect(k, p, size, 1 << int(align))
        return p
    if op == ops.THREAD_END:
        thread_exit(k, a)
        return 0
    if op > ops.THREAD_END:
        if TRIMS and op == ops.TRIM and size == 0:
            trim(k, a)
        else:
            r.ignored[op - ops.TRIM] += 1
        return 0
    p = objects[slot, 0]
    if p == 0:
        r.skipped += 1
    elif TOUCH_EVENTS and op == ops.TOUCH_READ:
        touch(k, p + offset, size, 0)
    elif TOUCH_EVENTS and op == ops.TOUCH_WRITE:
        touch(k, p + offset, size, 1)
    return 0


@jit
def replay_events(k, a, r, objects, e, begin, end):
    """Replay events [begin, end) of the workload, which are the first rows of ``e``."""
    task = k.task
    for i in range(end - begin):
        now = begin + i
        task.now = now
        if HAS_THREAD:
            task.tid = e.thread[i]
        if HAS_SITE:
            task.site = e.site[i]
        align = e.align[i] if HAS_ALIGN else 0
        offset = e.offset[i] if HAS_OFFSET else 0
        op = e.op[i]
        apply(k, a, r, objects, op, e.slot[i], e.size[i], align, offset)
        if OBSERVE and op < ops.TOUCH_READ:
            observe(k, r, op)
        if CHECK_FRAMES:
            verify_frames(k, r)
        if CHECK_EVERY and now % CHECK_EVERY == CHECK_EVERY - 1:
            verify_heap(k, a)
        if TIMELINE and now >= r.next_row:
            sample(k, r, now)


@jit
def next_event(g, last) -> bool:
    """Fill ``g`` (op, slot, request, align, offset) with the next event; return False at the end.

    Placeholder for the generator's own function, which build binds.  ``last``: the address that
    the previous event returned.
    """
    return False


@jit(cold=True)
def audit(k, objects, op, slot, size, align, offset):
    """Abort if a program's event is impossible; benchmarks.events.facts.follow checks stored ones.

    An event on an object whose allocation failed is skipped, whatever it is.
    """
    if slot >= objects.shape[0] or malformed(op, slot, size, align, 0):
        abort(k, ABORT_EVENT, slot)
    if slot >= 0 and op != ops.THREAD_END:
        p = objects[slot, 0]
        bytes_ = int(objects[slot, 1])
        if (p or bytes_ >= 0) and impossible(op, size, offset, bytes_ if p else -1):
            abort(k, ABORT_EVENT, slot)


@jit
def replay_program(k, a, r, objects, g, begin, end):
    """Replay the events of a compiled generator, up to event ``end``.  Returns where it stopped."""
    task = k.task
    last = r.last
    i = begin
    while i < end:
        task.now = i
        if OBSERVE:
            r.generating = 1
        if not next_event(g, last):
            break
        if OBSERVE:
            audit(k, objects, g.op, g.slot, g.request, g.align, g.offset)
            r.generating = 0
        last = apply(k, a, r, objects, g.op, g.slot, g.request, g.align, g.offset)
        if OBSERVE and g.op < ops.TOUCH_READ:
            observe(k, r, g.op)
        if CHECK_FRAMES:
            verify_frames(k, r)
        if CHECK_EVERY and i % CHECK_EVERY == CHECK_EVERY - 1:
            verify_heap(k, a)
        if TIMELINE and i >= r.next_row:
            sample(k, r, i)
        i += 1
    r.generating = 0
    r.last = last
    return i


@jit
def initialise(k, a):
    """Call the plugin's init."""
    init(k, a)

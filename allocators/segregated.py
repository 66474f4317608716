"""Segregated storage: one object size per run of pages, a free list per size class.

    alignment 16 · overhead 64 bytes a run, and the rounding to the class (up to 1/5 with
    spacing=quarter) · smallest object 16 bytes · requests above mmap_threshold are mapped
    malloc: 1 load · free: 1 load, 2 stores · both O(1), amortised

    chunk of chunk_size bytes, aligned to its size and reserved without access (PROT_NONE)

    ├ header ┼── run 1 ──┼── run 2 ──┼ … ┼─ last run ─┤    run: run_size bytes, a multiple of the
    │ d0 d1 d2 …         │ A │ A │ A │ … │  (bare)    │    page; its descriptor is found by address:
                                                           chunk + 64 * (offset in chunk / run_size)

    descriptor  │ used << 47 | first free │ object size │ next │ prev │ carved │
    d0, chunk   │            0            │      0      │ next │ prev │  runs  │
    object      │ next free object │ …    (free; a used object is payload and nothing else)

A run is *bare* (no memory behind it), *empty* (memory, no class: any class may take it), or belongs
to a class: as its *current* run, as a *partial* one that waits with free objects, or *full*, on no
list.  malloc pops from ``heads[class]``, the free objects of the current run; when that is dry it
takes over all objects that were freed into the current run meanwhile, else carves a page more of
it, else turns to the partial run that has waited longest, else to an empty or bare run.  free
pushes onto the list of the object's own run, so that a run knows when its last object died; then
it is empty, and more than ``keep`` empty runs are made bare again.  A chunk whose runs are all bare
is unmapped.  Large objects are mapped at multiples of chunk_size, where no object of a run lies.

Invariants: carved = used + objects in the run's list; heads[class] counts as used;
a partial run is wholly carved and 0 < used < capacity; runs of d0 = runs of the chunk not bare.
Simple segregated storage: Wilson et al. 1995, section 3.6; runs and chunks: Kamp, "Malloc(3)
revisited", USENIX 1998; Evans, "A scalable concurrent malloc(3) implementation for FreeBSD", BSDCan
2006; the list that malloc pops from apart from the one that free pushes to: Leijen et al.,
"Mimalloc: free list sharding in action", APLAS 2019.
"""

import numpy as np

from allocators.base.aligned import map_aligned
from allocators.base.contract import (
    ALIGNMENT,
    BLOCK_FREE,
    BLOCK_HEADER,
    BLOCK_USED,
    Promises,
    align_up,
    clear,
    emit,
)
from allocators.base.mapped import mapped_alloc, mapped_free_checked, mapped_usable, mapped_walk
from allocators.base.settings import choice, number
from allocators.base.settings import size as size_setting
from kernel.access import load, store
from kernel.engine.bits import bit_length
from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.mmap import mmap, munmap
from kernel.page import page_align
from kernel.task import abort
from kernel.types import ABORT_BAD_POINTER, ABORT_DOUBLE_FREE
from kernel.uapi import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE

SPACING = choice(
    "linear",
    "power",
    "half",
    "quarter",
    "eighth",
    default="quarter",
    text="size classes: every 16 bytes, or 1, 2, 4, 8 for each doubling of the size",
)
RUN_SIZE = size_setting(
    32 << 10, low=4096, high=512 << 10, text="bytes of a run, a power of two; at least a page"
)
CHUNK_SIZE = size_setting(
    2 << 20,
    low=256 << 10,
    high=1 << 30,
    text="bytes of address space reserved at a time, a power of two",
)
MMAP_THRESHOLD = size_setting(
    32 << 10, low=16, high=32 << 10, text="larger requests are mapped, bytes"
)
KEEP = number(16, text="empty runs that keep their memory")

LINEAR, POWER = 0, 1
#: Sizes that the table of classes tells apart, and with spacing=linear the classes.
STEPS = 2048
#: First bit of the count of used objects; an address fits below.
COUNT_SHIFT = 47
ADDRESS_MASK = (1 << COUNT_SHIFT) - 1
ONE = 1 << COUNT_SHIFT

#: In front of a large object.
LARGE = 0x5BD1 << 48
DESCRIPTOR = 64
OBJECT_SIZE, NEXT, PREV, CARVED = 8, 16, 24, 32
#: In the size word of a run without class.
BARE, EMPTY = 0, 1
#: In lists: chunks, runs by state, and from PARTIAL on the partial runs by class.
CHUNK_LIST, BARE_LIST, EMPTY_LIST, PARTIAL = 0, 1, 2, 3

STATE = np.dtype(
    [
        ("mapped", "i8"),  # first large object
        ("empties", "i8"),  # runs in EMPTY_LIST
        ("class_of", "i8", (STEPS + 1,)),  # class by (size + 15) / 16
        ("sizes", "i8", (STEPS,)),  # bytes of an object by class
        ("classes", "i8"),
        ("heads", "i8", (STEPS,)),  # free objects that malloc pops, by class
        ("current", "i8", (STEPS,)),  # descriptor of the run that they are of, by class
        ("lists", "i8", (PARTIAL + STEPS,)),  # first descriptor of each ring
    ]
)
CHECKS = {
    1: "a ring of descriptors has a broken backward link",
    2: "a run's used and free objects are not those carved",
    3: "a free object lies outside its run or off the raster of its size",
    4: "a run on a list is in another state than the list's",
    5: "the count of empty runs is wrong",
    6: "a chunk's count of runs with memory is wrong",
    7: "the objects that malloc pops are not of the current run",
    8: "a run of a class is partial but on no list, or empty but not given back",
}


def check_settings(s):
    """Powers of two, objects that fit their run, a header that fits the chunk's first run."""
    for name in ("run_size", "chunk_size"):
        if s[name] & (s[name] - 1):
            raise ValueError(f"{name} ({s[name]}) is not a power of two")
    if s["mmap_threshold"] > s["run_size"]:
        raise ValueError(
            f"mmap_threshold ({s['mmap_threshold']}) is above run_size ({s['run_size']})"
        )
    if s["chunk_size"] < 2 * s["run_size"]:
        raise ValueError(f"chunk_size ({s['chunk_size']}) holds no run of {s['run_size']} bytes")
    if s["chunk_size"] // s["run_size"] * DESCRIPTOR > s["run_size"]:
        raise ValueError(
            f"chunk_size ({s['chunk_size']}) is too large for run_size ({s['run_size']}): "
            f"{DESCRIPTOR} bytes a run must fit in one run"
        )


def promises(settings):
    """trim gives back every empty run, and with the last the chunk."""
    return Promises(retains=0)


@jit
def init(k, a):
    """Lay out the classes: the steps between sizes grow with the size unless they are linear."""
    largest = 0
    for i in range(1, ((MMAP_THRESHOLD + 15) >> 4) + 1):
        if 16 * i > largest:
            step = 16
            if SPACING != LINEAR:
                step = max(16, (1 << (bit_length(16 * i - 1) - 1)) >> (SPACING - POWER))
            largest = align_up(16 * i, step)
            a.sizes[a.classes] = largest
            a.classes += 1
        a.class_of[i] = a.classes - 1


# --- Where things are -----------------------------------------------------------------------------


@jit(inline=True)
def run_shift():
    """log2 of the bytes of a run."""
    return max(bit_length(RUN_SIZE - 1), PAGE_SHIFT)


@jit(inline=True)
def chunk_size():
    """Bytes of a chunk: with large pages it still holds a header and a run."""
    return max(CHUNK_SIZE, 2 << run_shift())


@jit(inline=True)
def run_count():
    """Runs of a chunk, the header's place included."""
    return chunk_size() >> run_shift()


@jit(inline=True)
def run_of(p):
    """Descriptor of the run that holds the address ``p``."""
    offset = p & (chunk_size() - 1)
    return p - offset + (offset >> run_shift()) * DESCRIPTOR


@jit(inline=True)
def chunk_of(run):
    """Chunk of a descriptor."""
    return run & -chunk_size()


@jit(inline=True)
def run_start(run):
    """First byte of the run that ``run`` describes."""
    chunk = chunk_of(run)
    return chunk + ((run - chunk) // DESCRIPTOR << run_shift())


@jit(inline=True)
def capacity(size):
    """Objects of ``size`` bytes in a run."""
    return (1 << run_shift()) // size


# --- Rings of descriptors -------------------------------------------------------------------------


@jit
def ring_append(k, a, ring, run):
    """Put ``run`` last in a ring."""
    first = a.lists[ring]
    if first == 0:
        a.lists[ring] = run
        store(k, run + NEXT, run)
        store(k, run + PREV, run)
        return
    last = load(k, first + PREV)
    store(k, run + NEXT, first)
    store(k, run + PREV, last)
    store(k, last + NEXT, run)
    store(k, first + PREV, run)


@jit
def ring_push(k, a, ring, run):
    """Put ``run`` first in a ring."""
    ring_append(k, a, ring, run)
    a.lists[ring] = run


@jit
def ring_remove(k, a, ring, run):
    """Take ``run`` out of a ring."""
    after = load(k, run + NEXT)
    if after == run:
        a.lists[ring] = 0
        return
    before = load(k, run + PREV)
    store(k, before + NEXT, after)
    store(k, after + PREV, before)
    if a.lists[ring] == run:
        a.lists[ring] = after


# --- Chunks and runs ------------------------------------------------------------------------------


@jit(cold=True)
def remap(k, start, length, prot):
    """Put fresh memory with the access ``prot`` in place of what is mapped; False when refused."""
    return mmap(k, start, length, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED) >= 0


@jit(cold=True)
def adopt_chunk(k, a, chunk):
    """Enter a chunk of bare runs."""
    ring_push(k, a, CHUNK_LIST, chunk)
    for i in range(run_count() - 1, 0, -1):
        run = chunk + i * DESCRIPTOR
        store(k, run + OBJECT_SIZE, BARE)
        ring_push(k, a, BARE_LIST, run)


@jit(cold=True)
def new_chunk(k, a):
    """Reserve a chunk; False when the kernel refuses."""
    chunk = map_aligned(k, chunk_size(), chunk_size(), 0, PROT_NONE)
    if chunk == 0:
        return False
    if not remap(k, chunk, page_align(run_count() * DESCRIPTOR), PROT_READ | PROT_WRITE):
        munmap(k, chunk, chunk_size())
        return False
    adopt_chunk(k, a, chunk)
    return True


@jit(cold=True)
def drop_chunk(k, a, chunk):
    """Unmap a chunk whose runs are all bare."""
    ring_remove(k, a, CHUNK_LIST, chunk)
    for i in range(1, run_count()):
        ring_remove(k, a, BARE_LIST, chunk + i * DESCRIPTOR)
    if munmap(k, chunk, chunk_size()) < 0:
        adopt_chunk(k, a, chunk)


@jit(cold=True)
def take_run(k, a, c):
    """Return a run for class ``c``, an empty one if there is any; 0 when the kernel refuses."""
    run = a.lists[EMPTY_LIST]
    if run:
        ring_remove(k, a, EMPTY_LIST, run)
        a.empties -= 1
    else:
        if a.lists[BARE_LIST] == 0 and not new_chunk(k, a):
            return 0
        run = a.lists[BARE_LIST]
        chunk = chunk_of(run)
        runs = load(k, chunk + CARVED)
        if not remap(k, run_start(run), 1 << run_shift(), PROT_READ | PROT_WRITE):
            if runs == 0:
                drop_chunk(k, a, chunk)
            return 0
        ring_remove(k, a, BARE_LIST, run)
        store(k, chunk + CARVED, runs + 1)
    store(k, run + OBJECT_SIZE, a.sizes[c])
    store(k, run + CARVED, 0)
    store(k, run, 0)
    return run


@jit(cold=True)
def make_bare(k, a, run):
    """Give an empty run's memory back, and its chunk when that was the last; False when refused."""
    if not remap(k, run_start(run), 1 << run_shift(), PROT_NONE):
        return False
    chunk = chunk_of(run)
    runs = load(k, chunk + CARVED) - 1
    store(k, chunk + CARVED, runs)
    store(k, run + OBJECT_SIZE, BARE)
    ring_push(k, a, BARE_LIST, run)
    if runs == 0:
        drop_chunk(k, a, chunk)
    return True


@jit(cold=True)
def give_run(k, a, run):
    """Take a run back whose objects are all free."""
    store(k, run, 0)
    if a.empties < KEEP or not make_bare(k, a, run):
        store(k, run + OBJECT_SIZE, EMPTY)
        ring_push(k, a, EMPTY_LIST, run)
        a.empties += 1


@jit
def carve(k, run, size):
    """Cut the next objects of a run, up to the end of a page but at least one, and link them.

    Returns the first, or 0 when the run is wholly carved.
    """
    carved = load(k, run + CARVED)
    room = capacity(size) - carved
    if room == 0:
        return 0
    first = run_start(run) + carved * size
    count = min(room, max((page_align(first + 1) - first) // size, 1))
    p = first
    for _ in range(count - 1):
        store(k, p, p + size)
        p += size
    store(k, p, 0)
    store(k, run + CARVED, carved + count)
    store(k, run, load(k, run) + count * ONE)
    return first


@jit
def collect(k, a, c, run):
    """Move the free objects of a run of class ``c`` to where malloc pops; False if it has none."""
    head = load(k, run) & ADDRESS_MASK
    if head:
        store(k, run, load(k, run + CARVED) * ONE)
    else:
        head = carve(k, run, a.sizes[c])
    a.heads[c] = head
    return head != 0


@jit(cold=True)
def refill(k, a, c):
    """Find free objects for class ``c``; returns one of them, or 0 when memory is exhausted."""
    run = a.current[c]
    if run == 0 or not collect(k, a, c, run):
        run = a.lists[PARTIAL + c]
        if run:
            ring_remove(k, a, PARTIAL + c, run)
        else:
            run = take_run(k, a, c)
        a.current[c] = run
        if run == 0:
            return 0
        collect(k, a, c, run)
    p = a.heads[c]
    a.heads[c] = load(k, p)
    return p


# --- The contract ---------------------------------------------------------------------------------


@jit
def malloc(k, a, size):
    """Pop an object of the class."""
    if size > MMAP_THRESHOLD:
        return mapped_alloc(k, a, chunk_size(), size, LARGE)
    c = a.class_of[(size + 15) >> 4]
    p = a.heads[c]
    if p == 0:
        return refill(k, a, c)
    a.heads[c] = load(k, p)
    return p


@jit
def free(k, a, p):
    """Push the object onto its run's list."""
    if p & (chunk_size() - 1) == 0:
        mapped_free_checked(k, a, p, LARGE)
        return
    run = run_of(p)
    word = load(k, run)
    head = word & ADDRESS_MASK
    if head == 0 or word < 2 * ONE:
        free_first_or_last(k, a, run, p)
        return
    store(k, p, head)
    store(k, run, word - ONE + p - head)


@jit(cold=True)
def free_first_or_last(k, a, run, p):
    """Free an object that makes a full run partial, or a run empty."""
    size = load(k, run + OBJECT_SIZE)
    if size == EMPTY:
        abort(k, ABORT_DOUBLE_FREE, p)
    if size == BARE:
        abort(k, ABORT_BAD_POINTER, p)
    c = a.class_of[size >> 4]
    word = load(k, run)
    if word < ONE:
        abort(k, ABORT_DOUBLE_FREE, p)
    head = word & ADDRESS_MASK
    store(k, p, head)
    store(k, run, word - ONE + p - head)
    if run == a.current[c]:
        return
    if word < 2 * ONE:
        if head:
            ring_remove(k, a, PARTIAL + c, run)
        give_run(k, a, run)
    else:
        ring_append(k, a, PARTIAL + c, run)


@jit
def usable_size(k, a, p):
    """The size of the run's objects."""
    if p & (chunk_size() - 1) == 0:
        return mapped_usable(k, p)
    return load(k, run_of(p) + OBJECT_SIZE)


@jit
def calloc(k, a, size):
    """Clear what is not fresh from the kernel."""
    p = malloc(k, a, size)
    if p and size <= MMAP_THRESHOLD:
        clear(k, p, size)
    return p


@jit
def aligned_alloc(k, a, alignment, size):
    """Take the next class whose size is a multiple of the alignment, as runs start aligned."""
    if alignment <= ALIGNMENT:
        return malloc(k, a, size)
    if max(size, alignment) <= MMAP_THRESHOLD:
        c = a.class_of[(size + 15) >> 4]
        while c < a.classes:
            if a.sizes[c] & (alignment - 1) == 0:
                return malloc(k, a, min(a.sizes[c], MMAP_THRESHOLD))
            c += 1
    return mapped_alloc(k, a, max(alignment, chunk_size()), size, LARGE)


@jit
def trim(k, a):
    """Make every empty run bare, the current runs of which nothing is in use included."""
    for c in range(a.classes):
        run = a.current[c]
        if run:
            used = load(k, run) >> COUNT_SHIFT
            p = a.heads[c]
            while p:
                used -= 1
                p = load(k, p)
            if used == 0:
                a.heads[c] = 0
                a.current[c] = 0
                give_run(k, a, run)
    for _ in range(a.empties):
        run = a.lists[EMPTY_LIST]
        ring_remove(k, a, EMPTY_LIST, run)
        if not make_bare(k, a, run):
            ring_append(k, a, EMPTY_LIST, run)
            return
        a.empties -= 1


# --- What the heap holds --------------------------------------------------------------------------


@jit
def mark_free(k, rows, first, start, size, p):
    """Turn the rows of the objects on the list ``p`` to free; row ``first`` is at ``start``."""
    while p:
        row = first + (p - start) // size
        if row < rows.shape[0]:
            rows[row, 2] = BLOCK_FREE
        p = load(k, p)


@jit
def walk_run(k, a, rows, n, run):
    """List the objects of a run, and the rest of the run that holds none."""
    size = load(k, run + OBJECT_SIZE)
    start = run_start(run)
    end = start + (1 << run_shift())
    if size == BARE:
        return n
    if size == EMPTY:
        return emit(rows, n, start, end - start, BLOCK_FREE)
    carved = load(k, run + CARVED)
    first = n
    for i in range(carved):
        n = emit(rows, n, start + i * size, size, BLOCK_USED)
    mark_free(k, rows, first, start, size, load(k, run) & ADDRESS_MASK)
    c = a.class_of[size >> 4]
    if run == a.current[c]:
        mark_free(k, rows, first, start, size, a.heads[c])
    for i in range(carved, capacity(size)):
        n = emit(rows, n, start + i * size, size, BLOCK_FREE)
    rest = end - start - capacity(size) * size
    return emit(rows, n, end - rest, rest, BLOCK_HEADER) if rest else n


@jit
def walk(k, a, rows):
    """List the chunks' headers and runs, then the large objects."""
    n = 0
    chunk = a.lists[CHUNK_LIST]
    while chunk:
        n = emit(rows, n, chunk, page_align(run_count() * DESCRIPTOR), BLOCK_HEADER)
        for i in range(1, run_count()):
            n = walk_run(k, a, rows, n, chunk + i * DESCRIPTOR)
        chunk = load(k, chunk + NEXT)
        if chunk == a.lists[CHUNK_LIST]:
            break
    return mapped_walk(k, a, rows, n)


@jit
def list_length(k, run, size, p):
    """Objects on the list ``p`` of a run; -1 when one is no object of it."""
    start = run_start(run)
    count = 0
    while p:
        offset = p - start
        if offset < 0 or offset % size or offset // size >= load(k, run + CARVED):
            return -1
        count += 1
        if count > capacity(size):
            return -1
        p = load(k, p)
    return count


@jit
def check_ring(k, a, ring):
    """Count a ring's runs; -1 for a broken link."""
    count = 0
    run = a.lists[ring]
    while run:
        after = load(k, run + NEXT)
        if load(k, after + PREV) != run:
            return -1
        count += 1
        run = after
        if run == a.lists[ring]:
            break
    return count


@jit
def on_ring(k, a, ring, wanted):
    """Whether a ring holds the run ``wanted``."""
    run = a.lists[ring]
    while run:
        if run == wanted:
            return True
        run = load(k, run + NEXT)
        if run == a.lists[ring]:
            break
    return False


@jit
def check_run(k, a, run):
    """Check one run of a class; 0 or a key of CHECKS."""
    size = load(k, run + OBJECT_SIZE)
    word = load(k, run)
    used = word >> COUNT_SHIFT
    carved = load(k, run + CARVED)
    free_objects = list_length(k, run, size, word & ADDRESS_MASK)
    if free_objects < 0:
        return 3
    if used + free_objects != carved:
        return 2
    c = a.class_of[size >> 4]
    if run == a.current[c]:
        waiting = list_length(k, run, size, a.heads[c])
        return 7 if waiting < 0 or waiting > used else 0
    if carved != capacity(size) or used == 0:
        return 8
    if on_ring(k, a, PARTIAL + c, run) != (free_objects > 0):
        return 8
    return 0


@jit
def check(k, a):
    """Rings are whole, runs add up and are where their state says, chunks count their runs."""
    for ring in range(PARTIAL + a.classes):
        if check_ring(k, a, ring) < 0:
            return 1
    if check_ring(k, a, EMPTY_LIST) != a.empties:
        return 5
    bare = 0
    empties = 0
    chunk = a.lists[CHUNK_LIST]
    while chunk:
        runs = 0
        for i in range(1, run_count()):
            run = chunk + i * DESCRIPTOR
            size = load(k, run + OBJECT_SIZE)
            if size == BARE:
                bare += 1
                continue
            runs += 1
            if size == EMPTY:
                empties += 1
                continue
            code = check_run(k, a, run)
            if code:
                return code
        if runs != load(k, chunk + CARVED):
            return 6
        chunk = load(k, chunk + NEXT)
        if chunk == a.lists[CHUNK_LIST]:
            break
    if bare != check_ring(k, a, BARE_LIST) or empties != a.empties:
        return 4
    for c in range(a.classes):
        if a.heads[c] and a.current[c] == 0:
            return 7
    return 0

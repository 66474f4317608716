"""Segregated storage: one object size per run of pages, one free list per size class.

    alignment 16 · overhead 64 bytes a run, and the rounding to the class (up to 1/5 with
    spacing=quarter) · smallest object 16 bytes · requests above mmap_threshold are mapped
    malloc: 1 load · free: 1 load, 2 stores · both O(1), amortised

    chunk of chunk_size bytes, aligned to its size and reserved as PROT_NONE

    ├ header ┼── run 1 ──┼── run 2 ──┼ … ┼─ last run ─┤    run: run_size bytes, a multiple of the
    │ d0 d1 d2 …         │ A │ A │ A │ … │  (bare)    │    page; its descriptor is found by address:
                                                           chunk + 64 * (offset in chunk / run_size)

    descriptor  │ used << 47 | first free │ object size │ next │ prev │ carved │
    d0, chunk   │            0            │      0      │ next │ prev │  runs  │
    object      │ next free object │ …    (free; a used object is payload only)

A run is *bare* (PROT_NONE, no memory), *empty* (memory but no class: any class may take it), or
belongs to a class: as its *current* run, as a *partial* one on the list of runs with free objects,
or *full*, on no list.  malloc pops from ``heads[class]``, the free objects of the current run.
When that list is empty, malloc takes over the objects freed into the current run since, else carves
another page of it, else takes the partial run that has waited longest, else an empty or bare run.
free pushes onto the list of the object's own run, which therefore knows when its last object died.
The run is then empty; empty runs beyond ``keep`` are made bare again, and a chunk whose runs are
all bare is unmapped.  Large objects are mapped at multiples of chunk_size, an address that no
object in a run has.

Invariants: carved = used + objects on the run's list; objects on heads[class] count as used;
a partial run is wholly carved and 0 < used < capacity; runs of d0 = runs of the chunk not bare.
Simple segregated storage: Wilson et al. 1995, section 3.6; runs and chunks: Kamp, "Malloc(3)
revisited", USENIX 1998; Evans, "A scalable concurrent malloc(3) implementation for FreeBSD", BSDCan
2006; one list for malloc to pop from and another for free to push to: Leijen et al., "Mimalloc:
free list sharding in action", APLAS 2019.
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
    text="size classes: linear (every 16 bytes), or power, half, quarter, eighth (1, 2, 4, 8 per "
    "doubling)",
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
    32 << 10, low=16, high=32 << 10, text="requests above this many bytes are mapped"
)
KEEP = number(16, text="empty runs that keep their memory; more are returned to the kernel")

LINEAR, POWER = 0, 1
#: Entries of the table from sizes to classes (units of 16 bytes), and the most classes.
STEPS = 2048
#: First bit of the count of used objects; an address fits in the bits below.
COUNT_SHIFT = 47
ADDRESS_MASK = (1 << COUNT_SHIFT) - 1
ONE = 1 << COUNT_SHIFT

#: Tag before a large object.
LARGE = 0x5BD1 << 48
DESCRIPTOR = 64
OBJECT_SIZE, NEXT, PREV, CARVED = 8, 16, 24, 32
#: Size word of a run without a class.
BARE, EMPTY = 0, 1
#: Indices of ``lists``: chunks, bare runs, empty runs; from PARTIAL on, partial runs by class.
CHUNK_LIST, BARE_LIST, EMPTY_LIST, PARTIAL = 0, 1, 2, 3

STATE = np.dtype(
    [
        ("mapped", "i8"),  # first large object
        ("empties", "i8"),  # runs in EMPTY_LIST
        ("class_of", "i8", (STEPS + 1,)),  # class by (size + 15) / 16
        ("sizes", "i8", (STEPS,)),  # bytes of an object by class
        ("classes", "i8"),  # number of classes
        ("heads", "i8", (STEPS,)),  # first free object for malloc to pop, by class
        ("current", "i8", (STEPS,)),  # descriptor of the run of these objects, by class
        ("lists", "i8", (PARTIAL + STEPS,)),  # first descriptor of each ring
    ]
)
CHECKS = {
    1: "a backward link in a ring of descriptors is broken",
    2: "a run's used and free objects do not add up to those carved",
    3: "a free object is outside its run or not at a multiple of its size",
    4: "a run's state differs from that of the list it is on",
    5: "the count of empty runs is wrong",
    6: "a chunk's count of runs with memory is wrong",
    7: "the free objects of a class do not belong to its current run",
    8: "a run of a class is partial but on no list, or empty but not released",
}


def check_settings(s):
    """Refuse sizes that are no powers of two, and objects or headers that do not fit a run."""
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
            f"the header, {DESCRIPTOR} bytes per run, must fit in one run"
        )


def promises(settings):
    """Promise that trim returns every empty run, and a chunk with its last run."""
    return Promises(retains=0)


@jit
def init(k, a):
    """Set up the size classes; unless linear, the steps between them grow with the size."""
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


# --- Addresses ------------------------------------------------------------------------------------


@jit(inline=True)
def run_shift():
    """Return log2 of the size of a run in bytes."""
    return max(bit_length(RUN_SIZE - 1), PAGE_SHIFT)


@jit(inline=True)
def chunk_size():
    """Return the size of a chunk in bytes; with large pages, still a header and one run."""
    return max(CHUNK_SIZE, 2 << run_shift())


@jit(inline=True)
def run_count():
    """Return the number of runs of a chunk, counting the header as one."""
    return chunk_size() >> run_shift()


@jit(inline=True)
def run_of(p):
    """Return the descriptor of the run that holds the address ``p``."""
    offset = p & (chunk_size() - 1)
    return p - offset + (offset >> run_shift()) * DESCRIPTOR


@jit(inline=True)
def chunk_of(run):
    """Return the chunk that holds the descriptor ``run``."""
    return run & -chunk_size()


@jit(inline=True)
def run_start(run):
    """Return the address of the first byte of the run that ``run`` describes."""
    chunk = chunk_of(run)
    return chunk + ((run - chunk) // DESCRIPTOR << run_shift())


@jit(inline=True)
def capacity(size):
    """Return the number of objects of ``size`` bytes in a run."""
    return (1 << run_shift()) // size


# --- Rings of descriptors -------------------------------------------------------------------------


@jit
def ring_append(k, a, ring, run):
    """Put ``run`` at the end of a ring."""
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
    """Put ``run`` at the front of a ring."""
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
    """Replace the mapping by fresh memory with access ``prot``; return False if refused."""
    return mmap(k, start, length, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED) >= 0


@jit(cold=True)
def adopt_chunk(k, a, chunk):
    """Add a chunk and its runs, all bare, to the lists."""
    ring_push(k, a, CHUNK_LIST, chunk)
    for i in range(run_count() - 1, 0, -1):
        run = chunk + i * DESCRIPTOR
        store(k, run + OBJECT_SIZE, BARE)
        ring_push(k, a, BARE_LIST, run)


@jit(cold=True)
def new_chunk(k, a):
    """Reserve a chunk; return False if the kernel refuses."""
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
    """Return a run for class ``c``, an empty one if there is one; 0 if the kernel refuses."""
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
    """Return an empty run's memory to the kernel, and its chunk if all its runs are bare.

    Return False if the kernel refuses.
    """
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
    """Release a run whose objects are all free: keep it as empty, or make it bare."""
    store(k, run, 0)
    if a.empties < KEEP or not make_bare(k, a, run):
        store(k, run + OBJECT_SIZE, EMPTY)
        ring_push(k, a, EMPTY_LIST, run)
        a.empties += 1


@jit
def carve(k, run, size):
    """Carve the next objects of a run, up to the end of a page but at least one, and link them.

    Return the first, or 0 if the run is wholly carved.
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
    """Make the free objects of a run the list that malloc pops; return False if there are none."""
    head = load(k, run) & ADDRESS_MASK
    if head:
        store(k, run, load(k, run + CARVED) * ONE)
    else:
        head = carve(k, run, a.sizes[c])
    a.heads[c] = head
    return head != 0


@jit(cold=True)
def refill(k, a, c):
    """Find free objects for class ``c``; return one of them, or 0 when memory is exhausted."""
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
    """Pop a free object of the size class; map a large object."""
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
    """Push the object onto the free list of its run; unmap a large object."""
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
    """Free the first object of a full run, which becomes partial, or the last used one of a run."""
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
    """Return the object size of the run, or the usable bytes of a large object."""
    if p & (chunk_size() - 1) == 0:
        return mapped_usable(k, p)
    return load(k, run_of(p) + OBJECT_SIZE)


@jit
def calloc(k, a, size):
    """Allocate and clear; a mapped object is zero already."""
    p = malloc(k, a, size)
    if p and size <= MMAP_THRESHOLD:
        clear(k, p, size)
    return p


@jit
def aligned_alloc(k, a, alignment, size):
    """Take the next class whose size is a multiple of the alignment: runs start aligned."""
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
    """Make every empty run bare, including current runs with no object in use."""
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


# --- Walk and check -------------------------------------------------------------------------------


@jit
def mark_free(k, rows, first, start, size, p):
    """Mark the objects on the list ``p`` as free; row ``first`` is the object at ``start``."""
    while p:
        row = first + (p - start) // size
        if row < rows.shape[0]:
            rows[row, 2] = BLOCK_FREE
        p = load(k, p)


@jit
def walk_run(k, a, rows, n, run):
    """List the objects of a run, and the tail that is too small for one."""
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
    """List the header and the runs of each chunk, then the large objects."""
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
    """Return the length of the list ``p`` of a run, or -1 if it holds an address of no object."""
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
    """Return the number of runs on a ring, or -1 if a link is broken."""
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
    """Return True if a ring holds the run ``wanted``."""
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
    """Check one run of a class; return 0 or a CHECKS key."""
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
    """Check the rings' links, each run's counts and list, and each chunk's count of runs."""
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

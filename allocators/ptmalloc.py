"""Ptmalloc: glibc's malloc (version 2.36) on the kernel model, address for address.

    alignment 16 · overhead 8 bytes a block · smallest chunk 32 (24 usable)
    malloc: tcache, fast and small bins O(1); unsorted list, large bins O(free chunks)

    chunk                                                         next chunk
    │ prev_size │ head │ payload …          (a free chunk: fd, bk, │ prev_size │ head …
                         ▲ returned           fd_nextsize, bk_nextsize … size)
    head: bytes of the chunk | NON_MAIN | MMAPPED | PREV_INUSE

    free ──► tcache (7 per size, per thread) ──► fastbins ──► unsorted ──► bins ──► top
                                                    └── consolidate ──┘

A freed chunk goes to the thread's tcache, else to a fastbin, else it is merged with its free
neighbours and enters the unsorted list, which malloc sorts into bins as it searches it.  The end of
the heap is the top chunk, which the break (main arena) or mprotect (other arenas) extends, and
which is trimmed.  A request of the mmap threshold or more gets its own mapping; freeing one raises
the threshold.  Threads after the first have arenas in heaps of 64 MiB, reserved with PROT_NONE.

STATE holds what libc keeps in its data segment and thread-local storage, including the arenas'
bins: the head of a bin is a list node with a small number instead of an address (``forward``,
``backward``).

Written from the manual ("The GNU allocator", "Memory allocation tunables"), the wiki page
"MallocInternals" and observations of a running glibc; ``python -m benchmarks.twin.verify`` compares
the two after every operation.  Names of fields and steps are glibc's, so that both can be read side
by side.  Origin: Lea, "A memory allocator", 1996; Gloger, ptmalloc, 2006.
"""

import numpy as np

from allocators.base.contract import (
    ALIGNMENT,
    BLOCK_FREE,
    BLOCK_HEADER,
    BLOCK_USED,
    MAX_REQUEST,
    MAX_THREADS,
    Promises,
    align_up,
    emit,
)
from allocators.base.settings import number
from allocators.base.settings import size as size_setting
from kernel import uapi
from kernel.access import clear, copy, hold, load, load_half, store, store_half
from kernel.brk import brk as brk_call
from kernel.engine.bits import trailing_zeros
from kernel.engine.jit import jit
from kernel.engine.memory import load_word
from kernel.madvise import madvise
from kernel.mmap import mmap, munmap
from kernel.mprotect import mprotect
from kernel.mremap import mremap
from kernel.page import fold, offset_in_page, page_align, page_of, page_size, page_start
from kernel.task import abort
from kernel.types import ABORT_BAD_POINTER, ABORT_CORRUPT, ABORT_DOUBLE_FREE, PTE_READ

# --- Settings: the glibc.malloc.* tunables --------------------------------------------------------

#: Defaults of mmap_threshold, trim_threshold and top_pad, bytes, and of mmap_max; and the value of
#: a setting that is not set.  Freeing a mapped block raises the mmap and trim thresholds unless one
#: of these four is set, even to its default.
DEFAULT, DEFAULT_MAPPINGS, UNSET = 128 << 10, 65536, -1

TCACHE_COUNT = number(7, high=65535, text="chunks of each size that a tcache keeps")
TCACHE_MAX = size_setting(1032, low=0, high=1032, text="largest request that a tcache serves")
TCACHE_UNSORTED_LIMIT = number(
    0, text="unsorted chunks to sort once the tcache can serve the request; 0: all"
)
MXFAST = size_setting(128, low=0, high=160, text="largest request that fastbins serve")
MMAP_THRESHOLD = size_setting(
    UNSET,
    low=UNSET,
    high=32 << 20,
    text="requests of at least this size are mapped; -1: not set, 131072",
)
TRIM_THRESHOLD = size_setting(
    UNSET, low=UNSET, text="size of the top at which it is trimmed; -1: not set, 131072"
)
TOP_PAD = size_setting(
    UNSET,
    low=UNSET,
    high=1 << 40,
    text="bytes requested from the kernel beyond the need; -1: not set, 131072",
)
MMAP_MAX = number(UNSET, low=UNSET, text="maximum number of mapped blocks; -1: not set, 65536")
ARENA_MAX = number(0, high=127, text="maximum number of arenas; 0: eight per core")
ARENA_TEST = number(8, low=1, text="arena count above which the core-based limit applies")
CORES = number(2, low=1, high=15, text="processors of the machine, as glibc sees it")

MMAP_THRESHOLD_MAX = 32 << 20

# --- Chunks ---------------------------------------------------------------------------------------

#: Offsets in a chunk.
HEAD, FD, BK, FD_NEXTSIZE, BK_NEXTSIZE, HEADER = 8, 16, 24, 32, 40, 16
PREV_INUSE, MMAPPED, NON_MAIN = 1, 2, 4
FLAGS = 7
MINSIZE = 32
#: Mark that walk sets, while it runs, on chunks in tcaches and fastbins; no size has this bit.
CACHED = 8
#: Largest request, bytes.
PTRDIFF_MAX = (1 << 63) - 1
#: Smallest chunk size that belongs in a large bin.
MIN_LARGE = 1024
#: A free that produces a chunk of at least this size consolidates the fastbins and may trim.
CONSOLIDATION_THRESHOLD = 64 << 10
#: Unit of the first mapping that replaces the break when it cannot grow; later ones: a page.
MMAP_AS_MORECORE = 1 << 20
#: Maximum number of unsorted chunks that one search sorts.
MAX_ITERS = 10_000

# --- Static variables -----------------------------------------------------------------------------

FASTBINS = 10
#: Bins of an arena: 1 is the unsorted list, 2 to 63 hold one size each, 64 to 126 a range of sizes.
BINS = 128
UNSORTED = 1
ARENAS = 128
#: Nodes below this are heads of bins: arena * BINS + bin.  No chunk has an address that low.
HEADS = ARENAS * BINS
#: Words of an arena's binmap.
MAPS = 4
#: Maximum number of segments of the main arena that walk and check can follow.
SEGMENTS = 256
TCACHE_BINS = 64
#: The tcache: counts of 2 bytes, then first entries; 0x280 bytes.
TCACHE_ENTRIES = 2 * TCACHE_BINS
TCACHE_SIZE = TCACHE_ENTRIES + 8 * TCACHE_BINS
#: Mark of a tcache entry; glibc draws it at random.
KEY = 0x5DEECE66D1CE4E5B

#: Heaps of the other arenas: a header, the arena's record (in its first heap), chunks.
HEAP_MAX = 64 << 20
HEAP_MIN = 32 << 10
HEAP_AR, HEAP_PREV, HEAP_BYTES, HEAP_PROTECTED, HEAP_PAGESIZE = 0, 8, 16, 24, 32
HEAP_INFO = 48
#: Bytes of the arena's record.  STATE holds its contents, but the heap keeps the space.
ARENA_RECORD = 2200

STATE = np.dtype(
    [
        ("fd", "i8", (HEADS,)),  # forward links of the heads of bins
        ("bk", "i8", (HEADS,)),  # backward links
        ("fastbins", "i8", (ARENAS * FASTBINS,)),
        ("binmap", "i8", (ARENAS * MAPS,)),  # 32 bits per word
        ("top", "i8", (ARENAS,)),  # 0: none yet
        ("last_remainder", "i8", (ARENAS,)),
        ("have_fastchunks", "i8", (ARENAS,)),
        ("system_mem", "i8", (ARENAS,)),
        ("attached", "i8", (ARENAS,)),  # number of threads
        ("next_arena", "i8", (ARENAS,)),
        ("next_free", "i8", (ARENAS,)),  # list of arenas without threads: arena + 1
        ("narenas", "i8"),
        ("free_list", "i8"),  # head of that list: arena + 1
        ("next_to_use", "i8"),
        ("aligned_heap_area", "i8"),
        ("tcache", "i8", (MAX_THREADS,)),  # 0: none yet
        ("arena", "i8", (MAX_THREADS,)),  # arena + 1; 0: none yet
        ("threads", "i8"),  # 1 + the highest number of a thread that had a tcache
        ("multiple", "i8"),  # 0: no thread yet; -1: several; else 1 + number of the only thread
        ("noncontiguous", "i8"),
        ("curbrk", "i8"),  # break as sbrk recorded it; 0: not queried yet
        ("segments", "i8"),  # segments of the main arena: 1 until something blocks the break
        ("segment", "i8", (SEGMENTS,)),  # start of each, for walk and check
        ("mmap_threshold", "i8"),
        ("trim_threshold", "i8"),
        ("n_mmaps", "i8"),
    ]
)
CHECKS = {
    1: "the chunks do not tile the heap",
    2: "a chunk's PREV_INUSE disagrees with the chunk before it",
    3: "a free chunk's size is not repeated at its end",
    4: "a bin has a broken link, a chunk of another bin's size or sizes out of order",
    5: "the bins do not hold exactly the free chunks",
}


def promises(settings):
    """Promise no detection of bad frees: whether glibc detects one depends on the chunk's state.

    The heap does not settle while the mmap threshold is dynamic: a block that was mapped in one
    round comes from the heap in the next, and the trim threshold rises as well.
    """
    names = ("mmap_threshold", "trim_threshold", "top_pad", "mmap_max")
    follows = all(settings[name] == UNSET for name in names)
    return Promises(settles=not follows)


@jit
def init(k, a):
    """Set the static variables to what libc's data segment holds before the first request."""
    a.narenas = 1
    a.attached[0] = 1
    empty_bins(a, 0)
    a.mmap_threshold = given(MMAP_THRESHOLD, DEFAULT)
    a.trim_threshold = given(TRIM_THRESHOLD, DEFAULT)


@jit
def empty_bins(a, av):
    """Make each of the arena's bins an empty ring."""
    for node in range(av * BINS, av * BINS + BINS):
        a.fd[node] = node
        a.bk[node] = node


@jit(inline=True)
def given(value, default):
    """Return the value of a setting, its default if it is UNSET."""
    return value + (value == UNSET) * (default - UNSET)


@jit(inline=True)
def top_pad():
    """Return the bytes requested from the kernel beyond the need."""
    return given(TOP_PAD, DEFAULT)


@jit(inline=True)
def mmap_max():
    """Return the maximum number of mapped blocks."""
    return given(MMAP_MAX, DEFAULT_MAPPINGS)


@jit(inline=True)
def is_dynamic():
    """Return True if the mmap and trim thresholds are dynamic."""
    return (
        MMAP_THRESHOLD == UNSET
        and TRIM_THRESHOLD == UNSET
        and TOP_PAD == UNSET
        and MMAP_MAX == UNSET
    )


# --- Lists ----------------------------------------------------------------------------------------


@jit(inline=True)
def forward(k, a, node):
    """Return the next node of a bin's ring."""
    return a.fd[node] if node < HEADS else load(k, node + FD)


@jit(inline=True)
def backward(k, a, node):
    """Return the previous node of a bin's ring."""
    return a.bk[node] if node < HEADS else load(k, node + BK)


@jit(inline=True)
def set_forward(k, a, node, to):
    """Make ``to`` the successor of ``node``."""
    if node < HEADS:
        a.fd[node] = to
    else:
        store(k, node + FD, to)


@jit(inline=True)
def set_backward(k, a, node, to):
    """Make ``to`` the predecessor of ``node``."""
    if node < HEADS:
        a.bk[node] = to
    else:
        store(k, node + BK, to)


@jit(inline=True)
def chunk_size(k, p):
    """Return the size of a chunk in bytes."""
    return load(k, p + HEAD) & ~FLAGS


@jit(inline=True)
def chunk_for(size):
    """Return the size of the chunk for a request; the cap keeps huge requests from overflowing."""
    return max(align_up(min(size, 1 << 62) + 8, ALIGNMENT), MINSIZE)


@jit(inline=True)
def is_small(size):
    """Return True if chunks of this size have a small bin, one that holds no other size."""
    return size < MIN_LARGE


@jit(inline=True)
def bin_of(size):
    """Return the bin of chunks of ``size`` bytes."""
    if size < MIN_LARGE:
        return size >> 4
    if size >> 6 <= 48:
        return 48 + (size >> 6)
    if size >> 9 <= 20:
        return 91 + (size >> 9)
    if size >> 12 <= 10:
        return 110 + (size >> 12)
    if size >> 15 <= 4:
        return 119 + (size >> 15)
    if size >> 18 <= 2:
        return 124 + (size >> 18)
    return 126


@jit(inline=True)
def max_fast():
    """Return the size of the largest chunk that fastbins hold."""
    return (MXFAST + 8) & -ALIGNMENT if MXFAST else 16


@jit(inline=True)
def flag_of(av):
    """Return the arena flag for the heads of an arena's chunks: NON_MAIN or 0."""
    return NON_MAIN if av else 0


@jit(inline=True)
def set_prev_inuse(k, p):
    """Mark the chunk before ``p`` as used."""
    store(k, p + HEAD, load(k, p + HEAD) | PREV_INUSE)


@jit
def unlink_chunk(k, a, p):
    """Take a free chunk out of its bin, and a large one also out of the bin's list of sizes."""
    head = load(k, p + HEAD)
    size = head & ~FLAGS
    if load(k, p + size) != size:
        abort(k, ABORT_CORRUPT, p)
    fd = load(k, p + FD)
    bk = load(k, p + BK)
    if backward(k, a, fd) != p or forward(k, a, bk) != p:
        abort(k, ABORT_CORRUPT, p)
    set_backward(k, a, fd, bk)
    set_forward(k, a, bk, fd)
    if not is_small(size):
        next_size = load(k, p + FD_NEXTSIZE)
        if next_size:
            unlink_size(k, p, fd, next_size)


@jit
def unlink_size(k, p, fd, next_size):
    """Take ``p`` out of its bin's list of sizes; the next chunk of the same size replaces it."""
    prev_size = load(k, p + BK_NEXTSIZE)
    if fd >= HEADS and load(k, fd + FD_NEXTSIZE) == 0:
        if next_size == p:
            store(k, fd + FD_NEXTSIZE, fd)
            store(k, fd + BK_NEXTSIZE, fd)
            return
        store(k, fd + FD_NEXTSIZE, next_size)
        store(k, fd + BK_NEXTSIZE, prev_size)
        store(k, next_size + BK_NEXTSIZE, fd)
        store(k, prev_size + FD_NEXTSIZE, fd)
        return
    store(k, next_size + BK_NEXTSIZE, prev_size)
    store(k, prev_size + FD_NEXTSIZE, next_size)


@jit
def add_unsorted(k, a, av, p, size):
    """Put a free chunk at the front of the unsorted list; the caller writes its head."""
    unsorted = av * BINS + UNSORTED
    first = a.fd[unsorted]
    store(k, p + FD, first)
    store(k, p + BK, unsorted)
    if not is_small(size):
        store(k, p + FD_NEXTSIZE, 0)
        store(k, p + BK_NEXTSIZE, 0)
    a.fd[unsorted] = p
    set_backward(k, a, first, p)


@jit
def sort_chunk(k, a, av, p, size):
    """Put a chunk from the unsorted list into its bin; a large bin is sorted by size."""
    number_ = bin_of(size)
    bk = av * BINS + number_
    fd = a.fd[bk]
    if not is_small(size):
        if fd == bk:
            store(k, p + FD_NEXTSIZE, p)
            store(k, p + BK_NEXTSIZE, p)
        elif size < chunk_size(k, a.bk[bk]):
            # The smallest chunk goes to the end of the bin and of the list of sizes, a ring.
            largest = fd
            fd = bk
            bk = a.bk[bk]
            smallest = load(k, largest + BK_NEXTSIZE)
            store(k, p + FD_NEXTSIZE, largest)
            store(k, p + BK_NEXTSIZE, smallest)
            store(k, largest + BK_NEXTSIZE, p)
            store(k, smallest + FD_NEXTSIZE, p)
        else:
            other = chunk_size(k, fd)
            while size < other:
                fd = load(k, fd + FD_NEXTSIZE)
                other = chunk_size(k, fd)
            if size == other:
                # Becomes the second of its size, so that the list of sizes need not change.
                fd = load(k, fd + FD)
            else:
                before = load(k, fd + BK_NEXTSIZE)
                store(k, p + FD_NEXTSIZE, fd)
                store(k, p + BK_NEXTSIZE, before)
                store(k, fd + BK_NEXTSIZE, p)
                store(k, before + FD_NEXTSIZE, p)
            bk = backward(k, a, fd)
    a.binmap[av * MAPS + (number_ >> 5)] |= 1 << (number_ & 31)
    store(k, p + BK, bk)
    store(k, p + FD, fd)
    set_backward(k, a, fd, p)
    set_forward(k, a, bk, p)


# --- The tcache -----------------------------------------------------------------------------------


@jit(inline=True)
def tcache_index(chunk):
    """Return the index of the tcache list for chunks of this size."""
    return (chunk - MINSIZE) >> 4


@jit(inline=True)
def tcache_serves(index):
    """Return True if a tcache has a list ``index``."""
    return index <= tcache_index(chunk_for(TCACHE_MAX))


@jit(inline=True)
def tcache_count(k, t, index):
    """Return the length of a list of tcache ``t``, and hold the page of the count."""
    place = t + 2 * index
    hold(k, place)
    return load_half(k, place, True)


@jit(inline=True)
def tcache_put(k, t, index, count, p):
    """Put the block at ``p`` at the front of a list; its ``count`` comes from tcache_count."""
    entry = t + TCACHE_ENTRIES + 8 * index
    hold(k, entry)
    store(k, p + 8, KEY)
    store(k, p, load(k, entry, True), True)  # on the same page, by its alignment
    store(k, entry, p, True)
    store_half(k, t + 2 * index, count + 1, True)


@jit(inline=True)
def tcache_get(k, t, index, count):
    """Take the first block of a list; its ``count`` comes from tcache_count."""
    entry = t + TCACHE_ENTRIES + 8 * index
    hold(k, entry)
    p = load(k, entry, True)
    hold(k, p)
    store(k, entry, load(k, p, True), True)
    store_half(k, t + 2 * index, count - 1, True)
    store(k, p + 8, 0, True)
    return p


@jit(cold=True)
def tcache_init(k, a):
    """Create the running thread's tcache in its arena; return 0 when memory is exhausted."""
    av = arena_get(k, a, TCACHE_SIZE)
    t = int_malloc(k, a, av, 0, chunk_for(TCACHE_SIZE))
    if t == 0 and av >= 0:
        t = int_malloc(k, a, arena_get_retry(k, a, av, TCACHE_SIZE), 0, chunk_for(TCACHE_SIZE))
    if t:
        clear(k, t, TCACHE_SIZE)
        for offset in range(0, TCACHE_SIZE, 8):
            store(k, t + offset, 0)
        a.tcache[k.task.tid] = t
        a.threads = max(a.threads, k.task.tid + 1)
    return t


@jit(inline=True)
def own_cache(k, a):
    """Return the running thread's tcache, or 0 if it has none yet."""
    return a.tcache[k.task.tid]


@jit(inline=True)
def thread_cache(k, a):
    """Return the running thread's tcache, and create it if there is none."""
    t = own_cache(k, a)
    return t if t else tcache_init(k, a)


@jit(cold=True)
def refuse_double(k, t, index, p):
    """End the process if ``p``, which has the mark of a tcache entry, is in the list ``index``."""
    q = load(k, t + TCACHE_ENTRIES + 8 * index)
    while q:
        if q == p:
            abort(k, ABORT_DOUBLE_FREE, p)
        q = load(k, q)


# --- malloc within an arena -----------------------------------------------------------------------


@jit
def take_fast(k, a, av, t, nb):
    """Take a chunk from its fastbin and fill the tcache from there; return 0 if it is empty."""
    place = av * FASTBINS + (nb >> 4) - 2
    p = a.fastbins[place]
    if p == 0:
        return 0
    a.fastbins[place] = load(k, p + FD)
    if chunk_size(k, p) != nb:
        abort(k, ABORT_CORRUPT, p)
    index = tcache_index(nb)
    if t and tcache_serves(index):
        count = tcache_count(k, t, index)
        while count < TCACHE_COUNT and a.fastbins[place]:
            q = a.fastbins[place]
            a.fastbins[place] = load(k, q + FD)
            tcache_put(k, t, index, count, q + HEADER)
            count += 1
    return p + HEADER


@jit
def take_last(k, a, av, head, nb):
    """Take the last chunk of a small bin."""
    p = a.bk[head]
    before = load(k, p + BK)
    set_prev_inuse(k, p + nb)
    a.bk[head] = before
    set_forward(k, a, before, head)
    if av:
        store(k, p + HEAD, load(k, p + HEAD) | NON_MAIN)
    return p


@jit
def take_small(k, a, av, t, nb):
    """Take a chunk from its small bin and fill the tcache from there; return 0 if it is empty."""
    head = av * BINS + (nb >> 4)
    if a.bk[head] == head:
        return 0
    p = take_last(k, a, av, head, nb)
    index = tcache_index(nb)
    if t and tcache_serves(index):
        count = tcache_count(k, t, index)
        while count < TCACHE_COUNT and a.bk[head] != head:
            tcache_put(k, t, index, count, take_last(k, a, av, head, nb) + HEADER)
            count += 1
    return p + HEADER


@jit
def split_chunk(k, a, av, p, size, nb):
    """Use ``nb`` bytes of a chunk that is in no list; return the remainder, 0 if there is none.

    The remainder goes to the front of the unsorted list.
    """
    rest = size - nb
    if rest < MINSIZE:
        set_prev_inuse(k, p + size)
        if av:
            store(k, p + HEAD, load(k, p + HEAD) | NON_MAIN)
        return 0
    remainder = p + nb
    add_unsorted(k, a, av, remainder, rest)
    store(k, p + HEAD, nb | PREV_INUSE | flag_of(av))
    store(k, remainder + HEAD, rest | PREV_INUSE)
    store(k, remainder + rest, rest)
    return remainder


@jit
def take_unsorted(k, a, av, t, nb):
    """Sort the unsorted list until a chunk of the right size appears; return 0 if none does."""
    unsorted = av * BINS + UNSORTED
    index = tcache_index(nb)
    fills = t != 0 and tcache_serves(index)
    found = False
    sorted_ = 0
    iters = 0
    while a.bk[unsorted] != unsorted:
        p = a.bk[unsorted]
        before = load(k, p + BK)
        size = chunk_size(k, p)
        after = p + size
        if load(k, after + HEAD) & PREV_INUSE or load(k, after) != size:
            abort(k, ABORT_CORRUPT, p)
        # The last remainder serves consecutive small requests from adjacent addresses.
        if (
            is_small(nb)
            and before == unsorted
            and p == a.last_remainder[av]
            and size > nb + MINSIZE
        ):
            remainder = p + nb
            rest = size - nb
            a.fd[unsorted] = remainder
            a.bk[unsorted] = remainder
            a.last_remainder[av] = remainder
            store(k, remainder + FD, unsorted)
            store(k, remainder + BK, unsorted)
            if not is_small(rest):
                store(k, remainder + FD_NEXTSIZE, 0)
                store(k, remainder + BK_NEXTSIZE, 0)
            store(k, p + HEAD, nb | PREV_INUSE | flag_of(av))
            store(k, remainder + HEAD, rest | PREV_INUSE)
            store(k, remainder + rest, rest)
            return p + HEADER
        a.bk[unsorted] = before
        set_forward(k, a, before, unsorted)
        if size == nb:
            set_prev_inuse(k, after)
            if av:
                store(k, p + HEAD, load(k, p + HEAD) | NON_MAIN)
            count = tcache_count(k, t, index) if fills else TCACHE_COUNT
            if count < TCACHE_COUNT:
                tcache_put(k, t, index, count, p + HEADER)
                found = True
                continue
            return p + HEADER
        sort_chunk(k, a, av, p, size)
        sorted_ += 1
        if found and TCACHE_UNSORTED_LIMIT > 0 and sorted_ > TCACHE_UNSORTED_LIMIT:
            return tcache_get(k, t, index, tcache_count(k, t, index))
        iters += 1
        if iters >= MAX_ITERS:
            break
    return tcache_get(k, t, index, tcache_count(k, t, index)) if found else 0


@jit
def take_large(k, a, av, nb):
    """Take the smallest chunk that fits from the request's own large bin; return 0 if none."""
    head = av * BINS + bin_of(nb)
    p = a.fd[head]
    if p == head or chunk_size(k, p) < nb:
        return 0
    p = load(k, p + BK_NEXTSIZE)
    size = chunk_size(k, p)
    while size < nb:
        p = load(k, p + BK_NEXTSIZE)
        size = chunk_size(k, p)
    # Prefer a chunk that is not in the list of sizes: taking it leaves that list unchanged.
    if p != a.bk[head]:
        after = load(k, p + FD)
        if load(k, p + HEAD) == load(k, after + HEAD):
            p = after
    unlink_chunk(k, a, p)
    split_chunk(k, a, av, p, size, nb)
    return p + HEADER


@jit
def take_larger(k, a, av, nb):
    """Split the smallest chunk of the next non-empty bin in the binmap; return 0 if none."""
    number_ = bin_of(nb) + 1
    block = number_ >> 5
    bits = a.binmap[av * MAPS + block] >> (number_ & 31) << (number_ & 31) if block < MAPS else 0
    while True:
        while bits == 0:
            block += 1
            if block >= MAPS:
                return 0
            bits = a.binmap[av * MAPS + block]
        bit = trailing_zeros(bits)
        head = av * BINS + (block << 5) + bit
        p = a.bk[head]
        if p != head:
            break
        # The bit of an emptied bin is cleared only here, as in glibc.
        bits &= ~(1 << bit)
        a.binmap[av * MAPS + block] &= ~(1 << bit)
    size = chunk_size(k, p)
    unlink_chunk(k, a, p)
    remainder = split_chunk(k, a, av, p, size, nb)
    if remainder and is_small(nb):
        a.last_remainder[av] = remainder
    return p + HEADER


@jit(inline=True)
def top_size(k, a, av):
    """Return the size of the top chunk in bytes."""
    top = a.top[av]
    return chunk_size(k, top) if top else 0


@jit(inline=True)
def take_top(k, a, av, nb):
    """Cut a chunk off the top; return 0 if the top is too small."""
    size = top_size(k, a, av)
    if size < nb + MINSIZE:
        return 0
    p = a.top[av]
    a.top[av] = p + nb
    store(k, p + HEAD, nb | PREV_INUSE | flag_of(av))
    store(k, p + nb + HEAD, (size - nb) | PREV_INUSE)
    return p + HEADER


@jit
def int_malloc(k, a, av, t, nb):
    """Serve ``nb`` bytes from arena ``av`` (-1: none, map) and fill tcache ``t`` (0: none)."""
    if av < 0:
        return mmap_chunk(k, a, nb)
    if nb <= max_fast():
        p = take_fast(k, a, av, t, nb)
        if p:
            return p
    if is_small(nb):
        p = take_small(k, a, av, t, nb)
        if p:
            return p
    elif a.have_fastchunks[av]:
        malloc_consolidate(k, a, av)
    while True:
        p = take_unsorted(k, a, av, t, nb)
        if p == 0 and not is_small(nb):
            p = take_large(k, a, av, nb)
        if p == 0:
            p = take_larger(k, a, av, nb)
        if p == 0:
            p = take_top(k, a, av, nb)
        if p:
            return p
        if not a.have_fastchunks[av]:
            return sysmalloc(k, a, av, nb)
        malloc_consolidate(k, a, av)


# --- free within an arena -------------------------------------------------------------------------


@jit(inline=True)
def int_free(k, a, av, t, p, head):
    """Free chunk ``p`` of arena ``av``, whose head is ``head``, into tcache ``t`` if possible."""
    size = head & ~FLAGS
    if (p | size) & (ALIGNMENT - 1) or size < MINSIZE:
        abort(k, ABORT_BAD_POINTER, p + HEADER)
    index = tcache_index(size)
    if t and tcache_serves(index):
        if load(k, p + HEADER + 8) == KEY:
            refuse_double(k, t, index, p + HEADER)
        count = tcache_count(k, t, index)
        if count < TCACHE_COUNT:
            tcache_put(k, t, index, count, p + HEADER)
            return
    free_chunk(k, a, av, p, head)


@jit(cold=True)
def free_chunk(k, a, av, p, head):
    """Free chunk ``p``, which the tcache did not take, into a fastbin or the unsorted list."""
    size = head & ~FLAGS
    if size <= max_fast():
        if load(k, p + size + HEAD) <= HEADER:
            abort(k, ABORT_CORRUPT, p + size)
        a.have_fastchunks[av] = 1
        place = av * FASTBINS + (size >> 4) - 2
        first = a.fastbins[place]
        if first == p:
            abort(k, ABORT_DOUBLE_FREE, p + HEADER)
        store(k, p + FD, first)
        a.fastbins[place] = p
        return
    free_normal(k, a, av, p, head)


@jit
def free_normal(k, a, av, p, head):
    """Merge chunk ``p`` with its free neighbours, into the unsorted list or the top; maybe trim."""
    size = head & ~FLAGS
    after = p + size
    top = a.top[av]
    if p == top or (av == 0 and not a.noncontiguous and after >= top + chunk_size(k, top)):
        abort(k, ABORT_DOUBLE_FREE, p + HEADER)
    after_head = load(k, after + HEAD)
    if not after_head & PREV_INUSE:
        abort(k, ABORT_DOUBLE_FREE, p + HEADER)
    size = merge(k, a, av, p, head, after, after_head)
    if size >= CONSOLIDATION_THRESHOLD:
        if a.have_fastchunks[av]:
            malloc_consolidate(k, a, av)
        if av:
            heap_trim(k, a, av)
        elif top_size(k, a, 0) >= a.trim_threshold:
            systrim(k, a, top_pad())


@jit
def merge(k, a, av, p, head, after, after_head):
    """Merge chunk ``p`` with its free neighbours (``after``: the next one); return its new size."""
    size = head & ~FLAGS
    after_size = after_head & ~FLAGS
    if not head & PREV_INUSE:
        before = load(k, p)
        size += before
        p -= before
        if chunk_size(k, p) != before:
            abort(k, ABORT_CORRUPT, p)
        unlink_chunk(k, a, p)
    if after == a.top[av]:
        size += after_size
        store(k, p + HEAD, size | PREV_INUSE)
        a.top[av] = p
        return size
    if load(k, after + after_size + HEAD) & PREV_INUSE:
        store(k, after + HEAD, after_head & ~PREV_INUSE)
    else:
        unlink_chunk(k, a, after)
        size += after_size
    add_unsorted(k, a, av, p, size)
    store(k, p + HEAD, size | PREV_INUSE)
    store(k, p + size, size)
    return size


@jit(cold=True)
def malloc_consolidate(k, a, av):
    """Empty the fastbins: merge each chunk with its free neighbours."""
    a.have_fastchunks[av] = 0
    for place in range(av * FASTBINS, av * FASTBINS + FASTBINS):
        p = a.fastbins[place]
        a.fastbins[place] = 0
        while p:
            following = load(k, p + FD)
            head = load(k, p + HEAD)
            after = p + (head & ~FLAGS)
            merge(k, a, av, p, head, after, load(k, after + HEAD))
            p = following


# --- Memory from the kernel -----------------------------------------------------------------------


@jit(cold=True)
def morecore(k, a, increment):
    """Move the break as sbrk does; return the old one, or -1.  The first call queries the break."""
    if a.curbrk == 0:
        a.curbrk = brk_call(k, 0)
    old = a.curbrk
    if increment:
        if old + increment < 0 or brk_call(k, old + increment) != old + increment:
            return -1
        a.curbrk = old + increment
    return old


@jit(cold=True)
def mmap_chunk(k, a, nb):
    """Map a chunk of ``nb`` bytes and return its payload; 0 if the kernel refuses."""
    length = page_align(nb + 8)
    start = mmap(
        k, 0, length, uapi.PROT_READ | uapi.PROT_WRITE, uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS
    )
    if start < 0:
        return 0
    store(k, start, 0)
    store(k, start + HEAD, length | MMAPPED)
    a.n_mmaps += 1
    return start + HEADER


@jit(cold=True)
def munmap_chunk(k, a, p):
    """Unmap the mapping of chunk ``p``."""
    lead = load(k, p)
    length = lead + chunk_size(k, p)
    if offset_in_page(p - lead | length):
        abort(k, ABORT_BAD_POINTER, p + HEADER)
    a.n_mmaps -= 1
    munmap(k, p - lead, length)


@jit(cold=True)
def sysmalloc(k, a, av, nb):
    """Serve a request that the arena cannot, by a mapping or an extended top; 0 if refused."""
    if nb > MAX_REQUEST:  # the kernel would refuse it three times
        return 0
    tried = nb >= a.mmap_threshold and a.n_mmaps < mmap_max()
    if tried:
        p = mmap_chunk(k, a, nb)
        if p:
            return p
    if av:
        if not grow_arena(k, a, av, nb):
            return 0 if tried else mmap_chunk(k, a, nb)
    else:
        end = a.top[0] + top_size(k, a, 0)
        if offset_in_page(end):  # glibc aborts on a top whose end is not page-aligned
            abort(k, ABORT_CORRUPT, a.top[0])
        grow_main(k, a, nb)
    return take_top(k, a, av, nb)


@jit(cold=True)
def grow_main(k, a, nb):
    """Extend the top of the main arena by moving the break or, if refused, by a mapping."""
    old_top = a.top[0]
    old_size = top_size(k, a, 0)
    old_end = old_top + old_size
    size = nb + top_pad() + MINSIZE
    if not a.noncontiguous:
        size -= old_size
    size = page_align(size)
    start = morecore(k, a, size) if size > 0 else -1
    end = -1
    if start < 0:
        if not a.noncontiguous:
            size = align_up(size + old_size, MMAP_AS_MORECORE)
        if size > nb:
            start = mmap(
                k, 0, size, uapi.PROT_READ | uapi.PROT_WRITE, uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS
            )
        if start < 0:
            return
        # From now on new memory need not follow the old top.
        a.noncontiguous = 1
        end = start + size
    a.system_mem[0] += size
    if old_top and start == old_end and end < 0:
        store(k, old_top + HEAD, (size + old_size) | PREV_INUSE)
        return
    if not a.noncontiguous and old_size and start < old_end:
        abort(k, ABORT_CORRUPT, start)
    begin = align_up(start, ALIGNMENT)
    correction = 0
    if not a.noncontiguous:
        if old_size:
            a.system_mem[0] += start - old_end
        correction = begin - start + old_size
        correction += page_align(start + size + correction) - (start + size + correction)
        end = morecore(k, a, correction)
        if end < 0:
            correction = 0
            end = morecore(k, a, 0)
    elif start != begin:  # other code left the break unaligned, and no correction is possible
        abort(k, ABORT_CORRUPT, start)
    elif end < 0:
        end = morecore(k, a, 0)
    a.top[0] = begin
    if a.segments < SEGMENTS:
        a.segment[a.segments] = begin
    a.segments += 1
    store(k, begin + HEAD, (end - begin + correction) | PREV_INUSE)
    a.system_mem[0] += correction
    if old_size:
        # Two used chunks at the end of the old top prevent merging across the gap.
        old_size = (old_size - 2 * HEADER) & -ALIGNMENT
        store(k, old_top + HEAD, old_size | PREV_INUSE)
        store(k, old_top + old_size + HEAD, HEADER | PREV_INUSE)
        store(k, old_top + old_size + HEADER + HEAD, HEADER | PREV_INUSE)
        if old_size >= MINSIZE:
            int_free(k, a, 0, a.tcache[k.task.tid], old_top, old_size | PREV_INUSE)


@jit(cold=True)
def systrim(k, a, pad):
    """Return the top of the main arena to the kernel, except ``pad`` bytes.

    A top of the minimum size grows instead: its area is -1, which glibc treats as unsigned.
    """
    size = top_size(k, a, 0)
    area = size - MINSIZE - 1
    if 0 <= area <= pad:
        return
    extra = page_start(area - pad)
    if extra == 0:
        return
    end = morecore(k, a, 0)
    if end != a.top[0] + size:
        return
    morecore(k, a, -extra)
    released = end - morecore(k, a, 0)
    if released == 0:
        return
    a.system_mem[0] -= released
    store(k, a.top[0] + HEAD, (size - released) | PREV_INUSE)


# --- Other arenas than the main one ---------------------------------------------------------------


@jit(inline=True)
def heap_of(p):
    """Return the heap that contains ``p``."""
    return p & -HEAP_MAX


@jit(inline=True)
def arena_of(k, p, head):
    """Return the arena of a chunk."""
    return load(k, heap_of(p) + HEAP_AR) if head & NON_MAIN else 0


@jit(cold=True)
def reserve_heap(k, a):
    """Reserve the address space of a heap; return 0 if the kernel refuses."""
    flags = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS | uapi.MAP_NORESERVE
    if a.aligned_heap_area:
        heap = mmap(k, a.aligned_heap_area, HEAP_MAX, uapi.PROT_NONE, flags)
        a.aligned_heap_area = 0
        if heap >= 0:
            if heap & (HEAP_MAX - 1) == 0:
                return heap
            munmap(k, heap, HEAP_MAX)
    raw = mmap(k, 0, 2 * HEAP_MAX, uapi.PROT_NONE, flags)
    if raw >= 0:
        heap = align_up(raw, HEAP_MAX)
        if heap > raw:
            munmap(k, raw, heap - raw)
        else:
            a.aligned_heap_area = heap + HEAP_MAX
        munmap(k, heap + HEAP_MAX, HEAP_MAX - (heap - raw))
        return heap
    # Twice the size was refused; a mapping of the exact size may be aligned by chance.
    heap = mmap(k, 0, HEAP_MAX, uapi.PROT_NONE, flags)
    if heap < 0:
        return 0
    if heap & (HEAP_MAX - 1):
        munmap(k, heap, HEAP_MAX)
        return 0
    return heap


@jit(cold=True)
def new_heap(k, a, size):
    """Make a heap for ``size`` bytes and the pad; return 0 if it is too large or refused.

    A negative ``size`` represents one near 2**64 in glibc: adding the pad may wrap to a small sum.
    """
    if size + top_pad() < 0:
        return 0
    if size + top_pad() < HEAP_MIN:
        size = HEAP_MIN
    elif size + top_pad() <= HEAP_MAX:
        size += top_pad()
    elif size > HEAP_MAX:
        return 0
    else:
        size = HEAP_MAX
    size = page_align(size)
    heap = reserve_heap(k, a)
    if heap == 0:
        return 0
    if mprotect(k, heap, size, uapi.PROT_READ | uapi.PROT_WRITE) < 0:
        munmap(k, heap, HEAP_MAX)
        return 0
    store(k, heap + HEAP_BYTES, size)
    store(k, heap + HEAP_PROTECTED, size)
    store(k, heap + HEAP_PAGESIZE, page_size())
    return heap


@jit(cold=True)
def grow_heap(k, heap, more):
    """Make ``more`` bytes of a heap's reservation usable; return False if that fails."""
    size = load(k, heap + HEAP_BYTES) + page_align(more)
    if size > HEAP_MAX:
        return False
    usable = load(k, heap + HEAP_PROTECTED)
    if size > usable:
        if mprotect(k, heap + usable, size - usable, uapi.PROT_READ | uapi.PROT_WRITE) < 0:
            return False
        store(k, heap + HEAP_PROTECTED, size)
    store(k, heap + HEAP_BYTES, size)
    return True


@jit(cold=True)
def grow_arena(k, a, av, nb):
    """Extend the top of an arena in its heap, or start another heap; return False if refused."""
    old_top = a.top[av]
    old_size = top_size(k, a, av)
    heap = heap_of(old_top)
    bytes_ = load(k, heap + HEAP_BYTES)
    if MINSIZE + nb - old_size > 0 and grow_heap(k, heap, MINSIZE + nb - old_size):
        now = load(k, heap + HEAP_BYTES)
        a.system_mem[av] += now - bytes_
        store(k, old_top + HEAD, (heap + now - old_top) | PREV_INUSE)
        return True
    new = new_heap(k, a, nb + MINSIZE + HEAP_INFO)
    if new == 0:
        return False
    store(k, new + HEAP_AR, av)
    store(k, new + HEAP_PREV, heap)
    now = load(k, new + HEAP_BYTES)
    a.system_mem[av] += now
    a.top[av] = new + HEAP_INFO
    store(k, new + HEAP_INFO + HEAD, (now - HEAP_INFO) | PREV_INUSE)
    # A used chunk of size 0 ends the old heap.
    old_size = (old_size - MINSIZE) & -ALIGNMENT
    store(k, old_top + old_size + HEADER + HEAD, PREV_INUSE)
    if old_size >= MINSIZE:
        store(k, old_top + old_size + HEAD, HEADER | PREV_INUSE)
        store(k, old_top + old_size + HEADER, HEADER)
        head = old_size | PREV_INUSE | NON_MAIN
        store(k, old_top + HEAD, head)
        int_free(k, a, av, a.tcache[k.task.tid], old_top, head)
    else:
        store(k, old_top + HEAD, (old_size + HEADER) | PREV_INUSE)
        store(k, old_top + old_size + HEADER, old_size + HEADER)
    return True


@jit(cold=True)
def heap_trim(k, a, av):
    """Unmap heaps that hold only the top, then return the end of the top to the kernel."""
    heap = heap_of(a.top[av])
    while a.top[av] == heap + HEAP_INFO:
        before = load(k, heap + HEAP_PREV)
        bytes_ = load(k, before + HEAP_BYTES)
        fence = before + bytes_ - HEADER
        misalign = fence & (ALIGNMENT - 1)
        fence -= misalign
        p = fence - load(k, fence)
        head = load(k, p + HEAD)
        size = (head & ~FLAGS) + HEADER + misalign
        if not head & PREV_INUSE:
            size += load(k, p)
        if size + HEAP_MAX - bytes_ < top_pad() + MINSIZE + page_size():
            break
        a.system_mem[av] -= load(k, heap + HEAP_BYTES)
        if heap + HEAP_MAX == a.aligned_heap_area:
            a.aligned_heap_area = 0
        munmap(k, heap, HEAP_MAX)
        heap = before
        if not head & PREV_INUSE:
            p -= load(k, p)
            unlink_chunk(k, a, p)
        a.top[av] = p
        store(k, p + HEAD, size | PREV_INUSE)
    size = top_size(k, a, av)
    area = size - MINSIZE - 1
    if size < a.trim_threshold or area <= top_pad():
        return
    extra = page_start(area - top_pad())
    if extra == 0:
        return
    shrink_heap(k, heap, extra)
    a.system_mem[av] -= extra
    store(k, a.top[av] + HEAD, (size - extra) | PREV_INUSE)


@jit(cold=True)
def shrink_heap(k, heap, less):
    """Return the last ``less`` bytes of a heap to the kernel by madvise; they stay mapped."""
    size = load(k, heap + HEAP_BYTES) - less
    madvise(k, heap + size, less, uapi.MADV_DONTNEED)
    store(k, heap + HEAP_BYTES, size)


@jit(cold=True)
def new_arena(k, a, size):
    """Make an arena in a new heap, with room for ``size`` bytes if possible; -1 if refused."""
    heap = new_heap(k, a, HEAP_INFO + ARENA_RECORD + min(size, 1 << 62) + ALIGNMENT)
    if heap == 0:
        heap = new_heap(k, a, HEAP_INFO + ARENA_RECORD + ALIGNMENT)
        if heap == 0:
            return -1
    av = a.narenas
    a.narenas += 1
    store(k, heap + HEAP_AR, av)
    empty_bins(a, av)
    bytes_ = load(k, heap + HEAP_BYTES)
    a.system_mem[av] = bytes_
    top = align_up(heap + HEAP_INFO + ARENA_RECORD, ALIGNMENT)
    a.top[av] = top
    store(k, top + HEAD, (heap + bytes_ - top) | PREV_INUSE)
    a.next_arena[av] = a.next_arena[0]
    a.next_arena[0] = av
    return av


@jit(cold=True)
def choose_arena(k, a, size):
    """Return an arena that no thread uses, a new one, or the next in turn; -1 if there is none."""
    if a.free_list:
        av = a.free_list - 1
        a.free_list = a.next_free[av]
        return av
    limit = ARENA_MAX
    if limit == 0:
        limit = 8 * CORES if a.narenas > ARENA_TEST else ARENAS
    if a.narenas < limit:
        return new_arena(k, a, size)
    av = a.next_to_use
    a.next_to_use = a.next_arena[av]
    return av


@jit(cold=True)
def attach_arena(k, a, size):
    """Attach the running thread to another arena and return that; -1 if there is none.

    The arena that it leaves does not enter the free list, even if no thread is attached any more.
    """
    av = choose_arena(k, a, size)
    if av >= 0:
        tid = k.task.tid
        if a.arena[tid]:
            a.attached[a.arena[tid] - 1] -= 1
        a.attached[av] += 1
        a.arena[tid] = av + 1
    return av


@jit
def arena_get(k, a, size):
    """Return the running thread's arena, -1 if it gets none; the first thread has the main one."""
    tid = k.task.tid
    if a.arena[tid] == 0:
        if not a.multiple:
            a.multiple = 1 + tid
            a.arena[tid] = 1
        else:
            a.multiple = -1
            attach_arena(k, a, size)
    # A single thread uses the main arena, even if its tcache had to come from another one.
    return 0 if a.multiple > 0 else a.arena[tid] - 1


@jit(cold=True)
def arena_get_retry(k, a, av, size):
    """Return the arena to try after ``av`` failed, -1 if there is none: the main one first.

    If ``av`` is the main one, the next in turn can be the main one again: glibc skips only arenas
    that are locked.
    """
    return 0 if av else attach_arena(k, a, size)


# --- The contract ---------------------------------------------------------------------------------


@jit(cold=True)
def arena_malloc(k, a, t, nb, size):
    """Serve ``size`` bytes, a chunk of ``nb``, from the thread's arena, else from another one."""
    av = arena_get(k, a, size)
    p = int_malloc(k, a, av, t, nb)
    if p == 0 and av >= 0 and a.multiple < 0:
        p = int_malloc(k, a, arena_get_retry(k, a, av, size), t, nb)
    return p


@jit(inline=True)
def malloc(k, a, size):
    """Take a chunk from the tcache, else from the thread's arena."""
    if size < 0:
        return 0
    nb = chunk_for(size)
    t = thread_cache(k, a)
    index = tcache_index(nb)
    count = tcache_count(k, t, index) if t and tcache_serves(index) else 0
    if count:
        return tcache_get(k, t, index, count)
    return arena_malloc(k, a, t, nb, size)


@jit(inline=True)
def free(k, a, p):
    """Return a chunk to the tcache or its arena, or unmap it."""
    chunk = p - HEADER
    head = load(k, chunk + HEAD)
    if head & MMAPPED:
        free_mapped(k, a, chunk, head)
        return
    t = own_cache(k, a)
    if t == 0:
        t = tcache_init(k, a)
        head = load(k, chunk + HEAD)  # the free chunk before it may have become the tcache
    int_free(k, a, arena_of(k, chunk, head), t, chunk, head)


@jit(cold=True)
def free_mapped(k, a, p, head):
    """Unmap chunk ``p``; with dynamic thresholds, its size comes from the heap from now on."""
    if is_dynamic() and a.mmap_threshold < head <= MMAP_THRESHOLD_MAX:
        a.mmap_threshold = head & ~FLAGS
        a.trim_threshold = 2 * a.mmap_threshold
    munmap_chunk(k, a, p)


@jit
def usable_size(k, a, p):
    """Return the chunk's bytes after its head, plus the next chunk's first word unless mapped."""
    head = load(k, p - HEADER + HEAD)
    return (head & ~FLAGS) - (HEADER if head & MMAPPED else 8)


@jit
def realloc(k, a, p, size):
    """Grow the chunk into the top or its free neighbour, shrink it, remap it, or move it."""
    chunk = p - HEADER
    head = load(k, chunk + HEAD)
    old = head & ~FLAGS
    nb = chunk_for(size)
    if head & MMAPPED:
        return realloc_mapped(k, a, p, old, size, nb) if size >= 0 else 0
    t = own_cache(k, a)
    if t == 0:
        t = tcache_init(k, a)
        head = load(k, chunk + HEAD)  # the free chunk before it may have become the tcache
    if size < 0:
        return 0
    av = arena_of(k, chunk, head)
    # Above this limit, size plus head and alignment padding would exceed PTRDIFF_MAX.
    q = int_realloc(k, a, av, t, chunk, head, nb) if size <= PTRDIFF_MAX - 7 else 0
    if q == 0 and a.multiple < 0:
        q = malloc(k, a, size)
        if q:
            copy(k, q, p, old - 8)
            int_free(k, a, av, t, chunk, load(k, chunk + HEAD))  # the one before may be free now
    return q


@jit(cold=True)
def realloc_mapped(k, a, p, old, size, nb):
    """Remap the mapping of the block at ``p``, or move the block."""
    chunk = p - HEADER
    lead = load(k, chunk)
    length = page_align(nb + lead + 8)
    if lead + old == length:
        return p
    start = mremap(k, chunk - lead, lead + old, length, uapi.MREMAP_MAYMOVE, 0)
    if start >= 0:
        store(k, start + lead + HEAD, (length - lead) | MMAPPED)
        return start + lead + HEADER
    if old - 8 >= nb:
        return p
    q = malloc(k, a, size)
    if q:
        copy(k, q, p, old - HEADER)
        munmap_chunk(k, a, chunk)
    return q


@jit
def int_realloc(k, a, av, t, p, head, nb):
    """Resize chunk ``p`` to ``nb`` bytes; return the payload's address, 0 without memory."""
    old = head & ~FLAGS
    flag = flag_of(av)
    size = old
    after = p + old
    after_size = chunk_size(k, after)
    if old < nb:
        if after == a.top[av] and old + after_size >= nb + MINSIZE:
            store(k, p + HEAD, nb | head & FLAGS)
            a.top[av] = p + nb
            store(k, p + nb + HEAD, (old + after_size - nb) | PREV_INUSE)
            return p + HEADER
        if (
            after != a.top[av]
            and not load(k, after + after_size + HEAD) & PREV_INUSE
            and old + after_size >= nb
        ):
            unlink_chunk(k, a, after)
            size = old + after_size
        else:
            q = int_malloc(k, a, av, t, nb)
            if q == 0:
                return 0
            head = load(k, p + HEAD)  # the chunk before may have become free
            if q - HEADER != after:
                copy(k, q, p + HEADER, old - 8)
                int_free(k, a, av, t, p, head)
                return q
            # The new chunk happens to be the next one: together they are large enough.
            size = old + chunk_size(k, after)
    rest = size - nb
    if rest < MINSIZE:
        store(k, p + HEAD, size | head & FLAGS)
        set_prev_inuse(k, p + size)
        return p + HEADER
    store(k, p + HEAD, nb | head & FLAGS)
    store(k, p + nb + HEAD, rest | PREV_INUSE | flag)
    set_prev_inuse(k, p + size)
    int_free(k, a, av, t, p + nb, rest | PREV_INUSE | flag)
    return p + HEADER


@jit
def calloc(k, a, size):
    """Take a chunk, bypassing the tcache; clear it except memory fresh from the kernel."""
    if size < 0:
        return 0
    t = thread_cache(k, a)
    av = arena_get(k, a, size)
    old_top = a.top[av] if av >= 0 else 0
    old_size = chunk_size(k, old_top) if old_top else 0
    if old_top and av:
        heap = heap_of(old_top)
        old_size = max(old_size, heap + load(k, heap + HEAP_PROTECTED) - old_top)
    p = int_malloc(k, a, av, t, chunk_for(size))
    if p == 0 and av >= 0 and a.multiple < 0:
        p = int_malloc(k, a, arena_get_retry(k, a, av, size), t, chunk_for(size))
    if p == 0:
        return 0
    head = load(k, p - HEADER + HEAD)
    if not head & MMAPPED:
        length = head & ~FLAGS
        if p - HEADER == old_top and length > old_size:
            length = old_size
        clear(k, p, length - 8)
    return p


@jit
def aligned_alloc(k, a, alignment, size):
    """Take a chunk with room for the alignment and free what is left at both ends."""
    if alignment <= ALIGNMENT:
        return malloc(k, a, size)
    alignment = max(alignment, MINSIZE)
    nb = chunk_for(size)
    room = chunk_for(nb + alignment + MINSIZE)
    av = arena_get(k, a, min(size, 1 << 61) + alignment + MINSIZE)
    t = a.tcache[k.task.tid]
    possible = 0 <= size <= PTRDIFF_MAX - 55 - alignment  # else glibc selects arenas, then fails
    q = int_malloc(k, a, av, t, room) if possible else 0
    if q == 0 and av >= 0 and a.multiple < 0:
        av = arena_get_retry(k, a, av, size)
        q = int_malloc(k, a, av, t, room) if possible else 0
    if q == 0:
        return 0
    p = q - HEADER
    head = load(k, p + HEAD)
    if q & (alignment - 1):
        place = align_up(q, alignment) - HEADER
        if place - p < MINSIZE:
            place += alignment
        lead = place - p
        left = (head & ~FLAGS) - lead
        if head & MMAPPED:
            store(k, place, load(k, p) + lead)
            store(k, place + HEAD, left | MMAPPED)
            return place + HEADER
        store(k, place + HEAD, left | PREV_INUSE | flag_of(av))
        set_prev_inuse(k, place + left)
        store(k, p + HEAD, lead | head & FLAGS)
        int_free(k, a, av, t, p, lead | head & FLAGS)
        p = place
        head = load(k, p + HEAD)  # freeing the lead may have cleared PREV_INUSE
    if not head & MMAPPED:
        had = head & ~FLAGS
        if had > nb + MINSIZE:
            rest = (had - nb) | PREV_INUSE | flag_of(av)
            store(k, p + nb + HEAD, rest)
            store(k, p + HEAD, nb | head & FLAGS)
            int_free(k, a, av, t, p + nb, rest)
    return p + HEADER


@jit
def note_second_thread(k, a):
    """Note that the process has a second thread, before that thread's first request."""
    if not a.multiple:
        a.arena[k.task.tid] = 1
    a.multiple = -1


@jit
def thread_exit(k, a):
    """Free the blocks in the thread's tcache and the tcache itself; detach from the arena."""
    tid = k.task.tid
    t = a.tcache[tid]
    if t:
        for index in range(TCACHE_BINS):
            q = load(k, t + TCACHE_ENTRIES + 8 * index)
            while q:
                following = load(k, q)
                head = load(k, q - HEADER + HEAD)
                int_free(k, a, arena_of(k, q - HEADER, head), 0, q - HEADER, head)
                q = following
        a.tcache[tid] = 0
        head = load(k, t - HEADER + HEAD)
        if head & MMAPPED:
            free_mapped(k, a, t - HEADER, head)
        else:
            int_free(k, a, arena_of(k, t - HEADER, head), 0, t - HEADER, head)
    if a.arena[tid]:
        av = a.arena[tid] - 1
        a.arena[tid] = 0
        a.attached[av] -= 1
        if a.attached[av] == 0:
            a.next_free[av] = a.free_list
            a.free_list = av + 1


@jit
def trim(k, a):
    """Do malloc_trim(0): consolidate, return whole pages inside free chunks, trim the top."""
    for av in range(a.narenas):
        malloc_consolidate(k, a, av)
        for number_ in range(1, BINS - 1):
            if number_ == UNSORTED or number_ >= bin_of(page_size()):
                drop_pages(k, a, av * BINS + number_)
    systrim(k, a, 0)


@jit
def drop_pages(k, a, head):
    """Return the whole pages inside a bin's chunks to the kernel by madvise; they stay mapped."""
    page = page_size()
    p = a.bk[head]
    while p != head:
        size = chunk_size(k, p)
        if size > page - 1 + BK_NEXTSIZE + 8:
            start = page_align(p + BK_NEXTSIZE + 8)
            length = size - (start - p)
            if length > page - 1:
                madvise(k, start, length & -page, uapi.MADV_DONTNEED)
        p = load(k, p + BK)


# --- Walk and check -------------------------------------------------------------------------------


@jit
def mark_cached(k, a, bit):
    """Set (``bit`` = CACHED) or clear (0) the mark on all chunks in fastbins and tcaches.

    The chunks that hold the tcaches themselves are marked as well.
    """
    for place in range(a.narenas * FASTBINS):
        p = a.fastbins[place]
        while p:
            store(k, p + HEAD, load(k, p + HEAD) & ~CACHED | bit)
            p = load(k, p + FD)
    for tid in range(a.threads):
        t = a.tcache[tid]
        if t:
            store(k, t - 8, load(k, t - 8) & ~CACHED | bit)
            for index in range(TCACHE_BINS):
                q = load(k, t + TCACHE_ENTRIES + 8 * index)
                while q:
                    store(k, q - 8, load(k, q - 8) & ~CACHED | bit)
                    q = load(k, q)


@jit
def is_tcache(a, p):
    """Return True if chunk ``p`` is a tcache."""
    for tid in range(a.threads):
        if a.tcache[tid] == p + HEADER:
            return True
    return False


@jit
def walk_chunks(k, a, rows, n, p, end):
    """List the chunks from ``p`` to ``end`` or a fence, from row ``n`` on; return the next row."""
    while p != end:
        head = load(k, p + HEAD)
        size = head & ~FLAGS & ~CACHED
        if size < MINSIZE:
            return emit(rows, n, p + 8, 8, BLOCK_HEADER)
        n = emit(rows, n, p + 8, 8, BLOCK_HEADER)
        used = load(k, p + size + HEAD) & PREV_INUSE
        kind = BLOCK_USED if used and not head & CACHED else BLOCK_FREE
        if head & CACHED and size == chunk_for(TCACHE_SIZE) and is_tcache(a, p):
            kind = BLOCK_HEADER
        n = emit(rows, n, p + HEADER, size - 8, kind)
        p += size
    return n


@jit
def walk_top(k, a, rows, n, av):
    """List the top chunk of an arena."""
    top = a.top[av]
    return emit(rows, n, top + 8, chunk_size(k, top) - 8, BLOCK_FREE)


@jit
def mapped_chunk(k, start, end):
    """Return the chunk in the mapping that starts at ``start``; 0 if that is not a chunk's mapping.

    Reads only pages that are present, so that nothing faults.
    """
    if not k.pte[page_of(start)] & PTE_READ:
        return 0
    head = load_word(k.window, fold(start + HEAD) >> 3)
    length = head & ~FLAGS
    if head & FLAGS != MMAPPED or length == 0 or start + length > end:
        return 0
    # An aligned chunk is further up and records the distance; the head at ``start`` remains.
    p = start + ALIGNMENT
    while p < start + length:
        if k.pte[page_of(p)] & PTE_READ:
            lead = load_word(k.window, fold(p) >> 3)
            head = load_word(k.window, fold(p + HEAD) >> 3)
            if lead == p - start and head == (length - lead) | MMAPPED:
                return p
            p += ALIGNMENT
        else:
            p = page_start(p) + page_size()
    return start


@jit
def walk(k, a, rows):
    """List the chunks of all heaps, then the mapped chunks found among the process's VMAs."""
    n = 0
    mark_cached(k, a, CACHED)
    for i in range(min(a.segments, SEGMENTS)):
        n = walk_chunks(k, a, rows, n, a.segment[i], a.top[0])
    if a.top[0]:
        n = walk_top(k, a, rows, n, 0)
    for av in range(1, a.narenas):
        heap = heap_of(a.top[av])
        end = a.top[av]
        n = walk_top(k, a, rows, n, av)
        while heap:
            before = load(k, heap + HEAP_PREV)
            first = heap + HEAP_INFO
            if before == 0:
                first = align_up(first + ARENA_RECORD, ALIGNMENT)
            n = walk_chunks(k, a, rows, n, first, end)
            heap = before
            end = 0
    mark_cached(k, a, 0)
    for i in range(k.mm.map_count):
        start = k.vma[i].vm_start
        end = k.vma[i].vm_end
        while start < end and k.vma[i].vm_file == 0:
            p = mapped_chunk(k, start, end)
            if p == 0:
                break
            size = chunk_size(k, p)
            n = emit(rows, n, start, p + HEADER - start, BLOCK_HEADER)
            kind = BLOCK_HEADER if is_tcache(a, p) else BLOCK_USED
            n = emit(rows, n, p + HEADER, size - HEADER, kind)
            start = p + size
    return n


@jit
def check_bins(k, a, av):
    """Return the number of chunks in an arena's bins, or the negative CHECKS key of an error."""
    count = 0
    for number_ in range(UNSORTED, BINS - 1):
        head = av * BINS + number_
        before = head
        last = 1 << 62
        p = a.fd[head]
        while p != head:
            if load(k, p + BK) != before:
                return -4
            size = chunk_size(k, p)
            if number_ != UNSORTED and bin_of(size) != number_:
                return -4
            if number_ != UNSORTED and not is_small(size) and size > last:
                return -4
            last = size
            count += 1
            before = p
            p = load(k, p + FD)
        if a.bk[head] != before:
            return -4
    return count


@jit
def check_segment(k, p, top):
    """Return the number of free chunks from ``p`` to ``top`` or a fence; -(CHECKS key) on error."""
    count = 0
    used = True
    while p != top:
        head = load(k, p + HEAD)
        size = head & ~FLAGS
        if size == HEADER:
            return count
        if size < MINSIZE or size & (ALIGNMENT - 1):
            return -1
        if used != (head & PREV_INUSE != 0):
            return -2
        used = load(k, p + size + HEAD) & PREV_INUSE != 0
        if not used:
            if load(k, p + size) != size:
                return -3
            count += 1
        p += size
    return count


@jit
def check(k, a):
    """Check that the main arena's chunks tile its heap and its bins hold exactly the free ones."""
    listed = check_bins(k, a, 0)
    if listed < 0:
        return -listed
    if a.segments > SEGMENTS:
        return 0
    for i in range(a.segments):
        found = check_segment(k, a.segment[i], a.top[0])
        if found < 0:
            return -found
        listed -= found
    return 5 if listed else 0

"""``python -m benchmarks.twin.verify.mutations``: mutate the twin; each mutation must be detected.

Programs run against each mutated twin until one shows a difference.  ``--store DIRECTORY`` stores
the shortest program found for each mutation, which the tests replay.
"""

import sys

from kernel.differential import mutations
from kernel.engine.command import run

#: Mutations by function or constant; :func:`kernel.differential.mutations.read` defines the format.
MUTATIONS = mutations.read(
    """
take_fast: a fastbin fills the tcache to its count
- while count < TCACHE_COUNT
+ while count < TCACHE_COUNT - 1
take_small: a small bin fills the tcache to its count
- while count < TCACHE_COUNT
+ while count < TCACHE_COUNT - 1
take_unsorted: chunks of the unsorted list fill the tcache
- if count < TCACHE_COUNT:
+ if count < 0:
take_unsorted: tcache_unsorted_limit bounds the sorting
- sorted_ > TCACHE_UNSORTED_LIMIT
+ False
take_last: small bins are first in, first out
- p = a.bk[head]
+ p = a.fd[head]
- before = load(k, p + BK)
+ before = load(k, p + FD)
- a.bk[head] = before
+ a.fd[head] = before
- set_forward(k, a, before, head)
+ set_backward(k, a, before, head)
take_unsorted: consecutive small requests are cut from the last remainder
- and p == a.last_remainder[av]
+ and p == 0
take_larger: only small requests leave a last remainder
- if remainder and is_small(nb):
+ if remainder:
sort_chunk: a chunk becomes the second of its size in a large bin
- if size == other:
+ if size == other and size < 0:
sort_chunk: a sorted chunk is marked in the map of bins
- |= 1 << (number_ & 31)
+ |= 0
take_large: a large request takes the second chunk of a size
-             p = after
+             p = p
take_large: a large request takes the smallest chunk that fits
- while size < nb:
+ while size < nb + MINSIZE and p != a.fd[head]:
take_larger: larger bins return their smallest chunk
- p = a.bk[head]
+ p = a.fd[head]
split_chunk: a remainder of 32 bytes becomes a chunk
- if rest < MINSIZE:
+ if rest < 2 * MINSIZE:
MIN_LARGE: sizes of at least 1024 have large bins
= 1008
add_unsorted: a freed chunk becomes first in the unsorted list
- first = a.fd[unsorted]
+ first = unsorted
- store(k, p + BK, unsorted)
+ last = a.bk[unsorted]
+     store(k, p + BK, last)
- a.fd[unsorted] = p
+ set_forward(k, a, last, p)
- set_backward(k, a, first, p)
+ a.bk[unsorted] = p
MAX_ITERS: one search sorts ten thousand chunks
= 100
CONSOLIDATION_THRESHOLD: a free of 64 KiB consolidates
= (64 << 10) + 16
int_malloc: a large request consolidates first
- elif a.have_fastchunks[av]:
+ elif False:
malloc_consolidate: fastbins are consolidated from the smallest up
- range(av * FASTBINS, av * FASTBINS + FASTBINS)
+ range(av * FASTBINS + FASTBINS - 1, av * FASTBINS - 1, -1)
max_fast: the largest fastbin holds chunks of 128 bytes
- (MXFAST + 8) & -ALIGNMENT
+ (MXFAST + 24) & -ALIGNMENT
grow_main: the break grows by top_pad more
- nb + top_pad() + MINSIZE
+ nb + MINSIZE
free_normal: trimming leaves top_pad
- systrim(k, a, top_pad())
+ systrim(k, a, 0)
systrim: a break moved by the program is not trimmed
- if end != a.top[0] + size:
+ if end < 0:
free_mapped: freeing a mapping raises the mmap threshold
- a.mmap_threshold = head & ~FLAGS
+ a.mmap_threshold = a.mmap_threshold
free_mapped: the trim threshold rises with the mmap threshold
- a.trim_threshold = 2 * a.mmap_threshold
+ a.trim_threshold = a.trim_threshold
free_mapped: the mmap threshold rises to 32 MiB at most
- <= MMAP_THRESHOLD_MAX
+ <= 2 * MMAP_THRESHOLD_MAX
sysmalloc: the mmap threshold itself is mapped
- nb >= a.mmap_threshold
+ nb > a.mmap_threshold
MMAP_AS_MORECORE: a mapping as heap is a multiple of 1 MiB
= 4096
grow_main: a mapping as heap ends contiguity
- a.noncontiguous = 1
+ a.noncontiguous = 0
grow_main: two fenceposts end an old top
- old_size = (old_size - 2 * HEADER) & -ALIGNMENT
+ old_size = (old_size - 3 * HEADER) & -ALIGNMENT
int_realloc: realloc grows into the top
- if after == a.top[av] and
+ if after == 0 and
int_realloc: realloc grows into a free neighbour
- after != a.top[av]
+ after < 0
int_realloc: realloc reads the head again after malloc
- head = load(k, p + HEAD)  #
+ head = head  #
realloc_mapped: realloc remaps a mapping
- if start >= 0:
+ if start >= 0 and length == 0:
aligned_alloc: aligned_alloc requests the alignment and 32 bytes more
- nb + alignment + MINSIZE
+ nb + alignment + 2 * MINSIZE
aligned_alloc: aligned_alloc frees the remaining end
- if had > nb + MINSIZE:
+ if had > nb + 2 * MINSIZE:
calloc: calloc does not clear fresh memory from the kernel
- length = old_size
+ length = length
calloc: calloc does not take from the tcache
-     t = thread_cache(k, a)
+     t = thread_cache(k, a)
+     i = tcache_index(chunk_for(size))
+     if t and tcache_serves(i) and tcache_count(k, t, i):
+         return tcache_get(k, t, i, tcache_count(k, t, i))
drop_pages: malloc_trim drops the pages inside free chunks
- if length > page - 1:
+ if length < 0:
choose_arena: an arena without threads is taken first
- if a.free_list:
+ if a.free_list < 0:
choose_arena: arena_test is not the limit
- 8 * CORES if a.narenas > ARENA_TEST else ARENAS
+ ARENA_TEST
choose_arena: arenas are shared in turn
- a.next_to_use = a.next_arena[av]
+ a.next_to_use = av
new_arena: a new arena is linked after the main arena
- a.next_arena[av] = a.next_arena[0]
-     a.next_arena[0] = av
+ a.next_arena[av] = 0
+     a.next_arena[av - 1] = av
arena_malloc: another arena is tried when one fails
- if p == 0 and av >= 0
+ if p == 0 and av < -1
thread_exit: a thread that ends frees the chunks of its tcache
- while q:
+ while q < 0:
thread_exit: a thread that ends frees its tcache
- int_free(k, a, arena_of(k, t - HEADER, head), 0, t - HEADER, head)
+ t = 0
thread_exit: an arena is free when its last thread ends
- if a.attached[av] == 0:
+ if a.attached[av] >= 0:
new_heap: a heap begins with the pad
- size += top_pad()
+ size += 0
grow_heap: a heap grows without a pad
- page_align(more)
+ page_align(more + top_pad())
grow_heap: memory once made accessible stays accessible
- if size > usable:
+ if size > 0:
reserve_heap: a heap is reserved in space left by an earlier one
- if a.aligned_heap_area:
+ if a.aligned_heap_area < 0:
grow_arena: the remaining top of a full heap is freed
- if old_size >= MINSIZE:
+ if old_size > 2 * MINSIZE:
heap_trim: a heap that contains only top is unmapped
- while a.top[av] == heap + HEAP_INFO:
+ while a.top[av] == heap:
heap_trim: a heap is trimmed at the trim threshold
- size < a.trim_threshold
+ size <= 2 * a.trim_threshold
realloc: realloc tries other arenas
- if q == 0 and a.multiple < 0:
+ if q < 0:
""",
    "allocators.ptmalloc",
)


def main(argv: list[str] | None = None) -> int:
    """Run the command.  Returns its exit code."""
    from benchmarks.twin.verify.subject import COMMAND, Glibc

    return mutations.main(
        COMMAND, lambda: Glibc(count_branches=False), MUTATIONS, argv, programs=12
    )


if __name__ == "__main__":
    sys.exit(run("benchmarks.twin.verify.mutations", main))

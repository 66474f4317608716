"""``python -m benchmarks.twin.verify.mutations``: break rules of the twin; each must be noticed.

Programs run against each broken twin until one shows a difference.  ``--store DIRECTORY`` keeps the
shortest program found for each, with which the tests do the same quickly.
"""

import sys

from kernel.differential import mutations
from kernel.differential.mutations import Mutation, edit

MUTATIONS = (
    edit(
        "a fastbin fills the tcache to its count",
        "take_fast",
        "while count < TCACHE_COUNT",
        "while count < TCACHE_COUNT - 1",
    ),
    edit(
        "a small bin fills the tcache to its count",
        "take_small",
        "while count < TCACHE_COUNT",
        "while count < TCACHE_COUNT - 1",
    ),
    edit(
        "chunks of the unsorted list fill the tcache",
        "take_unsorted",
        "if count < TCACHE_COUNT:",
        "if count < 0:",
    ),
    edit(
        "tcache_unsorted_limit bounds the sorting",
        "take_unsorted",
        "sorted_ > TCACHE_UNSORTED_LIMIT",
        "False",
    ),
    edit(
        "small bins are first in, first out",
        "take_last",
        "p = a.bk[head]",
        "p = a.fd[head]",
        "before = load(k, p + BK)",
        "before = load(k, p + FD)",
        "a.bk[head] = before",
        "a.fd[head] = before",
        "set_forward(k, a, before, head)",
        "set_backward(k, a, before, head)",
    ),
    edit(
        "small requests in a row are cut from the last remainder",
        "take_unsorted",
        "and p == a.last_remainder[av]",
        "and p == 0",
    ),
    edit(
        "only small requests leave a last remainder",
        "take_larger",
        "if remainder and is_small(nb):",
        "if remainder:",
    ),
    edit(
        "a chunk becomes the second of its size in a large bin",
        "sort_chunk",
        "if size == other:",
        "if size == other and size < 0:",
    ),
    edit(
        "a sorted chunk is marked in the map of bins",
        "sort_chunk",
        "|= 1 << (number_ & 31)",
        "|= 0",
    ),
    edit(
        "a large request takes the second chunk of a size",
        "take_large",
        "            p = after",
        "            p = p",
    ),
    edit(
        "a large request takes the smallest chunk that fits",
        "take_large",
        "while size < nb:",
        "while size < nb + MINSIZE and p != a.fd[head]:",
    ),
    edit(
        "larger bins give their smallest chunk",
        "take_larger",
        "p = a.bk[head]",
        "p = a.fd[head]",
    ),
    edit(
        "a rest of 32 bytes is a chunk of its own",
        "split_chunk",
        "if rest < MINSIZE:",
        "if rest < 2 * MINSIZE:",
    ),
    Mutation("sizes from 1024 on have large bins", "MIN_LARGE", 1008),
    edit(
        "a free chunk goes first into the unsorted list",
        "add_unsorted",
        "first = a.fd[unsorted]",
        "first = unsorted",
        "store(k, p + BK, unsorted)",
        "last = a.bk[unsorted]\n    store(k, p + BK, last)",
        "a.fd[unsorted] = p",
        "set_forward(k, a, last, p)",
        "set_backward(k, a, first, p)",
        "a.bk[unsorted] = p",
    ),
    Mutation("one search sorts ten thousand chunks", "MAX_ITERS", 100),
    Mutation("a free of 64 KiB consolidates", "CONSOLIDATION_THRESHOLD", (64 << 10) + 16),
    edit(
        "a large request consolidates first",
        "int_malloc",
        "elif a.have_fastchunks[av]:",
        "elif False:",
    ),
    edit(
        "fastbins consolidate from the smallest on",
        "malloc_consolidate",
        "range(av * FASTBINS, av * FASTBINS + FASTBINS)",
        "range(av * FASTBINS + FASTBINS - 1, av * FASTBINS - 1, -1)",
    ),
    edit(
        "the largest fastbin is of 128 bytes",
        "max_fast",
        "(MXFAST + 8) & -ALIGNMENT",
        "(MXFAST + 24) & -ALIGNMENT",
    ),
    edit("the break grows by top_pad more", "grow_main", "nb + TOP_PAD + MINSIZE", "nb + MINSIZE"),
    edit(
        "trimming leaves top_pad",
        "free_normal",
        "systrim(k, a, TOP_PAD)",
        "systrim(k, a, 0)",
    ),
    edit(
        "nobody else's break is trimmed",
        "systrim",
        "if end != a.top[0] + size:",
        "if end < 0:",
    ),
    edit(
        "freeing a mapping raises the mmap threshold",
        "free_mapped",
        "a.mmap_threshold = head & ~FLAGS",
        "a.mmap_threshold = a.mmap_threshold",
    ),
    edit(
        "the trim threshold rises with the mmap threshold",
        "free_mapped",
        "a.trim_threshold = 2 * a.mmap_threshold",
        "a.trim_threshold = a.trim_threshold",
    ),
    edit(
        "the mmap threshold rises to 32 MiB at most",
        "free_mapped",
        "<= MMAP_THRESHOLD_MAX",
        "<= 2 * MMAP_THRESHOLD_MAX",
    ),
    edit(
        "the mmap threshold itself is mapped",
        "sysmalloc",
        "nb >= a.mmap_threshold",
        "nb > a.mmap_threshold",
    ),
    Mutation("a mapping as heap is of whole MiB", "MMAP_AS_MORECORE", 4096),
    edit(
        "a mapping as heap ends contiguity",
        "grow_main",
        "a.noncontiguous = 1",
        "a.noncontiguous = 0",
    ),
    edit(
        "two fences end an old top",
        "grow_main",
        "old_size = (old_size - 2 * HEADER) & -ALIGNMENT",
        "old_size = (old_size - 3 * HEADER) & -ALIGNMENT",
    ),
    edit(
        "realloc grows into the top",
        "int_realloc",
        "if after == a.top[av] and",
        "if after == 0 and",
    ),
    edit(
        "realloc grows into a free neighbour",
        "int_realloc",
        "and old + after_size >= nb\n",
        "and old + after_size >= nb + (1 << 50)\n",
    ),
    edit(
        "realloc looks at its head again",
        "int_realloc",
        "head = load(k, p + HEAD)  #",
        "head = head  #",
    ),
    edit(
        "realloc remaps a mapping",
        "realloc_mapped",
        "if start >= 0:",
        "if start >= 0 and length == 0:",
    ),
    edit(
        "aligned_alloc asks for the alignment and 32 bytes more",
        "aligned_alloc",
        "nb + alignment + MINSIZE",
        "nb + alignment + 2 * MINSIZE",
    ),
    edit(
        "aligned_alloc frees the end that is left",
        "aligned_alloc",
        "if had > nb + MINSIZE:",
        "if had > nb + 2 * MINSIZE:",
    ),
    edit(
        "calloc does not clear what comes fresh from the kernel",
        "calloc",
        "length = old_size",
        "length = length",
    ),
    edit(
        "calloc does not take from the tcache",
        "calloc",
        "    t = thread_cache(k, a)\n",
        "    t = thread_cache(k, a)\n"
        "    i = tcache_index(chunk_for(size))\n"
        "    if t and tcache_serves(i) and tcache_count(k, t, i):\n"
        "        return tcache_get(k, t, i, tcache_count(k, t, i))\n",
    ),
    edit(
        "malloc_trim drops the pages inside free chunks",
        "drop_pages",
        "if length > page - 1:",
        "if length < 0:",
    ),
    edit(
        "an arena without threads is taken first",
        "choose_arena",
        "if a.free_list:",
        "if a.free_list < 0:",
    ),
    edit(
        "arena_test is not the limit",
        "choose_arena",
        "8 * CORES if a.narenas > ARENA_TEST else ARENAS",
        "ARENA_TEST",
    ),
    edit(
        "arenas are shared in turn",
        "choose_arena",
        "a.next_to_use = a.next_arena[av]",
        "a.next_to_use = av",
    ),
    edit(
        "a new arena comes next behind the main one",
        "new_arena",
        "a.next_arena[av] = a.next_arena[0]\n    a.next_arena[0] = av",
        "a.next_arena[av] = 0\n    a.next_arena[av - 1] = av",
    ),
    edit(
        "another arena is tried when one refuses",
        "arena_malloc",
        "if p == 0 and av >= 0",
        "if p == 0 and av < -1",
    ),
    edit(
        "a thread that ends frees what its tcache holds",
        "thread_exit",
        "while q:",
        "while q < 0:",
    ),
    edit(
        "a thread that ends frees its tcache",
        "thread_exit",
        "int_free(k, a, arena_of(k, t - HEADER, head), 0, t - HEADER, head)",
        "t = 0",
    ),
    edit(
        "an arena is free when its last thread ends",
        "thread_exit",
        "if a.attached[av] == 0:",
        "if a.attached[av] >= 0:",
    ),
    edit("a heap begins with the pad", "new_heap", "size += TOP_PAD", "size += 0"),
    edit(
        "a heap grows without a pad",
        "grow_heap",
        "page_align(more)",
        "page_align(more + TOP_PAD)",
    ),
    edit(
        "what was once made usable stays so",
        "grow_heap",
        "if size > usable:",
        "if size > 0:",
    ),
    edit(
        "a heap is reserved where room was left",
        "reserve_heap",
        "if a.aligned_heap_area:",
        "if a.aligned_heap_area < 0:",
    ),
    edit(
        "the rest of a full heap's top is freed",
        "grow_arena",
        "if old_size >= MINSIZE:",
        "if old_size > 2 * MINSIZE:",
    ),
    edit(
        "a heap of nothing but top goes",
        "heap_trim",
        "while a.top[av] == heap + HEAP_INFO:",
        "while a.top[av] == heap:",
    ),
    edit(
        "a heap's end is trimmed from the trim threshold on",
        "heap_trim",
        "size < a.trim_threshold",
        "size <= 2 * a.trim_threshold",
    ),
    edit(
        "realloc looks in other arenas",
        "realloc",
        "if q == 0 and a.multiple < 0:",
        "if q < 0:",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    from benchmarks.twin.verify.subject import COMMAND, Glibc

    return mutations.main(
        COMMAND, lambda: Glibc(count_branches=False), MUTATIONS, argv, programs=12
    )


if __name__ == "__main__":
    sys.exit(main())

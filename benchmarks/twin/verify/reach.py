"""Branches of the twin that no program here can reach, and why: the one table of them."""

from kernel.differential.reach import Rule

_CORRUPT = "programs do not write into malloc's own words"
_KEY = "a block's words are the tcache's mark by chance only"
_LIMITS = "the kernel refuses no shrinking"
_ALIGNED = "a mapped block begins 16 bytes into a page: never aligned by itself"
_OVERFLOW = "requests beyond all memory have been refused before"
_FITS = "a mapping that need not grow is not remapped"
_FEW = "programs have fewer threads than there is room for"

#: The first that fits a branch counts.
RULES = (
    Rule(_CORRUPT, r"if .*(!=|&).*", "unlink_chunk|merge|take_unsorted|take_fast|munmap_chunk"),
    Rule(_CORRUPT, r"if load\(k, p \+ size \+ HEAD\) <= HEADER:", "free_chunk"),
    Rule(_KEY, r"while q:  else", "refuse_double"),
    Rule(_LIMITS, "if released == 0:", "systrim"),
    Rule(_ALIGNED, r"if not head & MMAPPED:  else", "aligned_alloc"),
    Rule(_OVERFLOW, "if size > nb:  else", "grow_main"),
    Rule(_FITS, "if old - 8 >= nb:", "realloc_mapped"),
    Rule(_FEW, r"if .*THREADS:", "own_cache|thread_exit"),
)

"""Table of the twin's branches that no generated program can reach, with the reasons."""

from kernel.differential.reach import Rule

_CORRUPT = "programs do not overwrite malloc's metadata"
_KEY = "a block contains the tcache key only by accident"
_LIMITS = "the kernel never refuses to shrink the break"
_ALIGNED = "a mapped block begins 16 bytes into a page and is never page-aligned"
_OVERFLOW = "requests larger than all memory are refused earlier"
_FITS = "a mapping that need not grow is not remapped"
_FEW = "programs have fewer threads than the maximum"

#: The first rule that matches a branch applies.
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

"""Branches of the twin that no program here can reach, and why: the one table of them."""

import re

from kernel.engine.branches import Branch

_CORRUPT = "programs do not write into malloc's own words"
_KEY = "a block's words are the tcache's mark by chance only"
_LIMITS = "the kernel refuses no shrinking"
_ALIGNED = "a mapped block begins 16 bytes into a page: never aligned by itself"
_OVERFLOW = "requests beyond all memory have been refused before"
_FITS = "a mapping that need not grow is not remapped"
_FEW = "programs have fewer threads than there is room for"

#: (function, pattern of the text, why); regular expressions that must match wholly.
_OUT_OF_REACH: tuple[tuple[str, str, str], ...] = (
    ("unlink_chunk|merge|take_unsorted|take_fast|munmap_chunk", r"if .*(!=|&).*", _CORRUPT),
    ("free_chunk", r"if load\(k, p \+ size \+ HEAD\) <= HEADER:", _CORRUPT),
    ("refuse_double", r"while q:  else", _KEY),
    ("systrim", "if released == 0:", _LIMITS),
    ("aligned_alloc", r"if not head & MMAPPED:  else", _ALIGNED),
    ("grow_main", "if size > nb:  else", _OVERFLOW),
    ("realloc_mapped", "if old - 8 >= nb:", _FITS),
    ("own_cache|thread_exit", r"if .*THREADS:", _FEW),
)


def out_of_reach(branches: list[Branch]) -> dict[int, str]:
    """Numbers of the branches that are out of reach, with the reason.

    One that is reached all the same counts as reached.
    """
    return {
        b.number: why
        for b in reversed(branches)
        for function, text, why in reversed(_OUT_OF_REACH)
        if re.fullmatch(function, b.function) and re.fullmatch(text, b.text)
    }

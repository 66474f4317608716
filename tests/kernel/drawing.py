"""Drawings of a corner of the address space, one column a page: what is done, what is there.

Areas, and in a line of operations the mmap that makes one:

    W rw   R read-only   N none   X rwx   V rw, no reserve   S rw, shared   T read-only, shared
    L rw, locked (MAP_LOCKED)

Areas that only other operations make:

    Q read-only, A none, but accounted   K read-only, P none, locked   O rw, locked on fault
    H rw, huge pages advised     G rw, huge pages advised against
    a lower-case letter: another area of the same kind that touches the last

Operations, done from left to right:

    ~ munmap      ! write      ? read        w r n x mprotect to rw, read-only, none, rwx
    l mlock       o mlock2 on fault          u munlock
    d f h g madvise: DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE
    <<  >>>   mremap of what < shows to where > shows       ==+ ==-   in place: longer, shorter
    [[  ]]    the same with MREMAP_DONTUNMAP
"""

from itertools import groupby

from kernel.uapi import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MLOCK_ONFAULT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
)

#: First column of the drawings, far from anything else.
ORIGIN = 0x600000000000

#: Protection and flags of the areas that mmap makes.
MAPPED = {
    "W": (3, MAP_PRIVATE),
    "R": (1, MAP_PRIVATE),
    "N": (0, MAP_PRIVATE),
    "X": (7, MAP_PRIVATE),
    "V": (3, MAP_PRIVATE | MAP_NORESERVE),
    "S": (3, MAP_SHARED),
    "T": (1, MAP_SHARED),
    "L": (3, MAP_PRIVATE | MAP_LOCKED),
}
PROTECTED = {"w": 3, "r": 1, "n": 0, "x": 7}
ADVISED = {"d": MADV_DONTNEED, "f": MADV_FREE, "h": MADV_HUGEPAGE, "g": MADV_NOHUGEPAGE}
#: Letters by the words of /proc/PID/smaps that Process.kinds tells.
LETTERS = {
    "rw-p": "W",
    "r--p": "R",
    "---p": "N",
    "rwxp": "X",
    "rw-p nr": "V",
    "rw-s": "S",
    "r--s": "T",
    "rw-p lo": "L",
    "r--p ac": "Q",
    "---p ac": "A",
    "r--p lo": "K",
    "---p lo": "P",
    "rw-p lo lf": "O",
    "rw-p hg": "H",
    "rw-p nh": "G",
}


def draw(process, columns, unit=1):
    """The areas from ORIGIN on, as a line; a column is ``unit`` pages."""
    size = process.page * unit
    line = [" "] * columns
    before = (0, " ")
    for start, end, kind in process.kinds():
        first, last = (start - ORIGIN) // size, (end - ORIGIN) // size
        if 0 <= first < columns:
            letter = LETTERS[kind]
            if before == (first, letter):
                letter = letter.lower()
            line[first:last] = letter * (last - first)
            before = (last, letter)
    return "".join(line)


def _runs(line, size):
    """(letter, address, length) of every run of one letter."""
    column = 0
    for letter, run in groupby(line):
        width = len(list(run))
        yield letter, ORIGIN + column * size, width * size
        column += width


def _move(process, source, target, flags):
    (addr, old), (where, new) = source, target
    flags |= MREMAP_MAYMOVE | MREMAP_FIXED
    return process.mremap(addr, old, new, flags, where) - where


def _operate(process, letter, addr, length):
    """One operation; 0, a negative errno, or how far the result is from ``addr``."""
    if letter == "~":
        return process.munmap(addr, length)
    if letter in "!?":
        return process.touch(addr, length, int(letter == "!"))
    if letter in "luo":
        if letter == "u":
            return process.munlock(addr, length)
        return process.mlock2(addr, length, MLOCK_ONFAULT if letter == "o" else 0)
    if letter in PROTECTED:
        return process.mprotect(addr, length, PROTECTED[letter])
    if letter in ADVISED:
        return process.madvise(addr, length, ADVISED[letter])
    prot, flags = MAPPED[letter]
    return process.mmap(addr, length, prot, flags | MAP_ANONYMOUS | MAP_FIXED) - addr


def apply(process, line, unit=1):
    """Do a line of operations; the results, 0 for what worked."""
    runs = {letter: (addr, length) for letter, addr, length in _runs(line, process.page * unit)}
    if "=" in runs:
        addr, length = runs["="]
        more = runs.get("+", (0, 0))[1]
        old = length + runs.get("-", (0, 0))[1]
        return [process.mremap(addr, old, length + more, 0, 0) - addr]
    if "<" in runs:
        return [_move(process, runs["<"], runs[">"], 0)]
    if "[" in runs:
        return [_move(process, runs["["], runs["]"], MREMAP_DONTUNMAP)]
    return [
        _operate(process, *run) for run in _runs(line, process.page * unit) if not run[0].isspace()
    ]


def play(process, lines, unit=1):
    """Do all lines; what is drawn afterwards."""
    for line in lines:
        assert not any(apply(process, line, unit)), line
    return draw(process, max(map(len, lines)), unit)


def check_accounts(process):
    """The counters of the mm are what the areas add up to."""
    mm = process.mm
    areas = [((end - start) // process.page, kind.split()) for start, end, kind in process.kinds()]
    assert mm.total_vm == sum(pages for pages, _ in areas)
    assert mm.reserved_vm == sum(pages for pages, words in areas if words[0].startswith("---"))
    stacks = sum(pages for pages, words in areas if "gd" in words)
    data = sum(
        pages
        for pages, words in areas
        if words[0][1] == "w" and words[0][3] == "p" and "gd" not in words
    )
    assert (mm.stack_vm, mm.data_vm) == (stacks, data)
    assert mm.locked_vm == sum(pages for pages, words in areas if "lo" in words)
    accounted = sum(
        pages
        for pages, words in areas
        if "ac" in words or (words[0][1] == "w" and words[0][3] == "p" and "nr" not in words)
    )
    assert mm.committed == accounted

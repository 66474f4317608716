"""Drawings of a part of the address space, one column per page: operations and areas.

Areas; in a line of operations the letter is the mmap that creates such an area:

    W rw   R read-only   N none   X rwx   V rw, no reserve   S rw, shared   T read-only, shared
    L rw, locked (MAP_LOCKED)

Areas that only other operations create:

    Q read-only and accounted     A none and accounted     U read-only, no reserve
    locked: K read-only, P none, J none and accounted      O rw, locked on fault
    G rw with MADV_NOHUGEPAGE
    with MADV_HUGEPAGE: H rw, F read-only and accounted, I rw and locked, M rw and shared
    D rw, grows down (MAP_GROWSDOWN)
    a lower-case letter: a separate area of the same kind, adjacent to the previous one

Operations, run from left to right:

    ~ munmap      ! write      ? read        w r n x mprotect to rw, read-only, none, rwx
    l mlock       o mlock2 on fault          u munlock
    d f h g c p   madvise: DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE, COLD, PAGEOUT
    <<  >>>   mremap of the pages < to the pages >       ==+ ==-   in place: grow, shrink
    [[  ]]    mremap with MREMAP_DONTUNMAP

An operation on pages outside the columns is a triple: letter, first page relative to ORIGIN, pages.
"""

from itertools import groupby, pairwise

from kernel.uapi import (
    MADV_COLD,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
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

#: Address of the first column, far from all other areas.
ORIGIN = 0x600000000000

#: Protection and flags of the areas that mmap creates, by letter.
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
ADVISED = {
    "d": MADV_DONTNEED,
    "f": MADV_FREE,
    "h": MADV_HUGEPAGE,
    "g": MADV_NOHUGEPAGE,
    "c": MADV_COLD,
    "p": MADV_PAGEOUT,
}
#: Letters by the /proc/PID/smaps flags that Process.kinds returns.
LETTERS = {
    "rw-p": "W",
    "r--p": "R",
    "---p": "N",
    "rwxp": "X",
    "rw-p nr": "V",
    "rw-s": "S",
    "r--s": "T",
    "r--p nr": "U",
    "rw-p lo": "L",
    "r--p ac": "Q",
    "---p ac": "A",
    "r--p lo": "K",
    "---p lo": "P",
    "---p lo ac": "J",
    "rw-p lo lf": "O",
    "rw-p hg": "H",
    "rw-p nh": "G",
    "r--p hg ac": "F",
    "rw-p lo hg": "I",
    "rw-s hg": "M",
    "rw-p gd": "D",
}


def draw(process, columns, unit=1):
    """Draw the areas from ORIGIN on as a line; a column is ``unit`` pages."""
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
    """Yield (letter, address, length) of every run of one letter."""
    column = 0
    for letter, run in groupby(line):
        width = len(list(run))
        yield letter, ORIGIN + column * size, width * size
        column += width


def _move(process, source, target, flags):
    (addr, old), (where, new) = source, target
    flags |= MREMAP_MAYMOVE | MREMAP_FIXED
    return _distance(process.mremap(addr, old, new, flags, where), where)


def _distance(result, expected):
    return result if result < 0 else result - expected


def _operate(process, letter, addr, length):
    """Run one operation; return 0, a negative errno, or the result's distance from ``addr``."""
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
    return _distance(process.mmap(addr, length, prot, flags | MAP_ANONYMOUS | MAP_FIXED), addr)


def apply(process, line, unit=1):
    """Run a line of operations, or a triple; return the results, 0 for success."""
    if not isinstance(line, str):
        letter, first, pages = line
        return [_operate(process, letter, ORIGIN + first * process.page, pages * process.page)]
    runs = {letter: (addr, length) for letter, addr, length in _runs(line, process.page * unit)}
    if "=" in runs:
        addr, length = runs["="]
        more = runs.get("+", (0, 0))[1]
        old = length + runs.get("-", (0, 0))[1]
        return [_distance(process.mremap(addr, old, length + more, 0, 0), addr)]
    if "<" in runs:
        return [_move(process, runs["<"], runs[">"], 0)]
    if "[" in runs:
        return [_move(process, runs["["], runs["]"], MREMAP_DONTUNMAP)]
    return [
        _operate(process, *run) for run in _runs(line, process.page * unit) if not run[0].isspace()
    ]


def play(process, lines):
    """Run all lines and return the drawing afterwards.

    A number after a line is the expected error of its last operation; all others must succeed.
    """
    columns = 0
    for line, after in pairwise((*lines, "")):
        if isinstance(line, str):
            columns = max(columns, len(line))
            *results, last = apply(process, line)
            assert not any(results), line
            assert last == (after if isinstance(after, int) else 0), line
    return draw(process, columns)


def watch(process, steps, unit):
    """Run the operations of ``steps``, (operation, text) each; return [(operation, observation)].

    An observation: minor faults of the step; RssAnon, page-table pages, locked pages after it.
    """
    seen = []
    for operation, _ in steps:
        before = process.levels()[0]
        assert not any(apply(process, operation, unit)), operation
        faults, *levels = process.levels()
        seen.append((operation, " ".join(map(str, (faults - before, *levels)))))
    return seen


def check_accounts(process):
    """Assert that the accounting in ``mm`` equals the sums over the areas."""
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

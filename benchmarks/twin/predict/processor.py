"""What a processor makes of accesses and branches: which caches answer, which guesses are wrong.

    access ──► L1 ──miss──► L2 ──miss──► L3 ──miss──► memory
    branch ──► the longest history that it was seen after ──► right or wrong

Caches are sets of lines in order of use (true LRU); what misses is filled into every level, and a
page that the kernel has just zeroed is in L2 and L3.  Branches are predicted as by TAGE (Seznec
and Michaud, "A case for (partially) tagged geometric history length branch prediction", Journal of
Instruction-Level Parallelism 8, 2006): tables by histories of geometric lengths, of which the
longest that knows the branch decides; a wrong guess makes an entry in a longer one.  Both are
simpler than any real processor: they count what happens often, not when.

The state is words at the address ``k.watch``.  What is called for each access and branch is kept
out of its callers, which would take minutes to compile otherwise.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kernel.access import touch
from kernel.engine.jit import jit
from kernel.engine.memory import load_word, store_word, windows
from kernel.engine.switches import PAGE_SHIFT
from kernel.fault import handle_mm_fault as handle_fault
from kernel.tlb import tlb_access

LINE_SHIFT = 6

#: What is counted, by place in the state.
L1, L2, L3, MEMORY, LINES, BRANCHES, WRONG = range(7)
COUNTS = ("l1", "l2", "l3", "memory", "lines", "branches", "wrong")
_HISTORY, _RANDOM = 8, 9

#: Sets and ways of the caches; bound by build.
L1_SETS, L1_WAYS = 64, 8
L2_SETS, L2_WAYS = 2048, 8
L3_SETS, L3_WAYS = 32768, 16

#: Entries of the table without history, and of each with one, as powers of two; the histories.
_BASE_BITS, _TABLE_BITS = 12, 12
_LENGTHS = (6, 12, 24, 44, 62)
_TABLES = len(_LENGTHS)
_TAG_BITS = 11
#: Counters of a branch go from -LIMIT to LIMIT - 1; from 0 on it is guessed to be taken.
_BASE_LIMIT, _LIMIT = 2, 4
#: Where in the state the table without history begins, those with one, and the caches' tags.
_BASE = 16
_TAGGED = _BASE + (1 << _BASE_BITS)
_LINES = _TAGGED + 2 * (_TABLES << _TABLE_BITS)


@jit
def _count(s, place):
    store_word(s, place, load_word(s, place) + 1)


# --- Caches --------------------------------------------------------------------------------------


@jit(cold=True)
def _look_up(s, first, sets, ways, line):
    """Whether ``line`` is in the cache whose tags begin at ``first``; it is its set's latest then.

    Where it is not it is entered, and the oldest goes.
    """
    begin = first + (line & (sets - 1)) * ways
    tag = line + 1
    if load_word(s, begin) == tag:
        return True
    found = ways - 1
    for way in range(1, ways):
        if load_word(s, begin + way) == tag:
            found = way
            break
    hit = load_word(s, begin + found) == tag
    for n in range(begin + found, begin, -1):
        store_word(s, n, load_word(s, n - 1))
    store_word(s, begin, tag)
    return hit


@jit
def _in_l1(s, line):
    return _look_up(s, _LINES, L1_SETS, L1_WAYS, line)


@jit
def _in_l2(s, line):
    return _look_up(s, _LINES + L1_SETS * L1_WAYS, L2_SETS, L2_WAYS, line)


@jit
def _in_l3(s, line):
    first = _LINES + L1_SETS * L1_WAYS + L2_SETS * L2_WAYS
    return _look_up(s, first, L3_SETS, L3_WAYS, line)


@jit(cold=True)
def reach(k, addr):
    """One access to ``addr``: count the level that answers."""
    s = k.watch
    line = addr >> LINE_SHIFT
    if _in_l1(s, line):
        _count(s, L1)
    elif _in_l2(s, line):
        _count(s, L2)
    elif _in_l3(s, line):
        _count(s, L3)
    else:
        _count(s, MEMORY)


@jit(cold=True)
def pass_by(k, addr):
    """One access of many in a row: fetched ahead of time, but it takes the place of other lines."""
    s = k.watch
    line = addr >> LINE_SHIFT
    if not _in_l1(s, line):
        _in_l2(s, line)
        _in_l3(s, line)


@jit(cold=True)
def _pass_all(k, addr, length):
    """All lines of ``length`` bytes at ``addr``, in order."""
    first, last = addr >> LINE_SHIFT, (addr + length - 1) >> LINE_SHIFT
    for line in range(first, last + 1):
        _count(k.watch, LINES)
        pass_by(k, line << LINE_SHIFT)


# --- Branches ------------------------------------------------------------------------------------


@jit
def _folded(history, length, bits):
    """The latest ``length`` bits of ``history`` as ``bits`` bits."""
    left = history & ((1 << length) - 1)
    result = 0
    while left:
        result ^= left & ((1 << bits) - 1)
        left >>= bits
    return result


@jit
def _place(branch, history, table):
    """Word of the entry of ``branch`` after ``history`` in ``table``: its tag; then its counter."""
    index = _folded(history, _LENGTHS[table], _TABLE_BITS) ^ branch ^ (branch << 5)
    return _TAGGED + 2 * ((table << _TABLE_BITS) + (index & ((1 << _TABLE_BITS) - 1)))


@jit
def _tag(branch, history, table):
    """The tag of that entry; 0 is none."""
    return 1 + (_folded(history, _LENGTHS[table], _TAG_BITS) ^ (3 * branch & 4095))


@jit
def _learn(s, place, taken, limit):
    """Move a counter towards what has happened."""
    counter = load_word(s, place) + (1 if taken else -1)
    store_word(s, place, min(max(counter, -limit), limit - 1))


@jit(cold=True)
def follow(k, branch, taken):
    """The conditional ``branch`` goes one way (1) or the other (0): count a wrong guess."""
    s = k.watch
    history = load_word(s, _HISTORY)
    place, limit, known = _BASE + branch, _BASE_LIMIT, -1
    for table in range(_TABLES - 1, -1, -1):
        entry = _place(branch, history, table)
        if load_word(s, entry) == _tag(branch, history, table):
            place, limit, known = entry + 1, _LIMIT, table
            break
    guess = 1 if load_word(s, place) >= 0 else 0
    _learn(s, place, taken, limit)
    _count(s, BRANCHES)
    if guess != taken:
        _count(s, WRONG)
        # The next longer history, or, half of the time, the one after it.
        random = (load_word(s, _RANDOM) * 1103515245 + 12345) & 0x7FFFFFFF
        store_word(s, _RANDOM, random)
        table = known + 1 + (random >> 20 & 1)
        if table < _TABLES:
            entry = _place(branch, history, table)
            store_word(s, entry, _tag(branch, history, table))
            store_word(s, entry + 1, 0 if taken else -1)
    store_word(s, _HISTORY, (history << 1 | taken) & ((1 << 62) - 1))


# --- What takes the place of the kernel's functions of these names -------------------------------


@jit
def translate(k, addr):
    """Every load, store and touch comes by here (kernel.access).  No page is a huge one."""
    tlb_access(k, addr, 0)
    reach(k, addr)


@jit(cold=True)
def handle_mm_fault(k, addr, write):
    """A page fault: the kernel has zeroed the page, so that its lines are near."""
    handle_fault(k, addr, write)
    s = k.watch
    first = addr >> PAGE_SHIFT << (PAGE_SHIFT - LINE_SHIFT)
    for line in range(first, first + (1 << (PAGE_SHIFT - LINE_SHIFT))):
        _in_l2(s, line)
        _in_l3(s, line)


@jit
def copy(k, dst, src, length):
    """memcpy, all lines of both."""
    touch(k, src, length, 0)
    touch(k, dst, length, 1)
    _pass_all(k, src, length)
    _pass_all(k, dst, length)


@jit
def clear(k, addr, length):
    """memset to zero, all lines."""
    touch(k, addr, length, 1)
    _pass_all(k, addr, length)


#: Names that mean these functions in a replay which is watched.
BINDINGS = {f.__name__: f for f in (translate, handle_mm_fault, copy, clear)}


# --- Geometry and state --------------------------------------------------------------------------


def geometry(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """Sets and ways of this machine's data caches, by the names above.

    Where the system does not tell, or a level is not there or not a power of two of sets, the
    values above stand.
    """
    found = {}
    for folder in sorted(caches.glob("index*")):
        try:
            level, kind, sets, ways, line = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in (
                    "level",
                    "type",
                    "number_of_sets",
                    "ways_of_associativity",
                    "coherency_line_size",
                )
            )
        except OSError:
            continue
        usual = sets.isdecimal() and ways.isdecimal() and int(line) == 1 << LINE_SHIFT
        if kind == "Instruction" or level not in "123" or not usual:
            continue
        if int(sets) and not int(sets) & (int(sets) - 1) and int(ways):
            found |= {f"L{level}_SETS": int(sets), f"L{level}_WAYS": int(ways)}
    default = {
        name: value
        for name, value in globals().items()
        if name.startswith("L") and name.endswith(("_SETS", "_WAYS"))
    }
    return default | found


class Processor:
    """The words of a processor with caches as ``sizes`` says (:func:`geometry`).

    ``address``: for ``k.watch``.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        lines = sum(sizes[f"L{n}_SETS"] * sizes[f"L{n}_WAYS"] for n in (1, 2, 3))
        self._words = np.zeros(_LINES + lines, "i8")
        self.address = self._words.ctypes.data
        windows[self.address] = self._words

    def close(self) -> None:
        """Forget the words."""
        windows.pop(self.address, None)

    def counts(self) -> np.ndarray:
        """What was counted so far, (len(COUNTS),) int64."""
        return self._words[: len(COUNTS)].copy()

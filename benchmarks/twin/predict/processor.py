"""Model of a processor's caches and branch predictor: counts cache misses and mispredictions.

    access ──► L1 ──miss──► L2 ──miss──► L3 ──miss──► memory
    branch ──► entry with the longest matching history ──► predicted or mispredicted

Caches are set-associative with true LRU.  A line that misses is filled into every level, and a page
that the kernel has just zeroed is in L2 and L3.  Branches are predicted by a simple TAGE (Seznec
and Michaud, "A case for (partially) tagged geometric history length branch prediction", Journal of
Instruction-Level Parallelism 8, 2006): there are tables for histories of geometric lengths; the
longest history with an entry for the branch decides; a misprediction creates an entry for a longer
history.  Both are simpler than any real processor: they model frequencies, not timing.

The state is an array of words at the address ``k.watch``.  The functions called for each access and
branch are not inlined into their callers, which would otherwise take minutes to compile.
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

#: Indices of the counters in the state, and their names.
L1, L2, L3, MEMORY, LINES, BRANCHES, WRONG = range(7)
COUNTS = ("l1", "l2", "l3", "memory", "lines", "branches", "mispredict")
_HISTORY, _RANDOM = 8, 9

#: Sets and ways of the caches; bound by build.
L1_SETS, L1_WAYS = 64, 8
L2_SETS, L2_WAYS = 2048, 8
L3_SETS, L3_WAYS = 32768, 16

#: Log2 of the number of entries in the base table (without history) and in each tagged table; the
#: history lengths of the tagged tables.
_BASE_BITS, _TABLE_BITS = 12, 12
_LENGTHS = (6, 12, 24, 44, 62)
_TABLES = len(_LENGTHS)
_TAG_BITS = 11
#: Saturating counters range from -LIMIT to LIMIT - 1; 0 and above predict "taken".
_BASE_LIMIT, _LIMIT = 2, 4
#: Offsets in the state of the base table, of the tagged tables and of the caches' tags.
_BASE = 16
_TAGGED = _BASE + (1 << _BASE_BITS)
_LINES = _TAGGED + 2 * (_TABLES << _TABLE_BITS)


@jit
def _count(s, place):
    store_word(s, place, load_word(s, place) + 1)


# --- Caches --------------------------------------------------------------------------------------


@jit(cold=True)
def _look_up(s, first, sets, ways, line):
    """Return True if ``line`` is in the cache whose tags begin at ``first``.

    In either case the line becomes the most recently used of its set; on a miss it replaces the
    least recently used one.
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
    """Access ``addr`` and count the level that holds it."""
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
    """Fill the line of ``addr`` into the caches as a sequential, prefetched access: not counted."""
    s = k.watch
    line = addr >> LINE_SHIFT
    if not _in_l1(s, line):
        _in_l2(s, line)
        _in_l3(s, line)


@jit(cold=True)
def _pass_all(k, addr, length):
    """Access all lines of ``length`` bytes at ``addr`` in order, and count them."""
    first, last = addr >> LINE_SHIFT, (addr + length - 1) >> LINE_SHIFT
    for line in range(first, last + 1):
        _count(k.watch, LINES)
        pass_by(k, line << LINE_SHIFT)


# --- Branches ------------------------------------------------------------------------------------


@jit
def _folded(history, length, bits):
    """Fold the latest ``length`` bits of ``history`` into ``bits`` bits by exclusive or."""
    left = history & ((1 << length) - 1)
    result = 0
    while left:
        result ^= left & ((1 << bits) - 1)
        left >>= bits
    return result


@jit
def _place(branch, history, table):
    """Return the index of the entry for ``branch`` and ``history``: its tag, then its counter."""
    index = _folded(history, _LENGTHS[table], _TABLE_BITS) ^ branch ^ (branch << 5)
    return _TAGGED + 2 * ((table << _TABLE_BITS) + (index & ((1 << _TABLE_BITS) - 1)))


@jit
def _tag(branch, history, table):
    """Return the tag of the entry for ``branch`` and ``history``; never 0 (an empty entry)."""
    return 1 + (_folded(history, _LENGTHS[table], _TAG_BITS) ^ (3 * branch & 4095))


@jit
def _learn(s, place, taken, limit):
    """Move a saturating counter towards the outcome."""
    counter = load_word(s, place) + (1 if taken else -1)
    store_word(s, place, min(max(counter, -limit), limit - 1))


@jit(cold=True)
def follow(k, branch, taken):
    """Predict ``branch``, count a misprediction, and learn the outcome (1 taken, 0 not)."""
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
        # Allocate in the next longer history or, half of the time, in the one after it.
        random = (load_word(s, _RANDOM) * 1103515245 + 12345) & 0x7FFFFFFF
        store_word(s, _RANDOM, random)
        table = known + 1 + (random >> 20 & 1)
        if table < _TABLES:
            entry = _place(branch, history, table)
            store_word(s, entry, _tag(branch, history, table))
            store_word(s, entry + 1, 0 if taken else -1)
    store_word(s, _HISTORY, (history << 1 | taken) & ((1 << 62) - 1))


# --- Replacements of the kernel's functions of the same names ------------------------------------


@jit
def translate(k, addr):
    """Access TLB and caches; called by every load, store and touch (kernel.access).

    No page is a huge page.
    """
    tlb_access(k, addr, 0)
    reach(k, addr)


@jit(cold=True)
def handle_mm_fault(k, addr, write):
    """Handle a page fault, and fill the page's lines into L2 and L3: the kernel has zeroed it."""
    handle_fault(k, addr, write)
    s = k.watch
    first = addr >> PAGE_SHIFT << (PAGE_SHIFT - LINE_SHIFT)
    for line in range(first, first + (1 << (PAGE_SHIFT - LINE_SHIFT))):
        _in_l2(s, line)
        _in_l3(s, line)


@jit
def copy(k, dst, src, length):
    """Copy memory, accessing all lines of source and destination."""
    touch(k, src, length, 0)
    touch(k, dst, length, 1)
    _pass_all(k, src, length)
    _pass_all(k, dst, length)


@jit
def clear(k, addr, length):
    """Zero memory, accessing all its lines."""
    touch(k, addr, length, 1)
    _pass_all(k, addr, length)


#: Bindings that put these functions into a watched replay.
BINDINGS = {f.__name__: f for f in (translate, handle_mm_fault, copy, clear)}


# --- Geometry and state --------------------------------------------------------------------------


def geometry(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """Return the sets and ways of this machine's data caches, by the names of the constants above.

    The constants are the defaults for a level that the system does not report, that does not exist
    or whose number of sets is not a power of two.
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
    """State of a processor whose caches have the given ``sizes`` (:func:`geometry`).

    ``address``: the value for ``k.watch``.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        lines = sum(sizes[f"L{n}_SETS"] * sizes[f"L{n}_WAYS"] for n in (1, 2, 3))
        self._words = np.zeros(_LINES + lines, "i8")
        self.address = self._words.ctypes.data
        windows[self.address] = self._words

    def close(self) -> None:
        """Release the state."""
        windows.pop(self.address, None)

    def counts(self) -> np.ndarray:
        """Return a copy of the counters, (len(COUNTS),) int64."""
        return self._words[: len(COUNTS)].copy()

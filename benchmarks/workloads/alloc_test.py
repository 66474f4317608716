"""Alloc_test: places are filled and emptied alternately; few places get most of the visits.

    places of a thread   ▏hot│        …         │              cold              ▕
    share of the visits   26 %   39 %   25 %  …                    0.006 %

Half of the places are filled first.  Then each visit frees the block of a full place, or fills an
empty one.  A fifth of the places gets four fifths of the visits, recursively within both parts, six
levels deep (Pareto's 80-20 rule).  A size has at least 3 bits; each further bit is half as likely,
up to ``largest``, so most sizes are small.

Source: Hare & Ignatchenko, alloc-test (node-dot-cpp), as in mimalloc-bench.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number
from allocators.base.settings import size as size_setting
from benchmarks.events.events import FREE, MALLOC, Events, make_events
from benchmarks.workloads.base.pieces import previous, require_operations, take_turns
from benchmarks.workloads.base.prng import Random

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
THREADS = number(1, low=1, high=1024, text="threads")
PLACES = number(1 << 18, low=2, high=1 << 28, text="places of all threads together")
LARGEST = size_setting(
    1_024, low=8, high=1 << 28, text="bytes of the largest block, a power of two"
)
TURN = number(100, low=1, high=1 << 28, text="events before the next thread runs")

#: Visits and places of each level, in parts of 5**6: six choices between four fifths and one fifth.
_VISITS = np.array([4096, 6144, 3840, 1280, 240, 24, 1])
_PLACES = _VISITS[::-1]
_WHOLE = 5**6


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless largest is a power of two and half of the places can be filled."""
    if s.largest & (s.largest - 1):
        raise ValueError(f"largest={s.largest}: must be a power of two")
    if s.places < 2 * s.threads:
        raise ValueError(f"places={s.places}: must be at least {2 * s.threads}, two per thread")
    require_operations(
        s.operations, s.places // s.threads // 2 * s.threads, "to fill half of the places"
    )


def draw_sizes(largest: int, random: Random, n: int) -> np.ndarray:
    """Return ``n`` sizes from 5 to ``largest``, (n,) int64: first draw the bits, then the value."""
    extra = largest.bit_length() - 4  # bits beyond the first class, 5 to 8 bytes
    coin = random.below(n, 1 << extra) + 1
    below = np.bitwise_and(coin, -coin) << 2  # 4 times the largest power of two that divides it
    return below + (random.bits(n) & (below - 1).view("u8")).view("i8") + 1


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Visits of a place alternate between malloc and free, beginning with malloc."""
    places = s.places // s.threads
    half = places // 2
    thread, step = take_turns(s.operations, s.threads, s.turn)
    # The places of each level come after those of all hotter levels.
    ends = np.cumsum(_PLACES) * places // _WHOLE
    begins = np.concatenate([[0], ends[:-1]])
    level = np.searchsorted(np.cumsum(_VISITS), random.below(s.operations, _WHOLE), side="right")
    room_of = ends - begins
    chosen = random.bits(s.operations) >> np.uint64(32)
    inside = (chosen * np.maximum(room_of, 1)[level].view("u8") >> np.uint64(32)).view("i8")
    place = np.minimum(begins[level] + inside, places - 1)
    filling = step < half
    for one in range(s.threads):
        mine = np.flatnonzero(filling & (thread == one))
        place[mine] = random.permutation(places)[:half][step[mine]]
    slot = thread * places + place
    # Births and deaths alternate in each place; the first visit is a birth.
    before = previous(slot)
    visit = _rank(slot, before)
    births = visit % 2 == 0
    size = np.zeros(s.operations, "i8")
    size[births] = draw_sizes(s.largest, random, int(np.count_nonzero(births)))
    return make_events(np.where(births, MALLOC, FREE), slot, size, thread=thread)


def _rank(group: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the number of each row within its ``group``, (n,) int64."""
    order = np.argsort(group, kind="stable")
    first = np.maximum.accumulate(np.where(before[order] < 0, np.arange(len(group)), 0))
    rank = np.empty(len(group), "i8")
    rank[order] = np.arange(len(group)) - first
    return rank

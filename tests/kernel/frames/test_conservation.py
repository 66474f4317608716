"""The check of frames detects every way to lose, duplicate or misassign a frame."""

import pytest

from kernel.conservation import CHECKS
from kernel.types import (
    ACTIVE,
    FREE,
    INACTIVE,
    INSIDE,
    OTHERS,
    PTE_FRAME,
    PTE_HUGE,
    PTE_SWAP,
    TAKEN,
    UNEVICTABLE,
    WMARK_MIN,
)
from tests.kernel.frames.driver import BASE, WINDOW_BITS, Memory, address

#: First page of the locked area.
HUGE = 1 << 13


def page_index(page):
    return ((BASE >> 12) + page) & ((1 << (WINDOW_BITS - 12)) - 1)


def frame_of(memory, page):
    return int(memory._words["pfn"][page_index(page)])


#: Fields that a test may damage, and how many of their elements are in use (None: all).
FIELDS = {"frame": 1100, "swap": 64, "pte": None, "touched": None} | dict.fromkeys(
    ("mm", "phys", "vmstat", "zone", "free_area", "lru"), None
)


@pytest.fixture(scope="module")
def whole():
    """Return memory with a locked huge page, mapped and swapped-out pages, tables and others."""
    memory = Memory(1100, min_free=16, percent=50, swap=64)
    assert memory.touch_huge(address(HUGE))
    page = 1024
    while memory.k.phys.swap_used < 8:
        memory.touch(address(page), 1)
        page += 1
    memory.zap(address(1024), 1)  # leaves a free swap slot on the chain
    memory.zap(address(1500), 3)
    memory.verify()
    copies = {
        name: memory.k[name][:end].copy() if end else memory.k[name].copy()
        for name, end in FIELDS.items()
    }
    return memory, copies, memory._words["pfn"].copy()


@pytest.fixture
def memory(whole):
    """Restore the same memory for every test."""
    memory, copies, words = whole
    for name, end in FIELDS.items():
        if end:
            memory.k[name][:end] = copies[name]
        else:
            memory.k[name] = copies[name]
    memory._words["pfn"][:] = words
    return memory


def first(memory, state):
    return next(n for n in range(1100) if memory.k.frame[n].state == state)


def swapped(memory):
    return next(p for p in range(1024, 2500) if memory.state(p) == "swap")


def lose_a_free_block(m):
    pfn = int(m.k.free_area[0].head) if m.k.free_area[0].blocks else first(m, FREE)
    m.k.frame[pfn].state = TAKEN


def take_a_frame(m):
    m.alloc(0, WMARK_MIN)


def forget_a_free_block(m):
    area = next(a for a in m.k.free_area if a.blocks)
    area.head = m.k.frame[int(area.head)].next


def miscount_free(m):
    m.k.zone[0].free += 1


def miscount_others(m):
    m.k.phys.others += 1


def let_others_take(m):
    m.k.frame[first(m, INACTIVE)].state = OTHERS


def double_map(m):
    a, b = frame_of(m, 1200), frame_of(m, 1201)
    assert a != b
    m._words["pfn"][page_index(1201)] = a


def steal_owner(m):
    m.k.frame[frame_of(m, 1200)].page_low += 1


def unmap_silently(m):
    m.k.pte[page_index(1200)] = 0


def map_without_frame(m):
    m.k.pte[page_index(1500)] = PTE_FRAME


def unlink_a_free_block(m):
    n, area = next((n, a) for n, a in enumerate(m.k.free_area) if a.blocks == 1)
    area.head = area.tail = -1
    area.blocks = area.frames = 0
    m.k.zone[n // 14].free -= 1 << n % 14


def unlink_a_mapped_block(m):
    a = m.k.lru[INACTIVE]
    a.head = m.k.frame[int(a.head)].next
    m.k.frame[int(a.head)].prev = -1
    a.blocks -= 1
    a.frames -= 1


def larger_others(m):
    m.k.frame[first(m, OTHERS)].order = 1


def wrong_free_order(m):
    m.k.frame[first(m, FREE)].order ^= 1


def a_block_of_no_page_size(m):
    m.k.frame[frame_of(m, HUGE)].order = 3
    m.k.lru[UNEVICTABLE].frames = 8


def a_block_out_of_place(m):
    pfn = frame_of(m, 1200) | 1
    m.k.frame[pfn].order = 1
    m.k.lru[INACTIVE].frames += 1


def miscount_rss(m):
    m.k.mm.rss -= 1


def miscount_tables(m):
    m.k.mm.nr_ptes += 1


def forget_huge(m):
    m.k.pte[page_index(HUGE + 3)] = int(m.k.pte[page_index(HUGE + 3)]) & ~PTE_HUGE


def use_a_part_of_a_huge_page(m):
    m.k.frame[frame_of(m, HUGE + 3)].state = ACTIVE


def break_a_link(m):
    pfn = int(m.k.lru[INACTIVE].head)
    m.k.frame[pfn].next = m.k.frame[int(m.k.frame[pfn].next)].next


def wrong_order(m):
    m.k.frame[first(m, INACTIVE)].order = 5


def no_state(m):
    m.k.frame[0].state = INSIDE


def lose_a_slot(m):
    m.k.pte[page_index(swapped(m))] = 0


def swap_twice(m):
    m.k.pte[page_index(1500)] = PTE_SWAP


def swap_into_another(m):
    page = swapped(m)
    m.k.swap[frame_of(m, page)] = (BASE >> 12) + 1500


def lose_a_free_slot(m):
    assert m.k.phys.swap_free >= 0
    m.k.phys.swap_free = -1


def free_a_used_slot(m):
    m.k.phys.swap_free = frame_of(m, swapped(m))


DAMAGE = {
    lose_a_free_block: 5,
    take_a_frame: 4,
    forget_a_free_block: 5,
    miscount_free: 7,
    miscount_others: 8,
    let_others_take: 5,
    double_map: 9,
    steal_owner: 9,
    unmap_silently: 9,
    map_without_frame: 10,
    unlink_a_free_block: 6,
    unlink_a_mapped_block: 6,
    larger_others: 1,
    wrong_free_order: 5,
    a_block_of_no_page_size: 9,
    a_block_out_of_place: 1,
    miscount_rss: 11,
    miscount_tables: 12,
    forget_huge: 9,
    use_a_part_of_a_huge_page: 2,
    break_a_link: 5,
    wrong_order: 5,
    no_state: (1, 5),
    lose_a_slot: 13,
    swap_twice: 14,
    swap_into_another: 13,
    lose_a_free_slot: 15,
    free_a_used_slot: 15,
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_damage_is_detected(memory, damage):
    damage(memory)
    expected = DAMAGE[damage]
    code = memory.check()
    assert code in (expected if isinstance(expected, tuple) else (expected,)), CHECKS.get(code)


COUNTED = {miscount_free: 7, miscount_others: 17, miscount_rss: 11, miscount_tables: 12}


@pytest.mark.parametrize("damage", COUNTED, ids=lambda f: f.__name__)
def test_a_wrong_count_is_detected(memory, damage):
    assert memory.check_counts() == 0
    damage(memory)
    assert memory.check_counts() == COUNTED[damage]


def test_unmerged_buddies_are_detected():
    memory = Memory(1024)
    pfn = memory.alloc(9, WMARK_MIN)
    # As after a free without merging: both halves are on the list of order 9.
    area = memory.k.free_area[9]
    other = int(area.head)
    f = memory.k.frame[pfn]
    f.state, f.order, f.next, f.prev = FREE, 9, other, -1
    memory.k.frame[other].prev = pfn
    area.head, area.blocks, area.frames = pfn, 2, 1024
    memory.k.zone[0].free = 1024
    assert memory.check() == 3


def test_every_code_has_a_text():
    assert sorted(CHECKS) == list(range(1, 18))

"""Compile-time switches: each has its documented effect and no other.

The default build covers one value of each switch; one more build covers the other value of all.
"""

import pytest

from kernel.engine import switches
from kernel.types import BUS_ADRALN, SIGBUS
from tests.kernel.driver import Process

pytestmark = pytest.mark.once

#: The other value of every switch except the page size and the window (tested everywhere).
OTHERS = {"COUNT": False, "PAYLOAD": True, "CHECKED": True}


@pytest.fixture
def other():
    return Process(**OTHERS)


def test_names_are_all_switches():
    assert {n for n in vars(switches) if n.isupper()} - {"NAMES"} == set(switches.NAMES)
    assert set(OTHERS) | {"PAGE_SHIFT", "WINDOW_BITS", "FRAMES", "TLB"} == set(switches.NAMES)
    assert all(OTHERS[n] != getattr(switches, n) for n in OTHERS)


def test_count_counts_exactly(process):
    addr = process.map(pages=4)
    for n in range(10):
        process.store(addr + 8 * n, n)
    for n in range(7):
        process.load(addr + 8 * n)
    process.touch(addr, 17, 0)
    process.touch(addr + 3, 8, 1)
    process.copy(addr + 64, addr, 33)
    process.clear(addr + 128, 40)
    mm = process.mm
    assert (mm.loads, mm.stores) == (7, 10)
    assert (mm.payload_loads, mm.payload_stores) == (3 + 5, 1 + 5 + 5)


def test_count_off_counts_no_metadata(other):
    addr = other.map()
    other.store(addr, 5)
    assert other.load(addr) == 5
    other.touch(addr, 16, 1)
    assert (other.mm.loads, other.mm.stores, other.mm.payload_stores) == (0, 0, 2)


@pytest.mark.parametrize(
    ("name", "write", "offset"),
    [(name, write, offset) for name, write in (("load", 0), ("store", 1)) for offset in range(1, 8)]
    + [("load_half", 0, 3), ("store_half", 1, 5)],
)
def test_checked_refuses_what_is_misaligned(other, name, write, offset):
    addr = other.map() + offset
    died = other.death(name, addr, 1)
    assert died == f"SIGBUS: load or store at {addr:#x}, which is not a multiple of its size"
    task = other.k.task
    assert (task.sig, task.si_code, task.si_addr, task.si_write) == (
        SIGBUS,
        BUS_ADRALN,
        addr,
        write,
    )
    assert other.mm.minflt == 0


def test_unchecked_lets_misaligned_words_pass(process):
    addr = process.map()
    process.store(addr + 3, 7)
    assert process.load(addr) == 7


def test_checked_holds_no_page_but_looks_each_time(other):
    addr = other.map()
    other.hold(addr)
    assert other.mm.minflt == 0


def test_checked_lets_aligned_words_pass(other):
    addr = other.map()
    other.store(addr + 8, 7)
    assert other.load(addr + 8) == 7
    other.store_half(addr + 10, 1)
    assert other.load_half(addr + 10) == 1


def test_payload_moves_words(other):
    addr = other.map(pages=4)
    page = 4096
    for n in range(8):
        other.poke(addr + 8 * n, n + 1)
    other.copy(addr + page, addr, 61)  # copies the whole last word
    assert [other.peek(addr + page + 8 * n) for n in range(9)] == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    other.clear(addr + page + 8, 16)
    assert [other.peek(addr + page + 8 * n) for n in range(4)] == [1, 0, 0, 4]
    other.copy(addr + 2 * page - 16, addr, 40)  # across a page boundary
    assert [other.peek(addr + 2 * page - 16 + 8 * n) for n in range(6)] == [1, 2, 3, 4, 5, 0]
    assert (other.mm.payload_loads, other.mm.payload_stores) == (8 + 5, 8 + 2 + 5)


def test_without_payload_only_pages_and_counters_follow(process):
    addr = process.map(pages=4)
    process.poke(addr, 5)
    process.copy(addr + 4096, addr, 8)
    process.clear(addr, 8)
    assert [process.peek(addr), process.peek(addr + 4096)] == [5, 0]
    assert process.mm.rss == 2
    assert (process.mm.payload_loads, process.mm.payload_stores) == (1, 2)


@pytest.mark.parametrize("build", [{}, OTHERS])
def test_copy_and_clear_fault_alike(build):
    process = Process(**build)
    addr = process.map(pages=8)
    process.copy(addr + 4 * 4096, addr, 2 * 4096)
    process.clear(addr + 3 * 4096, 8)
    process.copy(addr, addr, 0)
    process.clear(addr, 0)
    mm = process.mm
    assert (mm.flt_read, mm.flt_write, mm.flt_cow, mm.rss) == (2, 3, 0, 3)

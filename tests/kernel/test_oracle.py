"""Random programs on the model and its slow oracle: both agree after every step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel.driver import Process, configured
from tests.kernel.pair import LIMITS, STEP, Limits, Pair, random_limits, random_program


def below(bounds):
    """Return a strategy of tuples of non-negative integers, each below its bound."""
    return st.tuples(*(st.integers(0, bound - 1) for bound in bounds))


programs = st.lists(below(STEP), min_size=20, max_size=60)
limits = st.builds(Limits) | st.builds(lambda numbers: Limits(*numbers), below(LIMITS))


@settings(max_examples=100)
@given(programs, limits)
def test_agrees_at_4k(program, limits):
    Pair(4096, limits).run(program)


@settings(max_examples=25)
@given(programs, limits)
def test_agrees_at_16k(program, limits):
    Pair(16384, limits).run(program)


@settings(max_examples=15)
@given(programs, limits)
def test_agrees_at_64k(program, limits):
    Pair(65536, limits).run(program)


@pytest.mark.parametrize(("page", "seeds"), [(4096, 25), (16384, 8), (65536, 4)])
def test_agrees_on_long_programs(page, seeds):
    """These programs are longer than Hypothesis generates, so that many areas accumulate."""
    for seed in range(seeds):
        Pair(page, random_limits(seed)).run(random_program(seed, 120))


def mark_counts(k):
    """Return the numbers of set page-table entries and of window slots listed for reset."""
    tables = [int(k[name].sum(dtype="i8")) for name in ("pmd", "pud", "pgd")]
    return [*tables, int(k.slot_seen.sum(dtype="i8"))]


LEVELS = ("map_count", "total_vm", "data_vm", "stack_vm", "reserved_vm", "committed", "rss")
TABLES = ("nr_ptes", "nr_pmds", "nr_puds")


def unmap_everything(pair):
    """Unmap all areas with munmap on both sides."""
    for start, end, *_ in pair.model.areas():
        assert pair.call("munmap", start, end - start) == 0


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_nothing_leaks(page):
    """After all areas are unmapped, no page and no page-table page is left."""
    pair = Pair(page)
    for start, end, prot, *_ in pair.model.areas():
        pair.call("touch", start, end - start, int(prot & 2 != 0))
    unmap_everything(pair)  # with it the last slot of the address space, which only the stack used
    for seed in range(4):
        pair.run(random_program(seed))
        assert pair.alive
        pair.call("brk", int(pair.model.mm.start_brk))
        unmap_everything(pair)
        pair.compare()
        assert [int(pair.model.mm[n]) for n in LEVELS + TABLES] == [0] * 10
        assert mark_counts(pair.model.k)[:3] == [0, 0, 0]


@pytest.mark.parametrize("page", [4096, 16384])
def test_reset_returns_to_boot(page):
    """Three runs of one program after resets are identical."""
    process = Process(configured(page_size=page))
    boot, areas = process.counters(), process.areas()
    seen = []
    for _ in range(3):
        slot = page * page // 8
        start = process.sbrk(20 * page)
        far = 0x600000000000 + 3 * slot
        # Neighbours in one page-table slot, several slots, several PMD pages, a read-only area.
        for n, prot in enumerate((3, 1, 3, 7)):
            process.map(flags=0x32, addr=far + (n - 2) * page, prot=prot)
            process.touch(far + (n - 2) * page, page, int(prot != 1))
        process.map(flags=0x32, addr=far + 8 * page, pages=page // 8 * 3)
        for n in range(0, page // 8 * 3, page // 64):
            process.store(far + (8 + n) * page, n + 1)
        process.store(start + 8, 7)
        process.map(flags=0x32, addr=0x708000000000 - page, pages=2)
        process.touch(0x708000000000 - page, 2 * page, 1)
        process.store(far, 9)
        process.munmap(far, page)
        assert process.death("touch", 16, 1, 1).startswith("SIGSEGV")
        seen.append((process.counters(), process.areas(), mark_counts(process.k)))
        process.machine.reset()
        assert process.counters() == boot
        assert process.areas() == areas
        assert mark_counts(process.k) == [0, 0, 0, 0]
        assert process.k.task.sig == 0
        assert not process.k.pte.any()
        process.sbrk(page)
        process.map(flags=0x32, addr=far)
        assert [process.load(a) for a in (start + 8, far)] == [0, 0]
        process.machine.reset()
    assert seen[0] == seen[1] == seen[2]

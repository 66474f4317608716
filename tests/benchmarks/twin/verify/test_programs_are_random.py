"""Random programs depend on the seed only, keep their mode's ranges and contain edge cases."""

import numpy as np
import pytest

from benchmarks.twin.verify.modes import MODES, SLOTS, Generator
from benchmarks.twin.verify.operation import (
    ALIGNED,
    CALLOC,
    FREE,
    MALLOC,
    NAMES,
    PROGRAM,
    REALLOC,
    SBRK,
    THREAD_END,
    THREAD_START,
)
from benchmarks.twin.verify.threads import THREADS
from benchmarks.twin.verify.twin import EXPECTED
from kernel.engine.record import record


@pytest.fixture(scope="module")
def programs():
    """Complete programs of each mode."""
    return {
        name: [Generator(mode, f"9/{n}").program(mode.length[1]) for n in range(30)]
        for name, mode in MODES.items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_programs_depend_on_the_seed_only(mode):
    first, again, other = (Generator(MODES[mode], s).program(900) for s in ("1/1", "1/1", "1/2"))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("mode", MODES)
def test_ranges_are_kept(mode, programs):
    low, high = MODES[mode].sizes
    for rows in programs[mode]:
        assert len(rows) <= MODES[mode].length[1]
        assert rows["slot"].max() < SLOTS + 8
        sizes = rows["request"][np.isin(rows["kind"], (MALLOC, CALLOC, ALIGNED))]
        possible = sizes[(sizes >= 0) & (sizes < 1 << 40)]
        assert possible.max(initial=0) <= high + 65
        # Edge sizes go down to half of the smallest size.
        assert possible.min(initial=high) >= low // 2 - 1


def test_every_kind_occurs(programs):
    rows = np.concatenate([p for mode in programs.values() for p in mode])
    assert {NAMES[kind] for kind in np.unique(rows["kind"])} == set(NAMES.values()) - {"stray"}


def test_only_existing_threads_act(programs):
    """The first thread never ends, and no thread ends itself."""
    most = set()
    for rows in programs["threads"]:
        alive = {0}
        for kind, number, thread in rows[["kind", "request", "thread"]].tolist():
            assert thread in alive
            if kind == THREAD_START:
                assert number not in alive
                alive.add(number)
            elif kind == THREAD_END:
                assert number not in (0, thread)
                alive.remove(number)
            most.add(len(alive))
    assert max(most) == MODES["threads"].threads
    assert not any(
        rows["thread"].any() for name in MODES for rows in programs[name] * (name != "threads")
    )


def test_blocks_are_freed_by_their_own_and_by_other_threads(programs):
    freed = [0, 0]
    for rows in programs["threads"]:
        maker: dict[int, int] = {}
        for kind, slot, thread in rows[["kind", "slot", "thread"]].tolist():
            if kind == FREE and slot >= 0:
                freed[maker[slot] == thread] += 1
            elif slot >= 0:
                maker.setdefault(slot, thread)
                if kind in (MALLOC, CALLOC, ALIGNED):
                    maker[slot] = thread
    assert min(freed) > sum(freed) / 10


def test_edge_sizes_occur(programs):
    rows = np.concatenate([p for mode in programs.values() for p in mode])
    sizes = set(rows["request"][rows["kind"] <= REALLOC].tolist())
    around = (0, 1, 24, 25, 1032, 1033, 131048, 131056, 131072, 65512, 65528, 1 << 20, -1)
    assert [s for s in around if s not in sizes] == []
    assert (rows["kind"] == SBRK).any()


def test_a_program_may_be_short():
    assert len(Generator(MODES["mixed"], "1/1").program(7)) == 7


@pytest.mark.parametrize("dtype", [PROGRAM, EXPECTED, THREADS])
def test_fields_do_not_clash_with_attributes_of_records(dtype):
    """A field named like an attribute of NumPy's records would differ without compilation."""
    assert record(dtype).dtype.names == dtype.names

"""Every allocator passes the verifier with its default settings and with other settings."""

import contextlib

import numpy as np
import pytest

from allocators.base import registry
from allocators.base.operation import ALIGNED, FREE, MALLOC, REALLOC
from allocators.base.registry import load
from allocators.verify import Suite, variations, verify
from allocators.verify import plan as plans
from allocators.verify.driver import EVENT_ALIGNMENT, EVENT_OP, EVENT_SIZE
from allocators.verify.plan import LARGE, Writer
from allocators.verify.process import Build, Process
from kernel.engine.jit import disabled
from kernel.types import SimulatedSignal

#: ``python -m allocators.verify`` performs 100,000 per case, which takes minutes without the JIT.
OPERATIONS = 200 if disabled() else 20_000


def process_of(name, plan, *, as_timed=False):
    built = Build(load(name), as_timed=as_timed)
    reuses = name != "bump"
    return Process(built, built.compile(), plan, reuses=reuses, patience=5.0)


@pytest.mark.parametrize("name", registry.names())
def test_defaults(name, request):
    if disabled():
        request.getfixturevalue("few_limits")
    failures = verify(load(name), operations=OPERATIONS, as_timed=name == "buddy")
    assert not failures, "\n".join(map(str, failures))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", registry.names())
def test_variations(name):
    for plugin in list(variations(name))[1:]:
        suite = Suite(plugin, operations=72)
        suite.run(only={"life"})
        assert not suite.failures, "\n".join(map(str, suite.failures))


@pytest.mark.usefixtures("plain")
def test_small_chunks_are_acquired_and_released():
    plugin = load("buddy", {"growth": "mmap", "max_order": 14, "keep": 0})
    suite = Suite(plugin, operations=240)
    suite.run(only={"life"})
    assert not suite.failures, "\n".join(map(str, suite.failures))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", registry.names())
def test_many_large_objects(name):
    w = Writer(5)
    for slot in range(6):
        w.op(MALLOC, slot, LARGE + 5000 * slot)
    w.op(ALIGNED, 6, LARGE, 65536)
    w.op(ALIGNED, 7, 100, 1 << 20)
    for slot in (2, 5, 0):
        w.op(FREE, slot)
    w.op(REALLOC, 3, LARGE + 200_000)
    w.op(REALLOC, 1, 50_000)
    w.op(REALLOC, 4, LARGE - 100)
    w.free_all()
    w.end_phase("drain")
    p = process_of(name, w.plan(), as_timed=True)  # checking contents would take too long
    for _ in p.phases(1):
        pass


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", registry.names())
def test_misuse_ends_normally_or_by_a_signal(name):
    """A double free that a design does not promise to detect may pass, but not loop or raise."""
    for _, plan in plans.double_frees():
        p = process_of(name, plan)
        with contextlib.suppress(SimulatedSignal):
            p.call(0, len(p.events))


@pytest.mark.once
@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", registry.names())
def test_large_pages(name):
    suite = Suite(load(name), operations=48, page_size=65536)
    suite.run(only={"life"})
    assert not suite.failures, "\n".join(map(str, suite.failures))


def test_variations_take_every_choice_and_move_every_number():
    seen = [plugin.values for plugin in variations("buddy")]
    assert seen[0] == load("buddy").values
    assert all(plugin != other for i, plugin in enumerate(seen) for other in seen[:i])
    for key in seen[0]:
        assert len({values[key] for values in seen}) >= 2, key


def test_variations_are_tried_alone_where_their_combination_is_refused(files):
    refuse = "    if s['max_order'] == 12 and not s['keep']:\n        raise ValueError('no')\n"
    plugin = files.mutant("picky", "buddy", ("    if s[", refuse + "    if s["))
    path = str(files.folder / "picky.py")
    found = [plugin, *variations(path, {"growth": "mmap"})]
    name, *labels = [other.label.replace(plugin.version, "") for other in found]
    assert name == "picky"
    assert labels[0] == "picky(growth=mmap)"
    assert "picky" in labels
    assert "picky(max_order=12, growth=mmap)" in labels
    assert "picky(growth=mmap, keep=0)" in labels


def test_a_plan_is_the_same_every_time_and_long_enough():
    plans.life.cache_clear()
    first = plans.life(1000, 7).events.copy()
    plans.life.cache_clear()
    assert np.array_equal(plans.life(1000, 7).events, first)
    assert not np.array_equal(plans.life(1000, 8).events, first)
    assert len(first) >= 1000


def test_a_plan_covers_all_kinds_of_requests():
    plan = plans.life(20_000, 1)
    sizes = plan.events[:, EVENT_SIZE]
    assert sizes.max() > 2 << 20
    assert (sizes == 0).any()
    aligned = plan.events[plan.events[:, EVENT_OP] == ALIGNED]
    assert {16, 4096, 65536} <= set(aligned[:, EVENT_ALIGNMENT].tolist())
    assert [phase.name for phase in plan.phases if phase.drained] == ["drain", "drain"]


def test_tight_limits_refuse_requests(files):
    built = Build(load("buddy"))
    driver = built.compile()
    for limits in ({"rlim_as": 2 << 20}, {"rlim_data": 1 << 20}, {"memory": 1 << 20}):
        p = Process(built, driver, plans.scarcity(1), limits=limits)
        for _ in p.phases(1000):
            pass
        assert p.d.refused > 0, limits


@pytest.mark.usefixtures("plain", "few_limits")
def test_missing_parts_of_a_design_are_noted_and_not_checked(files):
    suite = Suite(files.mutant("tiny", "tiny"), operations=240)
    suite.run(as_timed=False)
    assert not suite.failures, "\n".join(map(str, suite.failures))
    assert len(suite.notes) == 2
    assert "walk" in suite.notes[0]
    assert "never reuses" in suite.notes[1]

"""The twin does what glibc does: random programs, programs by hand, a recorded trace."""

import dataclasses

import numpy as np
import pytest

from benchmarks.events import events as ev
from benchmarks.events import parquet
from benchmarks.events.events import Events, make_events
from benchmarks.trace import shipped
from benchmarks.twin.verify import directed, trace
from benchmarks.twin.verify.modes import MODES
from benchmarks.twin.verify.operation import MALLOC, NAMES, THREAD_END, THREAD_START, to_rows
from benchmarks.twin.verify.run import Plan, Runner
from tests.benchmarks.twin.verify.conftest import needs_glibc

pytestmark = needs_glibc

#: Too long for plain Python.
LONG = {"ten_thousand_unsorted"}


@pytest.fixture
def runner(plain):
    return Runner(Plan("ptmalloc", 400, 1, count_branches=False, shrink_seconds=0))


@pytest.mark.parametrize("mode", [m for m in MODES if m != "threads"])
@pytest.mark.parametrize("number", range(3))
def test_random_programs_agree(mode, number, runner):
    report = runner.program(mode, number, 400)
    assert report.finding is None, report.finding.lines
    assert report.tally.operations == report.tally.asked > 0


@pytest.mark.parametrize("number", range(4))
def test_threads_agree(number, runner):
    report = runner.program("threads", number, 1500)
    assert report.finding is None, report.finding.lines
    assert report.tally.kinds[NAMES[THREAD_START]] > 0


@pytest.mark.parametrize("name", [n for n in directed.PROGRAMS if n not in LONG])
def test_programs_by_hand_agree(name, runner):
    finding = runner.directed(name).finding
    assert finding is None, finding.lines


def test_both_sides_may_end(runner):
    """A block freed twice ends both processes, in the same operation."""
    name = "freed_twice_in_a_list"
    program = to_rows(directed.PROGRAMS[name].ops)
    report = runner.directed(name)
    assert report.finding is None
    assert report.tally.operations == len(program)


@pytest.fixture
def small_trace(tmp_path):
    """The beginning of a shipped trace in a file of its own."""
    with parquet.Reader(shipped.path_of("jq")) as reader:
        events = next(iter(reader.groups()))
        path = tmp_path / "small.parquet"
        parquet.write(path, Events(*(column[:1500] for column in events)), {})
    return path


@pytest.mark.parametrize("touch", ["all", "first", "nothing", "read"])
def test_a_trace_agrees_in_any_pieces(touch, small_trace, plain, monkeypatch):
    monkeypatch.setattr(trace, "PIECE", 700)
    plan = Plan("ptmalloc", 1, 1, count_branches=False)
    told = []
    reports = list(
        trace.run_trace(plan, [str(small_trace)], touch, lambda done, what: told.append(done))
    )
    assert [r.finding for r in reports] == [None]
    assert reports[0].tally.operations == 1500
    assert told[-1] == 1


@pytest.fixture
def threaded_trace(tmp_path):
    """Four threads after another and beside another, who free each other's blocks."""
    rows = []
    for thread, first in ((0, 0), (1, 20), (2, 40), (1, 60), (3, 80), (0, 100)):
        rows += [(ev.MALLOC, first + i, 90 * i, thread) for i in range(20)]
        rows += [(ev.FREE, max(first - 7, 0) + i, 0, thread) for i in range(13)]
        if first in (40, 60, 80):
            rows.append((ev.THREAD_END, -1, 0, thread))
    columns = dict(zip(("op", "slot", "size", "thread"), zip(*rows, strict=True), strict=True))
    path = tmp_path / "threads.parquet"
    parquet.write(path, make_events(**columns), {})
    return path


def test_a_trace_of_threads_agrees_on_threads(threaded_trace, plain, monkeypatch):
    monkeypatch.setattr(trace, "PIECE", 50)
    plan = Plan("ptmalloc", 1, 1, count_branches=False)
    path = [str(threaded_trace)]
    (report,) = trace.run_trace(plan, path, "first", lambda done, what: None, threads=True)
    assert report.finding is None, report.finding.lines
    kinds = report.tally.kinds
    assert kinds[NAMES[THREAD_START]] == kinds[NAMES[THREAD_END]] == 3


def test_a_trace_of_another_allocator_differs(small_trace, plain):
    plan = Plan("bump", 1, 1, count_branches=False, shrink_seconds=1)
    (report,) = trace.run_trace(plan, [str(small_trace)], "all", lambda done, what: None)
    assert "at event 0" in report.finding.what
    assert len(report.finding.ops) == 1


def test_tunables_reach_both_sides(plain):
    """Without them the two would differ at once."""
    tunables = {"tcache_count": 0, "mxfast": 0, "top_pad": 0}
    plan = Plan("ptmalloc", 300, 1, tunables=tunables, count_branches=False, shrink_seconds=0)
    assert Runner(plan).program("small", 0, 300).finding is None
    runner = Runner(plan)
    runner.twins.twin = lambda _: Runner(Plan("ptmalloc", 1, 1, count_branches=False)).twins.twin(
        {}
    )
    assert runner.program("small", 0, 300).finding is not None


def test_kinds_are_counted(runner):
    tally = runner.program("small", 1, 300).tally
    assert tally.kinds[NAMES[MALLOC]] > 0
    assert sum(tally.kinds.values()) == tally.operations
    assert dataclasses.replace(tally).as_dict()["operations"] == tally.operations
    assert isinstance(tally.faults, int)
    assert not isinstance(tally.faults, np.integer)

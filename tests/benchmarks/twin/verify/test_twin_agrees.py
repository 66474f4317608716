"""The twin agrees with glibc on random programs, directed programs and traces."""

import numpy as np
import pytest

from benchmarks.events import events as ev
from benchmarks.events import parquet
from benchmarks.events.events import Events, make_events
from benchmarks.trace import shipped
from benchmarks.twin.verify import directed, trace
from benchmarks.twin.verify.modes import MODES
from benchmarks.twin.verify.operation import MALLOC, NAMES, THREAD_END, THREAD_START
from benchmarks.twin.verify.subject import Glibc
from kernel.differential.pool import TaskProgress
from kernel.differential.run import Runner
from kernel.differential.subject import Program
from tests.benchmarks.twin.verify.conftest import needs_glibc

pytestmark = needs_glibc

#: Too slow without compilation.
LONG = {"ten_thousand_unsorted"}


def check(program, subject=None, shrink_seconds=0, progress=None):
    """Run a program.  Returns its report."""
    subject = subject or Glibc(count_branches=False)
    with subject.sides(progress) as sides:
        return Runner(subject, sides, shrink_seconds).check(program)


def random_program(mode, number, most, subject=None):
    subject = subject or Glibc(count_branches=False)
    return Program(subject.setting(mode, number), most)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("mode", [m for m in MODES if m != "threads"])
@pytest.mark.parametrize("number", range(3))
def test_random_programs_agree(mode, number):
    report = check(random_program(mode, number, 400))
    assert report.finding is None, report.finding.lines
    assert report.tally.operations == report.tally.asked > 0


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("number", range(4))
def test_threads_agree(number):
    report = check(random_program("threads", number, 1500))
    assert report.finding is None, report.finding.lines
    assert report.tally.tables["kinds"][NAMES[THREAD_START]] > 0


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", [n for n in directed.PROGRAMS if n not in LONG])
def test_directed_programs_agree(name):
    finding = check(Glibc(count_branches=False).by_hand(name)).finding
    assert finding is None, finding.lines


@pytest.mark.usefixtures("plain")
def test_both_sides_may_abort():
    """A double free ends both processes in the same operation."""
    name = "freed_twice_in_a_list"
    report = check(Glibc(count_branches=False).by_hand(name))
    assert report.finding is None
    assert report.tally.operations == len(directed.PROGRAMS[name].ops)


@pytest.fixture
def small_trace(tmp_path):
    """Write the beginning of a shipped trace to a file; return its path."""
    with parquet.Reader(shipped.path_of("jq")) as reader:
        events = next(iter(reader.groups()))
        path = tmp_path / "small.parquet"
        parquet.write(path, Events(*(column[:1500] for column in events)), {})
    return path


class RecordingProgress(TaskProgress):
    """TaskProgress that records all reported positions."""

    def __init__(self):
        super().__init__()
        self.positions = []

    def start_operation(self, n):
        self.positions.append(n)


@pytest.mark.parametrize("touch", ["all", "first", "nothing", "read"])
def test_a_trace_agrees_in_several_pieces(touch, small_trace, plain, monkeypatch):
    monkeypatch.setattr(trace, "PIECE", 700)
    subject = Glibc(traces=(str(small_trace),), touch=touch, count_branches=False)
    progress = RecordingProgress()
    (program,) = subject.programs()
    report = check(program, subject, progress=progress)
    assert report.finding is None
    assert report.tally.operations == report.tally.asked == 1500
    assert report.tally.tables["traces"] == {str(small_trace): 1500}
    assert progress.positions == [0, 700, 1400]


@pytest.fixture
def threaded_trace(tmp_path):
    """Write a trace of four threads, sequential and parallel, that free each other's blocks."""
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


def test_a_trace_with_threads_agrees_on_real_threads(threaded_trace, plain, monkeypatch):
    monkeypatch.setattr(trace, "PIECE", 50)
    path = (str(threaded_trace),)
    subject = Glibc(traces=path, touch="first", threads=True, count_branches=False)
    (program,) = subject.programs()
    report = check(program, subject)
    assert report.finding is None, report.finding.lines
    kinds = report.tally.tables["kinds"]
    assert kinds[NAMES[THREAD_START]] == kinds[NAMES[THREAD_END]] == 3


def test_a_trace_of_another_allocator_differs(small_trace, plain):
    subject = Glibc("bump", traces=(str(small_trace),), count_branches=False)
    (program,) = subject.programs()
    finding = check(program, subject, shrink_seconds=1).finding
    assert "at event 0" in finding.what
    assert len(finding.ops) == 1
    assert finding.lines[0] == "  in the trace:"
    assert "  shortened:" in finding.lines


def test_tunables_reach_both_sides(plain):
    """A twin without the tunables differs."""
    tunables = {"tcache_count": 0, "mxfast": 0, "top_pad": 0}
    subject = Glibc(tunables=tunables, count_branches=False)
    program = random_program("small", 0, 300, subject)
    assert check(program, subject).finding is None
    subject.twins.twin = lambda _: Glibc(count_branches=False).twins.twin({})
    assert check(program, subject).finding is not None


@pytest.mark.usefixtures("plain")
def test_kinds_are_counted():
    tally = check(random_program("small", 1, 300)).tally
    assert tally.tables["kinds"][NAMES[MALLOC]] > 0
    assert tally.tables["kinds"].total() == tally.operations
    assert tally.as_dict()["operations"] == tally.operations
    faults = tally.numbers["minor_faults"]
    assert isinstance(faults, int)
    assert not isinstance(faults, np.integer)

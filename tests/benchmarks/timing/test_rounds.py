"""Rounds are interleaved, stored one by one, resumed in the middle, and repeated if disturbed."""

import contextlib
import json

import pytest

from benchmarks.timing import rounds as module
from benchmarks.timing.machine import Load
from benchmarks.timing.rounds import (
    FILE,
    CellError,
    Rounds,
    TimesError,
    read_times,
    twins,
    valid,
)


class Interrupted(Exception):
    pass


@pytest.fixture
def directories(tmp_path):
    made = [tmp_path / name for name in ("a", "b", "c")]
    for directory in made:
        directory.mkdir()
    return made


@pytest.fixture
def machine(monkeypatch):
    """Load on the machine, set by the test: ``machine.others``."""

    class Machine:
        others = 0.0

        def load(self):
            return Load(Machine.others, 0.0)

    monkeypatch.setattr(module, "Watch", Machine)
    return Machine


def quiet(done, what):
    pass


class Clock:
    """A measurement that counts its calls and is interrupted at ``stop``."""

    def __init__(self, stop=None):
        self.calls, self.stop = [], stop

    def __call__(self, unit):
        if len(self.calls) == self.stop:
            raise Interrupted
        self.calls += [(cell.directory.name, cell.side) for cell in unit]
        return [{"times": {"warm": 10.0 + len(self.calls)}} for _ in unit]


def test_each_round_measures_every_cell_once_and_the_first_twice(directories, machine):
    clock = Clock()
    Rounds(directories, 8, seed=1).run(clock, quiet)
    cells = [("a", 0), ("a", 1), ("b", 0), ("c", 0)]
    groups = [clock.calls[i : i + 4] for i in range(0, 32, 4)]
    assert all(sorted(group) == cells for group in groups)
    assert len({tuple(group) for group in groups}) > 3  # in another order each time
    assert len(clock.calls) == 32


def test_interrupted_rounds_go_on_where_they_stopped(directories, machine):
    whole = Clock()
    Rounds(directories, 4, seed=1).run(whole, quiet)
    for directory in directories:
        (directory / FILE).unlink()
    calls = []
    for stop in (5, 6, None):
        clock = Clock(stop)
        with contextlib.suppress(Interrupted):
            Rounds(directories, 4, seed=1).run(clock, quiet)
        calls += clock.calls
    assert calls == whole.calls


def test_a_torn_last_line_is_measured_again(directories, machine):
    Rounds(directories, 2, seed=1).run(Clock(), quiet)
    path = directories[1] / FILE
    path.write_bytes(path.read_bytes()[:-9])
    clock = Clock()
    Rounds(directories, 2, seed=1).run(clock, quiet)
    assert clock.calls == [("b", 0)]
    assert sorted(valid(read_times(directories[1]))) == [0, 1]


@pytest.mark.parametrize("line", ["{}", "[]", "12", '{"round": 0}', "[" * 100_000, "\x00"])
def test_a_damaged_line_is_named(directories, machine, line):
    Rounds(directories, 1, seed=1).run(Clock(), quiet)
    path = directories[0] / FILE
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(TimesError, match=r"times\.jsonl:1: not a measurement"):
        Rounds(directories, 1, seed=1)


def test_a_disturbed_round_is_repeated_whole_and_kept_in_the_file(directories, machine):
    class Disturbed(Clock):
        def __call__(self, unit):
            machine.others = 1.0 if 8 <= len(self.calls) < 10 else 0.0  # in the third round
            return super().__call__(unit)

    clock = Disturbed()
    assert Rounds(directories, 6, seed=1).run(clock, quiet) == []
    assert len(clock.calls) == 7 * 4
    lines = read_times(directories[0])
    assert sorted(line["attempt"] for line in lines if line["round"] == 2) == [0, 0, 1, 1]
    assert valid(lines)[2]["attempt"] == 1


def test_rounds_that_stay_disturbed_are_reported(directories, machine):
    class Disturbed(Clock):
        def __call__(self, unit):
            machine.others = 1.0 if len(self.calls) >= 16 else 0.0
            return super().__call__(unit)

    clock = Disturbed()
    assert Rounds(directories, 6, seed=1).run(clock, quiet) == [4, 5]
    assert len(clock.calls) == 9 * 4


def test_an_interrupted_repetition_is_completed(directories, machine):
    class Disturbed(Clock):
        def __call__(self, unit):
            machine.others = 1.0 if len(self.calls) in (8, 9) else 0.0
            return super().__call__(unit)

    with pytest.raises(Interrupted):
        Rounds(directories, 6, seed=1).run(Disturbed(stop=26), quiet)
    clock = Clock()
    Rounds(directories, 6, seed=1).run(clock, quiet)
    assert len(clock.calls) == 2


def test_constant_load_disturbs_no_round_in_particular(directories, machine):
    machine.others = 1.0
    clock = Clock()
    assert Rounds(directories, 6, seed=1).run(clock, quiet) == []
    assert len(clock.calls) == 24


def test_a_line_tells_the_load_and_what_the_measurement_reports(directories, machine):
    machine.others = 0.25
    Rounds(directories, 1, seed=1).run(
        lambda unit: [{"times": {"warm": 3.5}, "instructions": 7}], quiet
    )
    line = json.loads((directories[1] / FILE).read_text())
    assert line["times"] == {"warm": 3.5}
    assert (line["instructions"], line["others"], line["stolen"]) == (7, 0.25, 0.0)
    assert (line["round"], line["attempt"], line["side"]) == (0, 0, 0)


def test_a_duet_measures_pairs_at_once_and_the_twin_with_itself(directories, machine):
    with pytest.raises(ValueError, match="3 cells"):
        Rounds(directories, 1, seed=1, duet=True)
    units = []

    def measure(unit):
        units.append([(cell.directory.name, cell.side) for cell in unit])
        return [{"times": {"warm": 10.0 + cell.side}} for cell in unit]

    Rounds(directories[:2], 8, seed=1, duet=True).run(measure, quiet)
    pairs = [[("a", 0), ("b", 0)], [("a", 1), ("a", 2)]]
    assert sorted(map(sorted, units)) == sorted(pairs * 8)
    assert len({tuple(unit) for unit in units}) == 4  # either cell is on either processor
    assert twins(read_times(directories[0])) == [({"warm": 11.0}, {"warm": 12.0})] * 8
    assert twins(read_times(directories[1])) == []


def test_a_cell_that_fails_is_left_out_and_the_others_go_on(directories, machine):
    class Failing(Clock):
        def __call__(self, unit):
            if unit[0].directory.name == "b" and len(self.calls) > 8:
                raise CellError("the process died")
            return super().__call__(unit)

    rounds = Rounds(directories, 6, seed=1)
    rounds.run(Failing(), quiet)
    assert rounds.failed == {directories[1]: "the process died"}
    assert len(valid(read_times(directories[2]))) == 6
    assert len(valid(read_times(directories[1]))) < 6

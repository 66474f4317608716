"""Interleaved rounds: in each, every cell is measured once, in random order, in a fresh process.

A cell is an allocator on a workload with a seed, and has a run directory; its measurements are the
lines of ``times.jsonl`` there, appended and synced one by one, so that an interrupted sweep goes on
in the middle of a round.  One cell, the twin, is measured twice in every round, as if it were two:
it shows which differences mean nothing (benchmarks.timing.statistics.floor).

In a duet, the two cells of a pair are measured at the same time, on two processors, and the twin
with itself: what disturbs one disturbs the other.

A line:

    round, attempt   counted from 0; the highest attempt of a round is the valid one
    side             0; 1 for the second measurement of the twin; 1 and 2 for its duet with itself
    position         place in the order of the round
    times            quantity -> ns per event (benchmarks.replay.metrics.TIMES)
    others, stolen   load on the machine meanwhile (benchmarks.timing.machine.Load)

and whatever else the measurement reports.
"""

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing.machine import Load, Watch, disturbed

#: File of a run directory.
FILE = "times.jsonl"


class TimesError(ValueError):
    """Stored times that cannot be read; the message names the file and line."""


class CellError(RuntimeError):
    """Error for a cell that cannot be measured; the message says why."""


@dataclass(frozen=True)
class Cell:
    """A run directory, and which of its measurements in a round it is."""

    directory: Path
    side: int = 0


#: One cell, or two that are measured at the same time.
Unit = tuple[Cell, ...]
#: Measure each cell of a unit once, in a fresh process; returns the entries of their lines, which
#: are at least ``times``.
Measure = Callable[[Unit], Sequence[Mapping[str, Any]]]


def read_times(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of a run directory's times.jsonl, in the order of their measurement.

    A last line without its end was being written when the process died; it does not count.  Raises
    TimesError for any other line that is no measurement.
    """
    path = directory / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            Load(entry["others"], entry["stolen"])
            key = entry["round"], entry["attempt"], entry["side"]
            good = all(isinstance(k, int) for k in key) and isinstance(entry["times"], dict)
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            raise TimesError(f"{path}:{number}: not a measurement; delete the file to measure anew")
        lines.append(entry)
    return lines


def valid(lines: Sequence[Mapping[str, Any]], side: int = 0) -> dict[int, Mapping[str, Any]]:
    """Return the valid measurement of each round, by round: that of the highest attempt."""
    found: dict[int, Mapping[str, Any]] = {}
    for line in lines:
        if line["side"] == side:
            before = found.get(line["round"])
            if before is None or line["attempt"] >= before["attempt"]:
                found[line["round"]] = line
    return found


def twins(lines: Sequence[Mapping[str, Any]]) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Return the times of both measurements of the twin, by round; empty for any other run."""
    sides = (1, 2) if any(line["side"] == 2 for line in lines) else (0, 1)
    first, second = (valid(lines, side) for side in sides)
    common = sorted(first.keys() & second.keys())
    return [(first[number]["times"], second[number]["times"]) for number in common]


def _append(directory: Path, entry: Mapping[str, Any]) -> None:
    """Append a line to times.jsonl and sync it.  A torn last line is cut off first."""
    path = directory / FILE
    text = (json.dumps(entry, allow_nan=False) + "\n").encode("ascii")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


class Rounds:
    """Rounds of the cells in ``directories``, of which the first is the twin.

    ``rounds``: number of rounds.  ``seed`` decides the order within each round, so that a resumed
    sweep keeps it.  ``duet``: the directories are pairs, one after the other.
    """

    def __init__(
        self, directories: Sequence[Path], rounds: int, seed: int, *, duet: bool = False
    ) -> None:
        if not directories or (duet and len(directories) % 2):
            raise ValueError(f"{len(directories)} cells cannot be measured")
        if duet:
            pairs = zip(directories[::2], directories[1::2], strict=True)
            self._units: list[Unit] = [(Cell(a), Cell(b)) for a, b in pairs]
            self._units.append((Cell(directories[0], 1), Cell(directories[0], 2)))
        else:
            self._units = [(Cell(directory),) for directory in directories]
            self._units.append((Cell(directories[0], 1),))
        self.cells = [cell for unit in self._units for cell in unit]
        self.rounds = rounds
        self.seed = seed
        self._lines = {directory: read_times(directory) for directory in directories}
        #: Why a cell could not be measured, by its directory.
        self.failed: dict[Path, str] = {}

    def order(self, number: int, attempt: int = 0) -> list[Unit]:
        """Return the units in the order in which the round measures them."""
        choice = random.Random(f"{self.seed} {number} {attempt}")
        units = [tuple(choice.sample(unit, len(unit))) for unit in self._units]
        choice.shuffle(units)
        return units

    @property
    def total(self) -> int:
        """Number of measurements, without repetitions of disturbed rounds."""
        return self.rounds * len(self.cells)

    def run(self, measure: Measure, progress: Callable[[int, str], None]) -> list[int]:
        """Measure what is missing; returns the rounds that stay disturbed.

        Disturbed rounds are repeated, each of them whole, as often as half the number of rounds.
        ``progress(done, what)`` is called before each measurement.  A unit for which ``measure``
        raises CellError is left out from then on (``failed``); any other exception passes through,
        and all lines written before remain valid.
        """
        done = 0
        for number in range(self.rounds):
            done = self._run_round(number, 0, measure, done, progress)
        repeated = self._attempts()
        while (bad := disturbed(self.loads())) and repeated < self.rounds // 2:
            attempt = 1 + max(line["attempt"] for line in self._of_round(bad[0]))
            self._run_round(bad[0], self._open_attempt(bad[0], attempt), measure, done, progress)
            repeated += 1
        return bad

    def _run_round(
        self, number: int, attempt: int, measure: Measure, done: int, progress: Callable
    ) -> int:
        for position, unit in enumerate(self.order(number, attempt)):
            complete = all(self._has(cell, number, attempt) for cell in unit)
            if not complete and not any(cell.directory in self.failed for cell in unit):
                again = ", again: it was disturbed" if attempt else ""
                progress(min(done, self.total), f"round {number + 1}{again}")
                self._measure_unit(unit, (number, attempt, position), measure)
            done += len(unit)
        return done

    def _measure_unit(self, unit: Unit, place: tuple[int, int, int], measure: Measure) -> None:
        watch = Watch()
        try:
            found = measure(unit)
        except CellError as error:
            self.failed |= {cell.directory: str(error) for cell in unit}
            return
        load = watch.load().as_dict()
        order = dict(zip(("round", "attempt", "position"), place, strict=True))
        for cell, result in zip(unit, found, strict=True):
            entry = order | {"side": cell.side} | dict(result) | load
            _append(cell.directory, entry)
            self._lines[cell.directory].append(entry)

    def _has(self, cell: Cell, number: int, attempt: int) -> bool:
        wanted = (number, attempt, cell.side)
        lines = self._lines[cell.directory]
        return any((e["round"], e["attempt"], e["side"]) == wanted for e in lines)

    def _of_round(self, number: int) -> Iterator[Mapping[str, Any]]:
        for lines in self._lines.values():
            yield from (line for line in lines if line["round"] == number)

    def _open_attempt(self, number: int, fresh: int) -> int:
        """Return an attempt at a round that was interrupted, or ``fresh``."""
        last = fresh - 1
        cells = (cell for cell in self.cells if cell.directory not in self.failed)
        complete = all(self._has(cell, number, last) for cell in cells)
        return fresh if complete else last

    def _attempts(self) -> int:
        """Return the number of repetitions of rounds so far."""
        lines = (line for lines in self._lines.values() for line in lines)
        return len({(e["round"], e["attempt"]) for e in lines if e["attempt"]})

    def loads(self) -> list[Load]:
        """Return the heaviest load of each round's valid measurements."""
        heaviest = [Load(0.0, None)] * self.rounds
        for cell in self.cells:
            for number, line in valid(self._lines[cell.directory], cell.side).items():
                if number < self.rounds:
                    before = heaviest[number]
                    stolen = max(before.stolen or 0.0, line["stolen"] or 0.0)
                    heaviest[number] = Load(max(before.others, line["others"]), stolen)
        return heaviest

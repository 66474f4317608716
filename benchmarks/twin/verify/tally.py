"""What a run of programs has counted, and how it is told."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from allocators.base.operation import ALLOCATING, FREE, TRIM, USABLE
from benchmarks.twin.verify.compare import Outcome
from benchmarks.twin.verify.operation import NAMES
from benchmarks.twin.verify.reach import out_of_reach
from kernel.engine.branches import Branch
from kernel.linux.verify.tally import split_branches

_OF_THE_ALLOCATOR = {NAMES[kind] for kind in (*ALLOCATING, FREE, USABLE, TRIM)}


@dataclass
class Tally:
    """Counts of one or many programs.  They add up."""

    operations: int = 0  # compared and equal, with the one that differs
    asked: int = 0  # operations of the programs
    programs: int = 0
    agreed: int = 0  # programs without a difference
    kinds: Counter = field(default_factory=Counter)
    modes: Counter = field(default_factory=Counter)  # operations
    refused: int = 0  # allocations that returned NULL
    faults: int = 0
    breaks: int = 0  # times that the break moved
    reruns: int = 0  # programs run again because a fault count may be the host's
    hits: np.ndarray | None = None  # of branches, (n,) i8

    def count(self, mode: str, program: np.ndarray, outcome: Outcome) -> None:
        """Count one program, or a part of it."""
        n = outcome.done + (outcome.row >= 0)
        self.operations += n
        self.asked += len(program)
        self.programs += 1
        self.agreed += not outcome.what
        self.modes[mode] += n
        kinds = program["kind"][:n]
        for kind, count in zip(*np.unique(kinds, return_counts=True), strict=True):
            self.kinds[NAMES[kind]] += int(count)
        x = outcome.expected[:n]
        self.faults += int(x.minflt.sum() + x.use_minflt.sum())
        self.breaks += int((np.diff(x.brk) != 0).sum())
        makes = np.isin(kinds, ALLOCATING)
        self.refused += int((makes & (x.value == 0) & (x.request != 0)).sum())

    def add(self, other: "Tally") -> None:
        """Add what another has counted."""
        for name in ("operations", "asked", "programs", "agreed", "refused", "faults", "breaks"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.reruns += other.reruns
        self.kinds += other.kinds
        self.modes += other.modes
        if other.hits is not None:
            self.hits = other.hits.copy() if self.hits is None else self.hits + other.hits

    def as_dict(self) -> dict[str, Any]:
        """Everything but the branches, for JSON."""
        return {
            "operations": self.operations,
            "programs": self.programs,
            "programs_equal": self.agreed,
            "kinds": dict(sorted(self.kinds.items())),
            "modes": dict(self.modes),
            "refused": self.refused,
            "minor_faults": self.faults,
            "break_moved": self.breaks,
            "reruns": self.reruns,
        }

    def lines(self) -> list[str]:
        """The same for people."""
        width = max(map(len, NAMES.values()))
        lines = [f"{mode}: {count:,} operations" for mode, count in self.modes.items()]
        lines.append("operations by kind")
        for name, count in self.kinds.most_common():
            mark = "" if name in _OF_THE_ALLOCATOR else "  (of the program)"
            lines.append(f"  {name:<{width}} {count:>12,}{mark}")
        lines.append(
            f"{self.faults:,} page faults, the break moved {self.breaks:,} times, "
            f"{self.refused:,} requests refused"
        )
        if self.reruns:
            lines.append(f"{self.reruns} programs run again: the host had interfered")
        return lines


def branches_of(
    module: str, branches: list[Branch], hits: np.ndarray | None
) -> tuple[list[Branch], list[Branch], list[tuple[Branch, str]]]:
    """The branches of ``module`` that were reached; that were not; and those out of reach, and why.

    What only a switch lets be compiled is left out.
    """
    own = [b for b in branches if b.module == module and not b.under]
    taken = np.zeros(len(branches), "i8") if hits is None else hits
    return split_branches(taken, own, out_of_reach(own))

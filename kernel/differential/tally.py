"""Counts of a run of programs, and tables of them."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Tally:
    """Counts of one or more programs, which can be added.

    ``numbers`` and ``tables`` are the subject's own counts by name; each table counts by kind.
    """

    operations: int = 0  # compared, including the one that differs
    asked: int = 0  # requested: the maximum lengths of the programs
    programs: int = 0
    reruns: int = 0  # of programs whose difference the host may have caused
    numbers: Counter[str] = field(default_factory=Counter)
    tables: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    hits: np.ndarray | None = None  # executions of each branch, (n,) i8

    def add(self, other: "Tally") -> None:
        """Add the counts of another tally."""
        self.operations += other.operations
        self.asked += other.asked
        self.programs += other.programs
        self.reruns += other.reruns
        self.numbers.update(other.numbers)
        for name, counts in other.tables.items():
            self.tables[name].update(counts)
        self.add_hits(other.hits)

    def add_hits(self, hits: np.ndarray | None) -> None:
        """Add the executions of each branch."""
        if hits is not None:
            self.hits = hits.copy() if self.hits is None else self.hits + hits

    def as_dict(self) -> dict[str, Any]:
        """Return all counts except those of branches, for JSON."""
        return {
            "operations": self.operations,
            "asked": self.asked,
            "programs": self.programs,
            "reruns": self.reruns,
            **self.numbers,
            **{name: dict(sorted(counts.items())) for name, counts in self.tables.items()},
        }

    def lines(self, titles: Mapping[str, str]) -> list[str]:
        """Return the tables as lines of text, in the order of ``titles``."""
        return [
            line
            for name, title in titles.items()
            for line in table(title, self.tables[name], share=True)
        ]


def table(title: str, counts: Mapping[str, int], *, share: bool = False) -> list[str]:
    """Return the lines of a table of counts, largest first; ``share`` adds percentages."""
    lines = [title]
    width = max((len(name) for name in counts), default=0)
    total = sum(counts.values())
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        part = f" {100 * count / total:6.2f} %" if share and total else ""
        lines.append(f"  {name:<{width}} {count:>12,}{part}")
    return lines

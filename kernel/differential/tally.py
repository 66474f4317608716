"""Counts of a run of programs, and their tables."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Tally:
    """Counts of one or many programs.  They add up.

    ``numbers`` and ``tables`` are the subject's, by name; counts of a table are by kind.
    """

    operations: int = 0  # compared, with the one that differs
    asked: int = 0  # that the programs have
    programs: int = 0
    reruns: int = 0  # of programs whose difference the host may have made
    numbers: Counter[str] = field(default_factory=Counter)
    tables: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    hits: np.ndarray | None = None  # of branches, (n,) i8

    def add(self, other: "Tally") -> None:
        """Add what another has counted."""
        self.operations += other.operations
        self.asked += other.asked
        self.programs += other.programs
        self.reruns += other.reruns
        self.numbers.update(other.numbers)
        for name, counts in other.tables.items():
            self.tables[name].update(counts)
        self.add_hits(other.hits)

    def add_hits(self, hits: np.ndarray | None) -> None:
        """Add how often each branch was taken."""
        if hits is not None:
            self.hits = hits.copy() if self.hits is None else self.hits + hits

    def as_dict(self) -> dict[str, Any]:
        """Everything but the branches, for JSON."""
        return {
            "operations": self.operations,
            "asked": self.asked,
            "programs": self.programs,
            "reruns": self.reruns,
            **self.numbers,
            **{name: dict(sorted(counts.items())) for name, counts in self.tables.items()},
        }

    def lines(self, titles: Mapping[str, str]) -> list[str]:
        """The tables for people, in the order of ``titles``."""
        return [
            line
            for name, title in titles.items()
            for line in table(title, self.tables[name], share=True)
        ]


def table(title: str, counts: Mapping[str, int], *, share: bool = False) -> list[str]:
    """Lines of a table of counts, the largest first, with each one's ``share`` of them all."""
    lines = [title]
    width = max((len(name) for name in counts), default=0)
    total = sum(counts.values())
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        part = f" {100 * count / total:6.2f} %" if share and total else ""
        lines.append(f"  {name:<{width}} {count:>12,}{part}")
    return lines

"""What a run of programs has counted, and how it is told."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernel.engine.branches import Branch
from kernel.linux.verify import directed
from kernel.linux.verify.model import Result
from kernel.linux.verify.operation import Op, errno_name


@dataclass
class Tally:
    """Counts of one or many programs.  They add up."""

    operations: int = 0
    programs: int = 0
    by_label: Counter = field(default_factory=Counter)
    by_errno: Counter = field(default_factory=Counter)
    by_setting: Counter = field(default_factory=Counter)
    by_hand: int = 0  # operations of programs written by hand: of no random kind
    faults: int = 0
    reruns: int = 0  # programs run again because the host may have interfered
    outside: int = 0  # programs ended by a layout that the model's window cannot hold
    hits: np.ndarray | None = None  # of branches, (n,) i8

    def count(self, op: Op, result: Result) -> None:
        """Count one operation."""
        self.operations += 1
        if op.label == directed.LABEL:
            self.by_hand += 1
        else:
            self.by_label[op.label] += 1
        self.faults += result.minflt
        if result.sig:
            self.by_errno["SIGSEGV" if result.sig == 11 else f"signal {result.sig}"] += 1
        elif -4096 < result.value < 0:
            self.by_errno[errno_name(result.value)] += 1
        else:
            self.by_errno["ok"] += 1

    def add(self, other: "Tally") -> None:
        """Add what another has counted."""
        self.operations += other.operations
        self.programs += other.programs
        self.by_hand += other.by_hand
        self.by_label += other.by_label
        self.by_errno += other.by_errno
        self.by_setting += other.by_setting
        self.faults += other.faults
        self.reruns += other.reruns
        self.outside += other.outside
        if other.hits is not None:
            self.hits = other.hits.copy() if self.hits is None else self.hits + other.hits

    def as_dict(self, branches: list[Branch], unreachable: dict[int, str]) -> dict[str, Any]:
        """Everything, for JSON."""
        reached, missed, apart = split_branches(self.hits, branches, unreachable)
        return {
            "operations": self.operations,
            "programs": self.programs,
            "written_by_hand": self.by_hand,
            "kinds": dict(sorted(self.by_label.items())),
            "errnos": dict(sorted(self.by_errno.items())),
            "settings": dict(sorted(self.by_setting.items())),
            "minor_faults": self.faults,
            "reruns": self.reruns,
            "branches": {
                "reached": len(reached),
                "total": len(reached) + len(missed),
                "counts": {str(b): int(self.hits[b.number]) for b in reached},
                "never_reached": [str(b) for b in missed],
                "out_of_reach": [f"{b}  ({why})" for b, why in apart],
            },
        }


def split_branches(
    hits: np.ndarray | None, branches: list[Branch], unreachable: dict[int, str]
) -> tuple[list[Branch], list[Branch], list[tuple[Branch, str]]]:
    """Branches that were reached; that were not; and those out of reach here, with the reason.

    One that was reached although it was thought out of reach is among the reached.
    """
    taken = hits if hits is not None else np.zeros(len(branches), "i8")
    reached = [b for b in branches if taken[b.number]]
    missed = [b for b in branches if not taken[b.number] and b.number not in unreachable]
    apart = [
        (b, unreachable[b.number])
        for b in branches
        if not taken[b.number] and b.number in unreachable
    ]
    return reached, missed, apart


def table(title: str, counts: Mapping[str, int], total: int = 0) -> list[str]:
    """Lines of a table of counts, with their shares of ``total`` where one is given."""
    lines = [title]
    width = max((len(name) for name in counts), default=0)
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        share = f" {100 * count / total:6.2f} %" if total else ""
        lines.append(f"  {name:<{width}} {count:>10,}{share}")
    return lines

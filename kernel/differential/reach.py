"""Branches that a run has reached, those it has missed, and those that no program can reach."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kernel.differential.tally import table
from kernel.engine.branches import Branch

#: Branches never reached that are printed.
_MOST_LINES = 30


class Rule(NamedTuple):
    """Branches out of reach, and why.  Regular expressions, each of which must match wholly."""

    why: str
    text: str = ".*"
    function: str = ".*"
    module: str = ".*"
    under: str = ".*"  # the switch that must be on for it to be compiled

    def fits(self, branch: Branch) -> bool:
        """Return whether ``branch`` is one of these."""
        return bool(
            re.fullmatch(self.text, branch.text)
            and re.fullmatch(self.function, branch.function)
            and re.fullmatch(self.module, branch.module)
            and re.fullmatch(self.under, branch.under)
        )


@dataclass(frozen=True)
class Coverage:
    """Branches that were reached, and how often; that were not; and those out of reach, and why.

    One that was reached although it was thought out of reach is among the reached.
    """

    reached: dict[Branch, int]
    missed: list[Branch]
    apart: dict[Branch, str]

    @classmethod
    def of(
        cls, hits: np.ndarray | None, branches: Iterable[Branch], rules: Iterable[Rule]
    ) -> "Coverage":
        """Split ``branches`` by ``hits``, (n,) counts; the first rule that fits tells why not."""
        found, rules = cls({}, [], {}), list(rules)
        for branch in branches:
            count = int(hits[branch.number]) if hits is not None else 0
            why = next((rule.why for rule in rules if rule.fits(branch)), "") if not count else ""
            if count:
                found.reached[branch] = count
            elif why:
                found.apart[branch] = why
            else:
                found.missed.append(branch)
        return found

    @property
    def total(self) -> int:
        """Branches within reach."""
        return len(self.reached) + len(self.missed)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "reached": len(self.reached),
            "total": self.total,
            "counts": {str(branch): count for branch, count in self.reached.items()},
            "never_reached": [str(branch) for branch in self.missed],
            "out_of_reach": [f"{branch}  ({why})" for branch, why in self.apart.items()],
        }

    def lines(self, whose: str, target: int = 0) -> list[str]:
        """The same for people; ``target``: percent that a run of everything should reach."""
        share = 100 * len(self.reached) / self.total if self.total else 0.0
        aim = f" (target over everything: {target} %)" if target else ""
        rarest = Counter({str(b): count for b, count in self.reached.items()}).most_common()
        more = len(self.missed) - _MOST_LINES
        return [
            f"branches of {whose}: {len(self.reached)} of {self.total} reached, {share:.1f} %{aim}",
            *table("  the rarest (--json counts all)", dict(rarest[:-6:-1])),
            *(f"  never: {branch}" for branch in self.missed[:_MOST_LINES]),
            *([f"  and {more} more (--json lists all)"] if more > 0 else []),
            *(
                f"  {count} more out of reach: {why}"
                for why, count in Counter(self.apart.values()).items()
            ),
        ]

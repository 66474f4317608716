"""Branch coverage of a run: branches reached, missed, and unreachable by any program."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kernel.differential.tally import table
from kernel.engine.branches import Branch

#: Maximum number of missed branches that are printed.
_MAX_LINES = 30


class Rule(NamedTuple):
    """Description of unreachable branches, with the reason ``why``.

    The other fields are regular expressions; all must match in full.
    """

    why: str
    text: str = ".*"
    function: str = ".*"
    module: str = ".*"
    under: str = ".*"  # the switch under which the branch is compiled

    def fits(self, branch: Branch) -> bool:
        """Return True if the rule matches ``branch``."""
        return bool(
            re.fullmatch(self.text, branch.text)
            and re.fullmatch(self.function, branch.function)
            and re.fullmatch(self.module, branch.module)
            and re.fullmatch(self.under, branch.under)
        )


@dataclass(frozen=True)
class Coverage:
    """Branches reached (with counts), missed, and unreachable (with reasons).

    A branch that was executed counts as reached even if a rule declares it unreachable.
    """

    reached: dict[Branch, int]
    missed: list[Branch]
    unreachable: dict[Branch, str]

    @classmethod
    def of(
        cls, hits: np.ndarray | None, branches: Iterable[Branch], rules: Iterable[Rule]
    ) -> "Coverage":
        """Classify ``branches`` by ``hits``, (n,) counts; the first matching rule applies."""
        found, rules = cls({}, [], {}), list(rules)
        for branch in branches:
            count = int(hits[branch.number]) if hits is not None else 0
            why = next((rule.why for rule in rules if rule.fits(branch)), "") if not count else ""
            if count:
                found.reached[branch] = count
            elif why:
                found.unreachable[branch] = why
            else:
                found.missed.append(branch)
        return found

    @property
    def total(self) -> int:
        """Number of reachable branches."""
        return len(self.reached) + len(self.missed)

    def as_dict(self) -> dict[str, Any]:
        """Return the complete coverage, for JSON."""
        return {
            "reached": len(self.reached),
            "total": self.total,
            "counts": {str(branch): count for branch, count in self.reached.items()},
            "never_reached": [str(branch) for branch in self.missed],
            "out_of_reach": [f"{branch}  ({why})" for branch, why in self.unreachable.items()],
        }

    def lines(self, name: str, target: int = 0) -> list[str]:
        """Return the coverage of the side called ``name`` as lines of text.

        ``target``: coverage expected from a complete run, percent; 0: none.
        """
        share = 100 * len(self.reached) / self.total if self.total else 0.0
        aim = f" (target of a complete run: {target} %)" if target else ""
        rarest = Counter({str(b): count for b, count in self.reached.items()}).most_common()
        more = len(self.missed) - _MAX_LINES
        return [
            f"branches of {name}: {len(self.reached)} of {self.total} reached, {share:.1f} %{aim}",
            *table("  the rarest (--json lists all)", dict(rarest[:-6:-1])),
            *(f"  missed: {branch}" for branch in self.missed[:_MAX_LINES]),
            *([f"  and {more} more (--json lists all)"] if more > 0 else []),
            *(
                f"  {count} unreachable: {why}"
                for why, count in Counter(self.unreachable.values()).items()
            ),
        ]

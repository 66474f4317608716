"""The running Linux and the model as a subject of the engine."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from kernel.config import KernelConfig
from kernel.differential.pool import Place
from kernel.differential.reach import Rule
from kernel.differential.subject import Program, Subject
from kernel.differential.tally import Tally
from kernel.engine.branches import Branch
from kernel.linux import scope
from kernel.linux.state import WINDOW_BITS
from kernel.linux.verify import directed, operation, reach
from kernel.linux.verify.compare import ProcessSetting, files
from kernel.linux.verify.model import Model, counted_branches
from kernel.linux.verify.sides import BY_HAND, ProcessSides

#: The module whose command this is.
COMMAND = "kernel.linux.verify"
#: Operations of one program, in one process.
PROGRAM_LENGTH = 500


@dataclass
class Linux(Subject):
    """A run: ``operations`` of random programs, then those written by hand.

    ``thp``: programs with huge pages "on", "off", or "both" in turn.  ``bindings`` replace
    functions and constants of the model.
    """

    operations: int = PROGRAM_LENGTH
    seed: int = 1
    thp: str = "both"
    count_branches: bool = True
    bindings: Mapping[str, Any] = field(default_factory=dict)

    command = COMMAND
    setting_class = ProcessSetting
    variants = staticmethod(operation.variants)
    encode = staticmethod(operation.encode)
    decode = staticmethod(operation.decode)
    whose = "the model"
    #: A model that takes longer over one operation does not come back, seconds.
    patience = 20.0
    tables: ClassVar = {
        "kinds": "operations by kind",
        "errnos": "by errno",
        "settings": "programs by setting",
    }

    @property
    def total(self) -> int:
        """Operations of the random programs."""
        return self.operations

    def unavailable(self) -> str:
        """Say why this host cannot serve as truth."""
        return scope.cannot_serve(self.thp)

    def scope(self) -> dict[str, Any]:
        """Return what this host can prove."""
        return {"thp": self.thp, **scope.modes(self.thp)}

    def heading(self) -> list[str]:
        """The same for people."""
        found = self.scope()
        return [
            f"Linux {found['kernel']}, seed {self.seed}",
            f"verified here: {'; '.join(found['verified'])}",
            f"only against the written rules: {'; '.join(found['written_rules_only'])}",
        ]

    def prepare(self) -> None:
        """Compile what all programs use."""
        Model(KernelConfig(window_bits=WINDOW_BITS), count_branches=self.count_branches)

    # --- programs -------------------------------------------------------------------------------

    def program(self, number: int) -> Program:
        """Random program ``number``, and how its process is set up; the last one is shorter."""
        seed = f"{self.seed}/{number}"
        choice = random.Random(f"setting {seed}").random()
        setting = ProcessSetting(
            seed,
            thp=number % 2 == 1 if self.thp == "both" else self.thp == "on",
            # Without randomisation an unlimited stack puts the mappings where the model's window
            # has the program.
            randomize=choice < 0.15,
            unlimited=0.12 <= choice < 0.15,
            legacy=0.09 <= choice < 0.12 or 0.15 <= choice < 0.24,
        )
        return Program(setting, min(PROGRAM_LENGTH, self.operations - number * PROGRAM_LENGTH))

    def by_hand(self, name: str) -> Program:
        """The program of that name in :mod:`kernel.linux.verify.directed`."""
        return Program(ProcessSetting(BY_HAND + name, thp=self.thp != "off"), 0)

    def programs(self) -> Iterator[Program]:
        """Yield the random programs, then those written by hand."""
        for number in range(-(-self.operations // PROGRAM_LENGTH)):
            yield self.program(number)
        yield from map(self.by_hand, directed.PROGRAMS)

    def hunting(self, programs: int) -> Iterator[Program]:
        """Yield ``programs`` random programs, then those written by hand."""
        return replace(self, operations=programs * PROGRAM_LENGTH).programs()

    @contextmanager
    def sides(self, place: Place | None = None) -> Iterator[ProcessSides]:
        """Both sides, with files to map."""
        with files() as opened:
            yield ProcessSides(
                opened, place or Place(), count_branches=self.count_branches, bindings=self.bindings
            )

    def broken(self, bindings: Mapping[str, Any]) -> "Linux":
        """A model with functions replaced."""
        return replace(self, bindings=bindings, count_branches=False)

    # --- telling --------------------------------------------------------------------------------

    def branches(self) -> list[Branch]:
        """The branches of the model."""
        return counted_branches()

    def rules(self) -> list[Rule]:
        """Branches that no program can reach on this host."""
        return reach.rules()

    def summary(self, tally: Tally, findings: list[Any]) -> list[str]:
        """Page faults, and programs that ended early."""
        lines = [f"{tally.numbers['minor_faults']} page faults"]
        if outside := tally.numbers["outside"]:
            lines += [
                f"{outside} programs ended early: the model's window cannot hold their layout"
            ]
        return lines

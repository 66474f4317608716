"""Test subject of kernel.differential: the running Linux and the model."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from kernel.config import KernelConfig
from kernel.differential.pool import TaskProgress
from kernel.differential.reach import Rule
from kernel.differential.subject import Program, Subject
from kernel.differential.tally import Tally
from kernel.engine.branches import Branch
from kernel.linux import scope
from kernel.linux.state import WINDOW_BITS
from kernel.linux.verify import directed, operation, reach
from kernel.linux.verify.compare import ProcessSetting, files
from kernel.linux.verify.model import Model, counted_branches
from kernel.linux.verify.sides import DIRECTED, ProcessSides

#: Module of the command.
COMMAND = "kernel.linux.verify"
#: Operations of one program, which runs in one process.
PROGRAM_LENGTH = 500


@dataclass
class Linux(Subject):
    """Test run: ``operations`` of random programs, then the handwritten programs.

    ``thp``: run programs with huge pages ("on"), without ("off"), or alternately ("both").
    ``bindings``: replacements of functions and constants of the model.
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
    tested_name = "the model"
    #: Timeout of one operation of the model, seconds.
    operation_timeout = 20.0
    tables: ClassVar = {
        "kinds": "operations by kind",
        "errnos": "by errno",
        "settings": "programs by setting",
    }

    @property
    def total(self) -> int:
        """Total operations of the random programs."""
        return self.operations

    def unavailable(self) -> str:
        """Return why this host cannot serve as the reference; '' if it can."""
        return scope.cannot_serve(self.thp)

    def scope(self) -> dict[str, Any]:
        """Return the modes that this host can verify."""
        return {"thp": self.thp, **scope.modes(self.thp)}

    def heading(self) -> list[str]:
        """Return the same modes as lines of text."""
        found = self.scope()
        return [
            f"Linux {found['kernel']}, seed {self.seed}",
            f"verified here: {'; '.join(found['verified'])}",
            f"not verified here (unit tests only): {'; '.join(found['written_rules_only'])}",
        ]

    def prepare(self) -> None:
        """Compile the code that all programs use."""
        Model(KernelConfig(window_bits=WINDOW_BITS), count_branches=self.count_branches)

    # --- programs -------------------------------------------------------------------------------

    def program(self, number: int) -> Program:
        """Return random program ``number`` with its setting; the last program may be shorter."""
        seed = f"{self.seed}/{number}"
        choice = random.Random(f"setting {seed}").random()
        setting = ProcessSetting(
            seed,
            thp=number % 2 == 1 if self.thp == "both" else self.thp == "on",
            # Only with randomisation: without it an unlimited stack places the mappings where the
            # model's window holds the program.
            randomize=choice < 0.15,
            unlimited=0.12 <= choice < 0.15,
            legacy=0.09 <= choice < 0.12 or 0.15 <= choice < 0.24,
        )
        return Program(setting, min(PROGRAM_LENGTH, self.operations - number * PROGRAM_LENGTH))

    def handwritten(self, name: str) -> Program:
        """Return the handwritten program ``name`` of :mod:`kernel.linux.verify.directed`."""
        return Program(ProcessSetting(DIRECTED + name, thp=self.thp != "off"), 0)

    def programs(self) -> Iterator[Program]:
        """Yield the random programs, then the handwritten ones."""
        for number in range(-(-self.operations // PROGRAM_LENGTH)):
            yield self.program(number)
        yield from map(self.handwritten, directed.PROGRAMS)

    def mutation_programs(self, programs: int) -> Iterator[Program]:
        """Yield ``programs`` random programs, then the handwritten ones."""
        return replace(self, operations=programs * PROGRAM_LENGTH).programs()

    @contextmanager
    def sides(self, progress: TaskProgress | None = None) -> Iterator[ProcessSides]:
        """Open both sides, with files to map."""
        with files() as opened:
            yield ProcessSides(
                opened,
                progress or TaskProgress(),
                count_branches=self.count_branches,
                bindings=self.bindings,
            )

    def mutated(self, bindings: Mapping[str, Any]) -> "Linux":
        """Return a copy whose model has functions and constants replaced."""
        return replace(self, bindings=bindings, count_branches=False)

    # --- report ---------------------------------------------------------------------------------

    def branches(self) -> list[Branch]:
        """Return the branches of the model."""
        return counted_branches()

    def rules(self) -> list[Rule]:
        """Return rules for branches that no program can reach on this host."""
        return reach.rules()

    def summary(self, tally: Tally, findings: list[Any]) -> list[str]:
        """Return the number of page faults, and of programs that ended early."""
        lines = [f"{tally.numbers['minor_faults']} page faults"]
        if outside := tally.numbers["outside"]:
            lines += [
                f"{outside} programs ended early: their layout does not fit into the model's window"
            ]
        return lines

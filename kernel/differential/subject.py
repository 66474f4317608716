"""Interface of a test subject: two sides that should behave identically under any program.

Terms: a *program* is a list of *operations* that run under a *setting*.  The subject defines the
setting as a frozen dataclass.  Its ``seed`` generates the program or names a handwritten one;
``describe()`` returns a description and ``name()`` a file name.
The subject also defines the type of an operation; it must be picklable.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from kernel.differential.pool import TaskProgress
from kernel.differential.reach import Rule
from kernel.differential.tally import Tally
from kernel.engine.branches import Branch


@dataclass(frozen=True)
class Program:
    """Program identified by its setting, and its maximum number of operations."""

    setting: Any
    max_operations: int


@dataclass
class Outcome:
    """Result of running one program.

    ``what``: the difference, in one line; '' if both sides agree.  ``ops``: at least the operations
    up to the one that differs.  ``index``: index of that operation, or -1 if only the final states
    differ.  ``length``: operations before shrinking.  ``suspect``: the host may have caused the
    difference.  ``final``: the program must not be shrunk, and ``lines`` are the complete report;
    otherwise ``lines`` describe only the difference, unless :meth:`Sides.repeat` was called with
    ``verbose``.  ``context``: lines about the program's origin, printed above those of the shrunk
    program.
    """

    tally: Tally
    ops: list[Any] = field(default_factory=list)
    what: str = ""
    index: int = -1
    length: int = 0
    lines: list[str] = field(default_factory=list)
    context: list[str] = field(default_factory=list)
    suspect: bool = False
    final: bool = False


class Sides(Protocol):
    """Both sides of a subject in one process; they run one program after another."""

    def run(self, program: Program) -> Outcome:
        """Generate a program from its setting, run it up to the first difference, and count."""

    def repeat(
        self, setting: Any, ops: list[Any], like: Outcome | None = None, *, verbose: bool = False
    ) -> Outcome:
        """Run given operations up to the first difference.

        The ``ops`` of the outcome end there and omit operations that are not permitted in the
        state they meet.  ``like``: the difference to reproduce.  ``verbose``: the outcome's
        ``lines`` describe the program and both states.  If ``ops`` is empty, run the handwritten
        program that the setting names.
        """

    def operations(self, program: Program, count: int) -> list[Any]:
        """Return the first ``count`` operations of a program without executing the last one."""


class Subject:
    """Interface between a test subject and the engine.  Methods with a body are optional.

    The parent creates the subject and forked workers inherit it, including all code that
    :meth:`prepare` has compiled.
    """

    #: Module of the command that verifies the subject.
    command = ""
    #: Class of its settings.
    setting_class: type = object
    #: Arguments that the command needs besides ``--replay`` to repeat a stored program.
    arguments = ""
    #: Name of the side whose branches are counted.
    tested_name = "the model"
    #: Branch coverage expected from a complete run, percent; 0: no target.
    target = 0
    #: Timeout of one operation in a worker, seconds; None if the sides detect hangs themselves.
    operation_timeout: float | None = None
    #: Title of each table of counts, by its name in Tally.tables.
    tables: Mapping[str, str] = {}
    #: Count branches, which takes a separate build.
    count_branches = True
    #: Total operations of all programs; 0: unknown.
    total = 0

    def unavailable(self) -> str:
        """Return, in one line, why nothing can be verified on this host; '' if it can."""
        return ""

    def wrong_reference(self) -> str:
        """Return why this host's reference is not the one the subject models; '' if it is.

        If it is not, programs are still compared, but no run passes.
        """
        return ""

    def scope(self) -> dict[str, Any]:
        """Return a description of what is verified, for JSON."""
        return {}

    def heading(self) -> list[str]:
        """Return the same description as lines of text."""
        return []

    def prepare(self) -> None:
        """Compile in the parent the code that all programs use."""

    def programs(self) -> Iterator[Program]:
        """Yield the programs of a run.  Raises Mistake if a program cannot be made."""
        raise NotImplementedError

    def kind(self, program: Program) -> str:
        """Return the kind of a program, which is shown while it runs."""
        return ""

    def mutation_programs(self, programs: int) -> Iterator[Program]:
        """Yield programs to run against a mutation, the most revealing first.

        ``programs``: maximum number of random ones.
        """
        raise NotImplementedError

    def sides(self, progress: TaskProgress | None = None) -> AbstractContextManager[Sides]:
        """Open both sides in this process; they report their progress to ``progress``."""
        raise NotImplementedError

    def mutated(self, bindings: Mapping[str, Any]) -> "Subject":
        """Return a copy with functions and constants replaced, which counts no branches."""
        raise NotImplementedError

    def variants(self, op: Any) -> Iterable[Any]:
        """Return strictly simpler forms of an operation, the simplest first."""
        return ()

    def describe(self, op: Any) -> str:
        """Return an operation as text."""
        return op.describe()

    def encode(self, op: Any) -> list[Any]:
        """Return an operation as a JSON row."""
        raise NotImplementedError

    def decode(self, row: list[Any]) -> Any:
        """Return the operation of a JSON row.  Raises ValueError or TypeError if it is invalid."""
        raise NotImplementedError

    def branches(self) -> list[Branch]:
        """Return the branches to report; their numbers are indices into Tally.hits."""
        return []

    def rules(self) -> Iterable[Rule]:
        """Return rules for unreachable branches; the first that matches a branch applies."""
        return ()

    def summary(self, tally: Tally, findings: list[Any]) -> list[str]:
        """Return final lines about counts that only this subject has."""
        return []

    def summary_json(self, tally: Tally, findings: list[Any]) -> dict[str, Any]:
        """Return the same counts for JSON."""
        return {}

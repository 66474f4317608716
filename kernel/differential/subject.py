"""A subject for the engine: two sides that should do the same under any program.

The words: a *program* is a list of *operations*, done under a *setting*.  A setting is a frozen
dataclass of the subject's with a ``seed`` that makes the program, or names one written by hand;
its ``words()`` tell it to people, and ``name()`` is for a file.
An operation is whatever the subject takes for one, as long as it can be pickled.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from kernel.differential.pool import Place
from kernel.differential.reach import Rule
from kernel.differential.tally import Tally
from kernel.engine.branches import Branch


@dataclass(frozen=True)
class Program:
    """A program by what it follows from: its setting, and the operations that it has at most."""

    setting: Any
    most: int


@dataclass
class Outcome:
    """The end of a program.  ``what`` differs there, in one line; '' where nothing does.

    ``ops``: up to the one that differs, at least.  ``at``: the number of that one, or -1 where only
    the states at the end do.  ``suspect``: the host may have interfered.  ``whole``: there is
    nothing to shorten, and ``lines`` tell it all; else they tell the difference alone, unless the
    sides were asked to tell more.  ``context``: lines about where the program is from, which stay
    above those of the shortened one.
    """

    tally: Tally
    ops: list[Any] = field(default_factory=list)
    what: str = ""
    at: int = -1
    length: int = 0
    lines: list[str] = field(default_factory=list)
    context: list[str] = field(default_factory=list)
    suspect: bool = False
    whole: bool = False


class Sides(Protocol):
    """Both sides of a subject, in one process, for one program after another."""

    def run(self, program: Program) -> Outcome:
        """Run a program as its setting makes it, up to the first difference, and count."""

    def repeat(
        self, setting: Any, ops: list[Any], like: Outcome | None = None, *, told: bool = False
    ) -> Outcome:
        """Run given operations up to the first difference.

        Its ``ops`` end there, and leave out what must not be done in the state that it finds.
        ``like``: the difference looked for.  ``told``: the program in words, and both states.
        Without ``ops`` it is the program written by hand that the setting names.
        """

    def operations(self, program: Program, count: int) -> list[Any]:
        """The first ``count`` operations of a program, of which the last is not done."""


class Subject:
    """A subject: what the engine asks of it.  Those with a body may be left as they are.

    It is made in the parent and inherited by the workers: what :meth:`prepare` compiles, they have.
    """

    #: The module whose command verifies it.
    command = ""
    #: The class of its settings.
    setting_class: type = object
    #: What the command needs besides ``--replay`` to repeat a stored program.
    arguments = ""
    #: Whose branches are counted.
    whose = "the model"
    #: Percent of the branches that a run of everything should reach; 0: not said.
    target = 0
    #: Seconds that a worker may take over one operation; None where the sides watch themselves.
    patience: float | None = None
    #: Tables of counts: by their name in a Tally, the title.
    tables: Mapping[str, str] = {}
    #: Count branches, in a build of its own.
    count_branches = True
    #: Operations that the programs have in all.
    total = 0

    def unavailable(self) -> str:
        """Say why nothing can be verified here, in one line; '' where it can."""
        return ""

    def wrong(self) -> str:
        """Say why the truth here is not the subject's: then it is compared, and nothing passes."""
        return ""

    def scope(self) -> dict[str, Any]:
        """Return what is verified, for JSON."""
        return {}

    def heading(self) -> list[str]:
        """The same in lines for people."""
        return []

    def prepare(self) -> None:
        """Compile, in the parent, what all programs use."""

    def programs(self) -> Iterator[Program]:
        """Yield the programs of a run.  Raises Mistake for what cannot be."""
        raise NotImplementedError

    def kind(self, program: Program) -> str:
        """The kind of a program, shown while it runs."""
        return ""

    def hunting(self, programs: int) -> Iterator[Program]:
        """Yield programs against a broken rule, those first that find most; so many random ones."""
        raise NotImplementedError

    def sides(self, place: Place | None = None) -> AbstractContextManager[Sides]:
        """Both sides, for this process; they tell ``place`` where they are."""
        raise NotImplementedError

    def broken(self, bindings: Mapping[str, Any]) -> "Subject":
        """The subject with functions and constants replaced, which counts no branches."""
        raise NotImplementedError

    def variants(self, op: Any) -> Iterable[Any]:
        """Simpler forms of an operation, the simplest first; each is strictly simpler."""
        return ()

    def words(self, op: Any) -> str:
        """An operation in words."""
        return op.words()

    def encode(self, op: Any) -> list[Any]:
        """An operation as a row of JSON."""
        raise NotImplementedError

    def decode(self, row: list[Any]) -> Any:
        """An operation from a row of JSON.  Raises ValueError or TypeError for what is none."""
        raise NotImplementedError

    def branches(self) -> list[Branch]:
        """The branches that are told of; their numbers are those of ``hits`` in a Tally."""
        return []

    def rules(self) -> Iterable[Rule]:
        """Branches out of reach, and why.  The first rule that fits a branch counts."""
        return ()

    def summary(self, tally: Tally, findings: list[Any]) -> list[str]:
        """Lines at the end about what only this subject counts."""
        return []

    def summary_json(self, tally: Tally, findings: list[Any]) -> dict[str, Any]:
        """The same for JSON."""
        return {}

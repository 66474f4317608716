"""Rules broken on purpose: a comparison that never objects proves nothing.

Programs run against each broken subject until one shows a difference; the command tells after how
many operations.  Exit code 1 when a rule is never noticed, 77 where there is no truth to hold it
against.
"""

import argparse
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from kernel.differential.command import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SKIP,
    EXIT_USAGE,
    OneLineParser,
    complain,
    positive,
)
from kernel.differential.pool import Lost, Mistake, Place, run_tasks
from kernel.differential.program import dump
from kernel.differential.run import Finding, Runner, WorkerError
from kernel.differential.subject import Subject
from kernel.engine.jit import jit

#: Seconds to shorten a program that is kept.
_SHRINK = 60.0


@dataclass(frozen=True)
class Mutation:
    """A broken rule of the function or constant ``name``.

    Either something else takes its place (``value``), or it is that of ``module`` with a few words
    changed: in its source the first of each pair of ``edits`` becomes the second; or a constant is,
    or a function returns, the expression ``answer``.
    """

    rule: str
    name: str
    value: Any = None
    module: str = ""
    edits: tuple[tuple[str, str], ...] = ()
    answer: str = ""

    def bindings(self) -> dict[str, Any]:
        """Return what :func:`kernel.engine.jit.build` replaces.

        Raises Mistake for words that are no longer there, so that no rule stays unbroken unnoticed.
        """
        if not self.module:
            return {self.name: self.value}
        scope = vars(import_module(self.module))
        original = scope[self.name]
        if callable(original):
            return {self.name: self._changed(original, dict(scope))}
        value = eval(self.answer, dict(scope))  # our own expression
        if value == original:
            raise Mistake(f"{self.rule}: {self.name} is {value} already")
        return {self.name: value}

    def path(self, folder: Path) -> Path:
        """Return where the program that shows it is kept."""
        return folder / (re.sub("[,']", "", self.rule).replace(" ", "_") + ".json")

    def _changed(self, function: Callable, scope: dict[str, Any]) -> Callable:
        """The function, broken."""
        code = function.__code__
        if self.answer:
            parameters = ", ".join(code.co_varnames[: code.co_argcount])
            source = f"@jit\ndef {self.name}({parameters}):\n    return {self.answer}\n"
            scope["jit"] = jit
        else:
            source = textwrap.dedent(inspect.getsource(function))
        for old, new in self.edits:
            if (count := source.count(old)) != 1:
                raise Mistake(f"{self.rule}: {self.name} has {old!r} {count} times")
            source = source.replace(old, new)
        # Our own source, a few words changed.
        exec(compile(source, code.co_filename, "exec"), scope)
        return scope[self.name]


def read(text: str, module: str = "") -> list[Mutation]:
    """Mutations of functions and constants from a table.

    Each begins with a name, in ``module`` where it says no other, and the rule.  Then come lines
    with what is returned instead, or what the constant is; or the words of the source that change,
    as diff shows them::

        take_fast: a fastbin fills the tcache to its count
        - while count < TCACHE_COUNT
        + while count < TCACHE_COUNT - 1
        kernel.stack.expand_stack: stacks do not grow
        = False
    """
    found: list[Mutation] = []
    for head, body in re.findall(r"^([\w.]+: .*)\n((?:[-+=] .*\n)+)", text, re.MULTILINE):
        name, _, rule = head.partition(": ")
        where, _, name = name.rpartition(".")
        sides = re.findall(r"((?:^- .*\n)+)((?:^\+ .*\n)+)", body, re.MULTILINE)
        edits = tuple(
            tuple("\n".join(line[2:] for line in side.splitlines()) for side in pair)
            for pair in sides
        )
        answer = body[2:].strip() if body.startswith("=") else ""
        found.append(Mutation(rule, name, None, where or module, edits, answer))
    return found


@dataclass
class Hunt:
    """The hunt for a rule: operations until a difference, and the program, None where none."""

    operations: int = 0
    finding: Finding | None = None


def hunt(
    subject: Subject, programs: int, shrink_seconds: float = 0, place: Place | None = None
) -> Hunt:
    """Run programs against a broken subject until one differs, and shorten that one."""
    found = Hunt()
    with subject.sides(place) as sides:
        runner = Runner(subject, sides, shrink_seconds)
        for program in subject.hunting(programs):
            report = runner.check(program)
            found.operations += report.tally.operations
            if report.finding:
                found.finding = report.finding
                break
    return found


@contextmanager
def _opened(
    subject: Subject,
    rules: Mapping[str, Mutation],
    programs: int,
    shrink_seconds: float,
    place: Place,
) -> Iterator[Callable[[str], Hunt]]:
    """Set up a worker for one rule: the loop of a broken subject may not come back."""

    def work(rule: str) -> Hunt:
        place.retire = True
        broken = subject.broken(rules[rule].bindings())
        return hunt(broken, programs, shrink_seconds, place)

    yield work


def _parser(command: str, programs: int) -> OneLineParser:
    parser = OneLineParser(
        prog=f"python -m {command}.mutations",
        description="Break rules on purpose, one after the other: each must be noticed.",
    )
    parser.add_argument(
        "--programs",
        type=positive,
        default=programs,
        metavar="N",
        help=f"random ones at most, for a rule (default {programs})",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="rules that contain TEXT")
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="J", help="rules at a time (default 1)"
    )
    parser.add_argument(
        "--store", type=Path, metavar="DIRECTORY", help="keep the shortest program found for each"
    )
    return parser


def main(
    command: str,
    made: Callable[[], Subject],
    mutations: Sequence[Mutation],
    argv: list[str] | None,
    programs: int,
) -> int:
    """Run the command of a subject's mutations; its exit code.

    ``made``: makes the subject, which counts no branches.  ``programs``: random ones at most, by
    default.
    """
    options = _parser(command, programs).parse_args(argv)
    rules = [mutation for mutation in mutations if options.only in mutation.rule]
    if not rules:
        return complain(f"{command}.mutations", f"no rule has {options.only!r}", EXIT_USAGE)
    subject = made()
    if reason := subject.unavailable() or subject.wrong():
        return complain(command, reason, EXIT_SKIP)
    try:
        missed = _hunt_all(subject, rules, options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (Mistake, RuntimeError) as error:
        return complain(f"{command}.mutations", str(error), EXIT_FAILED)
    print(f"{len(rules) - missed} of {len(rules)} broken rules noticed")
    return EXIT_FAILED if missed else 0


def _hunt_all(subject: Subject, rules: list[Mutation], options: argparse.Namespace) -> int:
    """Hunt each in a process of its own, and tell of it; how many are not noticed."""
    for mutation in rules:
        mutation.bindings()
    # Compiled here once: the others need only what a rule changes.
    with subject.sides() as sides:
        whole = Runner(subject, sides, 0).check(next(iter(subject.hunting(1))))
    if whole.finding:
        raise WorkerError(f"no rule is broken, and yet: {whole.finding.what}")
    by_rule = {mutation.rule: mutation for mutation in rules}
    seconds = _SHRINK if options.store else 0
    opened = partial(_opened, subject, by_rule, options.programs, seconds)
    hunts = run_tasks(opened, by_rule, options.jobs, patience=subject.patience)
    missed = 0
    with closing(hunts):
        for rule, found in hunts:
            if isinstance(found, Lost):
                found = _lost(subject, rule, found)
            finding = found.finding
            missed += finding is None
            done = f"{found.operations:6} operations: {rule}"
            if finding is None:
                print(f"NOT NOTICED in {done.strip()}", flush=True)
                continue
            place = f"; {finding.setting.words()}" if finding.setting else ""
            print(f"noticed after {done} ({finding.what}{place})", flush=True)
            if options.store and finding.setting:
                options.store.mkdir(parents=True, exist_ok=True)
                dump(subject, by_rule[rule].path(options.store), finding.setting, finding.ops)
    return missed


def _lost(subject: Subject, rule: str, lost: Lost) -> Hunt:
    """The hunt whose worker did not come back: a rule may be noticed by that.

    Raises WorkerError where its process has failed or died.
    """
    if not lost.hung:
        raise WorkerError(f"{rule}: {lost.how}")
    return Hunt(lost.at, Finding(None, [], [], f"{subject.whose} {lost.how}", lost.at))

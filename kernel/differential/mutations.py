"""Mutation testing of a comparison: rules broken on purpose, each of which must be detected.

Programs run against each mutated subject until one shows a difference; the command prints the
number of operations that took.  Exit code 1: a mutation was not detected.  Exit code 77: there is
no reference on this host to compare with.
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

from kernel.differential.pool import Lost, Mistake, TaskProgress, run_tasks
from kernel.differential.program import text_of
from kernel.differential.run import Finding, Runner, WorkerError
from kernel.differential.subject import Subject
from kernel.engine.command import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SKIP,
    EXIT_USAGE,
    OneLineParser,
    jobs,
    positive,
    report_exit,
)
from kernel.engine.jit import jit
from kernel.engine.output import save, unwritable

#: Time limit for shrinking a program that is stored, seconds.
_SHRINK_SECONDS = 60.0


@dataclass(frozen=True)
class Mutation:
    """Mutation of the function or constant ``name``, which breaks the rule ``rule``.

    Without ``module``, ``value`` replaces it.  Otherwise ``name`` is the original in ``module``,
    and its replacement is its source with the first text of each pair in ``edits`` replaced by the
    second; or a constant with the value, or a function that returns the value, of the expression
    ``answer``.
    """

    rule: str
    name: str
    value: Any = None
    module: str = ""
    edits: tuple[tuple[str, str], ...] = ()
    answer: str = ""

    def bindings(self) -> dict[str, Any]:
        """Return the replacements for :func:`kernel.engine.jit.build`, by name.

        Raises Mistake if the text to edit is not found exactly once, or if a constant already has
        the new value: otherwise a mutation could silently change nothing.
        """
        if not self.module:
            return {self.name: self.value}
        scope = vars(import_module(self.module))
        original = scope[self.name]
        if callable(original):
            return {self.name: self._mutate(original, dict(scope))}
        value = eval(self.answer, dict(scope))  # the expression is from our own source
        if value == original:
            raise Mistake(f"{self.rule}: {self.name} is {value} already")
        return {self.name: value}

    def path(self, folder: Path) -> Path:
        """Return the path in ``folder`` of the stored program that detects the mutation."""
        return folder / (re.sub("[,']", "", self.rule).replace(" ", "_") + ".json")

    def _mutate(self, function: Callable, scope: dict[str, Any]) -> Callable:
        """Return the mutated function."""
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
        # The code is our own source with the edits applied.
        exec(compile(source, code.co_filename, "exec"), scope)
        return scope[self.name]


def read(text: str, module: str = "") -> list[Mutation]:
    """Parse a table of mutations of functions and constants.

    Each entry begins with a name (in ``module`` unless it is a dotted name) and the rule.  The
    lines below are edits of the source in the notation of diff, or ``=`` and the new value of the
    constant or return value of the function::

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
    """Result of testing one mutation: operations run, and the counterexample (None: undetected)."""

    operations: int = 0
    finding: Finding | None = None


def hunt(
    subject: Subject, programs: int, shrink_seconds: float = 0, progress: TaskProgress | None = None
) -> Hunt:
    """Run programs against a mutated subject until one shows a difference; shrink that one."""
    found = Hunt()
    with subject.sides(progress) as sides:
        runner = Runner(subject, sides, shrink_seconds)
        for program in subject.mutation_programs(programs):
            report = runner.check(program)
            found.operations += report.tally.operations
            if report.finding:
                found.finding = report.finding
                break
    return found


@contextmanager
def _open_hunter(
    subject: Subject,
    rules: Mapping[str, Mutation],
    programs: int,
    shrink_seconds: float,
    progress: TaskProgress,
) -> Iterator[Callable[[str], Hunt]]:
    """Set up a worker for a single rule: a mutated subject may loop forever."""

    def work(rule: str) -> Hunt:
        progress.replace_worker = True
        mutated = subject.mutated(rules[rule].bindings())
        return hunt(mutated, programs, shrink_seconds, progress)

    yield work


def _parser(command: str, programs: int) -> OneLineParser:
    parser = OneLineParser(
        prog=f"python -m {command}.mutations",
        description="Break rules on purpose, one at a time: each must be detected.",
    )
    parser.add_argument(
        "--programs",
        type=positive,
        default=programs,
        metavar="N",
        help=f"maximum number of random programs for a rule (default {programs})",
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="break only the rules whose text contains TEXT"
    )
    parser.add_argument(
        "--jobs", type=jobs, default=1, metavar="J", help="worker processes (default 1)"
    )
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIRECTORY",
        help="store the shortest program found for each rule here",
    )
    return parser


def main(
    command: str,
    make_subject: Callable[[], Subject],
    mutations: Sequence[Mutation],
    argv: list[str] | None,
    programs: int,
) -> int:
    """Run the mutation command of a subject and return the exit code.

    ``make_subject``: creates the subject, which must not count branches.  ``programs``: default of
    --programs, the maximum number of random programs for a rule.
    """
    options = _parser(command, programs).parse_args(argv)
    rules = [mutation for mutation in mutations if options.only in mutation.rule]
    if not rules:
        text = f"--only {options.only!r}: no rule contains this text"
        return report_exit(f"{command}.mutations", text, EXIT_USAGE)
    if options.store and (reason := _prepare_store(options.store)):
        return report_exit(f"{command}.mutations", f"--store {options.store}: {reason}", EXIT_USAGE)
    subject = make_subject()
    if reason := subject.unavailable() or subject.wrong_reference():
        return report_exit(command, reason, EXIT_SKIP)
    try:
        missed = _hunt_all(subject, rules, options)
    except KeyboardInterrupt:
        return report_exit(f"{command}.mutations", "interrupted", EXIT_INTERRUPTED)
    except (Mistake, RuntimeError) as error:
        return report_exit(f"{command}.mutations", str(error), EXIT_FAILED)
    print(f"{len(rules) - missed} of {len(rules)} broken rules detected")
    return EXIT_FAILED if missed else 0


def _hunt_all(subject: Subject, rules: list[Mutation], options: argparse.Namespace) -> int:
    """Test each rule in a separate process and print the result; return how many go undetected."""
    for mutation in rules:
        mutation.bindings()
    # Compile the original here, so that each worker compiles only what its mutation changes.
    with subject.sides() as sides:
        unmutated = Runner(subject, sides, 0).check(next(iter(subject.mutation_programs(1))))
    if unmutated.finding:
        raise WorkerError(f"without any broken rule both sides differ: {unmutated.finding.what}")
    by_rule = {mutation.rule: mutation for mutation in rules}
    seconds = _SHRINK_SECONDS if options.store else 0
    open_worker = partial(_open_hunter, subject, by_rule, options.programs, seconds)
    hunts = run_tasks(open_worker, by_rule, options.jobs, timeout=subject.operation_timeout)
    missed = 0
    with closing(hunts):
        for rule, found in hunts:
            if isinstance(found, Lost):
                found = _hang_detected(subject, rule, found)
            finding = found.finding
            missed += finding is None
            done = f"{found.operations:6} operations: {rule}"
            if finding is None:
                print(f"NOT DETECTED in {done.strip()}", flush=True)
                continue
            where = f"; {finding.setting.describe()}" if finding.setting else ""
            print(f"detected after {done} ({finding.what}{where})", flush=True)
            if options.store and finding.setting:
                _store(subject, by_rule[rule].path(options.store), finding)
    return missed


def _prepare_store(folder: Path) -> str:
    """Create the folder of --store; return why no file can be written there, '' if one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return unwritable(folder / "program.json")


def _store(subject: Subject, path: Path, finding: Finding) -> None:
    """Store a program at ``path``; if that fails, elsewhere, and report where."""
    text = text_of(subject, finding.setting, finding.ops)
    stored, reason = save(path, text, f"mutation-{path.stem[:100]}")
    if reason:
        print(f"{reason}; the program is {f'in {stored}' if stored else 'printed'}", flush=True)
    if stored is None:
        print(text, flush=True)


def _hang_detected(subject: Subject, rule: str, lost: Lost) -> Hunt:
    """Return the result for a mutation under which the subject hangs, which counts as detected.

    Raises WorkerError if the worker process failed or died instead.
    """
    if not lost.hung:
        raise WorkerError(f"{rule}: {lost.how}")
    return Hunt(
        lost.operation, Finding(None, [], [], f"{subject.tested_name} {lost.how}", lost.operation)
    )

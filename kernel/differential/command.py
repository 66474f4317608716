"""Command line of a subject: options, progress, printed results and exit codes.

Exit codes: 0 no mismatch, 1 a mismatch or a failure, 2 bad arguments, 77 no reference on this host
to compare with, 130 interrupted.  The last line is ``N operations, M mismatches``.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from kernel.engine.command import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SKIP,
    EXIT_USAGE,
    jobs,
    positive,
    report_exit,
    seconds,
    seed,
)
from kernel.engine.output import save, unwritable
from kernel.engine.progress import shown_progress

#: Maximum length of the part of a temporary file's name that describes its program.
_NAME = 100


def add_arguments(
    parser: argparse.ArgumentParser, operations: int, extent: str, component: str
) -> None:
    """Add the options that say how many programs to run, and how to run and report them.

    ``operations``: default of --ops; ``extent``: what that number covers ("in total", "of each
    mode"); ``component``: the code whose branches are counted.
    """
    parser.add_argument(
        "--ops",
        type=positive,
        default=operations,
        metavar="N",
        help=f"operations {extent} (default {operations})",
    )
    parser.add_argument(
        "--seed", type=seed, default=1, metavar="S", help="random seed of the programs (default 1)"
    )
    parser.add_argument(
        "--jobs", type=jobs, default=1, metavar="J", help="worker processes (default 1)"
    )
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="run a stored program instead of random ones"
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="store a program that shows a mismatch here"
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="continue with the next program after a mismatch"
    )
    parser.add_argument(
        "--no-branches",
        action="store_true",
        help=f"use the ordinary build of the {component}, which does not count branches",
    )
    parser.add_argument(
        "--shrink",
        type=seconds,
        default=60,
        metavar="SECONDS",
        help="time limit for shrinking a failing program (default 60; 0: do not shrink)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the report"
    )


def verify(subject: Any, options: argparse.Namespace) -> int:
    """Run the programs of ``subject`` and return the exit code.

    ``options``: parsed options of :func:`add_arguments`.
    """
    from kernel.differential.pool import Mistake

    if options.save and (reason := unwritable(options.save)):
        return report_exit(subject.command, f"--save {options.save}: {reason}", EXIT_USAGE)
    if reason := subject.unavailable():
        return report_exit(subject.command, reason, EXIT_SKIP, as_json=options.json)
    try:
        if options.replay:
            return _replay(subject, options)
        return _Run(subject, options).execute()
    except KeyboardInterrupt:
        return report_exit(subject.command, "interrupted", EXIT_INTERRUPTED)
    except Mistake as error:
        return report_exit(subject.command, str(error), EXIT_USAGE)
    except RuntimeError as error:
        return report_exit(subject.command, f"a worker failed: {error}", EXIT_FAILED)


def _replay(subject: Any, options: argparse.Namespace) -> int:
    from kernel.differential.program import load

    setting, ops = load(subject, options.replay)
    with subject.sides() as sides:
        outcome = sides.repeat(setting, ops, verbose=True)
    mismatches, wrong = int(bool(outcome.what)), subject.wrong_reference()
    done = len(outcome.ops) or outcome.length
    if options.json:
        result = {"operations": done, "mismatches": mismatches, "program": outcome.lines}
        print(json.dumps(result | ({"reason": wrong} if wrong else {})))
    else:
        print("\n".join(outcome.lines))
        if wrong:
            print(f"wrong reference: {wrong}")
        print(f"{done} operations, {mismatches} mismatches")
    if wrong:
        return EXIT_SKIP
    return EXIT_FAILED if mismatches else 0


class _Run:
    """One run of the command: its progress and its report."""

    def __init__(self, subject: Any, options: argparse.Namespace) -> None:
        from kernel.differential.tally import Tally

        self.subject, self.options = subject, options
        self.tally, self.findings = Tally(), []
        self.stored: list[Path | None] = []  # files of the findings, in their order
        self.wrong = subject.wrong_reference()
        self.start = time.monotonic()

    def execute(self) -> int:
        """Run the programs, print the report and return the exit code."""
        status = "ok"
        if not self.options.json:
            wrong = [f"wrong reference: {self.wrong}"] if self.wrong else []
            self._print([*self.subject.heading(), *wrong])
        try:
            self._collect()
        except KeyboardInterrupt:
            status = "interrupted"
        self.seconds = time.monotonic() - self.start
        if status == "ok" and (self.findings or self.wrong):
            status = "skipped" if self.wrong else "mismatch"
        as_json = self.options.json
        self._print([json.dumps(self._as_json(status))] if as_json else self._lines(status))
        if status == "interrupted":
            return EXIT_INTERRUPTED
        if self.wrong:
            return EXIT_SKIP
        return EXIT_FAILED if self.findings else 0

    def _print(self, lines: Iterable[str]) -> None:
        """Print lines; if standard output cannot be written, report the stored programs first."""
        try:
            print("\n".join(lines), flush=True)
        except OSError:
            for path in filter(None, self.stored):
                print(f"{self.subject.command}: mismatch, stored in {path}", file=sys.stderr)
            raise

    def _collect(self) -> None:
        """Run the programs and show progress.

        If this ends early, add the differences that workers have found but not yet shrunk.
        """
        from kernel.differential.run import run_programs

        subject = self.subject
        workers: list[Any] = []
        with shown_progress(subject.command) as progress:
            progress(0.0, "preparing")
            subject.prepare()
            self.start = time.monotonic()

            def on_progress(busy: list[Any]) -> None:
                workers[:] = busy
                done = self.tally.asked + sum(worker.operation for worker in busy)
                kinds = dict.fromkeys(subject.kind(worker.task) for worker in busy)
                what = ", ".join(filter(None, kinds)) or "programs"
                progress(done / subject.total if subject.total else 0.0, what)

            reports = run_programs(
                subject,
                self.options.jobs,
                keep_going=self.options.keep_going or bool(self.wrong),
                shrink_seconds=0 if self.wrong else self.options.shrink,
                on_progress=on_progress,
            )
            try:
                with closing(reports):
                    for report in reports:
                        workers[:] = [w for w in workers if w.task != report.program]
                        self._add(report)
            finally:
                for worker in workers:
                    if worker.interim:
                        self._add(worker.interim)

    def _add(self, report: Any) -> None:
        self.tally.add(report.tally)
        if report.finding:
            self._add_finding(report.finding)

    def _add_finding(self, finding: Any) -> None:
        self.findings.append(finding)
        if self.wrong:
            self.stored.append(None)
            return
        path, text = self._store(finding)
        if self.options.json:
            return
        command = " ".join(filter(None, [self.subject.command, self.subject.arguments]))
        if path:
            repeat = [f"repeat with: python -m {command} --replay {shlex.quote(str(path))}"]
        else:
            repeat = [f"the program, which python -m {command} --replay FILE repeats:", text]
        self._print([f"MISMATCH: {finding.describe()}", *finding.lines, *repeat])

    def _store(self, finding: Any) -> tuple[Path | None, str]:
        """Store the program; return its file, None if none could be written, and its text.

        Report on standard error why the file is not the one that --save names.
        """
        from kernel.differential.program import text_of

        path, name = self.options.save, f"verify-{finding.setting.name()}"
        if path is not None and len(self.findings) > 1:
            path = path.with_stem(f"{path.stem}-{len(self.findings)}")
        text = text_of(self.subject, finding.setting, finding.ops)
        stored, reason = save(path, text, name[:_NAME].replace("/", "-"))
        if reason:
            instead = f"the program is in {stored}" if stored else "the program is printed"
            print(f"{self.subject.command}: {reason}; {instead}", file=sys.stderr)
        self.stored.append(stored)
        return stored, text

    # --- report ---------------------------------------------------------------------------------

    @property
    def _rate(self) -> float:
        """Requested operations that agreed before a difference, percent."""
        equal = self.tally.operations - len(self.findings)
        return 100 * equal / self.tally.asked if self.tally.asked else 0.0

    def _coverage(self) -> Any:
        from kernel.differential.reach import Coverage

        return Coverage.of(self.tally.hits, self.subject.branches(), self.subject.rules())

    def _as_json(self, status: str) -> dict[str, Any]:
        counted = self.tally.hits is not None
        coverage = {"branches": self._coverage().as_dict()} if counted else {}
        return {
            "status": status,
            "reason": self.wrong,
            "seed": self.options.seed,
            "seconds": round(self.seconds, 1),
            **self.subject.scope(),
            **self.tally.as_dict(),
            **self.subject.summary_json(self.tally, self.findings),
            "match_rate_percent": round(self._rate, 3),
            **coverage,
            "mismatches": len(self.findings),
            "findings": list(map(self._finding_json, self.findings, self.stored)),
        }

    def _finding_json(self, finding: Any, stored: Path | None) -> dict[str, Any]:
        """Return a finding for JSON, with the program itself if no file holds it."""
        from kernel.differential.program import text_of

        content = {
            "seed": finding.setting.seed,
            "setting": finding.setting.describe(),
            "what": finding.what,
            "program": finding.lines,
            "file": str(stored) if stored else None,
        }
        if stored is None:
            content["stored"] = text_of(self.subject, finding.setting, finding.ops)
        return content

    def _lines(self, status: str) -> Iterator[str]:
        tally, subject = self.tally, self.subject
        yield from tally.lines(subject.tables)
        yield from subject.summary(tally, self.findings)
        if tally.hits is not None:
            yield from self._coverage().lines(subject.tested_name, subject.target)
        if tally.reruns:
            yield f"{tally.reruns} reruns of programs because the host interfered"
        rate = tally.operations / self.seconds if self.seconds else 0
        cut = ", interrupted" if status == "interrupted" else ""
        yield f"{tally.programs} programs, {self.seconds:.0f} s, {rate:,.0f} operations/s{cut}"
        if self.wrong:
            yield f"{self._rate:.2f} % of the operations are the same; {self.wrong}"
        yield f"{tally.operations} operations, {len(self.findings)} mismatches"

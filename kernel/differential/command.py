"""Command line of a subject: options, progress, printed results and exit codes.

Exit codes: 0 no mismatch, 1 a mismatch or a failure, 2 bad arguments, 77 no reference on this host
to compare with, 130 interrupted.  The last line is ``N operations, M mismatches``.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from kernel.engine.progress import shown_progress

EXIT_FAILED, EXIT_USAGE, EXIT_SKIP, EXIT_INTERRUPTED = 1, 2, 77, 130


def positive(text: str) -> int:
    """Parse a positive integer, with or without underscores or commas."""
    try:
        number = int(text.replace("_", "").replace(",", ""))
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, not {text!r}")
    return number


class OneLineParser(argparse.ArgumentParser):
    """Parser that reports an error in one line, which begins with the command's module."""

    def error(self, message: str) -> None:
        """Print ``message`` and exit with code 2."""
        self.exit(EXIT_USAGE, f"{self.prog.split()[-1]}: {message}\n")


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
        "--seed", type=int, default=1, metavar="S", help="random seed of the programs (default 1)"
    )
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="J", help="worker processes (default 1)"
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
        type=float,
        default=60,
        metavar="SECONDS",
        help="time limit for shrinking a failing program (default 60)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the report"
    )


def report_exit(command: str, text: str, code: int, *, as_json: bool = False) -> int:
    """Print in one line why ``command`` exits with ``code``, and return ``code``."""
    if as_json and code == EXIT_SKIP:
        print(json.dumps({"status": "skipped", "reason": text}))
    else:
        message = f"nothing verified: {text}" if code == EXIT_SKIP else text
        print(f"{command}: {message}", file=sys.stderr)
    return code


def verify(subject: Any, options: argparse.Namespace) -> int:
    """Run the programs of ``subject`` and return the exit code.

    ``options``: parsed options of :func:`add_arguments`.
    """
    from kernel.differential.pool import Mistake

    if reason := subject.unavailable():
        return report_exit(subject.command, reason, EXIT_SKIP, as_json=options.json)
    try:
        if options.replay:
            return _replay(subject, options)
        return _Run(subject, options).execute()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
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
        self.wrong = subject.wrong_reference()
        self.start = time.monotonic()

    def execute(self) -> int:
        """Run the programs, print the report and return the exit code."""
        status = "ok"
        if not self.options.json:
            wrong = [f"wrong reference: {self.wrong}"] if self.wrong else []
            print("\n".join([*self.subject.heading(), *wrong]), flush=True)
        try:
            self._collect()
        except KeyboardInterrupt:
            status = "interrupted"
        self.seconds = time.monotonic() - self.start
        if status == "ok" and (self.findings or self.wrong):
            status = "skipped" if self.wrong else "mismatch"
        if self.options.json:
            print(json.dumps(self._as_json(status)))
        else:
            print("\n".join(self._lines(status)))
        if status == "interrupted":
            return EXIT_INTERRUPTED
        if self.wrong:
            return EXIT_SKIP
        return EXIT_FAILED if self.findings else 0

    def _collect(self) -> None:
        """Run the programs and show progress."""
        from kernel.differential.run import run_programs

        subject = self.subject
        with shown_progress(subject.command) as progress:
            progress(0.0, "preparing")
            subject.prepare()
            self.start = time.monotonic()

            def on_progress(workers: list[Any]) -> None:
                done = self.tally.asked + sum(worker.operation for worker in workers)
                kinds = dict.fromkeys(subject.kind(worker.task) for worker in workers)
                what = ", ".join(filter(None, kinds)) or "programs"
                progress(done / subject.total if subject.total else 0.0, what)

            reports = run_programs(
                subject,
                self.options.jobs,
                keep_going=self.options.keep_going or bool(self.wrong),
                shrink_seconds=0 if self.wrong else self.options.shrink,
                on_progress=on_progress,
            )
            with closing(reports):
                for report in reports:
                    self.tally.add(report.tally)
                    if report.finding:
                        self._add_finding(report.finding)

    def _add_finding(self, finding: Any) -> None:
        self.findings.append(finding)
        if self.wrong:
            return
        path = self._store(finding)
        if not self.options.json:
            print(f"MISMATCH: {finding.describe()}")
            print("\n".join(finding.lines))
            command = " ".join(filter(None, [self.subject.command, self.subject.arguments]))
            print(f"repeat with: python -m {command} --replay {path}", flush=True)

    def _store(self, finding: Any) -> Path:
        """Store the program and return the path of the file."""
        from kernel.differential.program import dump

        path = self.options.save
        if path is None:
            path = Path(tempfile.gettempdir()) / f"verify-{finding.setting.name()}.json"
        elif len(self.findings) > 1:
            path = path.with_stem(f"{path.stem}-{len(self.findings)}")
        dump(self.subject, path, finding.setting, finding.ops)
        return path

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
            "findings": [
                {
                    "seed": finding.setting.seed,
                    "setting": finding.setting.describe(),
                    "what": finding.what,
                    "program": finding.lines,
                }
                for finding in self.findings
            ],
        }

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

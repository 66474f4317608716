"""One run of the command: what is run, what is shown meanwhile, and what is told at the end."""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from allocators.base import registry
from benchmarks.events.progress import Progress, shown_progress
from benchmarks.twin.verify.compare import Setting
from benchmarks.twin.verify.libc import VERSION, Libc
from benchmarks.twin.verify.modes import MODES
from benchmarks.twin.verify.operation import load
from benchmarks.twin.verify.run import Finding, Plan, Report, Runner, keep, run_programs
from benchmarks.twin.verify.tally import Tally, branches_of
from benchmarks.twin.verify.trace import run_trace
from benchmarks.workloads import WorkloadError
from kernel.linux.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SKIP, EXIT_USAGE
from kernel.linux.host import unavailable as no_host
from kernel.linux.host.process import HostError
from kernel.linux.verify.modes import cannot_serve

#: Branches never reached that are printed.
_MOST_LINES = 30
#: Branches to be reached over all modes, percent.
TARGET = 95


def unavailable() -> str:
    """Why no real process can be held against the model here, in one line; '' where it can."""
    if reason := no_host() or cannot_serve("off"):
        return reason
    try:
        with closing(Libc({})):
            return ""
    except HostError as error:
        return str(error)


def wrong_library() -> str:
    """What this machine's C library is instead of the twin's original; '' where it is that."""
    with closing(Libc({})) as libc:
        version = libc.version()
    return "" if version == VERSION else f"the C library is glibc {version}, not {VERSION}"


class Run:
    """One run.  ``wrong``: why this machine's C library is no truth; then nothing passes."""

    def __init__(self, plan: Plan, options: argparse.Namespace, wrong: str) -> None:
        self.plan = plan
        self.options = options
        self.wrong = wrong
        if wrong:
            plan.keep_going, plan.shrink_seconds = True, 0
        self.tally = Tally()
        self.findings: list[Finding] = []
        self.traces: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0

    def execute(self) -> int:
        """Do it; the exit code."""
        status = "ok"
        self._begin()
        start = time.monotonic()
        try:
            with shown_progress(f"verify {self.plan.allocator}") as progress:
                for report in self._reports(progress):
                    self._take(report)
        except KeyboardInterrupt:
            status = "interrupted"
        except (WorkloadError, ValueError, registry.PluginError) as error:
            print(f"benchmarks.twin.verify: {error}", file=sys.stderr)
            return EXIT_USAGE
        except (RuntimeError, HostError) as error:
            print(f"benchmarks.twin.verify: {error}", file=sys.stderr)
            return EXIT_FAILED
        self.seconds = time.monotonic() - start
        if self.findings and status == "ok":
            status = "mismatch"
        if self.wrong:
            status = "skipped"
        if self.options.json:
            print(json.dumps(self._as_json(status)))
        else:
            self._print_end(status)
        if status == "interrupted":
            return EXIT_INTERRUPTED
        if self.wrong:
            return EXIT_SKIP
        return EXIT_FAILED if self.findings else 0

    # --- doing ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.options.json:
            return
        names = [f"{name}={value}" for name, value in self.plan.tunables.items()]
        names += ["drawn in every other program"] * self.plan.vary
        print(
            f"{self.plan.allocator} against the C library, tunables: {', '.join(names) or 'none'}"
        )
        if self.wrong:
            print(f"no truth here: {self.wrong}")
        if not self.options.trace and not self.options.replay:
            print(f"seed {self.plan.seed}, {self.plan.operations:,} operations of each mode")
            for mode in self.plan.modes:
                print(f"  {MODES[mode].words()}", flush=True)

    def _reports(self, progress: Progress) -> Iterator[Report]:
        if self.options.replay:
            yield self._replayed()
        elif self.options.trace:
            reports = run_trace(
                self.plan,
                self.options.trace,
                self.options.touch,
                progress,
                threads=self.options.threads,
            )
            for report in reports:
                self.traces[report.name] = {
                    "operations": report.tally.operations,
                    "mismatches": int(report.finding is not None),
                }
                yield report
        else:
            total = self.plan.operations * len(self.plan.modes)
            asked = 0
            progress(0.0, "compiling")
            with closing(run_programs(self.plan, self.options.jobs)) as reports:
                for report in reports:
                    asked += report.tally.asked
                    progress(min(asked / total, 1.0), next(iter(report.tally.modes), ""))
                    yield report

    def _replayed(self) -> Report:
        stored, ops = load(self.options.replay)
        try:
            setting = Setting(**stored)
        except TypeError:
            raise ValueError(f"{self.options.replay}: not a stored program (its setting)") from None
        what, lines = Runner(self.plan).told(setting, ops)
        tally = Tally(operations=len(ops), asked=len(ops), programs=1)
        tally.modes[setting.mode] += len(ops)
        return Report(0, tally, Finding(setting, ops, lines, what, len(ops)) if what else None)

    def _take(self, report: Report) -> None:
        self.tally.add(report.tally)
        if report.finding is None:
            return
        self.findings.append(report.finding)
        if self.wrong or self.options.json:
            return
        path = self._store(report.finding)
        finding = report.finding
        print(
            f"MISMATCH in {finding.what} ({finding.setting.words()}); "
            f"{len(finding.ops)} operations of a program of {finding.length:,}"
        )
        print("\n".join(finding.lines))
        print(
            f"again: python -m benchmarks.twin.verify {self.plan.allocator} --replay {path}",
            flush=True,
        )

    def _store(self, finding: Finding) -> Path:
        """Store the program; where."""
        path = self.options.save
        if path is None:
            name = f"verify-{finding.setting.mode}-{finding.setting.seed}.json".replace("/", "-")
            path = Path(tempfile.gettempdir()) / name
        elif len(self.findings) > 1:
            path = path.with_stem(f"{path.stem}-{len(self.findings)}")
        keep(path, finding)
        return path

    # --- telling --------------------------------------------------------------------------------

    @property
    def match_rate(self) -> float:
        """Operations that were found equal before a difference, of all asked for, percent."""
        equal = self.tally.operations - len(self.findings)
        return 100 * equal / self.tally.asked if self.tally.asked else 0.0

    def _branches(self) -> tuple[list, list, list]:
        """Branches of the allocator's file: reached, not reached, and out of reach with reasons."""
        runner = Runner(self.plan)
        module = registry.load(self.plan.allocator).module.__name__
        return branches_of(module, runner.twins.branches(), self.tally.hits)

    def _as_json(self, status: str) -> dict[str, Any]:
        reached, missed, apart = self._branches() if self.tally.hits is not None else ([], [], [])
        return {
            "status": status,
            "reason": self.wrong,
            "allocator": self.plan.allocator,
            "seed": self.plan.seed,
            "tunables": self.plan.tunables,
            "seconds": round(self.seconds, 1),
            "ranges": {mode: MODES[mode].words() for mode in self.plan.modes},
            **self.tally.as_dict(),
            "traces": self.traces,
            "match_rate_percent": round(self.match_rate, 3),
            "branches": {
                "reached": len(reached),
                "total": len(reached) + len(missed),
                "never_reached": [str(b) for b in missed],
                "out_of_reach": [f"{b}  ({why})" for b, why in apart],
            },
            "mismatches": len(self.findings),
            "findings": [
                {"setting": f.setting.words(), "what": f.what, "program": f.lines}
                for f in self.findings
            ],
        }

    def _print_end(self, status: str) -> None:
        print("\n".join(self.tally.lines()))
        for name, found in self.traces.items():
            print(f"  {name}: {found['operations']:,} operations, {found['mismatches']} mismatches")
        if self.tally.hits is not None:
            reached, missed, apart = self._branches()
            total = len(reached) + len(missed)
            share = 100 * len(reached) / total if total else 0.0
            print(
                f"branches of {self.plan.allocator}: {len(reached)} of {total} reached, "
                f"{share:.1f} % (target over all modes: {TARGET} %)"
            )
            for branch in missed[:_MOST_LINES]:
                print(f"  never: {branch}")
            if len(missed) > _MOST_LINES:
                print(f"  and {len(missed) - _MOST_LINES} more (--json lists all)")
            for why, count in Counter(why for _, why in apart).items():
                print(f"  {count} more out of reach: {why}")
        rate = self.tally.operations / self.seconds if self.seconds else 0
        cut = ", interrupted" if status == "interrupted" else ""
        print(
            f"{self.tally.programs} programs, {self.seconds:.0f} s, {rate:,.0f} operations/s{cut}"
        )
        if self.wrong:
            print(f"{self.match_rate:.2f} % of the operations are the same; {self.wrong}")
        print(f"{self.tally.operations} operations, {len(self.findings)} mismatches")

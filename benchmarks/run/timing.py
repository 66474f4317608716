"""Time runs in interleaved rounds (benchmarks.timing.rounds), each measurement in fresh processes.

Warm time is taken by a pyperf worker (benchmarks.run.worker).  Cold and end-to-end time of a real
library are measured in processes of their own (benchmarks.run.clean); of a simulated allocator they
are its warm time plus the modelled time in the kernel.
"""

import json
import os
import re
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Barrier, BrokenBarrierError
from typing import Any

from benchmarks.replay.metrics import COLD, END_TO_END, TIMES, TITLES, WARM
from benchmarks.run import results
from benchmarks.run.job import Job, JobError, check_job
from benchmarks.run.launch import memory_hint, run_child
from benchmarks.run.sources import Sources, snapshot
from benchmarks.timing import machine, perf
from benchmarks.timing.rounds import CellError, Rounds, Unit, read_times, valid
from kernel.engine.progress import Progress, no_progress

#: The line of a traceback that names the exception.
_ERROR = re.compile(r"[\w.]+(Error|Failure|SoftLockup)\b")
#: A real library has no warm time if its page faults, at this many nanoseconds each, are more than
#: this share of it.
_FAULT_NS, _NIL = 1000.0, 0.01


@dataclass(frozen=True)
class Untimed:
    """Run that is ready to be timed: directory, job, contents of run.json, and sources now.

    ``extra``: percentage of replays that are made and timed without being counted, to plant a
    slow-down (benchmarks.speed.referee).
    """

    directory: Path
    job: Job
    run: Mapping[str, Any]
    sources: Sources
    extra: float = 0.0

    def edited(self) -> str:
        """Return the name of a source that was edited since the run began, or ''."""
        old, now = self.run.get("sources", {}), self.sources.hashes
        changed = next((name for name in now if now[name] != old.get(name)), "")
        return changed or self.sources.edited()


def load_waiting(directories: Iterable[Path]) -> list[Untimed]:
    """Return the runs among ``directories`` that wait to be timed."""
    import yaml

    found = []
    for directory in directories:
        run = results.read_run(directory)
        if run.get("status") == results.WAITING:
            config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
            job = check_job(config)
            found.append(Untimed(directory, job, run, snapshot(job)))
    return found


def time_runs(runs: Sequence[Untimed], progress: Progress) -> None:
    """Measure ``runs`` in rounds, and record the final status of each in its run.json.

    Runs with the same number of rounds are compared with each other.  An interruption passes
    through; the measurements made before it count.
    """
    for count in sorted({run.job.measure.rounds for run in runs}):
        _time_together([run for run in runs if run.job.measure.rounds == count], count, progress)


def _time_together(runs: Sequence[Untimed], count: int, progress: Progress) -> None:
    progress(0.0, "looking at the machine")
    warnings = machine.warnings()
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    failed, disturbed = measure_in_rounds(runs, runs[0].job.seed, progress)
    if disturbed:
        names = ", ".join(str(number + 1) for number in disturbed)
        warnings.append(f"disturbed by other load, even when repeated: rounds {names} of {count}")
        print(f"warning: {warnings[-1]}", file=sys.stderr, flush=True)
    timing = {
        "comparison": secrets.token_hex(8),  # those with the same were measured together
        "rounds": count,
        "cells": len(runs),
        "duet": runs[0].job.measure.duet,
        "warnings": warnings,
        "instructions": perf.unavailable() or "counted",
    }
    for run in runs:
        results.update_run(run.directory, timing=timing)
        _finish(run, failed.get(run.directory, ""))


def measure_in_rounds(
    runs: Sequence[Untimed], seed: int, progress: Progress
) -> tuple[Mapping[Path, str], Sequence[int]]:
    """Measure ``runs`` as the first one asks; ``seed`` decides the order within each round.

    Returns why a run could not be measured, by its directory, and the disturbed rounds.
    """
    asked = runs[0].job.measure
    by_directory = {run.directory: run for run in (_in_pairs(runs) if asked.duet else runs)}
    rounds = Rounds(list(by_directory), asked.rounds, seed, duet=asked.duet)

    def measure(unit: Unit) -> list[dict[str, Any]]:
        if len(unit) == 1:
            return [_measure(by_directory[unit[0].directory], _Place(progress=step))]
        cells = [by_directory[cell.directory] for cell in unit]
        with ThreadPoolExecutor(len(unit)) as threads:
            return list(threads.map(_measure, cells, _places(len(unit))))

    reached = 0.0

    def report(done: int, what: str) -> None:
        nonlocal reached
        reached = done / rounds.total
        progress(reached, f"timing, {what}")

    def step(_fraction: float, what: str) -> None:
        if "compiling" in what:
            progress(reached, what)

    disturbed = rounds.run(measure, report)
    return rounds.failed, disturbed


def _in_pairs(runs: Sequence[Untimed]) -> list[Untimed]:
    """Return the runs of two allocators in pairs of one workload and seed.

    Raises JobError if they do not form pairs.
    """
    by_input: dict[tuple[Any, ...], list[Untimed]] = {}
    for run in runs:
        key = tuple(run.run.get(name) for name in ("workload_label", "seed", "page_size"))
        by_input.setdefault(key, []).append(run)
    labels = {run.run["label"] for run in runs}
    pairs = [sorted(pair, key=lambda run: run.run["label"]) for pair in by_input.values()]
    if any(len(pair) != 2 for pair in pairs):
        raise JobError(
            "measure.duet=true: needs exactly two allocators on the same workloads and seeds "
            f"(-m allocator=A,B), not {len(runs)} runs of {len(labels)} allocators"
        )
    return [run for pair in pairs for run in pair]


def _finish(run: Untimed, error: str) -> None:
    """Write bench.json, and the final status: failed if a source was edited meanwhile."""
    if name := run.edited():
        error = f"{name} was edited during the run: run it again"
    if error:
        results.finish(run.directory, results.FAILED, error)
        return
    _write_suite(run)
    results.finish(run.directory, *results.outcome(run.directory))


# --- One measurement ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Place of a measurement: any processor, or one of them, at the same time as another.

    ``progress`` is called while its processes start.
    """

    processor: int | None = None
    barrier: Barrier | None = None
    progress: Progress = no_progress

    def arguments(self) -> list[str]:
        """Return what a pyperf worker needs to run there."""
        return [] if self.processor is None else ["--affinity", str(self.processor)]

    def wait(self) -> None:
        """Wait for the other measurement."""
        if self.barrier is not None:
            self.barrier.wait()


def _places(count: int) -> list[_Place]:
    """Return places for measurements at the same time, on different processors."""
    processors = sorted(os.sched_getaffinity(0))
    barrier = Barrier(count)
    return [_Place(processors[i % len(processors)], barrier) for i in range(count)]


def _measure(run: Untimed, place: _Place) -> dict[str, Any]:
    """Measure a run once in every quantity.  Raises CellError if it fails."""
    try:
        return _measured(run, place)
    except BrokenBarrierError:
        raise CellError("the other side of the duet failed") from None
    except BaseException:
        if place.barrier is not None:
            place.barrier.abort()
        raise


def _measured(run: Untimed, place: _Place) -> dict[str, Any]:
    job, metrics = run.job, _metrics(run.directory)
    suite, found = _warm(run, place)
    warm = median(suite["benchmarks"][0]["runs"][0]["values"]) * 1e9
    times, gaps = {WARM: warm}, {}
    if job.library is None:
        times[COLD] = warm + found["kernel_ns"]
        times[END_TO_END] = warm + metrics["kernel_ns_per_op"]
    else:
        if found["faults"] * _FAULT_NS > _NIL * warm:
            del times[WARM]
            per = f"{1000 * found['faults']:.2g} page faults per 1000 events"
            gaps[WARM] = f"it calls the kernel in every replay: {per}"
        place.wait()
        clean = _clean(run, place)
        times |= clean["times"]
        gaps |= clean["gaps"]
    counts = {name: found[name] for name in perf.EVENTS if name in found}
    return {"times": times, "gaps": gaps, "pyperf": suite} | counts


def _metrics(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "metrics.json").read_text(encoding="utf-8"))


def _warm(run: Untimed, place: _Place) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Run a pyperf worker; return its suite (JSON) and what else it has found."""
    samples, warmups, replays = run.job.measure.schedule(
        run.run["events"], run.run["replay_seconds"]
    )
    environment: Mapping[str, str] = os.environ
    if run.job.library is not None:
        # The process loads the library, and starts no thread that the workload does not start.
        environment = run.job.library.clean_environment() | {"OPENBLAS_NUM_THREADS": "1"}
    reading, writing = os.pipe()
    gate, opener = os.pipe()
    command = [
        *(sys.executable, "-m", "benchmarks.run.worker", "--worker", "--worker-task", "0"),
        *("--directory", str(run.directory), "--pipe", str(writing), "--gate", str(gate)),
        *("-n", str(samples), "-w", str(warmups), "-l", str(replays), *place.arguments()),
        *("--extra", str(round(replays * run.extra / 100))),
    ]

    def open_gate() -> None:
        place.wait()
        os.write(opener, b"x")

    with os.fdopen(reading, "rb") as pipe:
        try:
            found = _run(
                command,
                place.progress,
                environment=environment,
                pass_fds=(writing, gate),
                on_ready=open_gate,
            )
        finally:
            for file in (writing, gate, opener):
                os.close(file)
        return json.loads(pipe.read()), found


def _clean(run: Untimed, place: _Place) -> Mapping[str, Any]:
    """Measure cold and end-to-end time of a real library."""
    command = [sys.executable, "-m", "benchmarks.run.clean", str(run.directory)]
    return _run(command, place.progress)


def _run(command: list[str], progress: Progress, **how: Any) -> Mapping[str, Any]:
    """Run a child; return what it has reported.  Raises CellError if it fails."""
    ended = run_child(command, progress, **how)
    if ended.code != 0:
        named = [line for line in ended.errors if _ERROR.match(line)]
        last = [*named[:1], *ended.errors[-1:], f"exit code {ended.code}"][0]
        raise CellError(f"timing failed: {last}{memory_hint(-ended.code)}")
    return ended.found


# --- pyperf ---------------------------------------------------------------------------------------


def _write_suite(run: Untimed) -> None:
    """Write bench.json: a benchmark per quantity that was measured, with a run per round."""
    import pyperf

    lines = [line for _, line in sorted(valid(read_times(run.directory)).items())]
    label = run.run["workload_label"]
    found = []
    if all(WARM in line["times"] for line in lines):
        parts = [pyperf.Benchmark.loads(json.dumps(line["pyperf"])) for line in lines]
        for part in parts[1:]:
            parts[0].add_runs(part)
        found.append(parts[0])
    modelled = () if run.job.library is not None else (COLD, END_TO_END)
    for name in (metric.name for metric in TIMES if metric.name not in (WARM, *modelled)):
        values = [line["times"][name] * 1e-9 for line in lines if name in line["times"]]
        metadata = {"name": f"{label} ({TITLES[name]})", "allocator": run.run["label"]}
        made = [pyperf.Run([v], metadata=metadata, collect_metadata=False) for v in values]
        if made:
            found.append(pyperf.Benchmark(made))
    suite = pyperf.BenchmarkSuite(found)
    results.replace_file(
        run.directory / "bench.json", lambda path: suite.dump(str(path), replace=True)
    )


def write_suites(directory: Path, runs: Iterable[Path]) -> list[Path]:
    """Write the pyperf suite of each allocator of a sweep, ``pyperf/ALLOCATOR.json``; return them.

    Its benchmarks are the workloads, so that ``pyperf compare_to`` compares two allocators.
    """
    import pyperf

    by_allocator: dict[str, list[Any]] = {}
    for path in runs:
        run = results.read_run(path)
        if run.get("status") in results.FINISHED and (path / "bench.json").exists():
            suite = pyperf.BenchmarkSuite.load(str(path / "bench.json"))
            by_allocator.setdefault(run["label"], []).extend(suite.get_benchmarks())
    written = []
    for label, benchmarks in by_allocator.items():
        names: dict[str, Any] = {}
        for benchmark in benchmarks:  # seeds of one workload share its name
            if benchmark.get_name() in names:
                names[benchmark.get_name()].add_runs(benchmark)
            else:
                names[benchmark.get_name()] = benchmark
        suite = pyperf.BenchmarkSuite(list(names.values()))
        out = directory / "pyperf" / f"{label.replace('/', '-')}.json"
        out.parent.mkdir(exist_ok=True)
        results.replace_file(out, lambda path, suite=suite: suite.dump(str(path), replace=True))
        written.append(out)
    return written

"""Untimed run of a job in a process: ``python -m benchmarks.run.observe DIRECTORY``.

Reads DIRECTORY/config.yaml; writes metrics.json, timeline.parquet and the outcome in run.json,
whose status remains ``running``: only the parent, which may have to time the job, can finish it.
Reports progress on standard output as lines ``@ FRACTION WHAT``.  A plugin that hangs or crashes
ends only this process.  Exit code: 0 ok, 3 out of memory, 1 failed.
"""

import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allocators.base.library import ONE, REAL, LibraryError
from benchmarks.events.events import OP_NAMES, TRIM
from benchmarks.run import results
from benchmarks.run.job import Job, JobError, check_job
from benchmarks.run.launch import end_with_parent, report
from benchmarks.workloads import Workload, WorkloadError
from kernel.engine.progress import Progress, with_compiler
from kernel.engine.watchdog import SoftLockup

EXIT_OK, EXIT_FAILED, EXIT_OOM = 0, 1, 3
#: How the threads of a workload were run: ONE, REAL, or several replayed by one, in turns.
INTERLEAVED = "interleaved"
#: Further runs that show how far the memory of real threads varies.
_REPETITIONS = 2


def observe(directory: Path) -> None:
    """Run the job of ``directory`` and write its results.

    Raises JobError, WorkloadError, AllocatorFailure or SoftLockup; for a real library also
    LibraryError or HostError.
    """
    import yaml

    config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    job = check_job(config)
    with with_compiler(report) as progress:
        progress(0.0, "preparing the workload")
        workload = job.load_workload(progress)
        run = (on_model if job.library is None else _on_library)(job, workload, progress)
    results.write_timeline(directory / "timeline.parquet", run.timeline)
    results.write_json(directory / "metrics.json", run.metrics)
    run.entries["hashes"]["workload"] = workload.fingerprint
    results.update_run(
        directory,
        outcome=(run.status, run.reason),
        workload_provenance=workload.provenance,
        **run.entries,
    )


@dataclass(frozen=True)
class Observed:
    """Result of a run: contents of its files, and the reason if memory ran out.

    ``simulation``: the simulation at the end of the run; None for a real library.
    """

    metrics: dict[str, Any]
    timeline: dict[str, Any]
    entries: dict[str, Any]
    reason: str
    simulation: Any = None

    @property
    def status(self) -> str:
        """``oom`` if memory ran out, which is a valid result, else ``ok``."""
        return results.OOM if self.reason else results.OK


def _failures(r: Any) -> str:
    """Describe the failed requests of a replay (benchmarks.replay.loop.RUN); '' if none."""
    failed, first = int(r.failed), int(r.first_failure)
    return f"{failed} requests returned NULL, the first at event {first}" if failed else ""


def _ignored(r: Any) -> dict[str, int]:
    """Count the operations that the allocator did not perform, by name (loop.RUN)."""
    return {name: int(n) for name, n in zip(OP_NAMES[TRIM:], r.ignored, strict=True) if n}


def observing(job: Job, workload: Workload) -> Any:
    """Return a benchmarks.replay.simulation.Simulation with every instrument enabled.

    Raises AllocatorFailure when the allocator does not compile.
    """
    # Imported after the checks, because it imports the compiler.
    from benchmarks.replay.simulation import OBSERVED, Simulation

    switches = OBSERVED | {"CHECK_FRAMES": job.check_frames, "CHECK_EVERY": job.check_every}
    return Simulation(job.plugin, workload, job.kernel, switches, guarded=True)


def on_model(job: Job, workload: Workload, progress: Progress) -> Observed:
    """Replay once on the kernel model.  Raises AllocatorFailure, WorkloadError and SoftLockup."""
    progress(0.0, f"preparing {job.plugin.label}")
    simulation = observing(job, workload)
    length = max(simulation.length, 1)
    seconds = simulation.replay(progress=lambda event: progress(event / length, "replaying"))
    progress(1.0, "preparing the check of the heap")
    simulation.verify_end()
    stopped = simulation.stopped_at
    entries = {
        "events": stopped if stopped >= 0 else simulation.length,
        "replay_seconds": seconds,
        "waited_seconds": simulation.waited,
        "address_checksum": int(simulation.r.checksum),
        "threads": INTERLEAVED if workload.has_threads else ONE,
        "ignored": _ignored(simulation.r),
        "hashes": {
            "kernel": results.source_hash("kernel"),
            "plugin": results.file_hash(job.plugin.module.__file__),
            "loop": simulation.loop_hash,
        },
    }
    reason = _failures(simulation.r)
    if stopped >= 0:
        reason = f"killed at event {stopped}: out of memory on a page fault"
    metrics, timeline = simulation.metrics(job.cost), simulation.timeline()
    return Observed(metrics, timeline, entries, reason, simulation)


def _on_library(job: Job, workload: Workload, progress: Progress) -> Observed:
    """Replay once on the real library, in a child process."""
    from benchmarks.real.memory import RealRun, clean_seconds, length

    events = max(length(workload), 1)
    progress(0.0, "preparing the replay")
    run = RealRun(job.library, workload, lambda event: progress(event / events, "replaying"))
    spread, threads = {}, INTERLEAVED if workload.has_threads else ONE
    if run.threads == REAL:
        repeated = [RealRun(job.library, workload).metrics() for _ in range(_REPETITIONS)]
        spread = _spread([run.metrics(), *repeated])
    # Measured without instruments, because it determines the timing schedule.
    seconds = clean_seconds(job.library, workload, touch="nothing") if job.measure.timing else 0.0
    entries = {
        "events": run.events,
        "replay_seconds": seconds,
        "address_checksum": int(run.r.checksum),
        "threads": REAL if run.threads == REAL else threads,
        "spread": spread,
        "ignored": _ignored(run.r),
        "library": job.library.identity() | run.conditions(),
        "hashes": {"library": results.file_hash(job.library.path), "loop": run.loop_hash},
    }
    return Observed(run.metrics(), run.timeline(), entries, _failures(run.r))


def _spread(found: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest value of each metric that is not always the same."""
    numbers = {name: [each[name] for each in found] for name in found[0]}
    return {
        name: (min(values), max(values))
        for name, values in numbers.items()
        if None not in values and len(set(values)) > 1
    }


def main(directory: Path) -> int:
    """Observe, record the outcome and return the exit code."""
    from benchmarks.replay.simulation import AllocatorFailure
    from kernel.linux.host.process import HostError

    expected = (JobError, WorkloadError, AllocatorFailure, SoftLockup, LibraryError, HostError)
    try:
        observe(directory)
    except expected as error:
        reason = str(error)
    except MemoryError as error:
        reason = f"this machine has too little memory: {error or 'no array of Python fits'}"
    except OSError as error:
        reason = f"{error.filename or directory}: {error.strerror or error}"
        print(reason, file=sys.stderr)  # run.json may not be writable either
    except SystemExit as error:
        reason = f"a plugin calls sys.exit({error.code})"
    except Exception as error:
        traceback.print_exc()
        reason = f"internal error: {type(error).__name__}: {error}"
    else:
        return EXIT_OOM if results.outcome(directory)[0] == results.OOM else EXIT_OK
    results.update_run(directory, outcome=(results.FAILED, reason))
    return EXIT_FAILED


if __name__ == "__main__":
    end_with_parent()
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit, which would wait for the thread of a plugin in an endless loop.
    os._exit(code)

"""The untimed run of a job, in a process of its own: ``python -m benchmarks.observe DIRECTORY``.

Reads DIRECTORY/config.yaml; writes metrics.json, timeline.parquet and the outcome in run.json.
Progress goes to standard output, one line each: ``@ FRACTION WHAT``.  A stuck or crashing plugin
takes only this process with it.  Exit code: 0 ok, 3 out of memory, 1 failed.
"""

import os
import sys
import traceback
from pathlib import Path

from benchmarks import results
from benchmarks.job import JobError, check_job
from benchmarks.workloads import WorkloadError
from kernel.watchdog import SoftLockup

EXIT_OK, EXIT_FAILED, EXIT_OOM = 0, 1, 3


def report(fraction: float, what: str) -> None:
    """Tell the parent how far the work is."""
    print(f"@ {fraction:.4f} {what}", flush=True)


def observe(directory: Path) -> None:
    """Run the job of ``directory`` and write its results.

    Raises JobError, WorkloadError, AllocatorFailure or SoftLockup.
    """
    import yaml

    config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    job = check_job(config)
    report(0.0, "preparing the workload")
    workload = job.load_workload(report)

    from benchmarks.simulation import (
        OBSERVED,
        Simulation,
    )  # after the checks: it brings the compiler
    from kernel.jit import source_hash as code_hash

    report(0.0, "compiling")
    switches = OBSERVED | {"CHECK_FRAMES": job.check_frames}
    simulation = Simulation(job.plugin, workload, job.kernel, switches)
    length = max(simulation.length, 1)
    seconds = simulation.replay(progress=lambda event: report(event / length, "replaying"))
    simulation.verify_end()

    stopped = simulation.stopped_at
    oom = simulation.out_of_memory
    reason = ""
    if stopped >= 0:
        reason = f"killed at event {stopped}: out of memory on a page fault"
    elif oom:
        failed, first = int(simulation.r.failed), int(simulation.r.first_failure)
        reason = f"{failed} requests answered with NULL, the first at event {first}"
    results.write_timeline(directory / "timeline.parquet", simulation.timeline())
    results.write_json(directory / "metrics.json", simulation.metrics(job.cost))
    results.update_run(
        directory,
        status=results.OOM if oom else results.OK,
        reason=reason,
        events=stopped if stopped >= 0 else simulation.length,
        workload_provenance=workload.provenance,
        replay_seconds=seconds,
        waited_seconds=simulation.waited,
        address_checksum=int(simulation.r.checksum),
        hashes={
            "kernel": results.source_hash("kernel"),
            "plugin": results.file_hash(job.plugin.module.__file__),
            "loop": code_hash(simulation.loop_function, **simulation.loop_bindings()),
            "workload": workload.fingerprint,
        },
    )


def main(directory: Path) -> int:
    """Observe and record the outcome; returns the exit code."""
    from benchmarks.simulation import AllocatorFailure

    try:
        observe(directory)
    except (JobError, WorkloadError, AllocatorFailure, SoftLockup) as error:
        results.update_run(directory, status=results.FAILED, reason=str(error))
        return EXIT_FAILED
    except Exception as error:
        traceback.print_exc()
        reason = f"internal error: {type(error).__name__}: {error}"
        results.update_run(directory, status=results.FAILED, reason=reason)
        return EXIT_FAILED
    return EXIT_OOM if results.read_run(directory)["status"] == results.OOM else EXIT_OK


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a plugin that loops for ever still runs in its thread.
    os._exit(code)

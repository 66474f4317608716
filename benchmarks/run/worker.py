"""Timed runs of a job: a pyperf script, started as ``python -m benchmarks.run.worker``.

bench.py starts it after the untimed run has succeeded.  ``--directory`` names the run's directory,
whose config.yaml and run.json define the workload to time.  A value is seconds per allocator event.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import pyperf

from benchmarks.run.launch import end_with_parent, report


def _add_arguments(command: list[str], args: argparse.Namespace) -> None:
    command.extend(("--directory", args.directory))


def _metadata(run: dict[str, Any]) -> dict[str, str | int]:
    """Return the metadata that pyperf's commands show: one-line strings and integers."""
    library = run.get("library")
    known = {"library": f"{library['file']}, sha256 {library['sha256']}"} if library else {}
    return known | {
        "allocator": run["label"],
        "seed": run["seed"],
        "page_size": run["page_size"],
        "model_version": run["versions"]["model"],
    }


@functools.cache
def _simulation(directory: Path):
    """Compile the timed replay, once in each worker process and never in pyperf's master."""
    import yaml

    from benchmarks.replay.simulation import TIMED, Simulation
    from benchmarks.run.job import check_job
    from kernel.engine.progress import with_compiler

    job = check_job(yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8")))
    with with_compiler(report) as progress:
        progress(0.0, "preparing the timed replay")
        workload = job.load_workload()
        if job.library is None:
            simulation = Simulation(job.plugin, workload, job.kernel, TIMED)
        else:
            from benchmarks.real.timed import make_timed

            simulation = make_timed(job.library, workload)
    report(0.0, "timing")
    return simulation


def time_replays(loops: int, directory: Path, events: int) -> float:
    """Time ``loops`` replays of the first ``events`` events.  Returns seconds."""
    simulation = _simulation(directory)
    return sum(simulation.replay(events) for _ in range(loops))


def main() -> None:
    """Parse the arguments of pyperf and of this script, and measure."""
    end_with_parent()
    runner = pyperf.Runner(
        program_args=("-m", "benchmarks.run.worker"), add_cmdline_args=_add_arguments
    )
    runner.argparser.add_argument("--directory", required=True, help="the run's directory")
    args = runner.parse_args()
    directory = Path(args.directory)
    run = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    runner.metadata.update(_metadata(run))
    runner.bench_time_func(
        run["workload_label"],
        time_replays,
        directory,
        run["events"],
        inner_loops=metrics["operations"],
    )


if __name__ == "__main__":
    main()

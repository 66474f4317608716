"""One measurement of warm time: a pyperf worker, ``python -m benchmarks.run.worker``.

benchmarks.run.timing starts it once in every round.  ``--directory`` names the run's directory,
whose config.yaml and run.json define the workload to time.  A value is seconds per allocator event.
What pyperf has no place for is reported on standard output (benchmarks.run.launch.report_found).
"""

import functools
import json
from pathlib import Path
from typing import Any

import pyperf

from benchmarks.run.launch import end_with_parent, report, report_found, wait_at_gate
from kernel.engine.command import whole


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


class _Replay:
    """The compiled replay of the run in ``directory``, and what is found beside its time."""

    def __init__(self, directory: Path, gate: int) -> None:
        import yaml

        from benchmarks.replay.simulation import WARM, Simulation
        from benchmarks.run.job import check_job
        from kernel.engine.progress import with_compiler

        config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
        self.job = check_job(config)
        with with_compiler(report) as progress:
            progress(0.0, "preparing the timed replay")
            workload = self.job.load_workload(trusted=True)
            if self.job.library is None:
                self.replay = Simulation(
                    self.job.plugin, workload, self.job.kernel, WARM, trusted=True
                )
            else:
                from benchmarks.real.timed import make_timed

                self.replay = make_timed(self.job.library, workload)
        if gate >= 0:
            wait_at_gate(gate)

    def kernel_ns(self) -> float:
        """Return the modelled time in the kernel of the last replay of a simulated allocator."""
        from benchmarks.replay.measured import modelled_ns

        return modelled_ns(self.replay.k, self.job.kernel.page_size, self.job.cost)


@functools.cache
def _prepared(directory: Path, gate: int) -> _Replay:
    return _Replay(directory, gate)


def time_replays(
    loops: int,
    directory: Path,
    run: dict[str, Any],
    operations: int,
    gate: int = -1,
    extra: int = 0,
) -> float:
    """Time ``loops`` replays of the events of ``run``, and ``extra`` ones; return seconds.

    ``gate``: file at which to wait before the first one (benchmarks.run.launch.wait_at_gate).

    Reports ``kernel_ns`` per event of a simulated allocator, and of a real library the page
    ``faults`` per event, and instructions and cycles per event where they are counted.
    """
    prepared = _prepared(directory, gate)
    before = prepared.replay.faults
    seconds = 0.0
    with _Counting(operations * loops):
        for _ in range(loops + extra):
            seconds += prepared.replay.replay(run["events"])
    if prepared.job.library is None:
        report_found(kernel_ns=prepared.kernel_ns() / operations)
    else:
        report_found(faults=(prepared.replay.faults - before) / (operations * loops))
    return seconds


class _Counting:
    """Context that reports instructions and cycles per event, if the machine counts them."""

    def __init__(self, operations: int) -> None:
        from benchmarks.timing import perf

        self._operations = operations
        self._counters = None if perf.unavailable() else perf.Counters()

    def __enter__(self) -> None:
        if self._counters:
            self._counters.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._counters:
            self._counters.__exit__(*error)
            counts = self._counters.counts.items()
            report_found(**{name: count / self._operations for name, count in counts})


def main() -> None:
    """Parse the arguments of pyperf and of this script, and measure."""
    end_with_parent()
    runner = pyperf.Runner()
    runner.argparser.add_argument("--directory", required=True, help="the run's directory")
    runner.argparser.add_argument("--gate", type=whole(0), default=-1, help="file to wait at")
    runner.argparser.add_argument("--extra", type=whole(0), default=0, help="uncounted replays")
    args = runner.parse_args()
    directory = Path(args.directory)
    run = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    runner.metadata.update(_metadata(run))
    runner.bench_time_func(
        run["workload_label"],
        time_replays,
        directory,
        run,
        metrics["operations"],
        args.gate,
        args.extra,
        inner_loops=metrics["operations"],
    )


if __name__ == "__main__":
    main()

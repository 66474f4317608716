"""Run a simulation in the calling process: for notebooks and interactive Python.

    from benchmarks import simulate

    run = simulate(allocator="buddy", workload="churn", seed=1)
    run.metrics["peak_heap"]  # all numbers of metrics.json, by name
    run.timeline              # columns of timeline.parquet, a pandas.DataFrame
    run.heap()                # all blocks at the end: address, bytes, kind
    run.heap(event=1000)      # ... and after event 1000
    run.plot()                # live, heap and RSS over time

Settings have the same names, syntax, checks and messages as on the command line:

    simulate(
        allocator="first_fit",
        workload="churn",
        overrides=["allocator.fit=best", "workload.operations=50000", "kernel.thp=always"],
    )

``overrides`` are arguments of ``python bench.py``, including experiments
(``["experiment=oom"]``).  To run your own allocator, pass its file, which is read again at every
call: ``simulate(allocator="mine.py", overrides=["allocator.growth=65536"])``.  To add a folder of
YAML files, as ``--config-dir`` of bench.py does, pass ``overrides=["hydra.searchpath=[DIR]"]``.
Relative paths are relative to the working directory.

The numbers equal those of ``python bench.py ... measure=counters``.  Nothing is timed, and no file
is written except in Numba's cache: an allocator compiles once for each kind of workload, which
takes seconds or tens of seconds.  Ctrl-C, or a notebook's stop button, ends a replay.  If the
allocator is in an endless loop that does not access its memory, its thread keeps using a core until
the process ends.

A Run keeps its simulated process in host memory, about its peak RSS, until it is deleted.
"""

import operator
from collections.abc import Sequence
from contextlib import nullcontext
from os import PathLike
from typing import TYPE_CHECKING, Any

import pandas as pd

from allocators.base.library import is_native
from benchmarks.replay.heap import KINDS, pieces
from benchmarks.run.compose import compose
from benchmarks.run.job import Job, JobError, check_job
from benchmarks.run.observe import observing, on_model
from benchmarks.run.summary import format_value
from benchmarks.workloads import Workload
from kernel.engine.progress import shown_progress

if TYPE_CHECKING:
    from analysis.style import Picture


def simulate(
    allocator: str | PathLike | None = None,
    workload: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    *,
    progress: bool = False,
) -> "Run":
    """Run an allocator under a workload on the kernel model.

    ``allocator``: a name, or the path of a ``.py`` file; ``workload``: a name.  The defaults are
    those of conf/config.yaml.  ``overrides``: further arguments of bench.py, KEY=VALUE or
    GROUP=CHOICE.  ``progress``: report steps longer than two seconds on standard error.

    A run out of memory returns normally, with Run.status ``oom``.  Raises

        JobError          the settings cannot be run, or the allocator is a real library
        WorkloadError     a trace or other file of the workload cannot be read
        AllocatorFailure  the allocator does not compile or breaks its contract
        SoftLockup        an event does not end

    from benchmarks.run.job, benchmarks.workloads, benchmarks.replay.simulation and
    kernel.engine.watchdog; the first two are ValueErrors, the others RuntimeErrors.
    """
    if isinstance(overrides, str):
        raise JobError(f"overrides={overrides!r}: expected a list of strings, not one string")
    given = {"allocator": allocator, "workload": workload, "seed": seed}
    arguments = [f"{name}={value}" for name, value in given.items() if value is not None]
    config = compose([*arguments, *overrides])
    name = config.get("allocator", {}).get("name")
    if isinstance(name, str) and is_native(name):
        raise JobError(
            f"allocator={name}: a real library cannot run in this process; "
            f"run python bench.py allocator={name}"
        )
    job = check_job(config)
    job.inspect()
    title = f"{job.plugin.label} {job.workload_label}"
    with shown_progress(title) if progress else nullcontext(lambda *_: None) as report:
        report(0.0, "preparing the workload")
        events = job.load_workload(report)
        return Run(config, job, events, on_model(job, events, report))


class Run:
    """Finished run.

    ``allocator`` and ``workload``: labels, that is names with the settings that differ from their
    defaults.  ``config``: all settings, as in config.yaml.  ``status``: ``ok``, or ``oom`` with a
    ``reason``.  ``events``: number of replayed events; fewer than in the workload if the process
    was killed because memory ran out.  ``metrics``: name -> int or float, in the order and units of
    benchmarks.replay.metrics.  ``timeline``: one row per sample; int64 columns event (from 0),
    live, heap, rss, reserved, page_tables (bytes), minor_faults, syscalls, steps (counts so far).
    """

    def __init__(self, config: dict[str, Any], job: Job, events: Workload, observed: Any) -> None:
        self.config = config
        self.allocator, self.workload, self.seed = job.plugin.label, events.label, job.seed
        self.status, self.reason = observed.status, observed.reason
        self.metrics: dict[str, float] = observed.metrics
        self.timeline = pd.DataFrame(observed.timeline)
        self._job, self._events = job, events
        self._simulation = simulation = observed.simulation
        killed = simulation.stopped_at >= 0
        ended = int(self.timeline["event"].iloc[-1]) + (not killed)
        self.events = min(ended, simulation.length)
        #: Number of events that the simulation has replayed; None if it must be restarted.
        self._done = None if killed else self.events

    def __repr__(self) -> str:
        peaks = ", ".join(
            f"{name} {format_value(f'peak_{name.lower()}', self.metrics[f'peak_{name.lower()}'])}"
            for name in ("live", "heap", "RSS")
        )
        status = f"{self.status} ({self.reason})" if self.reason else self.status
        title = f"{self.allocator} under {self.workload}, seed {self.seed}"
        return f"<{title}: {status}, {self.events:,} events, peaks: {peaks}>"

    def heap(self, event: int | None = None) -> pd.DataFrame:
        """Return the heap after ``event`` (from 0; None: the last), as the allocator lists it.

        One row per piece, sorted by address: address and bytes (int64), kind (categorical: used,
        free, header).  The bytes of a used piece are its usable size, at least the requested size.
        The allocator does not list its tables and memory from which it has not yet made a block.

        The heap at the end costs one walk, which compiles for some seconds the first time.  Any
        other event costs a replay from the beginning.  Raises ValueError for an event out of range,
        and AllocatorFailure if the allocator cannot list its heap.
        """
        done = self.events if event is None else operator.index(event) + 1
        if event is not None and not 0 < done <= self.events:
            raise ValueError(f"event={event}: expected 0 to {self.events - 1}")
        # Stored again below only after success: an interrupted simulation cannot be used.
        simulation, self._simulation = self._simulation, None
        if simulation is None:
            simulation, self._done = observing(self._job, self._events), None
        if self._done != done:
            simulation.replay(done)
        address, size, kind = pieces(simulation).T
        self._simulation, self._done = simulation, done
        kinds = pd.Categorical.from_codes(kind - 1, list(KINDS.values()))
        return pd.DataFrame({"address": address, "bytes": size, "kind": kinds})

    def plot(self) -> "Picture":
        """Draw live, heap and RSS over time, as python -m analysis does.

        A notebook shows the returned figure; ``.savefig(FILE)`` stores it.
        """
        from analysis import fig_memory, style
        from analysis.load import of_one_run

        results = of_one_run(
            self.timeline,
            label=self.allocator,
            workload=self.workload,
            seed=self.seed,
            status=self.status,
            conditions={"page_size": self._job.kernel.page_size, "touch": self._events.touch},
        )
        with style.publication():
            figure = fig_memory.panels(results)
            figure.draw_without_rendering()  # the first drawing fixes the style of the ticks
        return figure

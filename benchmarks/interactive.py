"""One simulated run for notebooks and ``python -``, in the calling process.

    from benchmarks import simulate

    run = simulate(allocator="buddy", workload="churn", seed=1)
    run.metrics["peak_heap"]  # every number of metrics.json, by name
    run.timeline              # the columns of timeline.parquet, a pandas.DataFrame
    run.heap()                # every block at the end: address, bytes, kind
    run.heap(event=1000)      # ... and after event 1000
    run.plot()                # live, heap and RSS over time

Settings have the names and the syntax of the command line, and its checks and messages:

    simulate(
        allocator="first_fit",
        workload="churn",
        overrides=["allocator.fit=best", "workload.operations=50000", "kernel.thp=always"],
    )

``overrides`` are what follows ``python bench.py``, experiments included
(``["experiment=oom"]``).  An allocator of one's own is its file, read anew at every call:
``simulate(allocator="mine.py", overrides=["allocator.growth=65536"])``; a folder with YAML files,
as bench.py's ``--config-dir``, is ``overrides=["hydra.searchpath=[DIR]"]``.  Relative paths begin
at the working directory.

The numbers are those of ``python bench.py ... measure=counters``, to the last digit.  Nothing is
timed, and nothing is written but Numba's cache: an allocator compiles once for each kind of
workload, for some seconds or tens of them.  Ctrl-C, or the notebook's button, ends a replay too,
but an allocator that loops for ever without touching its memory keeps a thread, and a core, until
the process ends.

A Run keeps its simulated process and the host memory thereof, about the largest RSS, until it is
deleted.
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

    ``allocator``: a name, or the path of a ``.py`` file; ``workload``: a name.  What is not given
    is as conf/config.yaml says.  ``overrides``: further words of bench.py's command line, KEY=VALUE
    or GROUP=CHOICE.  ``progress``: show on standard error what takes longer than two seconds.

    Memory that runs out is a result (Run.status ``oom``).  Raises

        JobError          settings that cannot be run, and a real library
        WorkloadError     a trace or file of the workload that cannot be read
        AllocatorFailure  the allocator does not compile, or breaks its contract: the event and how
        SoftLockup        an event that does not end

    from benchmarks.run.job, benchmarks.workloads, benchmarks.replay.simulation and
    kernel.engine.watchdog; the first two are ValueErrors, the others RuntimeErrors.
    """
    if isinstance(overrides, str):
        raise JobError(f"overrides={overrides!r}: expected a list of words, not one string")
    given = {"allocator": allocator, "workload": workload, "seed": seed}
    words = [f"{name}={value}" for name, value in given.items() if value is not None]
    config = compose([*words, *overrides])
    name = config.get("allocator", {}).get("name")
    if isinstance(name, str) and is_native(name):
        raise JobError(
            f"allocator={name}: a real library needs a process of its own: "
            f"python bench.py allocator={name}"
        )
    job = check_job(config)
    job.inspect()
    title = f"{job.plugin.label} {job.workload_label}"
    with shown_progress(title) if progress else nullcontext(lambda *_: None) as report:
        report(0.0, "preparing the workload")
        events = job.load_workload(report)
        return Run(config, job, events, on_model(job, events, report))


class Run:
    """A finished run.

    ``allocator`` and ``workload`` are labels: names with the settings that are not the defaults.
    ``config``: all settings, as config.yaml has them.  ``status``: ``ok``, or ``oom`` with a
    ``reason``.  ``events``: how many were replayed; fewer than the workload has when the process
    was killed for lack of memory.  ``metrics``: name -> int or float, in the order and the units of
    benchmarks.replay.metrics.  ``timeline``: a row per sample, int64 columns event (from 0), live,
    heap, rss, reserved, page_tables (bytes), minor_faults, syscalls and steps (counts so far).
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
        #: Events after which the simulation stands; None: it has to start anew.
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

        A row per piece in the order of addresses: address and bytes (int64), kind (categorical:
        used, free, header).  The bytes of a used piece are what the program may use, at least what
        it asked for.  What the allocator does not list is missing: its tables, and memory that was
        never carved.

        The end costs a walk over the heap, for the first time some seconds to compile it.  Any
        other event costs a replay up to it, from the beginning.  Raises ValueError for an event
        that there is not, and AllocatorFailure when the allocator cannot list its heap.
        """
        done = self.events if event is None else operator.index(event) + 1
        if event is not None and not 0 < done <= self.events:
            raise ValueError(f"event={event}: expected 0 to {self.events - 1}")
        # Put back when all has gone well: one that was interrupted is of no use.
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

        The figure shows itself as the value of a notebook's cell; ``.savefig(FILE)`` stores it.
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
            figure.draw_without_rendering()  # ticks take the style when they are first drawn
        return figure

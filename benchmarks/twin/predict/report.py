"""Validation of all traces in one run, its printed tables and validation.json."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from allocators.base.library import ONE, Library, find
from benchmarks.real.process import PAGE
from benchmarks.replay.metrics import BY_NAME
from benchmarks.run import results
from benchmarks.trace import shipped
from benchmarks.twin.predict import programs
from benchmarks.twin.predict.measured import metrics_of_real, time_pieces
from benchmarks.twin.predict.prices import (
    Prediction,
    Sample,
    ablate,
    fit,
    median_error,
    predict,
)
from benchmarks.twin.predict.processor import geometry
from benchmarks.twin.predict.steps import KINDS, count_steps, metrics_of_twin
from benchmarks.workloads import Workload
from kernel import PROJECT
from kernel.cost import COSTS
from kernel.engine.progress import Progress
from kernel.linux.calibrate.measures import NEIGHBOURHOOD, measure_process
from kernel.linux.calibrate.prices import make_prices, read_table

#: Version of validation.json.
SCHEMA = 2
#: Events of a piece.
PIECE = 1 << 14
#: Batches of each size in a process that measures the kernel's prices.
ROUNDS = 31
#: Target for the median error.
TARGET = 0.15
#: Metrics in the table of memory, with the column heads.
SHOWN = {
    "faults": "faults",
    "syscalls_brk": "brk",
    "syscalls_mmap": "mmap",
    "peak_rss": "peak RSS",
    "end_rss": "final RSS",
}
_REFERENCE = PROJECT / "conf" / "kernel" / "cost" / "reference.yaml"


@dataclass
class Subject:
    """Program or trace, with the results of the twin and of the real library.

    ``steps`` and ``work``: counted on the twin, by piece (benchmarks.twin.predict.steps).
    ``times``: nanoseconds of the real library, (repetitions, pieces).  ``memory``, of traces only:
    the value of each metric for the twin and for the real library (None if it cannot be observed).
    """

    name: str
    workload: Workload
    steps: np.ndarray
    work: np.ndarray
    times: list[np.ndarray] = field(default_factory=list)
    memory: dict[str, tuple[float, float | None]] = field(default_factory=dict)

    @property
    def events(self) -> int:
        """Return the number of events."""
        return len(self.workload.events.op)

    @property
    def totals(self) -> list[int]:
        """Return the nanoseconds of each repetition."""
        return [int(pieces.sum()) for pieces in self.times]

    def sample(self, cost: Mapping[str, float]) -> Sample:
        """Return the pieces for the fit, with the kernel's work priced by ``cost``."""
        kernel = self.work @ np.array([cost[kind] for kind in COSTS])
        return Sample(self.steps, kernel, np.median(self.times, axis=0))

    @property
    def differing(self) -> list[str]:
        """Return the names of the metrics in which twin and real library differ."""
        return [name for name, (twin, real) in self.memory.items() if real not in (None, twin)]

    @property
    def compared(self) -> int:
        """Return the number of metrics known for both."""
        return sum(real is not None for _, real in self.memory.values())


@dataclass
class Validation:
    """Results of one run of the command.

    ``unavailable``: the reason why this machine's C library is not a valid reference, or ''.
    """

    touch: str
    repeats: int
    unavailable: str
    kernel: list[dict[str, float | str]] = field(default_factory=list)  # one per repetition
    fitted: list[Subject] = field(default_factory=list)
    traces: list[Subject] = field(default_factory=list)

    def run(self, paths: Sequence[str], progress: Progress) -> None:
        """Measure everything.  Raises WorkloadError, LibraryError or HostError."""
        library = find("native/glibc", {"threads": ONE})
        sizes = geometry()
        total = len(programs.PROGRAMS) + len(paths)
        for number, (name, config) in enumerate(programs.PROGRAMS.items()):
            progress(0.5 * number / total, f"counting: {name}")
            workload = programs.load(config | {"touch": self.touch})
            self.fitted.append(Subject(name, workload, *count_steps(workload, PIECE, sizes)))
        for number, path in enumerate(paths, len(programs.PROGRAMS)):
            progress(0.5 * number / total, f"counting: {path}")
            self.traces.append(self._trace(library, path, sizes))
        # Each repetition measures all subjects, so that a slow period affects all of them alike.
        for number in range(self.repeats):
            progress(0.5 + 0.5 * number / self.repeats, f"measuring, {number + 1}")
            self._measure(library)

    def _trace(self, library: Library, path: str, sizes: Mapping[str, int]) -> Subject:
        workload = programs.load_trace(path, self.touch)
        real, twin = metrics_of_real(library, workload), metrics_of_twin(workload)
        return Subject(
            path.removeprefix(shipped.PREFIX),
            workload,
            *count_steps(workload, PIECE, sizes),
            memory={name: (twin[name], value) for name, value in real.items()},
        )

    def _measure(self, library: Library) -> None:
        """Measure all times once, each in a new process."""
        with closing(measure_process(ROUNDS, swap=False)) as measured:
            self.kernel.append(dict(measured))
        for subject in self.fitted + self.traces:
            subject.times.append(time_pieces(library, subject.workload, PIECE))

    # --- results --------------------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Return True if memory agrees on every trace."""
        return not any(trace.differing for trace in self.traces)

    @cached_property
    def cost(self) -> dict[str, float]:
        """Return nanoseconds by kind of kernel work, measured as by kernel.linux.calibrate.

        Kinds that cannot be measured on this machine have the price of the reference table.
        """
        prices = make_prices(self.kernel, read_table(_REFERENCE), NEIGHBOURHOOD)
        return {kind: prices[kind].ns for kind in COSTS}

    @cached_property
    def prices(self) -> np.ndarray:
        """Return nanoseconds by kind of step, (len(KINDS),)."""
        return fit(self._samples(self.fitted))

    def predictions(self, subjects: Sequence[Subject]) -> list[Prediction]:
        """Predict the time of each subject."""
        return [predict(sample, self.prices) for sample in self._samples(subjects)]

    @cached_property
    def ablation(self) -> dict[str, float]:
        """Return the median error without each part of the time (prices.ablate)."""
        return ablate(self._samples(self.fitted), self._samples(self.traces))

    def _samples(self, subjects: Sequence[Subject]) -> list[Sample]:
        return [subject.sample(self.cost) for subject in subjects]

    def as_json(self) -> dict[str, Any]:
        """Return the content of validation.json."""
        return {
            "schema": SCHEMA,
            "reason": self.unavailable,
            "versions": results.versions(),
            "machine": results.machine(),
            "touch": self.touch,
            "repeats": self.repeats,
            "caches": geometry(),
            "kernel_prices_ns": self.cost,
            "step_prices_ns": dict(zip(KINDS, self.prices.tolist(), strict=True)),
            "median_error": median_error(self.predictions(self.traces)),
            "target": TARGET,
            "median_error_without": self.ablation,
            "programs": self._subjects(self.fitted),
            "traces": {
                name: found
                | {
                    "memory": {
                        metric: {"twin": twin, "real": real}
                        for metric, (twin, real) in trace.memory.items()
                    },
                    "differing": trace.differing,
                }
                for trace, (name, found) in zip(
                    self.traces, self._subjects(self.traces).items(), strict=True
                )
            },
        }

    def _subjects(self, subjects: Sequence[Subject]) -> dict[str, dict[str, Any]]:
        return {
            subject.name: {
                "workload": subject.workload.label,
                "events": subject.events,
                "measured_ns": prediction.measured,
                "repetitions_ns": subject.totals,
                "predicted_ns": prediction.total,
                "predicted_by_kind_ns": dict(zip(KINDS, prediction.steps.tolist(), strict=True))
                | {"kernel": prediction.kernel},
            }
            for subject, prediction in zip(subjects, self.predictions(subjects), strict=True)
        }

    def text(self) -> str:
        """Return the text of validation.json."""
        return json.dumps(self.as_json(), indent=2, allow_nan=False) + "\n"

    def print(self) -> None:
        """Print the tables and a summary."""
        from rich.console import Console

        console = Console()
        if not console.is_terminal:  # do not wrap lines in files and pipes
            console.width = 150
        predictions = self.predictions(self.traces)
        console.print(_memory_table(self.traces), _time_table(self.traces, predictions))
        same = sum(not trace.differing for trace in self.traces)
        print(f"memory: {same} of {len(self.traces)} traces agree in every metric")
        for trace in self.traces:
            for name in trace.differing:
                twin, real = trace.memory[name]
                print(f"  {trace.name}: {name}: twin {_number(twin)}, real {_number(real)}")
        steps = ", ".join(
            f"{name} {price:.2f}" for name, price in zip(KINDS, self.prices, strict=True)
        )
        print(f"prices of steps, ns, fitted on {len(self.fitted)} other programs: {steps}")
        print(
            "median error with one part left out and the rest fitted again: "
            + ", ".join(f"{part} {error:.1%}" for part, error in self.ablation.items())
        )
        error = median_error(predictions)
        fitted = median_error(self.predictions(self.fitted))
        print(
            f"time: median error {error:.1%} (target {TARGET:.0%}; on the fitted programs: "
            f"{fitted:.1%})"
        )


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4f}"


def _memory_table(traces: Sequence[Subject]) -> Any:
    from rich.table import Table

    table = Table("memory", "events", *SHOWN.values(), "all metrics", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for trace in traces:
        cells = [_pair(name, *trace.memory[name]) for name in SHOWN]
        same = trace.compared - len(trace.differing)
        table.add_row(trace.name, f"{trace.events:,}", *cells, f"{same} of {trace.compared} agree")
    return table


def _pair(name: str, twin: float, real: float | None) -> str:
    """Format the values of twin and real library, once if they agree."""
    scale = PAGE if BY_NAME[name].unit == "bytes" else 1
    unit = " pages" if scale > 1 else ""
    if real is None:
        return f"{_number(twin / scale)}{unit} (not observed)"
    if real == twin:
        return f"= {_number(twin / scale)}{unit}"
    return f"{_number(twin / scale)} ≠ {_number(real / scale)}{unit}"


def _time_table(traces: Sequence[Subject], predictions: Sequence[Prediction]) -> Any:
    from rich.table import Table

    heads = ("measured", "repetitions", "predicted", "error", *KINDS, "kernel")
    table = Table("time, ns per event", *heads, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for trace, prediction in zip(traces, predictions, strict=True):
        n = trace.events
        table.add_row(
            trace.name,
            f"{prediction.measured / n:.1f}",
            f"{min(trace.totals) / n:.1f}–{max(trace.totals) / n:.1f}",
            f"{prediction.total / n:.1f}",
            f"{prediction.error:+.1%}",
            *(f"{ns / n:.1f}" for ns in prediction.steps),
            f"{prediction.kernel / n:.1f}",
        )
    return table


def print_result(validation: Validation, path: Path, *, as_json: bool) -> None:
    """Print the results, which have been written to ``path``."""
    if as_json:
        json.dump({"file": str(path), **validation.as_json()}, sys.stdout, indent=2)
        print()
        return
    validation.print()
    print(f"written: {path}  (python -m analysis.fig_validate {path} -o validation.png)")

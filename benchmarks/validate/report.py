"""One run of the command: prices first, then trace after trace; the table and validation.json."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results, shipped
from benchmarks.launch import Progress
from benchmarks.metrics import BY_NAME
from benchmarks.real.library import Library, find
from benchmarks.validate import programs
from benchmarks.validate.measured import clocked, memory_of_real
from benchmarks.validate.prices import (
    Prediction,
    Sample,
    fit,
    median_error,
    predict,
    without_each,
)
from benchmarks.validate.processor import geometry
from benchmarks.validate.steps import KINDS, count_steps, memory_of_twin
from benchmarks.workloads import Workload
from kernel.calibrate.measures import NEIGHBOURHOOD, measure_process
from kernel.calibrate.prices import make_prices, read_table

#: Version of validation.json.
SCHEMA = 1
#: Events of a piece.
PIECE = 1 << 14
#: Processes in which the kernel's prices are measured, and batches of each size in one.
PROCESSES, ROUNDS = 9, 31
#: The error that is aimed at, at the median.
TARGET = 0.15
#: What the table shows of memory, with the columns' heads.
SHOWN = {
    "faults": "faults",
    "syscalls_brk": "brk",
    "syscalls_mmap": "mmap",
    "peak_rss": "peak RSS",
    "end_rss": "final RSS",
}
_REFERENCE = Path(__file__).resolve().parents[2] / "conf" / "kernel" / "cost" / "reference.yaml"


@dataclass
class Trace:
    """A trace on both sides.

    ``memory``: each metric's value of the twin and of the real library, None where that cannot be
    seen; ``sample``: its pieces; ``totals``: nanoseconds of each repetition.
    """

    name: str
    events: int
    memory: dict[str, tuple[float, float | None]]
    sample: Sample
    totals: list[int]

    @property
    def differing(self) -> list[str]:
        """Metrics in which the two differ."""
        return [name for name, (twin, real) in self.memory.items() if real not in (None, twin)]

    @property
    def compared(self) -> int:
        """Number of metrics that both sides have."""
        return sum(real is not None for _, real in self.memory.values())


@dataclass
class Validation:
    """Everything that a run finds out.  ``wrong``: why this machine's C library is no truth."""

    touch: str
    repeats: int
    wrong: str
    cost: dict[str, float] = field(default_factory=dict)
    fitted: dict[str, tuple[str, Sample]] = field(default_factory=dict)  # label and pieces
    traces: list[Trace] = field(default_factory=list)

    def run(self, paths: Sequence[str], progress: Progress) -> None:
        """Measure everything.  Raises WorkloadError, LibraryError or HostError."""
        library = find("native/glibc", {})
        sizes = geometry()
        loaded = len(programs.PROGRAMS) + len(paths) + 1
        progress(0.0, "prices of the kernel's work")
        self.cost = kernel_prices()
        for number, (what, config) in enumerate(programs.PROGRAMS.items(), 1):
            progress(number / loaded, f"program: {what}")
            workload = programs.load(config | {"touch": self.touch})
            self.fitted[what] = workload.label, self._sample(library, workload, sizes)[0]
        for number, path in enumerate(paths, 1 + len(programs.PROGRAMS)):
            progress(number / loaded, path)
            self.traces.append(self._trace(library, path, sizes))

    def _sample(
        self, library: Library, workload: Workload, sizes: Mapping[str, int]
    ) -> tuple[Sample, np.ndarray]:
        measured = clocked(library, workload, PIECE, self.repeats)
        steps, kernel = count_steps(workload, PIECE, self.cost, sizes)
        return Sample(steps, kernel, np.median(measured, axis=0)), measured

    def _trace(self, library: Library, path: str, sizes: Mapping[str, int]) -> Trace:
        workload = programs.load_trace(path, self.touch)
        real, twin = memory_of_real(library, workload), memory_of_twin(workload)
        sample, measured = self._sample(library, workload, sizes)
        return Trace(
            path.removeprefix(shipped.PREFIX),
            len(workload.events.op),
            {name: (twin[name], value) for name, value in real.items()},
            sample,
            measured.sum(axis=1).tolist(),
        )

    # --- what comes of it -----------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Whether memory is the same on every trace."""
        return not any(trace.differing for trace in self.traces)

    def prices(self) -> np.ndarray:
        """Nanoseconds by kind of step."""
        return fit(self._samples())

    def predictions(self) -> list[Prediction]:
        """One for each trace."""
        prices = self.prices()
        return [predict(trace.sample, prices) for trace in self.traces]

    def _samples(self) -> list[Sample]:
        return [sample for _, sample in self.fitted.values()]

    def as_json(self) -> dict[str, Any]:
        """Plain values for validation.json, which says what each is."""
        prices, predictions = self.prices(), self.predictions()
        fitted = {what: predict(sample, prices) for what, (_, sample) in self.fitted.items()}
        return {
            "schema": SCHEMA,
            "reason": self.wrong,
            "versions": results.versions(),
            "machine": results.machine(),
            "touch": self.touch,
            "repeats": self.repeats,
            "caches": geometry(),
            "kernel_prices_ns": self.cost,
            "step_prices_ns": dict(zip(KINDS, prices.tolist(), strict=True)),
            "median_error": median_error(predictions),
            "target": TARGET,
            "median_error_without": without_each(
                self._samples(), [trace.sample for trace in self.traces]
            ),
            "programs": {
                what: {
                    "label": self.fitted[what][0],
                    "events": int(self.fitted[what][1].steps[:, 0].sum()),
                    "measured_ns": prediction.measured,
                    "predicted_ns": prediction.total,
                }
                for what, prediction in fitted.items()
            },
            "traces": {
                trace.name: {
                    "events": trace.events,
                    "memory": {
                        name: {"twin": twin, "real": real}
                        for name, (twin, real) in trace.memory.items()
                    },
                    "differing": trace.differing,
                    "measured_ns": prediction.measured,
                    "repetitions_ns": trace.totals,
                    "predicted_ns": prediction.total,
                    "predicted_by_kind_ns": dict(zip(KINDS, prediction.steps.tolist(), strict=True))
                    | {"kernel": prediction.kernel},
                }
                for trace, prediction in zip(self.traces, predictions, strict=True)
            },
        }

    def write(self, path: Path) -> None:
        """Write validation.json at ``path``.  Raises OSError."""
        results.write_json(path, self.as_json())

    def print(self) -> None:
        """Print the table and what it comes to."""
        from rich.console import Console

        console = Console()
        if not console.is_terminal:  # a file or a pipe wraps no lines
            console.width = 150
        predictions = self.predictions()
        console.print(_memory_table(self.traces), _time_table(self.traces, predictions))
        same = sum(not trace.differing for trace in self.traces)
        print(f"memory: {same} of {len(self.traces)} traces are the same in every metric")
        for trace in self.traces:
            for name in trace.differing:
                twin, real = trace.memory[name]
                print(f"  {trace.name}: {name}: twin {_number(twin)}, real {_number(real)}")
        samples = self._samples()
        fitted = median_error([predict(sample, self.prices()) for sample in samples])
        steps = ", ".join(
            f"{name} {price:.2f}" for name, price in zip(KINDS, self.prices(), strict=True)
        )
        print(f"prices of steps, ns, fitted on {len(samples)} other programs: {steps}")
        found = without_each(samples, [trace.sample for trace in self.traces])
        print(
            "without a price of its own, the rest fitted anew, the error would be: "
            + ", ".join(f"{name} {error:.1%}" for name, error in found.items())
        )
        error = median_error(predictions)
        print(
            f"time: {error:.1%} off at the median (aimed at: {TARGET:.0%}; "
            f"on the programs of the fit: {fitted:.1%})"
        )


def kernel_prices() -> dict[str, float]:
    """Nanoseconds by kind of kernel work, measured now, as python -m kernel.calibrate does.

    What this machine cannot do has the reference's price.  Raises HostError.
    """
    found = []
    for _ in range(PROCESSES):
        with closing(measure_process(ROUNDS, swap=False)) as measured:
            found.append(dict(measured))
    prices = make_prices(found, read_table(_REFERENCE), NEIGHBOURHOOD)
    return {name: price.ns for name, price in prices.items()}


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4f}"


def _memory_table(traces: Sequence[Trace]) -> Any:
    from rich.table import Table

    table = Table("memory", "events", *SHOWN.values(), "all metrics", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for trace in traces:
        cells = [_pair(name, *trace.memory[name]) for name in SHOWN]
        same = trace.compared - len(trace.differing)
        table.add_row(trace.name, f"{trace.events:,}", *cells, f"{same} of {trace.compared} same")
    return table


def _pair(name: str, twin: float, real: float | None) -> str:
    """Both values, or the one that both have."""
    scale = 4096 if BY_NAME[name].unit == "bytes" else 1
    unit = " pages" if scale > 1 else ""
    if real is None:
        return f"{_number(twin / scale)}{unit} (unseen)"
    if real == twin:
        return f"= {_number(twin / scale)}{unit}"
    return f"{_number(twin / scale)} ≠ {_number(real / scale)}{unit}"


def _time_table(traces: Sequence[Trace], predictions: Sequence[Prediction]) -> Any:
    from rich.table import Table

    heads = ("measured", "repetitions", "predicted", "error", *KINDS, "kernel")
    table = Table("time, ns an event", *heads, box=None)
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


def tell(validation: Validation, path: Path, *, as_json: bool) -> None:
    """Print what was found, after it was written to ``path``."""
    if as_json:
        json.dump({"file": str(path), **validation.as_json()}, sys.stdout, indent=2)
        print()
        return
    validation.print()
    print(f"written: {path}  (python -m analysis.fig_validate {path} -o validation.png)")

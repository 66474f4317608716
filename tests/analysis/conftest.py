"""Synthetic result directories, in the format that bench.py writes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.replay.metrics import COLD, END_TO_END, METRICS, WARM
from tests.conftest import ROOT

ALLOCATORS = ("arena", "buddy", "first_fit(fit=best)", "segregated")
WORKLOADS = ("churn", "larson(threads=2)")
EVENTS = 20_000
PAGE = 4096
ROUNDS = 10


def make_run(
    directory: Path,
    label: str = "buddy",
    workload: str = "churn",
    seed: int | None = 1,
    *,
    speed: float = 1.0,
    waste: float = 1.3,
    **described: Any,
) -> Path:
    """Write a run directory and return it.

    ``speed`` scales its times, ``waste`` is heap over live; ``described`` overrides run.json.
    """
    directory.mkdir(parents=True)
    run = {
        "schema": 2,
        "allocator": label.partition("(")[0],
        "label": label,
        "workload": workload.partition("(")[0],
        "workload_label": workload,
        "seed": seed,
        "touch": "all",
        "page_size": PAGE,
        "status": "ok",
        "reason": "",
    } | described
    (directory / "run.json").write_text(json.dumps(run))
    if run["status"] in ("failed", "running"):
        return directory

    rng = np.random.default_rng([seed, *f"{label}{workload}".encode()])
    event = np.arange(0, EVENTS, 50)
    live = 3e6 * (1 - np.exp(-event / 2500)) * (1 + 0.03 * rng.standard_normal(len(event)))
    heap = np.maximum.accumulate(np.ceil(live * waste / 65536) * 65536)
    rss = np.minimum(heap, np.ceil(live * (1 + waste) / 2 / PAGE) * PAGE)
    steps = event * 25
    timeline = {"event": event, "live": live, "heap": heap, "rss": rss, "steps": steps}
    for name in ("reserved", "page_tables", "minor_faults", "syscalls"):
        timeline[name] = event
    pd.DataFrame(timeline).astype("int64").to_parquet(directory / "timeline.parquet")

    metrics = {metric.name: 0 for metric in METRICS if not metric.timed}
    metrics |= {
        "operations": EVENTS,
        "kernel_ns_per_op": float(4 * waste * speed * rng.uniform(0.9, 1.1)),
        "peak_live": int(live.max()),
        "peak_heap": int(heap.max()),
        "faults": int(rss.max()) // PAGE,
        "faults_write": int(rss.max()) // PAGE,
        "syscalls": int(60 * speed),
        "syscalls_brk": int(40 * speed * rng.uniform(0.9, 1.1)),
        "syscalls_mmap": int(20 * speed**3),
        "syscalls_munmap": 0 if label < "c" else int(12 * speed**3),
    }
    (directory / "metrics.json").write_text(json.dumps(metrics))

    centre = 20 * speed * rng.uniform(0.95, 1.05)
    lines = [
        measurement(number, centre * rng.uniform(0.99, 1.06), metrics["kernel_ns_per_op"])
        for number in range(ROUNDS)
    ]
    write_times(directory, lines)
    return directory


def measurement(number: int, warm: float, kernel: float, side: int = 0) -> dict[str, Any]:
    """Return a line of times.jsonl: warm time and modelled kernel time in ns per event."""
    times = {WARM: warm, COLD: warm + kernel / 2, END_TO_END: warm + kernel}
    order = {"round": number, "attempt": 0, "side": side, "position": 0}
    return order | {"times": times, "others": 0.0, "stolen": 0.0}


def change_metrics(directory: Path, **values: float) -> None:
    """Change values in metrics.json of a run directory."""
    path = directory / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write_times(directory: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write times.jsonl of a run directory."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "times.jsonl").write_text(text)


def make_sweep(
    directory: Path,
    labels: tuple[str, ...] = ALLOCATORS,
    workloads: tuple[str, ...] = WORKLOADS,
    seeds: int = 5,
    spread: float = 0.5,
) -> Path:
    """Write a sweep of ``labels`` × ``workloads`` × ``seeds``; each label is slower than the last.

    ``spread`` is the step of speed and of waste from one label to the next.
    """
    for i, label in enumerate(labels):
        for j, workload in enumerate(workloads):
            for seed in range(1, seeds + 1):
                make_run(
                    directory / f"{i}-{j}-{seed}",
                    label,
                    workload,
                    seed,
                    speed=(1 + spread * i) * (1 + j),
                    waste=1.1 + 0.5 * spread * ((3 * i + j) % len(labels)),
                )
    return directory


def run_analysis(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run ``python -m analysis`` in a separate process, with every warning an error."""
    command = [sys.executable, "-W", "error::UserWarning", "-m", "analysis", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sweep of 4 allocators × 2 workloads × 5 seeds; tests must not change it."""
    return make_sweep(tmp_path_factory.mktemp("results") / "sweep")


@pytest.fixture(scope="session")
def one_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sweep of 2 allocators × 1 workload × 1 seed; tests must not change it."""
    return make_sweep(tmp_path_factory.mktemp("results") / "one", ALLOCATORS[:2], WORKLOADS[:1], 1)


@pytest.fixture
def small(one_seed: Path, tmp_path: Path) -> Path:
    """Copy of ``one_seed`` that a test may damage."""
    return Path(shutil.copytree(one_seed, tmp_path / "small"))


@pytest.fixture
def make() -> Callable[..., Path]:
    """:func:`make_run`."""
    return make_run


@pytest.fixture
def sweep_of() -> Callable[..., Path]:
    """:func:`make_sweep`."""
    return make_sweep


@pytest.fixture
def analyse() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """:func:`run_analysis`."""
    return run_analysis

"""Run a program with the recorder preloaded, and convert the raw recording to Parquet traces.

The raw recording is the directory ``FILE.raw`` next to the trace ``FILE``.  It is removed when all
traces are written, and kept if writing fails.
"""

import datetime
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.events import parquet
from benchmarks.events.events import ALLOCATOR_OPS, THREAD_END, make_events
from benchmarks.events.parquet import TraceError
from benchmarks.trace.formats import Progress, check_output
from benchmarks.trace.formats.objects import PROBLEM_NAMES, Objects
from benchmarks.trace.recorder import build, raw
from benchmarks.trace.recorder.drain import Drain

#: Version of the recorder and of the conversion, in the provenance of traces.
VERSION = 3
#: Environment variable with the recorder's output directory; the same as in recorder.c.
VARIABLE = "MALLOC_BENCH_RECORDING"

_ABOUT = "recording.json"
_POLL = 0.05


@dataclass
class Trace:
    """Summary of a trace that was written."""

    path: Path
    program: str
    events: int
    threads: int
    #: Number of records left out, by reason.
    left_out: dict[str, int]


@dataclass
class Recording:
    """Result of a recording; ``exit``: the program's exit code, -N for signal N, None: unknown."""

    traces: list[Trace]
    exit: int | None
    #: Programs that were still running when the recording was read.
    running: list[str] = field(default_factory=list)
    #: Number of images (processes after a fork or exec) known not to be recorded.
    unrecorded: int = 0


def record(
    command: list[str], out: Path, resolution: int = 1000, progress: Progress | None = None
) -> Recording:
    """Run ``command`` and write its trace to ``out``, and its children's traces next to it.

    ``resolution``: nanoseconds; times are rounded down to multiples of it.  Also waits for the
    children, until interrupted.  Raises TraceError.
    """
    check_output(out)
    library = build.library()
    directory = out.resolve().with_name(f"{out.name}.raw")
    if shutil.which(command[0]) is None:
        there = os.sep in command[0] and Path(command[0]).exists()
        what = "cannot be executed" if there else "program not found"
        raise TraceError(f"{command[0]}: {what}")
    try:
        directory.mkdir()
    except FileExistsError:
        raise TraceError(
            f"{directory}: left by an earlier recording; read it with --recover, or remove it"
        ) from None
    except OSError as error:
        raise TraceError(f"{directory}: {error.strerror or error}") from None
    about = {"command": command, "ns_per_tick": build.nanoseconds_per_tick(library), "pid": 0}
    try:  # before the program starts
        (directory / _ABOUT).write_text(json.dumps(about) + "\n")
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise TraceError(f"{directory}: {error.strerror or error}") from None
    preload = os.pathsep.join(filter(None, (str(library), os.environ.get("LD_PRELOAD"))))
    environment = os.environ | {"LD_PRELOAD": preload, VARIABLE: str(directory)}
    with _Signals() as signals, Drain(directory):
        try:
            process = subprocess.Popen(command, env=environment, close_fds=False)
        except OSError as error:
            shutil.rmtree(directory)
            raise TraceError(f"{command[0]}: {error.strerror or error}") from None
        (directory / _ABOUT).write_text(json.dumps(about | {"pid": process.pid}) + "\n")
        signals.forward_to(process)
        code = process.wait()
        while not signals.late and _running(directory):
            time.sleep(_POLL)
    return recover(directory, out, resolution, progress, code)


class _Signals:
    """Context manager that forwards SIGINT, SIGTERM and SIGHUP to the recorded program."""

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        #: True if a signal arrived after the program ended.
        self.late = False
        self._process: subprocess.Popen | None = None
        self._early: list[int] = []

    def __enter__(self) -> "_Signals":
        self._before = [signal.signal(number, self._handle) for number in self._NUMBERS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self._NUMBERS, self._before, strict=True):
            signal.signal(number, handler)

    def forward_to(self, process: subprocess.Popen) -> None:
        """Start to forward signals to ``process``, beginning with those already received."""
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def _handle(self, number: int, _: object) -> None:
        if self._process is None:
            self._early.append(number)
        elif self._process.poll() is not None:
            self.late = True
        elif number != signal.SIGINT:  # the terminal sent it to the program too
            self._process.send_signal(number)


def _running(directory: Path) -> set[int]:
    """Return the processes whose environment names ``directory`` as their recording."""
    mark = f"{VARIABLE}={directory}".encode()
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # the process ended, or belongs to another user
            if mark in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return found


def recover(
    directory: Path,
    out: Path,
    resolution: int = 1000,
    progress: Progress | None = None,
    code: int | None = None,
) -> Recording:
    """Write the traces of the raw recording ``directory``, then remove it.  Raises TraceError.

    ``code``: the program's exit code.  If None, no process may still be recording.
    """
    check_output(out)
    about_path = directory / _ABOUT
    alive = _running(directory.resolve())
    if alive and code is None:
        raise TraceError(
            f"{directory}: process {min(alive)} is still recording into it; end that process first"
        )
    try:
        about = json.loads(about_path.read_text())
        images, unrecorded = raw.images(directory)
    except (OSError, ValueError):
        raise TraceError(f"{directory}: not a raw recording ({_ABOUT} is missing)") from None
    about |= {"exit": code, "unrecorded": unrecorded}
    chosen = _in_order([image for image in images if image.numbers], about["pid"])
    running = [image.program for image in chosen if image.pid in alive]
    if not chosen:
        why = _explain_nothing(directory)
        if code is not None:
            shutil.rmtree(directory)
        end = "" if code is None else describe_exit(code)
        raise TraceError(f"{about['command'][0]}: no allocation was recorded; {why}{end}")
    names = [out, *(out.with_suffix(f".{i}{out.suffix}") for i in range(1, len(chosen)))]
    traces = []
    try:
        for i in reversed(range(len(chosen))):  # main trace last: if it exists, all others do

            def report(fraction: float, i: int = i) -> None:
                if progress:
                    done = (len(chosen) - 1 - i + fraction) / len(chosen)
                    progress(done, f"writing {names[i].name}")

            more = {}
            if i == 0:
                children = [name.name for name in names[1:]]
                more = {"children": children, "unrecorded": about["unrecorded"]}
            traces.insert(0, _convert(chosen[i], names[i], about, more, resolution, report))
    except OSError as error:
        raise TraceError(
            f"{error.filename or out}: {error.strerror or error} (the recording is kept: "
            f"--recover {directory})"
        ) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the recording is kept: --recover {directory}") from None
    shutil.rmtree(directory, ignore_errors=True)
    return Recording(traces, code, running, unrecorded)


def _explain_nothing(directory: Path) -> str:
    """Return why a raw recording may be without events."""
    if any(directory.glob("*.buffers")):
        return (
            f"the recorder could not write to {directory}; is the disk full, or the size of files "
            "limited (ulimit -f)?"
        )
    return (
        "does it allocate at all? is it statically linked or setuid, or does it define its own "
        "malloc?"
    )


def describe_exit(code: int) -> str:
    """Return how a program ended, as text to append to a message."""
    if code >= 0:
        return f" (exit code {code})"
    names = {number.value: number.name for number in signal.Signals}
    return f" (killed by {names.get(-code, f'signal {-code}')})"


def _in_order(images: list[raw.Image], pid: int) -> list[raw.Image]:
    """Order images: first the last one of the command's own process, then the others by start."""
    mains = [image for image in images if image.pid == pid]
    main = mains[-1:] or images[:1]
    return main + [image for image in images if image not in main]


def _convert(
    image: raw.Image,
    path: Path,
    about: dict[str, Any],
    more: dict[str, Any],
    resolution: int,
    report: Callable[[float], None],
) -> Trace:
    """Write one image's events to ``path``; calls ``report`` with the fraction done."""
    objects, left_out = Objects(), Counter()
    threads: set[int] = set()
    count = operations = 0
    with parquet.Writer(path) as writer:
        for records, fraction in image.records():
            slot, problem = objects.rename(records, strict=False)
            kept = problem == 0
            for code, number in zip(*np.unique(problem[~kept], return_counts=True), strict=True):
                left_out[PROBLEM_NAMES[code]] += int(number)
            passed = (records.time[kept] - image.start_ticks) * about["ns_per_tick"]
            events = make_events(
                records.op[kept],
                slot[kept],
                records.size[kept],
                align=records.align[kept],
                thread=records.thread[kept],
                offset=np.where(records.op[kept] > THREAD_END, records.old[kept], 0),
                time=passed.astype("i8") // resolution * resolution,
            )
            threads.update(np.unique(events.thread).tolist())
            count += len(events.op)
            operations += int(np.count_nonzero(events.op < ALLOCATOR_OPS))
            writer.add(events)
            report(fraction)
        if image.missing:
            left_out["never_written"] = image.missing
        started = datetime.datetime.fromtimestamp(image.started / 1e9, datetime.UTC)
        writer.provenance = {
            "recorder": VERSION,
            "program": image.program,
            "arguments": image.arguments,
            "command": about["command"],
            "exit": about["exit"],
            "pid": image.pid,
            "parent": image.parent,
            "started": started.isoformat(timespec="milliseconds"),
            "resolution": resolution,
            "events": count,
            "operations": operations,
            "threads": len(threads),
            "left_out": dict(left_out),
        } | more
    return Trace(path, image.program, count, len(threads), dict(left_out))

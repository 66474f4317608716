"""Run a program with the recorder preloaded, and make Parquet traces of what it left.

While the program runs its raw recording stands beside the trace, in ``FILE.raw``; it is removed
when all traces are written, and kept when that fails.
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
from benchmarks.events.events import ALLOCATOR_OPS, make_events
from benchmarks.events.parquet import TraceError
from benchmarks.trace.formats import Progress, check_output
from benchmarks.trace.formats.objects import PROBLEM_NAMES, Objects
from benchmarks.trace.recorder import build, raw

#: Version of the recorder and of the conversion, in the provenance of traces.
VERSION = 2
#: The environment variable that tells the recorder its directory: as in recorder.c.
VARIABLE = "MALLOC_BENCH_RECORDING"

_ABOUT = "recording.json"
_POLL = 0.05


@dataclass
class Trace:
    """A trace that was written."""

    path: Path
    program: str
    events: int
    threads: int
    #: What was left out, by name.
    left_out: dict[str, int]


@dataclass
class Recording:
    """What came of a recording; ``exit`` is the program's, negative for a signal, or None."""

    traces: list[Trace]
    exit: int | None
    #: Programs that still ran when the recording was read.
    running: list[str] = field(default_factory=list)


def record(
    command: list[str], out: Path, resolution: int = 1000, progress: Progress | None = None
) -> Recording:
    """Run ``command`` and write its trace at ``out``, those of its children beside it.

    ``resolution``: nanoseconds; times are multiples of it.  Waits for the children as well, until
    interrupted.  Raises TraceError.
    """
    check_output(out)
    library = build.library()
    directory = out.resolve().with_name(f"{out.name}.raw")
    if shutil.which(command[0]) is None:
        there = os.sep in command[0] and Path(command[0]).exists()
        what = "cannot be executed" if there else "there is no such program"
        raise TraceError(f"{command[0]}: {what}")
    try:
        directory.mkdir()
    except FileExistsError:
        raise TraceError(
            f"{directory}: left by another recording (read it with --recover, or remove it)"
        ) from None
    except OSError as error:
        raise TraceError(f"{directory}: {error.strerror or error}") from None
    about = {"command": command, "ns_per_tick": build.nanoseconds_per_tick(library)}
    preload = os.pathsep.join(filter(None, (str(library), os.environ.get("LD_PRELOAD"))))
    environment = os.environ | {"LD_PRELOAD": preload, VARIABLE: str(directory)}
    with _Signals() as signals:
        try:
            process = subprocess.Popen(command, env=environment, close_fds=False)
        except OSError as error:
            shutil.rmtree(directory)
            raise TraceError(f"{command[0]}: {error.strerror or error}") from None
        (directory / _ABOUT).write_text(json.dumps(about | {"pid": process.pid}) + "\n")
        signals.go_to(process)
        code = process.wait()
        while not signals.late and _running(directory):
            time.sleep(_POLL)
    return recover(directory, out, resolution, progress, code)


class _Signals:
    """While this is entered, signals that ask this process to end reach the program instead."""

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        #: Whether one came when the program had ended.
        self.late = False
        self._process: subprocess.Popen | None = None
        self._early: list[int] = []

    def __enter__(self) -> "_Signals":
        self._before = [signal.signal(number, self._handle) for number in self._NUMBERS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self._NUMBERS, self._before, strict=True):
            signal.signal(number, handler)

    def go_to(self, process: subprocess.Popen) -> None:
        """Begin to pass on signals, those first that came already."""
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def _handle(self, number: int, _: object) -> None:
        if self._process is None:
            self._early.append(number)
        elif self._process.poll() is not None:
            self.late = True
        elif number != signal.SIGINT:  # the keyboard's has reached the program already
            self._process.send_signal(number)


def _running(directory: Path) -> set[int]:
    """The processes that record, or would, into ``directory``."""
    mark = f"{VARIABLE}={directory}".encode()
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it ended, or is not ours
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

    ``code``: the program's exit code, where it is known; else it must not run any more.
    """
    check_output(out)
    about_path = directory / _ABOUT
    alive = _running(directory.resolve())
    if alive and code is None:
        raise TraceError(
            f"{directory}: still recorded into, by process {min(alive)}; end it first (the trace "
            "would miss what it does meanwhile)"
        )
    try:
        about = json.loads(about_path.read_text())
        images = raw.images(directory)
    except (OSError, ValueError):
        raise TraceError(f"{directory}: no raw recording ({_ABOUT} is not there)") from None
    about["exit"] = code
    chosen = _in_order([image for image in images if image.numbers], about["pid"])
    running = [image.program for image in chosen if image.pid in alive]
    if not chosen:
        began = any(directory.glob("*.buffers"))
        if code is not None:
            shutil.rmtree(directory)
        why = (
            f"the recorder could not write to {directory}; is the disk full?"
            if began
            else "did it make any, or is it statically linked, setuid, or a program with a malloc "
            "of its own?"
        )
        told = "" if code is None else told_exit(code)
        raise TraceError(f"{about['command'][0]}: no allocation was recorded; {why}{told}")
    names = [out, *(out.with_suffix(f".{i}{out.suffix}") for i in range(1, len(chosen)))]
    traces = []
    try:
        for i in reversed(range(len(chosen))):  # the main one last: where it is, all are

            def told(fraction: float, i: int = i) -> None:
                if progress:
                    done = (len(chosen) - 1 - i + fraction) / len(chosen)
                    progress(done, f"writing {names[i].name}")

            more = {"children": [name.name for name in names[1:]]} if i == 0 else {}
            traces.insert(0, _convert(chosen[i], names[i], about, more, resolution, told))
    except OSError as error:
        raise TraceError(
            f"{error.filename or out}: {error.strerror or error} (the recording is kept: "
            f"--recover {directory})"
        ) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the recording is kept: --recover {directory}") from None
    shutil.rmtree(directory, ignore_errors=True)
    return Recording(traces, code, running)


def told_exit(code: int) -> str:
    """How a program ended, in words to append."""
    if code >= 0:
        return f" (exit code {code})"
    return f" (killed by {signal.Signals(-code).name})"


def _in_order(images: list[raw.Image], pid: int) -> list[raw.Image]:
    """The main image first: what the command became in the end; then the others by their start."""
    mains = [image for image in images if image.pid == pid]
    main = mains[-1:] or images[:1]
    return main + [image for image in images if image not in main]


def _convert(
    image: raw.Image,
    path: Path,
    about: dict[str, Any],
    more: dict[str, Any],
    resolution: int,
    told: Callable[[float], None],
) -> Trace:
    """Write one image's events; returns what was written."""
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
                time=passed.astype("i8") // resolution * resolution,
            )
            threads.update(np.unique(events.thread).tolist())
            count += len(events.op)
            operations += int(np.count_nonzero(events.op < ALLOCATOR_OPS))
            writer.add(events)
            told(fraction)
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

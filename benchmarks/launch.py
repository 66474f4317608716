"""Run a checked job in child processes: first the untimed run, then pyperf.

The children are in sessions of their own, so that whatever happens here ends them at once; what
they have to say comes back through the run's directory and, for progress, their standard output.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic
from typing import Any

from benchmarks import results
from benchmarks.job import Job

_ROOT = Path(__file__).resolve().parent.parent
#: The line of a traceback that says what was raised.
_ERROR = re.compile(r"[\w.]+(Error|Failure|SoftLockup)\b")
_PROGRESS = re.compile(r"@ ([\d.]+) (.*)")

#: Called with a fraction done and what is being done.
Progress = Callable[[float, str], None]


@contextmanager
def shown_progress(title: str, after: float = 2.0) -> Iterator[Progress]:
    """Yield a Progress that shows itself on standard error once ``after`` seconds have passed.

    A terminal gets a bar; a file or pipe gets a line for each new thing that is done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    bar = Bar(*columns, console=console, transient=True)
    task = bar.add_task(title, total=1.0)
    begin = monotonic()
    said = ""

    def progress(fraction: float, what: str) -> None:
        nonlocal said
        late = monotonic() - begin > after
        if not console.is_terminal:
            if late and what != said:
                console.print(f"{title}: {what}", highlight=False)
                said = what
            return
        bar.update(task, completed=fraction, description=f"{title}: {what}")
        if late and not bar.live.is_started:
            bar.start()

    try:
        yield progress
    finally:
        if bar.live.is_started:
            bar.stop()


def _environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of children: they import the project wherever they are started."""
    path = os.pathsep.join(filter(None, (str(_ROOT), base.get("PYTHONPATH"))))
    return {**base, "PYTHONPATH": path}


@contextmanager
def _child(
    command: list[str], stderr: object, environment: Mapping[str, str] = os.environ
) -> Iterator[subprocess.Popen]:
    """Start a child in its own session; on the way out nothing of it is left running."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=_environment(environment),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):  # it may be gone already
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def observe(directory: Path, progress: Progress) -> None:
    """Run benchmarks.observe on ``directory``; the outcome is in run.json afterwards."""
    command = [sys.executable, "-m", "benchmarks.observe", str(directory)]
    with TemporaryFile() as errors, _child(command, errors) as process:
        for line in process.stdout:
            match = _PROGRESS.match(line.decode())
            if match:
                progress(float(match[1]), match[2])
        code = process.wait()
        errors.seek(0)
        complaint = errors.read().decode(errors="replace").strip()
    if results.read_run(directory).get("status") == results.RUNNING:
        end = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = f": {complaint.splitlines()[-1]}" if complaint else ""
        reason = f"the simulating process {end}{last}"
        results.update_run(directory, status=results.FAILED, reason=reason)


def time_with_pyperf(directory: Path, job: Job, run: dict[str, Any], progress: Progress) -> None:
    """Run benchmarks.worker on ``directory``, which writes bench.json.

    ``run``: run.json after the untimed run, whose duration says how much timing is affordable.
    Failure is recorded in run.json.
    """
    schedule = job.measure.schedule(run["events"], run["replay_seconds"])
    processes, samples, warmups, replays = map(str, schedule)
    output = directory / "bench.json"
    output.unlink(missing_ok=True)
    inherited = [n for n in os.environ if n.startswith("NUMBA_") or n in ("XDG_CACHE_HOME", "HOME")]
    environment: Mapping[str, str] = os.environ
    if job.library is not None:
        # Every process is on the library, and has one thread as long as the workload has.
        environment = job.library.clean_environment() | {"OPENBLAS_NUM_THREADS": "1"}
        inherited += [*job.library.environment, "LD_LIBRARY_PATH", "OPENBLAS_NUM_THREADS"]
    command = [
        *(sys.executable, "-m", "benchmarks.worker"),
        *("--directory", str(directory), "-o", str(output)),
        *("-p", processes, "-n", samples, "-w", warmups, "-l", replays),
        *("--inherit-environ", ",".join(inherited)),
    ]
    progress(0.0, "timing")
    with TemporaryFile() as errors, _child(command, errors, environment) as process:
        done = 0
        while chunk := process.stdout.read1(64):
            done += chunk.count(b".") if b"\n" not in chunk else 0
            progress(min(done / schedule[0], 1.0), "timing")
        code = process.wait()
        errors.seek(0)
        complaint = errors.read().decode(errors="replace").strip()
    if code != 0 or not output.exists():
        output.unlink(missing_ok=True)
        # A worker's own error comes before that of the process which waited for it.
        named = [line for line in complaint.splitlines() if _ERROR.match(line)]
        last = [*named[:1], *complaint.splitlines()[-1:], f"exit code {code}"][0]
        results.update_run(directory, status=results.FAILED, reason=f"timing failed: {last}")


def run_job(job: Job, directory: Path, progress: Progress) -> str:
    """Run everything that ``job`` asks for in ``directory``; returns the final status.

    The directory holds config.yaml and a run.json with status ``running``.  When interrupted the
    status says so, and the interruption goes on to the caller.
    """
    try:
        observe(directory, progress)
        run = results.read_run(directory)
        if job.measure.timing and run["status"] in results.FINISHED:
            # Not finished until it is timed: a resumed sweep looks at the status.
            results.update_run(directory, status=results.RUNNING)
            time_with_pyperf(directory, job, run, progress)
            if results.read_run(directory)["status"] == results.RUNNING:
                results.update_run(directory, status=run["status"])
    except BaseException:
        results.update_run(directory, status=results.INTERRUPTED, reason="interrupted")
        raise
    return results.read_run(directory)["status"]

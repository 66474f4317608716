"""Run a checked job in child processes: first the untimed run, then pyperf.

Each child has its own session, so that this process can kill all of its descendants at once.  A
child returns its results through the run's directory and its progress through standard output.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from benchmarks.run import results
from benchmarks.run.job import Job
from kernel import PROJECT
from kernel.engine.progress import Progress

#: The line of a traceback that names the exception.
_ERROR = re.compile(r"[\w.]+(Error|Failure|SoftLockup)\b")
#: Lines of :func:`report`, and the dots that pyperf prints, one per finished process.
_PROGRESS = re.compile(r"@ ([\d.]+) (.*)\n")
_ENDED = re.compile(r"^\.+", re.MULTILINE)


def report(fraction: float, what: str) -> None:
    """Report progress from a child to its parent."""
    print(f"@ {fraction:.4f} {what}", flush=True)


def _environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of children: they import this project from any working directory.

    They import nothing from the working directory, whose benchmarks/ may be another project's.
    """
    path = os.pathsep.join(filter(None, (str(PROJECT), base.get("PYTHONPATH"))))
    return {**base, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


@contextmanager
def _child(
    command: list[str], stderr: object, environment: Mapping[str, str] = os.environ
) -> Iterator[subprocess.Popen]:
    """Start a child in its own session; kill the whole session on exit."""
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
    """Run benchmarks.run.observe on ``directory``, which records the outcome in run.json."""
    command = [sys.executable, "-m", "benchmarks.run.observe", str(directory)]
    with TemporaryFile() as errors, _child(command, errors) as process:
        for line in process.stdout:
            text = line.decode(errors="replace")
            if match := _PROGRESS.match(text):
                progress(float(match[1]), match[2])
            else:  # printed by the plugin
                print(text, end="", flush=True)
        code = process.wait()
        errors.seek(0)
        complaint = errors.read().decode(errors="replace").strip()
    if results.read_run(directory).get("status") == results.RUNNING:
        end = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = f": {complaint.splitlines()[-1]}" if complaint else ""
        reason = f"the simulating process {end}{last}"
        results.update_run(directory, status=results.FAILED, reason=reason)


def time_with_pyperf(directory: Path, job: Job, run: dict[str, Any], progress: Progress) -> None:
    """Run benchmarks.run.worker on ``directory``, which writes bench.json.

    ``run``: run.json after the untimed run, whose duration determines the timing schedule.
    Records a failure in run.json.
    """
    schedule = job.measure.schedule(run["events"], run["replay_seconds"])
    processes, samples, warmups, replays = map(str, schedule)
    output = directory / "bench.json"
    output.unlink(missing_ok=True)
    inherited = [n for n in os.environ if n.startswith("NUMBA_") or n in ("XDG_CACHE_HOME", "HOME")]
    inherited.append("PYTHONSAFEPATH")
    environment: Mapping[str, str] = os.environ
    if job.library is not None:
        # Every process loads the library, and starts no thread that the workload does not start.
        environment = job.library.clean_environment() | {"OPENBLAS_NUM_THREADS": "1"}
        inherited += [*job.library.environment, "LD_LIBRARY_PATH", "OPENBLAS_NUM_THREADS"]
    command = [
        *(sys.executable, "-m", "benchmarks.run.worker"),
        *("--directory", str(directory), "-o", str(output)),
        *("-p", processes, "-n", samples, "-w", warmups, "-l", replays),
        *("--inherit-environ", ",".join(inherited)),
    ]
    progress(0.0, "timing")
    with TemporaryFile() as errors, _child(command, errors, environment) as process:
        output_so_far = b""
        while chunk := process.stdout.read1():
            output_so_far += chunk
            text = output_so_far.decode(errors="replace")
            ended = sum(map(len, _ENDED.findall(text)))
            _, what = [("", "timing"), *_PROGRESS.findall(text)][-1]
            progress(min(ended / schedule[0], 1.0), what)
        code = process.wait()
        errors.seek(0)
        complaint = errors.read().decode(errors="replace").strip()
    if code != 0 or not output.exists():
        output.unlink(missing_ok=True)
        # A worker prints its error before the pyperf process that waited for it prints one.
        named = [line for line in complaint.splitlines() if _ERROR.match(line)]
        last = [*named[:1], *complaint.splitlines()[-1:], f"exit code {code}"][0]
        results.update_run(directory, status=results.FAILED, reason=f"timing failed: {last}")


def run_job(job: Job, directory: Path, progress: Progress) -> str:
    """Run the untimed and the timed part of ``job`` in ``directory``; return the final status.

    The directory holds config.yaml and a run.json with status ``running``.  An interruption is
    recorded as the status and raised again.
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

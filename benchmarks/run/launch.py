"""Run a checked job in child processes: first the untimed run, then pyperf.

Each child has its own session, so that this process can kill all of its descendants at once; if
this process is killed, the kernel kills them (:func:`end_with_parent`).  A child returns its
results through the run's directory and its progress through standard output.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from benchmarks.run import results
from benchmarks.run.job import Job
from benchmarks.run.sources import Sources
from kernel import PROJECT
from kernel.engine.progress import Progress

#: The line of a traceback that names the exception.
_ERROR = re.compile(r"[\w.]+(Error|Failure|SoftLockup)\b")
#: Lines of :func:`report`, and the dots that pyperf prints, one per finished process.
_PROGRESS = re.compile(r"@ ([\d.]+) (.*)\n")
_ENDED = re.compile(r"^\.+", re.MULTILINE)


#: Environment variable with the pid of the process that started the children.
_PARENT = "MALLOC_BENCH_PARENT"
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent() -> None:
    """Have the kernel kill this child when its parent ends, even by SIGKILL (Linux only).

    Exits at once if the parent has already ended.  The parent of a pyperf worker is the leader of
    its session.  Does nothing in a process that bench.py did not start.
    """
    if _PARENT not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    leader = os.getsid(0)
    if os.getppid() != (int(os.environ[_PARENT]) if leader == os.getpid() else leader):
        os._exit(1)


def report(fraction: float, what: str) -> None:
    """Report progress from a child to its parent."""
    print(f"@ {fraction:.4f} {what}", flush=True)


def _environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of children: they import this project from any working directory.

    They import nothing from the working directory, whose benchmarks/ may be another project's, and
    whose queue.py is not the library's: relative and empty entries of PYTHONPATH are left out.
    """
    given = base.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([str(PROJECT), *(entry for entry in given if Path(entry).is_absolute())])
    return {**base, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", _PARENT: str(os.getpid())}


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


def observe(directory: Path, progress: Progress) -> tuple[str, str]:
    """Run benchmarks.run.observe on ``directory``; return status and reason of the untimed run."""
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
    if recorded := results.outcome(directory):
        return recorded
    end = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    last = f": {complaint.splitlines()[-1]}" if complaint else ""
    return results.FAILED, f"the simulating process {end}{last}"


def time_with_pyperf(directory: Path, job: Job, progress: Progress) -> str:
    """Run benchmarks.run.worker on ``directory`` and store bench.json; return the error or ''.

    The duration of the untimed run, in run.json, determines the timing schedule.
    """
    run = results.read_run(directory)
    schedule = job.measure.schedule(run["events"], run["replay_seconds"])
    processes, samples, warmups, replays = map(str, schedule)
    inherited = [n for n in os.environ if n.startswith("NUMBA_") or n in ("XDG_CACHE_HOME", "HOME")]
    inherited += ["PYTHONSAFEPATH", _PARENT]
    environment: Mapping[str, str] = os.environ
    if job.library is not None:
        # Every process loads the library, and starts no thread that the workload does not start.
        environment = job.library.clean_environment() | {"OPENBLAS_NUM_THREADS": "1"}
        inherited += [*job.library.environment, "LD_LIBRARY_PATH", "OPENBLAS_NUM_THREADS"]
    output = directory / f".bench.json.{os.getpid()}"  # pyperf does not write atomically
    output.unlink(missing_ok=True)
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
    try:
        if code == 0 and output.exists():
            results.replace_file(directory / "bench.json", output.replace)
            return ""
    finally:
        output.unlink(missing_ok=True)
    # A worker prints its error before the pyperf process that waited for it prints one.
    named = [line for line in complaint.splitlines() if _ERROR.match(line)]
    last = [*named[:1], *complaint.splitlines()[-1:], f"exit code {code}"][0]
    return f"timing failed: {last}"


def run_job(job: Job, directory: Path, sources: Sources, progress: Progress) -> tuple[str, str]:
    """Run the untimed and the timed part of ``job`` in ``directory``; return status and reason.

    The directory holds config.yaml and a run.json with status ``running``, which gets its final
    status here: failed if ``sources``, a snapshot from before, has changed.  An interruption is
    recorded as the status and raised again.
    """
    try:
        status, reason = _of_one_source(sources, *observe(directory, progress))
        if job.measure.timing and status in results.FINISHED:
            error = time_with_pyperf(directory, job, progress)
            ended = (results.FAILED, error) if error else (status, reason)
            status, reason = _of_one_source(sources, *ended)
        results.finish(directory, status, reason)
    except BaseException as error:
        with suppress(OSError):  # of a full disk, the cause below is what the user must see
            kind = results.INTERRUPTED if isinstance(error, KeyboardInterrupt) else results.FAILED
            results.finish(directory, kind, str(error) or kind)
        raise
    return status, reason


def _of_one_source(sources: Sources, status: str, reason: str) -> tuple[str, str]:
    """Return the outcome of a part of a run; failed if a source was edited meanwhile."""
    if status in results.FINISHED and (name := sources.edited()):
        return results.FAILED, f"{name} was edited during the run: run it again"
    return status, reason

"""Run the untimed part of a checked job in a child process, and tools for all child processes.

Each child has its own session, so that this process can kill all of its descendants at once; if
this process is killed, the kernel kills them (:func:`end_with_parent`).  A child returns its
results through the run's directory and its progress through standard output.
"""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from benchmarks.run import results
from benchmarks.run.job import Job
from benchmarks.run.sources import Sources
from kernel import PROJECT
from kernel.engine.cache import cache_root
from kernel.engine.progress import Progress

#: Lines of :func:`report` and of :func:`report_found`.
_PROGRESS = re.compile(r"@ ([\d.]+) (.*)\n")
_FOUND = re.compile(r"= (\{.*\})\n")
_READY = "! ready\n"

#: Environment variable with the pid of the process that started the children.
PARENT = "MALLOC_BENCH_PARENT"
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent() -> None:
    """Have the kernel kill this child when its parent ends, even by SIGKILL (Linux only).

    Exits at once if the parent has already ended.  Does nothing in a process that bench.py did not
    start.
    """
    if PARENT not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(os.environ[PARENT]):
        os._exit(1)


def report(fraction: float, what: str) -> None:
    """Report progress from a child to its parent."""
    print(f"@ {fraction:.4f} {what}", flush=True)


def report_found(**found: object) -> None:
    """Report results from a child to its parent (:func:`run_child`)."""
    print(f"= {json.dumps(found, allow_nan=False)}", flush=True)


def wait_at_gate(file: int) -> None:
    """Report in a child that it is ready, and wait for a byte from its parent."""
    print(_READY, end="", flush=True)
    os.read(file, 1)


def _found_in(
    output: Iterable[bytes], on_ready: Callable[[], None], progress: Progress
) -> dict[str, Any]:
    """Return what a child reports by :func:`report_found`; print what its plugin prints."""
    found: dict[str, Any] = {}
    for line in output:
        text = line.decode(errors="replace")
        if match := _FOUND.match(text):
            found |= json.loads(match[1])
        elif text == _READY:
            on_ready()
        elif match := _PROGRESS.match(text):
            progress(float(match[1]), match[2])
        else:
            print(text, end="", flush=True)
    return found


def _environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of children: they import this project from any working directory.

    They import nothing from the working directory, whose benchmarks/ may be another project's, and
    whose queue.py is not the library's: relative and empty entries of PYTHONPATH are left out.
    """
    given = base.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([str(PROJECT), *(entry for entry in given if Path(entry).is_absolute())])
    own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", PARENT: str(os.getpid())}
    # The cache is chosen here, so that all children have the same.
    return {**base, **own, "NUMBA_CACHE_DIR": str(cache_root())}


@contextmanager
def _child(
    command: list[str],
    stderr: object,
    environment: Mapping[str, str] = os.environ,
    pass_fds: tuple[int, ...] = (),
) -> Iterator[subprocess.Popen]:
    """Start a child in its own session; kill the whole session on exit."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=_environment(environment),
        start_new_session=True,
        pass_fds=pass_fds,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):  # it may be gone already
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


@dataclass(frozen=True)
class Ended:
    """What a child has reported (:func:`report_found`), its exit code and its errors."""

    found: Mapping[str, Any]
    code: int
    errors: Sequence[str]


def run_child(
    command: list[str],
    progress: Progress,
    environment: Mapping[str, str] = os.environ,
    pass_fds: tuple[int, ...] = (),
    on_ready: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a child to its end.  ``on_ready`` is called when it waits at its gate."""
    with (
        TemporaryFile() as errors,
        _child(command, errors, environment, pass_fds) as process,
    ):
        found = _found_in(process.stdout, on_ready, progress)
        code = process.wait()
        errors.seek(0)
        return Ended(found, code, _without_warnings(errors.read().decode(errors="replace")))


def observe(directory: Path, progress: Progress) -> tuple[str, str]:
    """Run benchmarks.run.observe on ``directory``; return status and reason of the untimed run."""
    ended = run_child([sys.executable, "-m", "benchmarks.run.observe", str(directory)], progress)
    code = ended.code
    if recorded := results.outcome(directory):
        return recorded
    end = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    last = f": {ended.errors[-1]}" if ended.errors else ""
    return results.FAILED, f"the simulating process {end}{last}{memory_hint(-code)}"


def _without_warnings(complaint: str) -> list[str]:
    """Print the warnings of a child (kernel.engine.cache.warn); return its other lines."""
    lines = complaint.strip().splitlines()
    for line in lines:
        if line.startswith("warning: "):
            print(line, file=sys.stderr, flush=True)
    return [line for line in lines if not line.startswith("warning: ")]


def memory_hint(number: object) -> str:
    """Return what to add to the message that signal ``number`` killed a child, or ''."""
    if number != signal.SIGKILL:
        return ""
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 << 20)
    return (
        f": Linux does that when the machine runs out of memory (the largest child took {peak:.1f} "
        "GiB); make the workload smaller, or run on a larger machine"
    )


def run_job(job: Job, directory: Path, sources: Sources, progress: Progress) -> tuple[str, str]:
    """Run the untimed part of ``job`` in ``directory``; return status and reason.

    The directory holds config.yaml and a run.json with status ``running``.  A run that is to be
    timed gets the status ``waiting`` here, any other its final one: failed if ``sources``, a
    snapshot from before, has changed.  An interruption is recorded and raised again.
    """
    try:
        status, reason = observe(directory, progress)
        if status in results.FINISHED and (name := sources.edited()):
            status, reason = results.FAILED, f"{name} was edited during the run: run it again"
        if job.measure.timing and status in results.FINISHED:
            status, reason = results.WAITING, "not timed yet"
            results.update_run(directory, status=status, reason=reason)
        else:
            results.finish(directory, status, reason)
    except BaseException as error:
        with suppress(OSError):  # of a full disk, the cause below is what the user must see
            kind = results.INTERRUPTED if isinstance(error, KeyboardInterrupt) else results.FAILED
            results.finish(directory, kind, str(error) or kind)
        raise
    return status, reason

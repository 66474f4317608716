"""``python bench.py allocator=NAME workload=NAME``: run an allocator under a workload.

An installed copy of the project provides the same command as ``malloc-bench``.

Hydra composes conf/ and the command line into one configuration.  bench.py checks it before any
long work, runs it in child processes (benchmarks.run.launch) and prints a summary.  The last line
of output is ``results: DIRECTORY``.  Exit codes: 0 ok, 1 failed (in a sweep: any run), 3 out of
memory, 130 interrupted.
"""

import os
import secrets
import signal
import sys
import traceback
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from traceback import walk_tb
from typing import Any

if __name__ == "__main__":  # this checkout's code, also with python -P and beside an installed one
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from kernel.engine.command import handle_interrupts

    handle_interrupts()  # during the imports below, until run()

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from benchmarks.run.compose import CONF, in_one_line, resolved
from benchmarks.run.job import Job, JobError, check_job

#: Name under which the user started this program: bench.py or malloc-bench.
PROGRAM = Path(sys.argv[0]).name
EXIT_OK, EXIT_FAILED, EXIT_OOM, EXIT_INTERRUPTED = 0, 1, 3, 130
#: As a shell reports a program that writes to a closed pipe (128 + SIGPIPE).
EXIT_PIPE = 141

# Two runs that start in the same second must not share a directory.  (Hydra imports this file a
# second time for the callback below, hence replace.)
OmegaConf.register_new_resolver(
    "unique", lambda: secrets.token_hex(3), use_cache=True, replace=True
)
# Turns a choice with a slash, for example native/glibc, into one directory name.
OmegaConf.register_new_resolver("flat", lambda choice: str(choice).replace("/", "-"), replace=True)
# The command line that starts this program, for the help text.
OmegaConf.register_new_resolver(
    "command", lambda: f"python {PROGRAM}" if PROGRAM.endswith(".py") else PROGRAM, replace=True
)


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal may be closed
        print(text, file=sys.stderr, flush=True)


def _report(error: Exception) -> int:
    """Print an error, in one line unless it is a bug of the bench, and return the exit code."""
    if isinstance(error, BrokenPipeError):
        return EXIT_PIPE
    if isinstance(error, OSError) and error.strerror:
        _say(f"{PROGRAM}: {error.filename or 'standard output'}: {error.strerror}")
        return EXIT_FAILED
    files = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    packages = set(Path(files[-1]).parts) if files else set()
    if isinstance(error, JobError) or {"hydra", "omegaconf", "yaml"} & packages:
        _say(f"{PROGRAM}: {in_one_line(error)}")
    else:
        traceback.print_exception(error)
    return EXIT_FAILED


def _remove_empty(directory: Path) -> None:
    """Remove the directory that Hydra made if it is empty."""
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


def _checked(plain: dict[str, Any], debug: object, sweep: bool) -> Job:
    """Return the job that a configuration describes.  Raises JobError."""
    if not isinstance(debug, bool):
        raise JobError(f"debug={debug}: expected true or false")
    if debug and sweep:
        raise JobError("debug=true: the debugger runs one job, not a sweep; leave out -m")
    if debug:
        os.environ["NUMBA_DISABLE_JIT"] = "1"  # before anything imports Numba
    try:
        job = check_job(plain)
    except SystemExit as error:  # would end the sweep, perhaps with exit code 0
        raise JobError(f"a plugin calls sys.exit({error.code}) where it is checked") from None
    if job.measure.duet and job.measure.timing and not sweep:
        raise JobError("measure.duet=true: compares two allocators: -m allocator=A,B")
    if job.library is None:
        if not debug:
            job.inspect()
    elif debug:
        raise JobError(f"debug=true: {job.plugin.name} is a real library; debug it with gdb")
    return job


def _open_directory(directory: Path, config: dict[str, Any], **entries: Any) -> None:
    """Write a first run.json with status ``running``, and config.yaml."""
    import yaml

    from benchmarks.run import results
    from benchmarks.run.directory import clear

    clear(directory)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"schema": results.SCHEMA, "status": results.RUNNING, "reason": ""} | entries
    content |= {"started": started, "versions": results.versions(), "machine": results.machine()}
    results.write_json(directory / "run.json", content)
    text = yaml.safe_dump(config, sort_keys=False)
    results.replace_file(directory / "config.yaml", lambda path: path.write_text(text, "utf-8"))


def run_one(config: DictConfig, directory: Path, sweep: bool) -> str:
    """Check, run and summarise one job; return its status.  Bad settings are a failed run.

    Raises DirectoryError if ``directory`` must not be written.
    """
    from benchmarks.run import results
    from benchmarks.run.directory import check_kind, check_settings, owned

    choices = HydraConfig.get().runtime.choices
    known = {
        "allocator": choices.get("allocator"),
        "label": choices.get("allocator"),
        "workload": choices.get("workload"),
        "workload_label": choices.get("workload"),
        "seed": OmegaConf.to_container(config).get("seed"),
    }
    plain: dict[str, Any] = {}
    try:
        plain = resolved(config, HydraConfig.get().runtime)
        job = _checked(plain, debug=config.get("debug"), sweep=sweep)
    except JobError as error:
        _say(f"{PROGRAM}: {error}")
        if sweep:  # a single run with bad settings leaves no directory
            check_kind(directory)
            with owned(directory):
                check_settings(directory, plain)
                _open_directory(directory, plain, **known)
                results.finish(directory, results.FAILED, str(error))
        return results.FAILED
    if config.debug:
        from benchmarks.run.debug import debug

        _remove_empty(directory)
        return debug(job)
    check_kind(directory)
    with owned(directory):
        return _run_owned(job, directory, known, plain, sweep)


def _run_owned(
    job: Job, directory: Path, known: dict[str, Any], plain: dict[str, Any], sweep: bool
) -> str:
    """Run a checked job in a directory that this process owns; return its status."""
    from benchmarks.run import results
    from benchmarks.run.directory import finished_earlier, waiting
    from benchmarks.run.launch import run_job
    from benchmarks.run.sources import edited_since, snapshot
    from benchmarks.workloads import DEFAULT_TOUCH
    from kernel.engine.progress import shown_progress

    sources = snapshot(job)
    if finished_earlier(directory, plain, sources.hashes, timed=job.measure.timing):
        _say(f"{directory.name}: finished earlier")
        return results.read_run(directory)["status"]
    if results.read_run(directory).get("status") in results.FINISHED:
        _say(f"{directory.name}: files are missing or damaged: running it again")
    known |= {
        "allocator": job.plugin.name,
        "label": job.plugin.label,
        "workload_label": job.workload_label,
        "touch": plain["workload"].get("touch", DEFAULT_TOUCH),
        "page_size": job.kernel.page_size,
        "kernel": plain["kernel"],
        "sources": sources.hashes,
    }
    if not (observed := waiting(directory, plain, sources.hashes)):
        _open_directory(directory, plain, **known)
    title = f"{directory.name.partition('-')[0]} " if sweep else ""
    title += f"{job.plugin.label} {known['workload']}"
    if sweep and (edited := edited_since(directory.parent, sources.hashes)):
        status, reason = results.FAILED, f"{edited}: repeat the sweep in another directory"
        results.finish(directory, status, reason)
    elif observed:
        status, reason = results.WAITING, ""
    else:
        with shown_progress(title) as progress:
            status, reason = run_job(job, directory, sources, progress)
    if status == results.WAITING and not sweep:  # the runs of a sweep are timed together
        status, reason = _time([directory], title)
    if status == results.FAILED:
        _say(f"{PROGRAM}: {job.plugin.label}: {reason}")
    elif not sweep:
        from benchmarks.run.summary import console, print_run

        print_run(directory, console())
    return status


def _time(directories: list[Path], title: str) -> tuple[str, str]:
    """Time the runs that wait for it, in rounds; return status and reason of the last of them."""
    from benchmarks.run import results
    from benchmarks.run.timing import load_waiting, time_runs
    from kernel.engine.progress import shown_progress

    runs = load_waiting(directories)
    if runs:
        with shown_progress(title) as progress:
            time_runs(runs, progress)
    run = results.read_run(directories[-1])
    return run["status"], run["reason"]


class SweepSummary(Callback):
    """Callback that owns the directory of a sweep, and prints its table after the last run."""

    def __init__(self) -> None:
        self._owned = ExitStack()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Lock the directory; end the process if the sweep must not be written there."""
        from benchmarks.run.directory import check_sweep, owned

        try:
            directory = Path(config.hydra.sweep.dir).resolve()
            hydra = OmegaConf.to_container(config.hydra)
            params = hydra["sweeper"].get("params") or {}
            check_sweep(directory, hydra["overrides"]["task"], params)
            directory.mkdir(parents=True, exist_ok=True)
            self._owned.enter_context(owned(directory))
        except Exception as error:  # Hydra would only warn
            sys.exit(_report(error))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Time the runs, print the table and end the process; exit code 1 if any run failed."""
        from benchmarks.run.summary import console, print_sweep, sweep_runs
        from benchmarks.run.timing import write_suites

        directory = Path(config.hydra.sweep.dir).resolve()
        try:
            runs = [path for path, _ in sweep_runs(directory)]
            if not runs:
                raise JobError("the sweep has no run: a list or range of values is empty")
            _time(runs, "sweep")
            write_suites(directory, runs)
            self._owned.close()
            succeeded = print_sweep(directory, console())
            print(f"results: {directory}", flush=True)
        except Exception as error:  # Hydra would only warn
            os._exit(_report(error))  # what is left for standard output cannot be written
        sys.exit(EXIT_OK if succeeded else EXIT_FAILED)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(config: DictConfig) -> str:
    """Run one job.  A single run sets the exit code; a run of a sweep only records its status."""
    from benchmarks.run import results
    from benchmarks.run.directory import DirectoryError

    current = HydraConfig.get()
    directory = Path(current.runtime.output_dir)
    sweep = current.mode == RunMode.MULTIRUN
    try:
        status = run_one(config, directory, sweep)
    except DirectoryError as error:
        sys.exit(_report(error))
    except OSError as error:
        code = _report(error)
        if not sweep or code == EXIT_PIPE:
            os._exit(code)  # what is left for standard output cannot be written
        return results.FAILED  # the next run may find room on the disk
    if sweep:
        return status
    _remove_empty(directory)
    if directory.exists() and (directory / "run.json").exists():
        print(f"results: {directory}", flush=True)
    sys.exit({results.OK: EXIT_OK, results.OOM: EXIT_OOM}.get(status, EXIT_FAILED))


def run() -> None:
    """Run the command line; Ctrl-C, SIGTERM and a closed terminal end it with exit code 130."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    _prepare_output()
    debugging_hydra = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, instead of printing them
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _say(f"{PROGRAM}: interrupted; finished runs are complete")
        code = EXIT_INTERRUPTED
    except Exception as error:
        if debugging_hydra:
            traceback.print_exception(error)
        code = _report(error)
    else:
        return
    os._exit(code)  # no more output


def _prepare_output() -> None:
    """Make every character printable, and refuse to run with standard output closed."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - until the process ends
    if sys.stdout is None:
        _say(f"{PROGRAM}: standard output is closed: redirect it, for example to /dev/null")
        sys.exit(EXIT_FAILED)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    run()

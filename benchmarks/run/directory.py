"""Rules for the directory of a run or a sweep: one process at a time, and no result is overwritten.

:func:`owned` locks a directory.  :func:`finished_earlier` and :func:`check_sweep` decide, before
anything is written, if a directory that exists may be used.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from benchmarks.run import results
from benchmarks.run.job import JobError
from benchmarks.run.sources import edited_since

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: File that a process locks while it works in a directory; it holds the process's number.
OWNER = ".owner"
#: File in which Hydra stores the configuration and the arguments of a sweep.
SWEEP = "multirun.yaml"
_FILES = ("run.json", *results.FILES)
#: Files that a killed process may leave.
_STEMS = "|".join(Path(name).stem for name in _FILES)
_LEFT = re.compile(rf"\.({_STEMS})\.(json\.\d+|[0-9a-f]{{12}}\.\w+)|{re.escape(OWNER)}")


class DirectoryError(JobError):
    """Error for a directory in which a run or sweep must not write; nothing was changed."""


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Lock ``directory``.  Raises DirectoryError if another process has locked it."""
    path = directory / OWNER
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        _lock(directory, file)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)  # the last owner has removed it meanwhile
    try:
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        with suppress(OSError):  # Windows cannot remove an open file
            path.unlink()
        os.close(file)


def _lock(directory: Path, file: int) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(file, 20).decode(errors="replace").strip() or "another one"
        os.close(file)
        raise DirectoryError(
            f"{directory}: process {pid} is working in this directory: wait until it ends, or "
            "choose another directory"
        ) from None
    except OSError:  # a file system without locks
        pass


def check_kind(directory: Path) -> None:
    """Raise DirectoryError if ``directory`` holds something else than a run."""
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    foreign = sorted(name for name in names if name not in _FILES and not _LEFT.fullmatch(name))
    begun = "run.json" in names or not names & set(_FILES)
    if "schema" not in results.read_run(directory) and (foreign or not begun):
        held = [*foreign, *sorted(names)][0]
        raise DirectoryError(
            f"{directory}: not the directory of a run (it holds {held}): choose an empty one"
        )


def finished_earlier(
    directory: Path, config: Mapping[str, Any], sources: Mapping[str, str], *, timed: bool
) -> bool:
    """Return True if ``directory`` holds the finished run of ``config``, with all its files.

    Raises DirectoryError if it holds a finished run of another configuration or other sources.
    """
    run = results.read_run(directory)
    if run.get("status") not in results.FINISHED:
        return False
    check_settings(directory, config)
    stored = run.get("sources", {})
    edited = [name for name in sources if stored.get(name) != sources[name]]
    if edited:
        raise DirectoryError(
            f"{directory}: holds a finished run, and {edited[0]} was edited since: choose another "
            "directory, or remove this one"
        )
    return results.is_complete(directory, timed=timed)


def waiting(directory: Path, config: Mapping[str, Any], sources: Mapping[str, str]) -> bool:
    """Return True if ``directory`` holds this run, which waits to be timed."""
    run = results.read_run(directory)
    try:
        stored = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return (
        run.get("status") == results.WAITING
        and stored == config
        and run.get("sources") == dict(sources)
        and all((directory / name).exists() for name in results.UNTIMED)
    )


def check_settings(directory: Path, config: Mapping[str, Any]) -> None:
    """Raise DirectoryError if ``directory`` holds a finished run of other settings."""
    if results.read_run(directory).get("status") not in results.FINISHED:
        return
    try:
        stored = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        stored = None
    if stored == config:
        return
    old, new = dict(_leaves(stored or {})), dict(_leaves(config))
    names = [name for name in old | new if old.get(name) != new.get(name)]
    more = ", …" if len(names) > 3 else ""
    raise DirectoryError(
        f"{directory}: holds a finished run with other settings ({', '.join(names[:3])}{more}): "
        "choose another directory"
    )


def check_sweep(directory: Path, arguments: Sequence[str], params: Mapping[str, Any]) -> None:
    """Raise DirectoryError if ``directory`` holds something else than an earlier start of a sweep.

    ``arguments``, ``params``: what defines the sweep on the command line and in its YAML.
    """
    names = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else []
    if not set(names) - {OWNER}:
        return
    try:
        hydra = yaml.safe_load((directory / SWEEP).read_text(encoding="utf-8"))["hydra"]
        stored = hydra["overrides"]["task"], hydra["sweeper"].get("params") or {}
    except FileNotFoundError:
        raise DirectoryError(
            f"{directory}: not the directory of a sweep (it holds {names[0]}): choose an empty one"
        ) from None
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError):
        stored = arguments, params  # it was cut off: the runs' own settings are compared
    if not any(directory.glob("*/run.json")):
        return
    if stored != (list(arguments), dict(params)):
        words = " ".join(stored[0])
        raise DirectoryError(
            f"{directory}: holds a sweep with other arguments ({words}): repeat them to resume it, "
            "or choose another directory"
        )
    if edited := edited_since(directory):
        raise DirectoryError(
            f"{directory}: {edited}: choose another directory, or remove the runs measured before"
        )


def clear(directory: Path) -> None:
    """Remove the files of an earlier, unfinished run, and those that a killed process has left."""
    for path in directory.iterdir():
        if path.name in results.FILES or (_LEFT.fullmatch(path.name) and path.name != OWNER):
            path.unlink()


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield the settings of nested mappings, by dotted name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value

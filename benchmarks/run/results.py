"""Files in the directory of one run, and functions that write them atomically.

    config.yaml       the resolved configuration, enough to repeat the run
    run.json          status, reason, labels, seed, versions, hashes, machine
    metrics.json      name -> number: deterministic, see benchmarks.replay.metrics
    timeline.parquet  int64 columns of benchmarks.replay.loop.TIMELINE_COLUMNS
    times.jsonl       a line per measurement of time, see benchmarks.timing.rounds
    bench.json        pyperf suite of the same times, with one benchmark named after the workload

Every file is written under a temporary name in the same directory, synchronised with the disk and
then renamed.  run.json has status ``running`` until :func:`finish` sets the final one, after the
last other file was written.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kernel import PROJECT
from kernel.engine.output import replacing

#: Version of the format of these files.
SCHEMA = 2
#: Version of the model: increased by every change that alters published numbers.
MODEL = 4

#: Status of a run.  ``ok`` and ``oom`` are results; the others come with a reason.  A run is
#: ``waiting`` when its untimed part has ended and its times are not complete.
RUNNING, OK, OOM, FAILED, INTERRUPTED = "running", "ok", "oom", "failed", "interrupted"
WAITING = "waiting"
FINISHED = (OK, OOM)
#: Files of a finished run beside run.json: of every run, and of one that was timed.
UNTIMED = ("config.yaml", "metrics.json", "timeline.parquet")
FILES = (*UNTIMED, "times.jsonl", "bench.json")

_PACKAGES = ("numpy", "numba", "llvmlite", "hydra-core", "pyperf", "pandas", "pyarrow")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then rename it to ``path``; both reach the disk."""
    with replacing(path) as temporary:
        write(temporary)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as JSON at ``path``."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_run(directory: Path) -> dict[str, Any]:
    """Return run.json of a run directory; {} if it is missing or cannot be read."""
    try:
        return json.loads((directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def update_run(directory: Path, **entries: Any) -> None:
    """Add or replace entries of run.json."""
    write_json(directory / "run.json", read_run(directory) | entries)


def outcome(directory: Path) -> tuple[str, str] | None:
    """Return status and reason that the untimed run has recorded; None if it has not ended."""
    found = read_run(directory).get("outcome")
    return tuple(found) if found else None


def finish(directory: Path, status: str, reason: str = "") -> None:
    """Record the final status of a run, and the hashes of its files if it is a result."""
    run = read_run(directory)
    run.pop("outcome", None)
    hashes = {}
    if status in FINISHED:
        present = (directory / name for name in FILES if (directory / name).exists())
        hashes = {path.name: file_hash(path) for path in present}
    end = {"status": status, "reason": reason, "files": hashes}
    write_json(directory / "run.json", run | end)


def is_complete(directory: Path, *, timed: bool) -> bool:
    """Return True if a finished run still has all its files, as :func:`finish` saw them."""
    run = read_run(directory)
    files = run.get("files", {})
    needed = set(FILES if timed else UNTIMED)
    try:
        return (
            run.get("status") in FINISHED
            and needed <= set(files)
            and all(file_hash(directory / name) == digest for name, digest in files.items())
        )
    except OSError:
        return False


def write_timeline(path: Path, columns: Mapping[str, Any]) -> None:
    """Write the timeline's columns, (rows,) int64 each, as Parquet."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(dict(columns))
    replace_file(path, lambda temporary: parquet.write_table(table, temporary, compression="zstd"))


def source_hash(folder: str) -> str:
    """Return a hash (16 hex digits) of the Python sources in a folder of the project."""
    digest = hashlib.sha256()
    for path in sorted((PROJECT / folder).rglob("*.py")):
        digest.update(path.relative_to(PROJECT).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def file_hash(path: str | Path) -> str:
    """Return a hash (16 hex digits) of one file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def versions() -> dict[str, Any]:
    """Return the versions of the schema, the model, Python and the packages that affect results."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"schema": SCHEMA, "model": MODEL, "python": platform.python_version()} | packages


def machine() -> dict[str, Any]:
    """Describe the machine of the run, without its name."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

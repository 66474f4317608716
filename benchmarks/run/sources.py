"""Hashes of everything that determines the result of a run: code, plugin, and the files it reads.

The child processes of a run, and the runs of a sweep, import the code anew each time.  run.json
therefore holds the hashes from before the first child was started, and :meth:`Sources.edited` and
:func:`edited_since` notice when a later one would measure something else.
"""

import ast
import functools
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from allocators.base.registry import Plugin
from benchmarks.run import results
from benchmarks.run.job import Job
from benchmarks.trace import shipped
from kernel import PROJECT

#: Folders of the project whose code takes part in every run.
_FOLDERS = ("kernel", "allocators/base", *(f"benchmarks/{n}" for n in ("events", "replay", "real")))
_FOLDERS += ("benchmarks/trace/formats", "benchmarks/workloads")
#: Folders of modules that belong to Python or to an installed package.
_INSTALLED = [Path(sysconfig.get_path(n)).resolve() for n in ("stdlib", "purelib", "platlib")]


@dataclass(frozen=True)
class Sources:
    """Snapshot of the sources of a run: ``hashes`` by name, and what stat() says of each file.

    A name is a folder or file, relative to the project or absolute.
    """

    hashes: Mapping[str, str]
    stamps: Mapping[str, list[tuple[str, int, int]]]

    def edited(self) -> str:
        """Return the name of a source that was edited since the snapshot, even if undone; or ''."""
        return next((name for name, old in self.stamps.items() if _stamp(name) != old), "")


def snapshot(job: Job) -> Sources:
    """Return the sources of ``job``."""
    names = dict.fromkeys((*_FOLDERS, *map(_name, _files(job))))
    stamps = {name: _stamp(name) for name in names}  # first, to notice an edit before the hashes
    return Sources({name: digest(name) for name in names}, stamps)


def digest(name: str) -> str:
    """Return the present hash of a source, '' if it is missing."""
    path = PROJECT / name
    if path.is_dir():
        return results.source_hash(name)
    return _file_digest(path, tuple(_stamp(name))) if path.is_file() else ""


def edited_since(sweep: Path, hashes: Mapping[str, str] | None = None) -> str:
    """Say which source was edited since a finished run of ``sweep`` was measured; '' if none.

    ``hashes``: the sources of the next run; None: the present sources of all finished runs.
    """
    present = functools.cache(digest) if hashes is None else hashes.get
    for directory in sorted(path.parent for path in sweep.glob("*/run.json")):
        run = results.read_run(directory)
        if run.get("status") not in results.FINISHED:
            continue
        if "sources" not in run:
            return f"an earlier version of the bench measured {directory.name}"
        for name, old in run["sources"].items():
            if present(name) not in (None, old):
                return f"{name} was edited after {directory.name} was measured"
    return ""


@functools.cache
def _file_digest(path: Path, _stamp: tuple) -> str:
    """Return the hash of a file; a large trace is read only once in a sweep."""
    return results.file_hash(path)


def _stamp(name: str) -> list[tuple[str, int, int]]:
    """Return path, modification time and size of the files of a source."""
    path = PROJECT / name
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []
    found = ((str(file), file.stat()) for file in files)
    return [(file, stat.st_mtime_ns, stat.st_size) for file, stat in found]


def _name(path: Path) -> str:
    """Return the name of a file: relative to the project if it lies there."""
    path = path.resolve()
    return str(path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path)


def _files(job: Job) -> Iterator[Path]:
    """Yield the files that this job reads: plugins with the modules they import, trace, library."""
    if job.library is not None:
        yield job.library.path
    path = job.workload.get("path")
    if isinstance(path, str) and not path.startswith(shipped.PREFIX) and Path(path).is_file():
        yield Path(path)
    stem = Path(job.workload["name"]).stem  # the project's own workloads are in its folders
    plugins = [m for name, m in sys.modules.items() if name.startswith(f"workload_{stem}_")]
    if isinstance(job.plugin, Plugin):
        plugins.append(job.plugin.module)
    for module in _imported(plugins):
        yield Path(module.__file__)


def _imported(modules: list[ModuleType]) -> list[ModuleType]:
    """Return ``modules`` and the modules that they import, except installed packages."""
    found = list(modules)
    for module in found:  # grows
        try:
            tree = ast.parse(Path(module.__file__).read_bytes())
        except (OSError, SyntaxError):  # edited since it was imported: its own hash tells
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                base = importlib.util.resolve_name(base, module.__package__ or None)
                names = [base, *(f"{base}.{name}" for name in names)]
            imported = dict.fromkeys(map(sys.modules.get, names))
            found += [m for m in imported if _is_own(m) and m not in found]
    return found


def _is_own(module: ModuleType | None) -> bool:
    """Return True if ``module`` is a file outside the folders that are hashed as a whole."""
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py"):
        return False
    path = Path(file).resolve()
    folders = (*_INSTALLED, *(PROJECT / folder for folder in _FOLDERS))
    return not any(path.is_relative_to(folder) for folder in folders)

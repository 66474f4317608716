"""Plugin modules, found by name in the project's folder and in installed packages, or by path."""

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

#: Group of the entry points with which packages declare folders of plugins.
GROUP = "malloc_bench.plugins"


@cache
def installed() -> tuple[list[Path], list[str]]:
    """Return the folders that installed packages declare, and errors of packages without one.

    The value of an entry point is the dotted name of a folder with the layout of conf/, in which
    every module is beside its YAML: allocator/NAME.yaml and allocator/NAME.py, workload/NAME.yaml
    and so on.  No part of the package is imported.
    """
    folders, errors = [], []
    for entry in entry_points(group=GROUP):
        top, *below = entry.value.split(".")
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            spec = None
        places = (spec and spec.submodule_search_locations) or ()
        found = [folder for place in places if (folder := Path(place, *below).resolve()).is_dir()]
        if not found:
            what = f"entry point {entry.name} = {entry.value}: there is no such folder"
            errors.append(f"package {entry.dist.name}: {what}; reinstall or remove the package")
        folders += [folder for folder in found[:1] if folder not in folders]
    return folders, errors


@dataclass(frozen=True)
class Plugins:
    """Plugins of one ``kind``: the modules of the project's ``package``, which is in ``folder``.

    The modules in the folder KIND of each installed package are plugins, too.  Mistakes raise
    ``error``, a ValueError.
    """

    kind: str
    package: str
    folder: Path
    error: type[ValueError]

    def names(self) -> list[str]:
        """Return the names of the project's own plugins."""
        return sorted(p.stem for p in self.folder.glob("[!_]*.py"))

    def load(self, name: str) -> ModuleType:
        """Import a plugin by name, or a .py file by path, which is imported anew each time."""
        if name.endswith(".py"):
            path = Path(name).resolve()
            module_name = self._unique_name(path)
            if not path.is_file():
                raise self.error(f"no {self.kind} file {name}")
        else:
            path = self._find(name)
            own = path.parent == self.folder
            module_name = f"{self.package}.{name}" if own else self._unique_name(path)
            if module_name in sys.modules:
                return sys.modules[module_name]
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise self.error(f"{self.kind} {path.stem}: {located(error, path)}") from error
        return module

    def _find(self, name: str) -> Path:
        """Return the file of the plugin ``name``; raise ``error`` unless there is exactly one."""
        folders, errors = installed()
        homes = [self.folder, *(folder / self.kind for folder in folders)]
        files = [path for home in homes for path in sorted(home.glob("[!_]*.py"))]
        found = [path for path in files if path.stem == name]
        if len(found) > 1:
            places = " and ".join(map(str, found))
            raise self.error(f"{self.kind} {name} is defined twice: {places}; rename or remove one")
        if not found:
            known = ", ".join(path.stem for path in files)
            what = f"no {self.kind} {name!r}; choose one of {known}, or a .py file"
            raise self.error("; ".join([what, *errors]))
        return found[0]

    def _unique_name(self, path: Path) -> str:
        """Return a module name for a file outside the project's package."""
        return f"{self.kind}_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"


def located(error: BaseException, path: Path | str) -> str:
    """Return 'FILE:LINE: ERROR: message' in one line; LINE as :func:`last_line` returns it."""
    line = last_line(error, path)
    place = f"{path}:{line}" if line else path
    return f"{place}: {type(error).__name__}: {error}".replace("\n", " ")


def last_line(error: BaseException, path: Path | str) -> int:
    """Return the line of the deepest frame of ``error`` in ``path``, or 0."""
    line = getattr(error, "lineno", None)  # a SyntaxError has one
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line or 0

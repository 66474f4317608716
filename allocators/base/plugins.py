"""Plugin modules, found by name in the project's folder and in installed packages, or by path."""

import hashlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from allocators.base.faults import located
from kernel.engine.jit import disabled
from kernel.engine.watchdog import SoftLockup, limited

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

    The modules in the folder KIND of each installed package are plugins, too.  A plugin that cannot
    be found raises ``error``, a ValueError; a mistake in its code raises ``fault``, a subclass.
    """

    kind: str
    package: str
    folder: Path
    error: type[ValueError]
    fault: type[ValueError]

    def names(self) -> list[str]:
        """Return the names of the project's own plugins."""
        return sorted(p.stem for p in self.folder.glob("[!_]*.py"))

    def load(self, name: str) -> ModuleType:
        """Import a plugin by name, or a .py file by path, which is imported anew each time."""
        if name.endswith(".py"):
            path = Path(name).resolve()
            module_name = self._unique_name(path)
            if not path.is_file():
                what = "it is a directory" if path.is_dir() else "there is no such file"
                raise self.error(f"no {self.kind} file {name}: {what}")
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
            self.call(path, spec.loader.exec_module, module)
        except BaseException:
            del sys.modules[module_name]
            raise
        return module

    def call(
        self,
        path: Path | str,
        function: Callable,
        *args: Any,
        passes: tuple[type[Exception], ...] = (),
        seconds: float | None = None,
    ) -> Any:
        """Return ``function(*args)``, Python code of the plugin in ``path``.

        Raises ``fault`` with the file and line for any exception (except those that it ``passes``),
        for an attempt to exit, and for a call that has not ended after ``seconds`` (default: the
        watchdog's; with the JIT off, where a debugger may have stopped it, there is no limit;
        infinity: none either, and the call is made in the calling thread).
        """
        try:
            with _exit_raises():
                if disabled() or seconds == math.inf:
                    return function(*args)
                return limited(function, *args, seconds=seconds)
        except passes:
            raise
        except SoftLockup as lockup:
            line = lockup.line(path)
            place = f"{path}:{line}" if line else path
            what = f"has not ended after {lockup.seconds:g} s: it loops for ever"
            name = "the import" if function.__name__ == "exec_module" else f"{function.__name__}()"
            raise self.fault(f"{self.kind} {Path(path).stem}: {place}: {name} {what}") from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            code = getattr(function, "__code__", None)
            first = code.co_firstlineno if code and code.co_filename == str(path) else 0
            what = located(error, path, first)
            raise self.fault(f"{self.kind} {Path(path).stem}: {what}") from error

    def version(self, module: ModuleType) -> str:
        """Return "", or for a file outside the project and the installed packages "@" and a hash.

        Its name may be that of another plugin, so its label needs more than the name.
        """
        path = Path(module.__file__)
        if path.parent in (self.folder, *(folder / self.kind for folder in installed()[0])):
            return ""
        return f"@{hashlib.sha256(path.read_bytes()).hexdigest()[:6]}"

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


@contextmanager
def _exit_raises() -> Iterator[None]:
    """Make os._exit() raise SystemExit in this process, where it would end the command silently."""
    exit_process, process = os._exit, os.getpid()

    def refuse(code: int) -> None:
        if os.getpid() != process:
            exit_process(code)
        raise SystemExit(code)

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = exit_process

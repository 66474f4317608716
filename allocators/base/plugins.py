"""Modules that are plugins: found by the stem of a file in one folder, or by a path anywhere."""

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Plugins:
    """The plugins of one ``kind`` (a word for messages) in the folder of a ``package``.

    Every module in the folder is one.  Mistakes raise ``error``, a ValueError.
    """

    kind: str
    package: str
    folder: Path
    error: type[ValueError]

    def names(self) -> list[str]:
        """Return the plugins of the project."""
        return sorted(p.stem for p in self.folder.glob("[!_]*.py"))

    def load(self, name: str) -> ModuleType:
        """Import a plugin, one that is named by its path anew each time."""
        if name.endswith(".py"):
            path = Path(name).resolve()
            module_name = f"{self.kind}_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
            if not path.is_file():
                raise self.error(f"no {self.kind} file {name}")
        elif name in self.names():
            path = self.folder / f"{name}.py"
            module_name = f"{self.package}.{name}"
            if module_name in sys.modules:
                return sys.modules[module_name]
        else:
            known = ", ".join(self.names())
            raise self.error(f"no {self.kind} {name!r}; choose one of {known}, or a .py file")
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise self.error(f"{self.kind} {path.stem}: {located(error, path)}") from error
        return module


def located(error: BaseException, path: Path | str) -> str:
    """Return 'FILE:LINE: ERROR: message', one line; LINE is the last one of ``path`` to raise."""
    text = f"{path}{_last_line(error, path)}: {type(error).__name__}: {error}"
    return text.replace("\n", " ")


def _last_line(error: BaseException, path: Path | str) -> str:
    """Return ':LINE' of the deepest frame of ``error`` in ``path``, or nothing."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f":{line}" if line else ""

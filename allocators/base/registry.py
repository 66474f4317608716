"""Find allocators and check their settings, without compiling anything.

A plugin is named by the stem of its file in allocators/, or by the path of a ``.py`` file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from allocators.base import contract
from allocators.base.contract import CONTRACT, REQUIRED, Promises
from allocators.base.plugins import Plugins, located
from allocators.base.settings import Setting
from kernel.engine import switches
from kernel.engine.jit import WalkError, check_signature, check_state, is_jit, source_hash
from kernel.engine.record import record


class PluginError(ValueError):
    """Error for a plugin that cannot be found or used; the message names it and says why."""


_PLUGINS = Plugins("allocator", "allocators", Path(__file__).resolve().parent.parent, PluginError)


@dataclass(frozen=True)
class Plugin:
    """Allocator with its settings; ``values`` maps the name of each setting to its integer."""

    name: str
    module: ModuleType
    values: Mapping[str, int]

    @property
    def label(self) -> str:
        """Name in results: the allocator's, with the settings that differ from their defaults."""
        declared = declared_settings(self.module)
        changed = [
            f"{name}={declared[name].format(value)}"
            for name, value in self.values.items()
            if value != declared[name]
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def formatted(self) -> dict[str, Any]:
        """Return the settings as a user writes them."""
        declared = declared_settings(self.module)
        return {name: declared[name].format(value) for name, value in self.values.items()}

    def bindings(self) -> dict[str, Any]:
        """Return the bindings for build(): the contract's functions and the settings' constants."""
        functions = {name: getattr(self.module, name, getattr(contract, name)) for name in CONTRACT}
        return functions | {name.upper(): value for name, value in self.values.items()}

    def inspect(self) -> None:
        """Check the plugin's functions for mistakes that can be found without compiling.

        Raises PluginError with the file and line.
        """
        bindings = self.bindings()
        state = self.module.STATE.names or ()
        try:
            for name in CONTRACT:
                function = getattr(self.module, name, None)
                if function is not None:
                    check_signature(getattr(contract, name), function)
                    check_state(function, 1, state)
            for name in ("init", "walk", "check", "reset"):
                source_hash(bindings[name], **bindings)
            source_hash(contract.perform, **bindings)
        except WalkError as error:
            raise PluginError(str(error)) from None

    def state(self, *, bounded: bool = False) -> np.recarray:
        """Return a zeroed record of the plugin's static variables, (1,) STATE.

        ``bounded``: see :func:`kernel.engine.record.record`.
        """
        return record(self.module.STATE, bounded=bounded)

    def promises(self) -> Promises:
        """Return the misuse that the design detects and the memory that it retains."""
        function = getattr(self.module, "promises", None)
        return function(dict(self.values)) if function else Promises()


def names() -> list[str]:
    """Return the names of the project's own allocators."""
    return _PLUGINS.names()


def declared_settings(module: ModuleType) -> dict[str, Setting]:
    """Return the tunable constants of a plugin by their lower-case names."""
    return {name.lower(): v for name, v in vars(module).items() if isinstance(v, Setting)}


def load(name: str, settings: Mapping[str, Any] | None = None) -> Plugin:
    """Return the plugin ``name`` (or the path of a .py file) with ``settings``, parsed from YAML.

    Raises PluginError for an unknown name, a file that cannot be imported or does not define a part
    of the contract, and an unknown or invalid setting.
    """
    module = _PLUGINS.load(name)
    stem = Path(name).stem
    missing = [n for n in ("STATE", *REQUIRED) if not hasattr(module, n)]
    if missing:
        raise PluginError(
            f"allocator {name}: {module.__file__} does not define {', '.join(missing)}"
        )
    for n in CONTRACT:
        if hasattr(module, n) and not is_jit(getattr(module, n)):
            raise PluginError(f"allocator {name}: {n} in {module.__file__} is not marked @jit")
    declared = declared_settings(module)
    for setting in declared:
        if setting.upper() in switches.NAMES:
            raise PluginError(
                f"allocator {name}: {setting.upper()} is a compile-time switch; rename the setting"
            )
    values = {n: int(v) for n, v in declared.items()}
    for key, value in (settings or {}).items():
        if key not in declared:
            known = ", ".join(declared) or "none"
            raise PluginError(f"allocator {name}: unknown setting {key!r} (it has: {known})")
        try:
            values[key] = declared[key].parse(key, value)
        except ValueError as error:
            raise PluginError(f"allocator {name}: {error}") from None
    if hasattr(module, "check_settings"):
        try:
            module.check_settings(dict(values))
        except ValueError as error:
            raise PluginError(f"allocator {name}: {error}") from None
        except Exception as error:
            raise PluginError(f"allocator {stem}: {located(error, module.__file__)}") from error
    return Plugin(stem, module, values)

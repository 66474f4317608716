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
from allocators.base.faults import place_of
from allocators.base.plugins import Plugins
from allocators.base.settings import Setting
from kernel.engine import switches
from kernel.engine.jit import WalkError, check_fields, check_signature, is_jit, source_hash
from kernel.engine.record import record
from kernel.types import kernel_dtype


class PluginError(ValueError):
    """Error for a plugin that cannot be found or used; the message names it and says why."""


class PluginFault(PluginError):
    """Error for a mistake in the code of a plugin; the message has its file and line."""


_PLUGINS = Plugins(
    "allocator", "allocators", Path(__file__).resolve().parent.parent, PluginError, PluginFault
)


#: Kinds of numbers that compiled code can read from a record, and the largest STATE, bytes.
_FIELD_TYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"}
_MAX_STATE = 1 << 30
#: Fields of the kernel's record, with those that only some configurations have.
_KERNEL = kernel_dtype(12, 32, 8, frames=True, tlb=True)
_KERNEL_NESTED = {name: _KERNEL[name].names for name in _KERNEL.names if _KERNEL[name].names}


@dataclass(frozen=True)
class Plugin:
    """Allocator with its settings; ``values`` maps the name of each setting to its integer.

    ``version``: see :meth:`allocators.base.plugins.Plugins.version`.
    """

    name: str
    module: ModuleType
    values: Mapping[str, int]
    version: str = ""

    @property
    def label(self) -> str:
        """Name in results: the allocator's, with the settings that differ from their defaults."""
        declared = declared_settings(self.module)
        changed = [
            f"{name}={declared[name].format(value)}"
            for name, value in self.values.items()
            if value != declared[name]
        ]
        name = self.name + self.version
        return f"{name}({', '.join(changed)})" if changed else name

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

        Raises PluginFault with the file and line.
        """
        bindings = self.bindings()
        state = self.module.STATE.names
        self.promises()
        try:
            for name in CONTRACT:
                function = getattr(self.module, name, None)
                if function is not None:
                    check_signature(getattr(contract, name), function)
                    check_fields(function, 1, state)
                    check_fields(function, 0, _KERNEL.names, nested=_KERNEL_NESTED, beyond=False)
            for name in ("init", "walk", "check", "reset"):
                source_hash(bindings[name], **bindings)
            source_hash(contract.perform, **bindings)
        except WalkError as error:
            raise PluginFault(str(error)) from None

    def state(self, *, bounded: bool = False) -> np.recarray:
        """Return a zeroed record of the plugin's static variables, (1,) STATE.

        ``bounded``: see :func:`kernel.engine.record.record`.
        """
        return record(self.module.STATE, bounded=bounded)

    def promises(self) -> Promises:
        """Return the misuse that the design detects and the memory that it retains.

        Raises PluginFault.
        """
        function = getattr(self.module, "promises", None)
        if function is None:
            return Promises()
        promised = _PLUGINS.call(self.module.__file__, function, dict(self.values))
        if not isinstance(promised, Promises):
            what = f"promises() returns {promised!r}: it must return Promises(...)"
            raise _fault(self.name, self.module, "promises", what)
        return promised


def names() -> list[str]:
    """Return the names of the project's own allocators."""
    return _PLUGINS.names()


def declared_settings(module: ModuleType) -> dict[str, Setting]:
    """Return the tunable constants of a plugin by their lower-case names."""
    return {name.lower(): v for name, v in vars(module).items() if isinstance(v, Setting)}


def load(name: str, settings: Mapping[str, Any] | None = None) -> Plugin:
    """Return the plugin ``name`` (or the path of a .py file) with ``settings``, parsed from YAML.

    Raises PluginError for an unknown name and an unknown or invalid setting, and PluginFault for a
    file that cannot be imported or breaks the contract.
    """
    module = _PLUGINS.load(name)
    stem = Path(name).stem
    _check_definitions(stem, module)
    declared = declared_settings(module)
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
        function, copy = module.check_settings, dict(values)
        try:
            _PLUGINS.call(module.__file__, function, copy, passes=(ValueError,))
        except PluginError:
            raise
        except ValueError as error:
            raise PluginError(f"allocator {name}: {error}") from None
    return Plugin(stem, module, values, _PLUGINS.version(module))


def _fault(name: str, module: ModuleType, part: str, what: str) -> PluginFault:
    """Return the error for the global ``part`` of a plugin."""
    return PluginFault(f"allocator {name}: {place_of(module, part)}: {what}")


def _check_definitions(name: str, module: ModuleType) -> None:
    """Raise PluginFault unless the module defines the parts of the contract as it demands."""
    missing = [n for n in ("STATE", *REQUIRED) if not hasattr(module, n)]
    if missing:
        what = f"{module.__file__} does not define {', '.join(missing)}"
        raise PluginFault(f"allocator {name}: {what}")
    for n in CONTRACT:
        value = getattr(module, n, None)
        if value is not None and not is_jit(value):
            raise _fault(name, module, n, f"{n} must be a function marked @jit")
    for n in ("promises", "check_settings"):
        if not callable(getattr(module, n, callable)):
            raise _fault(name, module, n, f"{n} must be a function")
    if not isinstance(getattr(module, "CHECKS", {}), Mapping):
        raise _fault(name, module, "CHECKS", "CHECKS must be a dict: {code: meaning}")
    if wrong := _wrong_state(module.STATE):
        raise _fault(name, module, "STATE", wrong)
    for setting in declared_settings(module):
        if setting.upper() in switches.NAMES:
            what = f"{setting.upper()} is a compile-time switch; rename the setting"
            raise _fault(name, module, setting.upper(), what)


def _wrong_state(state: object) -> str:
    """Return the reason why compiled code cannot use a record of dtype ``state``, or ""."""
    if not isinstance(state, np.dtype) or not state.names:
        return "STATE must be a np.dtype of named fields (without any: contract.NO_STATE)"
    end = 0
    for field in state.names:
        offset = state.fields[field][1]
        if offset < end:
            return f"STATE.{field} overlaps another field or is not in the order of the offsets"
        end = offset + state[field].itemsize
        if hasattr(np.record, field):
            return f"STATE has a field {field!r}, which is an attribute of np.record; rename it"
        base = state[field].base
        if base.names:
            if wrong := _wrong_state(base):
                return wrong
        elif base.str[1:] not in _FIELD_TYPES or not base.isnative:
            return f"STATE.{field} is of type {base}: compiled code has numbers of up to 8 bytes"
    if state.itemsize > _MAX_STATE:
        return f"STATE takes {state.itemsize} bytes: at most {_MAX_STATE}"
    return ""

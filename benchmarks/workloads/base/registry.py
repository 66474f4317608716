"""Find workloads, check their settings, and make their events."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from allocators.base.contract import MAX_THREADS
from allocators.base.faults import place_of
from allocators.base.plugins import Plugins
from allocators.base.settings import Setting
from benchmarks.events.events import (
    Events,
    make_events,
    operation_count,
    read_only,
    slot_count,
)
from benchmarks.events.facts import Audit, Fingerprint
from benchmarks.events.stream import Stream
from benchmarks.events.touch import TOUCH_NAMES
from benchmarks.trace import shipped
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import SizesSetting
from kernel.engine.jit import WalkError, check_fields, is_jit

#: Default of the setting ``touch``: how the program accesses its memory.
DEFAULT_TOUCH = "all"
#: Fields of a program's record that hold the next event.
PROGRAM_FIELDS = ("op", "slot", "request", "align", "offset")
MAX_SEED = (1 << 62) - 1
#: Largest number of events and slots of a program.
_MAX_EVENTS, _MAX_SLOTS = 1 << 40, 1 << 28
#: Time limit of generate(): seconds, and seconds for each of the setting ``operations``.
_PATIENCE, _EVENT_PATIENCE = 60.0, 50e-6


class WorkloadError(ValueError):
    """Error for a workload that cannot be found, made or read; it names the setting or place."""


_PLUGINS = Plugins(
    "workload",
    "benchmarks.workloads",
    Path(__file__).resolve().parent.parent,
    WorkloadError,
    WorkloadError,
)


@dataclass(frozen=True)
class Program:
    """Compiled generator: ``state()`` makes a new record for its ``next_event(g, last)``.

    ``length``: largest number of events; the generator may end earlier by returning False.
    """

    next_event: Callable
    state: Callable[[], np.record]
    length: int


@dataclass(frozen=True)
class Workload:
    """Input of a replay: stored ``events``, a ``program``, or a ``stream`` of events.

    ``slots``: size of the table of objects.  ``operations``: number of allocator events (for a
    program: the largest).  ``fingerprint``: sha256 over all columns (for a program: over its
    source, settings and seed).  ``provenance``: plain values for JSON.
    """

    name: str
    label: str
    events: Events | None = field(repr=False)
    program: Program | None
    stream: Stream | None
    slots: int
    operations: int
    fingerprint: str
    touch: str
    seed: int
    provenance: dict[str, Any] = field(repr=False)

    @property
    def has_threads(self) -> bool:
        """True if events of several threads are replayed."""
        if self.stream is not None:
            return "thread" in self.stream.names
        return self.events is not None and len(np.unique(self.events.thread)) > 1


class PathSetting:
    """Declaration of a setting that names a file."""

    default = ""

    def parse(self, name: str, value: object) -> str:
        """Return the path; for the name of a shipped trace, its path.  Raises ValueError."""
        if not isinstance(value, str) or not value:
            raise ValueError(
                f"{name}={'' if value is None else value}: expected the path of a file"
            )
        if value.startswith(shipped.PREFIX):
            return str(shipped.path_of(value.removeprefix(shipped.PREFIX)))
        return value

    def format(self, value: str) -> str:
        """Return the path as a user writes it."""
        name = shipped.name_of(Path(value))
        return f"{shipped.PREFIX}{name}" if name else value


def path() -> PathSetting:
    """Declare a setting that names a file; it has no default."""
    return PathSetting()


def names() -> list[str]:
    """Return the names of the project's own workloads."""
    return _PLUGINS.names()


@dataclass(frozen=True)
class _Choice:
    """Workload's module with checked settings."""

    name: str
    module: ModuleType
    settings: dict[str, Any]
    touch: str
    seed: int

    def call(self, name: str, *args: Any, **limits: Any) -> Any:
        """Call the function ``name`` of the module; ``limits``: as of Plugins.call.

        Raises WorkloadError with file and line.
        """
        function = getattr(self.module, name)
        return _PLUGINS.call(self.module.__file__, function, *args, **limits)

    def fault(self, part: str, what: str) -> WorkloadError:
        """Return the error for the function ``part`` of the module."""
        return WorkloadError(f"workload {self.name}: {place_of(self.module, part)}: {what}")

    @property
    def formatted(self) -> dict[str, Any]:
        declared = _declared(self.module)
        return {name: declared[name].format(value) for name, value in self.settings.items()}

    @property
    def label(self) -> str:
        """Name in results: the workload's, with the settings that differ from their defaults.

        A path is shown as the name of its file.  A shipped trace is named after the trace, not
        after the workload that reads it.
        """
        title, changed = self.name + _PLUGINS.version(self.module), []
        for name, setting in _declared(self.module).items():
            value = self.settings[name]
            if isinstance(setting, SizesSetting):
                changed += setting.differences(name, value)
            elif isinstance(setting, PathSetting):
                name = shipped.name_of(Path(value))
                if name and self.name == "trace":
                    title = name
                else:
                    changed.append(name or Path(value).name)
            elif value != setting:
                changed.append(f"{name}={setting.format(value)}")
        if self.touch != DEFAULT_TOUCH:
            changed.append(f"touch={self.touch}")
        return f"{title}({', '.join(changed)})" if changed else title


def validate(settings: Mapping[str, Any]) -> None:
    """Check the settings of a workload without making it or importing a compiler.

    Raises WorkloadError as :func:`load` does, except for errors inside a trace.
    """
    _choose(settings)


def label(settings: Mapping[str, Any]) -> str:
    """Return the name of a workload, with the settings that differ from their defaults.

    Raises WorkloadError as :func:`validate` does.
    """
    return _choose(settings).label


def load(
    settings: Mapping[str, Any],
    progress: Callable[[float, str], None] | None = None,
    *,
    trusted: bool = False,
) -> Workload:
    """Make or read the workload ``settings["name"]``: a file's stem in this folder or a .py path.

    ``settings`` may hold ``seed``, ``touch`` and the workload's own settings; a missing setting has
    its default.  ``progress`` is called while a trace is read.  ``trusted``: the events are not
    audited, because another process has done so.  Raises WorkloadError.
    """
    choice = _choose(settings)
    s, module = SimpleNamespace(**choice.settings, seed=choice.seed), choice.module
    provenance: dict[str, Any] = {
        "workload": choice.name,
        "settings": choice.formatted,
        "seed": choice.seed,
        "source_sha256": hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest(),
    }
    events = program = stream = None
    if hasattr(module, "next_event"):
        program = _program(choice, s)
        slots, operations = _count(choice, s, "slots", _MAX_SLOTS), program.length
        text = json.dumps(provenance, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
    else:
        events, more = _events(choice, s, progress, trusted)
        provenance |= more
        if isinstance(events, Stream):
            events, stream = None, events
            facts = stream.facts
            slots, operations, digest = facts.slots, facts.operations, facts.fingerprint
        else:
            events = read_only(events)
            slots, operations = slot_count(events), operation_count(events)
            digest = fingerprint(events)
    if not operations:
        raise WorkloadError(
            f"workload {choice.label}: no event allocates or frees; nothing to replay"
        )
    return Workload(
        name=choice.name,
        label=choice.label,
        events=events,
        program=program,
        stream=stream,
        slots=slots,
        operations=operations,
        fingerprint=digest,
        touch=choice.touch,
        seed=choice.seed,
        provenance=provenance,
    )


def _program(choice: _Choice, s: SimpleNamespace) -> Program:
    """Return the compiled generator.  Raises WorkloadError if a replay could not run it."""
    module = choice.module

    def start() -> np.record:
        return choice.call("start", s, Random(choice.seed))

    state = start()
    dtype = getattr(state, "dtype", None)
    if dtype is None or dtype.names is None or state.shape:
        raise choice.fault("start", "start() must return a record (kernel.engine.record.record)")
    missing = [name for name in PROGRAM_FIELDS if name not in dtype.names]
    if missing:
        raise choice.fault("start", f"start() returns a record without {', '.join(missing)}")
    for name in PROGRAM_FIELDS:
        if dtype[name].kind != "i":
            what = f"field {name} of the record is {dtype[name]}: expected an integer such as i8"
            raise choice.fault("start", what)
    try:
        check_fields(module.next_event, 0, dtype.names)
    except WalkError as error:
        raise WorkloadError(f"workload {choice.name}: {error}") from None
    return Program(module.next_event, start, _count(choice, s, "length", _MAX_EVENTS))


def _count(choice: _Choice, s: SimpleNamespace, name: str, limit: int) -> int:
    """Return the whole number that the function ``name`` of the workload returns."""
    count = choice.call(name, s)
    if (
        isinstance(count, bool)
        or not isinstance(count, int | np.integer)
        or not 0 <= count <= limit
    ):
        what = f"{name}() returns {count!r}: expected a whole number from 0 to {limit}"
        raise choice.fault(name, what)
    return int(count)


def _events(
    choice: _Choice,
    s: SimpleNamespace,
    progress: Callable[[float, str], None] | None,
    trusted: bool,
) -> tuple[Events | Stream, dict[str, Any]]:
    """Generate or read the events; return them and their provenance."""
    name, more = "generate", {}
    if hasattr(choice.module, "read"):
        name = "read"
        try:
            found = choice.call(name, s, progress, passes=(ValueError, OSError), seconds=math.inf)
        except WorkloadError:
            raise
        except ValueError as error:
            raise WorkloadError(f"workload {choice.name}: {error}") from None
        try:
            events, more = found
            json.dumps(dict(more))
        except (TypeError, ValueError):
            what = "read() must return events and a dict for JSON, their provenance"
            raise choice.fault(name, what) from None
        if isinstance(events, Stream):
            return events, more
    else:
        seconds = _PATIENCE + _EVENT_PATIENCE * getattr(s, "operations", 0)
        events = choice.call(name, s, Random(choice.seed), seconds=seconds)
    if not isinstance(events, Events):
        what = f"{name}() returns {type(events).__name__}: expected Events, as of make_events(...)"
        raise choice.fault(name, what)
    try:
        events = make_events(**events._asdict())
    except (TypeError, ValueError) as error:
        raise choice.fault(name, str(error)) from None
    if trusted:
        return events, more
    wrong = Audit(len(events.op)).add(events) or (name == "generate" and _sparse_thread(events))
    if wrong:
        raise choice.fault(name, wrong)
    return events, more


def _sparse_thread(events: Events) -> str:
    """Return "event N: …" for a thread number that dense numbers cannot reach, or ""."""
    limit = max(len(events.op), MAX_THREADS)
    if not (events.thread >= limit).any():
        return ""
    event = int(np.argmax(events.thread >= limit))
    return f"event {event}: thread {events.thread[event]}: must be 0 to {limit - 1}"


def fingerprint(events: Events) -> str:
    """Return the sha256 (64 hex digits) over names, types and contents of all non-empty columns."""
    whole = Fingerprint()
    whole.add(events)
    return whole.hexdigest()


def _declared(module: ModuleType) -> dict[str, Any]:
    kinds = (Setting, SizesSetting, PathSetting)
    return {name.lower(): v for name, v in vars(module).items() if isinstance(v, kinds)}


def _choose(settings: Mapping[str, Any]) -> _Choice:
    """Find the module and check every setting.  Raises WorkloadError."""
    given = dict(settings)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise WorkloadError(f"workload.name={name}: choose one of {', '.join(names())}")
    module = _import(name)
    stem = Path(name).stem if name.endswith(".py") else name
    seed = given.pop("seed", 1)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise WorkloadError(
            f"workload {stem}: seed={seed}: expected a whole number from 0 to 2**62 - 1"
        )
    touch = given.pop("touch", DEFAULT_TOUCH)
    if touch not in TOUCH_NAMES:
        raise WorkloadError(
            f"workload {stem}: touch={touch}: choose one of {', '.join(TOUCH_NAMES)}"
        )
    declared = _declared(module)
    for key in given:
        if key not in declared:
            known = ", ".join([*declared, "seed", "touch"])
            raise WorkloadError(f"workload {stem}: unknown setting {key!r} (it has: {known})")
    checked = {}
    try:
        for key, setting in declared.items():
            default = int(setting) if isinstance(setting, Setting) else setting.default
            # A path has no default: parse() refuses a missing one.
            missing = key not in given and not isinstance(setting, PathSetting)
            checked[key] = default if missing else setting.parse(key, given.get(key))
        if hasattr(module, "check_settings"):
            path, given = module.__file__, SimpleNamespace(**checked)
            _PLUGINS.call(path, module.check_settings, given, passes=(ValueError,))
    except WorkloadError:
        raise
    except ValueError as error:
        raise WorkloadError(f"workload {stem}: {error}") from None
    return _Choice(stem, module, checked, touch, seed)


def _import(name: str) -> ModuleType:
    """Import the workload ``name`` and check its functions.  Raises WorkloadError."""
    module = _PLUGINS.load(name)
    file = module.__file__

    def wrong(part: str, what: str) -> WorkloadError:
        return WorkloadError(f"workload {Path(name).stem}: {place_of(module, part)}: {what}")

    for part in ("generate", "read", "start", "length", "slots", "check_settings"):
        if not callable(getattr(module, part, callable)):
            raise wrong(part, f"{part} must be a function")
    if hasattr(module, "next_event"):
        lacking = [n for n in ("start", "length", "slots") if not hasattr(module, n)]
        if lacking:
            raise WorkloadError(f"workload {name}: {file} does not define {', '.join(lacking)}")
        if not is_jit(module.next_event):
            raise wrong("next_event", "next_event must be a function marked @jit")
    elif not hasattr(module, "generate") and not hasattr(module, "read"):
        raise WorkloadError(
            f"workload {name}: {file} defines neither generate nor next_event nor read"
        )
    return module

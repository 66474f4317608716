"""Check a configuration and build the job that it describes, before any long work.

A configuration is the nested mapping that Hydra composed: allocator, workload, kernel, measure and
seed.  Checking does not import the compiler.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from allocators.base import library as real
from allocators.base import registry
from allocators.base.library import Library, LibraryError
from allocators.base.registry import Plugin, PluginError
from benchmarks import workloads
from benchmarks.workloads import WorkloadError
from kernel.config import KernelConfig
from kernel.cost import check_costs

#: Fields of KernelConfig that a benchmark cannot set: the initial mappings of a replayed process,
#: and a kernel without memory contents.
_INTERNAL = ("maps", "mmap_base", "layout_only")


class JobError(ValueError):
    """Error for a configuration that cannot be run; the message names the setting."""


@dataclass(frozen=True)
class Timing:
    """Timing parameters of a job.

    It is measured in ``rounds`` rounds, each time in a fresh process, which takes ``samples`` timed
    samples after ``warmups`` untimed ones; a sample replays the workload until at least
    ``min_events`` events have run.  ``duet``: two allocators are measured at the same time.
    :meth:`schedule` reduces these numbers, except the rounds, if
    timing would take longer than ``seconds``.
    """

    timing: bool
    duet: bool
    rounds: int
    samples: int
    warmups: int
    min_events: int
    seconds: int

    def schedule(self, events: int, seconds: float) -> tuple[int, int, int]:
        """Return samples, warm-ups and replays per sample that fit the time limit.

        One replay has ``events`` events and takes about ``seconds``.  Reduces replays per sample
        first, then warm-ups down to one, which warms the memory, then samples.
        """
        samples, warmups = self.samples, self.warmups
        replays = -(-self.min_events // max(events, 1))
        affordable = self.seconds / self.rounds / max(seconds, 1e-6)
        replays = max(1, min(replays, int(affordable / (samples + warmups))))
        if (samples + warmups) * replays > affordable:
            warmups = 1
        samples = max(1, min(samples, int(affordable / replays) - warmups))
        return samples, warmups, replays


@dataclass(frozen=True)
class Job:
    """A checked configuration.  ``cost``: nanoseconds by kind of kernel work.

    ``plugin``: the simulated allocator, or a real library.  ``check_every``: events between two
    calls of the allocator's ``check`` in the untimed run; 0: only after the last event.
    ``check_frames``: check physical memory after every event of the untimed run.
    """

    plugin: Plugin | Library
    workload: Mapping[str, Any]
    kernel: KernelConfig
    cost: Mapping[str, float]
    check_every: int
    check_frames: bool
    measure: Timing
    seed: int

    @property
    def library(self) -> Library | None:
        """The real library that the job measures, or None."""
        return self.plugin if isinstance(self.plugin, Library) else None

    @property
    def workload_label(self) -> str:
        """The workload's name and the settings that differ from their defaults."""
        return workloads.label(self.workload)

    def inspect(self) -> None:
        """Look for mistakes in the plugin without compiling it.  Raises JobError."""
        try:
            self.plugin.inspect()
        except PluginError as error:
            raise JobError(str(error)) from None

    def load_workload(
        self, progress: Callable[[float, str], None] | None = None, *, trusted: bool = False
    ) -> workloads.Workload:
        """Generate or read the workload; ``trusted``: not for the first time.

        Raises WorkloadError.
        """
        return workloads.load(self.workload, progress, trusted=trusted)


def check_job(config: Mapping[str, Any]) -> Job:
    """Return the job that ``config`` describes.  Raises JobError with a one-line message."""
    _known("", config, ("allocator", "workload", "kernel", "measure", "seed"))
    allocator = dict(_section(config, "allocator"))
    workload = dict(_section(config, "workload"))
    kernel = dict(_section(config, "kernel"))
    cost = dict(_section(kernel, "cost", "kernel."))
    kernel.pop("cost")
    seed = config["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 62:
        raise JobError(f"seed={seed}: expected a whole number from 0 to 2**62 - 1")
    for section, settings in (("allocator", allocator), ("workload", workload)):
        if not isinstance(settings.get("name"), str):
            raise JobError(f"{section}.name is missing: set it to the name of the {section}'s file")
    check_every = allocator.pop("check_every", 0)
    _whole("allocator.check_every", check_every, 0)
    try:
        name = allocator.pop("name")
        load = real.find if real.is_native(name) else registry.load
        plugin = load(name, allocator)
        workloads.validate(workload)
    except (PluginError, LibraryError, WorkloadError) as error:
        raise JobError(str(error)) from None
    kernel_config, check_frames = _kernel(kernel)
    if isinstance(plugin, Library):
        if check_every:
            raise JobError(f"allocator.check_every={check_every}: a real library has no check()")
        _check_host(plugin, kernel_config)
    try:
        check_costs(cost)
    except ValueError as error:
        raise JobError(f"kernel.cost.{error}") from None
    measure = _measure(config)
    return Job(plugin, workload, kernel_config, cost, check_every, check_frames, measure, seed)


def _kernel(settings: dict[str, Any]) -> tuple[KernelConfig, bool]:
    """Return the kernel, and True if physical memory is checked after every event."""
    types = {f.name: f.type for f in fields(KernelConfig) if f.name not in _INTERNAL}
    types["check_frames"] = bool
    _known("kernel.", settings, list(types))
    for name, value in settings.items():
        if types[name] is int:
            _whole(f"kernel.{name}", value, 0)
        elif types[name] is bool and not isinstance(value, bool):
            raise JobError(f"kernel.{name}={value}: expected true or false")
        elif types[name] is str and not isinstance(value, str):
            raise JobError(f"kernel.{name}={value}: expected a word")
    settings = dict(settings)
    check_frames = settings.pop("check_frames", False)
    try:
        kernel = KernelConfig(**settings)
    except ValueError as error:
        raise JobError(f"kernel.{error}") from None
    _refuse_without_effect(kernel)
    if check_frames and not kernel.frames:
        raise JobError("kernel.check_frames=True: nothing to check without kernel.frames=true")
    return kernel, check_frames


#: What must be set for other settings of the kernel to have an effect: a test, and its setting.
_REQUIRED = {
    ("fragmentation", "zone_boundary", "min_free"): (lambda k: k.frames, "frames=true"),
    tuple(f.name for f in fields(KernelConfig) if f.name.startswith("tlb_")): (
        lambda k: k.tlb,
        "tlb=true",
    ),
    ("swap", "overcommit", "overcommit_ratio"): (lambda k: k.memory, "memory"),
    ("overcommit_ratio",): (lambda k: k.overcommit == 2, "overcommit=2"),
}


def _refuse_without_effect(kernel: KernelConfig) -> None:
    """Raise JobError for a setting that is not the default and changes nothing in this kernel."""
    usual = KernelConfig()
    for names, (effective, required) in _REQUIRED.items():
        changed = [name for name in names if getattr(kernel, name) != getattr(usual, name)]
        if changed and not effective(kernel):
            raise JobError(
                f"kernel.{changed[0]}={getattr(kernel, changed[0])}: has no effect without "
                f"kernel.{required}; set that, or leave this out"
            )


def _check_host(library: Library, kernel: KernelConfig) -> None:
    """Raise JobError for kernel settings that a real library cannot have: it runs on the host."""
    usual = KernelConfig()
    for setting in fields(KernelConfig):
        value = getattr(kernel, setting.name)
        if setting.name != "window_bits" and value != getattr(usual, setting.name):
            raise JobError(
                f"kernel.{setting.name}={value}: {library.name} runs on this machine's own "
                "kernel, which the bench cannot change; leave the setting out"
            )


def _measure(config: Mapping[str, Any]) -> Timing:
    measure = dict(_section(config, "measure"))
    _known("measure.", measure, [f.name for f in fields(Timing)])
    for name in ("timing", "duet"):
        if not isinstance(measure.get(name), bool):
            raise JobError(f"measure.{name}={measure.get(name)}: expected true or false")
    for name, low in (
        ("rounds", 1),
        ("samples", 1),
        ("warmups", 1),
        ("min_events", 1),
        ("seconds", 1),
    ):
        _whole(f"measure.{name}", measure.get(name), low)
    return Timing(**measure)


def _section(config: Mapping[str, Any], name: str, prefix: str = "") -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise JobError(f"{prefix}{name} is missing or not a group of settings")
    return section


def _known(prefix: str, given: Mapping[str, Any], known: tuple[str, ...] | list[str]) -> None:
    for name in given:
        if name not in known:
            raise JobError(f"unknown setting {prefix}{name} (known: {', '.join(known)})")


def _whole(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1 << 62:
        raise JobError(f"{name}={value}: expected a whole number, {low} or more")

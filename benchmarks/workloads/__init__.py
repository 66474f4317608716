"""Workloads: one file each, and ``conf/workload/NAME.yaml`` beside it.

A workload's module declares its settings as module-level constants, as an allocator does
(``LIVE = number(25_000, low=1)``; also ``sizes(...)`` and ``path()``).  It defines one of

    generate(s, random) -> Events               events made from settings and a seed

    next_event(g, last) -> bool, @jit           one event at a time; ``last`` is the last address
    start(s, random) -> record g                its state
    length(s) -> int, slots(s) -> int           largest number of events, and of slots

    read(s, progress) -> (Events or Stream, dict)       events, or a benchmarks.events.stream of
                                                        them, and their provenance

``s`` holds the checked settings by lower-case name; ``check_settings(s)`` may raise ValueError for
an invalid combination.  A user's own workload is one file: ``workload.name=my.py``.

Imports trace/ and the packages below it; replay/ and the packages above it import ``load``.
"""

from benchmarks.workloads.base.registry import (
    DEFAULT_TOUCH,
    Program,
    Workload,
    WorkloadError,
    label,
    load,
    names,
    validate,
)

__all__ = [
    "DEFAULT_TOUCH",
    "Program",
    "Workload",
    "WorkloadError",
    "label",
    "load",
    "names",
    "validate",
]

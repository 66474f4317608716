"""Workloads: one file each, and ``conf/workload/NAME.yaml`` beside it.

A workload's module declares its settings as module-level constants, as an allocator does
(``LIVE = number(25_000, low=1)``; also ``sizes(...)`` and ``path()``).  There are three kinds:

    generated   generate(s, random) -> Events         stored events from settings and a seed
    program     next_event(g, last) @jit,             sees the addresses that it was given
                start(s, random) -> record g,
                length(s) -> int, slots(s) -> int     most events, and slots, that it will use
    read        read(s, progress) -> (Events or       stored events, or a benchmarks.events.stream
    Stream, dict)                         of them, and where they came from

``s`` holds the checked settings by lower-case name; ``check_settings(s)`` may raise ValueError for
combinations that cannot be.  A user's own workload is one such file: ``workload.name=my.py``.

Imports trace/ and what is below it; replay/ and the storeys above import ``load``.
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

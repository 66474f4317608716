"""The programs on which prices are fitted, and how a program is held to one thread.

None of them is a recorded program.  They differ in what costs time: how much lives (which cache
answers), how regular sizes and lifetimes are (what is guessed wrongly), how much is copied and
cleared, and how much is asked of the kernel.
"""

from dataclasses import replace
from typing import Any

from benchmarks import workloads
from benchmarks.events import events as ev
from benchmarks.events.events import Events, read_only
from benchmarks.workloads import Workload, WorkloadError

#: Events of each program.
_LENGTH = 400_000

#: Configurations of workloads by what makes each different.
PROGRAMS: dict[str, dict[str, Any]] = {
    what: {"name": name, "operations": _LENGTH, **settings}
    for what, name, settings in (
        ("three sizes in rows", "malloc_simple", {}),
        ("one size", "churn", {"live": 100, "sizes": {"kind": "list", "choices": [48]}}),
        ("within L1", "churn", {"live": 100}),
        ("within L2", "churn", {"live": 2_000}),
        ("within L3", "churn", {"live": 20_000}),
        ("beyond", "churn", {"live": 80_000}),
        (
            "large blocks",
            "churn",
            {"live": 200, "sizes": {"kind": "power", "low": 16, "high": 1 << 20}},
        ),
        ("a server", "larson", {}),
        ("last in, first out", "stack", {}),
        ("first in, first out", "queue", {}),
        ("phases", "ramp", {}),
        ("saw-tooth", "sawtooth", {}),
        ("vectors", "realloc_growth", {}),
        ("few vectors", "realloc_growth", {"vectors": 10}),
        ("batches", "xmalloc_test", {}),
        ("scattered", "rptest", {"blocks": 2_000}),
        ("Pareto", "alloc_test", {"places": 8_192}),
        ("sizes in order", "sh6bench", {"blocks": 1_000}),
        ("powers of two", "mstress", {}),
    )
}


def load(config: dict[str, Any]) -> Workload:
    """A workload's events, stored and of one thread.  Raises WorkloadError.

    ``config``: as workloads.load takes it.
    """
    return one_thread(workloads.load(config))


def load_trace(path: str, touch: str) -> Workload:
    """A trace's events, stored and of one thread.  Raises WorkloadError."""
    return load({"name": "trace", "path": path, "stream": "never", "touch": touch})


def one_thread(workload: Workload) -> Workload:
    """The same events as those of one thread, which has no end before the program's.

    All have the same columns, so that one compiled loop does for all.  Raises WorkloadError for a
    program that waits for addresses, or a stream.
    """
    if workload.events is None:
        raise WorkloadError(f"{workload.label}: only stored events can be held to one thread")
    events = workload.events
    kept = events.op != ev.THREAD_END
    columns = {name: ev.column(events, name)[kept] for name in ("align", "offset")}
    columns |= {name: getattr(events, name)[kept] for name in ("op", "slot", "size")}
    none = events.op[:0]
    alone = {name: none for name in Events._fields if name not in columns}
    return replace(workload, events=read_only(Events(**columns, **alone)))

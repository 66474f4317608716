"""Programs on which prices are fitted, and conversion of a workload to a single thread.

None of them is a recorded program.  They differ in the causes of cost: the amount of live memory
(which cache level holds it), the regularity of sizes and lifetimes (branch mispredictions), the
amount of copying and clearing, and the amount of kernel work.
"""

from dataclasses import replace
from typing import Any

from benchmarks import workloads
from benchmarks.events import events as ev
from benchmarks.events.events import Events, read_only
from benchmarks.workloads import Workload, WorkloadError

#: Events of each program.
_LENGTH = 400_000

#: Configurations of workloads by a description of each.
PROGRAMS: dict[str, dict[str, Any]] = {
    description: {"name": name, "operations": _LENGTH, **settings}
    for description, name, settings in (
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
    """Load a workload as stored events of one thread.  Raises WorkloadError.

    ``config``: see workloads.load.
    """
    return one_thread(workloads.load(config))


def load_trace(path: str, touch: str) -> Workload:
    """Load a trace as stored events of one thread.  Raises WorkloadError."""
    return load({"name": "trace", "path": path, "stream": "never", "touch": touch})


def one_thread(workload: Workload) -> Workload:
    """Assign all events to one thread and drop the ends of threads.

    The result always has the same columns, so that one compiled loop fits all workloads.  Raises
    WorkloadError for a program that reacts to addresses, or a stream.
    """
    if workload.events is None:
        raise WorkloadError(f"{workload.label}: only stored events can be predicted")
    events = workload.events
    kept = events.op != ev.THREAD_END
    columns = {name: ev.column(events, name)[kept] for name in ("align", "offset")}
    columns |= {name: getattr(events, name)[kept] for name in ("op", "slot", "size")}
    none = events.op[:0]
    alone = {name: none for name in Events._fields if name not in columns}
    return replace(workload, events=read_only(Events(**columns, **alone)))

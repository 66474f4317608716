"""A recorded program: workload=trace workload.path=FILE, of any format in benchmarks.formats."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from allocators.settings import choice
from benchmarks.events import Events
from benchmarks.formats import load, recognise
from benchmarks.workloads.registry import path

PATH = path()
STRICT = choice("false", "true", default="true", text="impossible events are errors, else dropped")


def check_settings(s: SimpleNamespace) -> None:
    """The file is there and of a known format."""
    recognise(Path(s.path))


def read(
    s: SimpleNamespace, progress: Callable[[float, str], None] | None
) -> tuple[Events, dict[str, Any]]:
    """Import the trace, or read it from the cache.  Raises TraceError (a ValueError)."""
    events, provenance = load(Path(s.path), bool(s.strict), progress)
    return events, {"trace": provenance}

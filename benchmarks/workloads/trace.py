"""A recorded program: workload=trace workload.path=FILE, of any format in benchmarks.trace.formats.

A long trace is decoded while it is replayed, in bounded memory; the results are identical.  Either
way only the replay loop is timed; the time spent waiting for the decoder is reported separately.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from allocators.base.settings import choice
from benchmarks.events import parquet
from benchmarks.events.events import Events
from benchmarks.events.facts import Audit
from benchmarks.events.parquet import TraceError
from benchmarks.events.stream import Stream
from benchmarks.trace.formats import load, parquet_file, recognise, report_dropped
from benchmarks.workloads.base.registry import WorkloadError, path

PATH = path()
STRICT = choice("false", "true", default="true", text="impossible events are errors, else dropped")
STREAM = choice("auto", "always", "never", default="auto", text="decode during the replay")

#: With ``stream=auto``, a trace of more events is streamed: some hundred MB.
LONG = 1 << 24
#: Columns that a replay does not use.
_UNUSED = {"time"}


def check_settings(s: SimpleNamespace) -> None:
    """Raise TraceError (a ValueError) unless the file exists and has a known format."""
    recognise(Path(s.path))


def read(
    s: SimpleNamespace, progress: Callable[[float, str], None] | None
) -> tuple[Events | Stream, dict[str, Any]]:
    """Import the trace, or read it from the cache.  Raises TraceError, which is a ValueError."""
    file, strict = Path(s.path), bool(s.strict)
    if STREAM.format(s.stream) != "never":
        with parquet_file(file, strict, progress) as (reader, imported):
            if STREAM.format(s.stream) == "always" or reader.events > LONG:
                report_dropped(file, reader.provenance)
                stream = _stream(reader.path, imported, progress)
                return stream, {"trace": reader.provenance}
    events, provenance = load(file, strict, progress)
    return events, {"trace": provenance}


def _stream(file: Path, imported: bool, progress: Callable[[float, str], None] | None) -> Stream:
    """Return a Stream of a Parquet trace.  The file stays open, so it may be deleted meanwhile."""
    reader = parquet.Reader(file)
    names = [name for name in reader.names if name not in _UNUSED]
    audit = Audit(reader.events)
    facts = reader.facts
    if facts is None:
        facts = parquet.compute_facts(
            reader, progress and (lambda x: progress(x, f"reading {file.name}"))
        )

    def pieces() -> Iterator[Events]:
        """Yield all events; check those that no earlier pass has checked."""
        first = 0
        try:
            for events in reader.groups(names, threads=False):
                first += len(events.op)
                if first > audit.events:
                    next(parquet.audited(file, iter([events]), audit))
                    found = audit.facts(facts.fingerprint)
                    # Check slots at once: one too many would index past the table of objects.
                    if found.slots > facts.slots or (first == facts.events and found != facts):
                        raise TraceError(f"{file}: facts in its metadata do not match its events")
                yield events
        except TraceError as error:
            if imported:
                file.unlink(missing_ok=True)  # damaged: the next run imports the trace anew
            raise WorkloadError(f"workload trace: {error}") from None

    return Stream(facts, tuple(names), pieces)

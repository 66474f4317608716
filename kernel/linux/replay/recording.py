"""Recording file: JSON lines, plain or gzip, written while the program runs.

The first line describes the machine and the command.  The last line says how the recording ended;
a file without it was cut short.  Between them is one line per event, in the order in which the
events end: ``in`` and ``out`` are the times of entry and exit (see log.py).
"""

import dataclasses
import gzip
import json
import time
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from kernel.engine.foreign import WIDTH, check_regular, parse_json, printable, quoted
from kernel.linux.replay.log import (
    NEVER,
    Area,
    Call,
    Clone,
    Event,
    Exec,
    Exit,
    FileInfo,
    Image,
    Limits,
    Log,
    LogError,
    MachineSettings,
    SetLimit,
    Snapshot,
    in_order,
    parse_area,
)

_Record = typing.TypeVar("_Record")

FORMAT, VERSION = "memory-calls", 1
#: Seconds between flushes of the recorded lines to the operating system.
_FLUSH_EVERY = 1.0
_GZIP_MAGIC = b"\x1f\x8b"
#: Bound of the numbers in a recording: words of 64 bits, signed or unsigned.
_WORD = 1 << 64


def _drop_empty(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value not in (None, {}, "")}


def _snapshot_to_json(snapshot: Snapshot | None) -> dict[str, Any] | None:
    if snapshot is None:
        return None
    areas = [[area.line(), area.rss, area.flags] for area in snapshot.areas]
    return {"sizes": snapshot.sizes, "areas": areas}


def _snapshot_from_json(value: dict[str, Any] | None) -> Snapshot | None:
    if value is None:
        return None
    areas: list[Area] = []
    for line, rss, flags in value["areas"]:
        area = parse_area(line)
        if area is None:
            raise ValueError(f"not a line of a maps file: {printable(line, WIDTH)}")
        if not in_order(areas, area):
            raise ValueError(f"not above the previous area: {printable(line, WIDTH)}")
        if not isinstance(rss, int | None) or not isinstance(flags, str | None):
            raise ValueError(f"rss and flags of an area: {quoted([rss, flags])}")
        area.rss, area.flags = rss, flags
        areas.append(area)
    return Snapshot(areas, dict(value["sizes"]))


def _to_json(event: Event) -> dict[str, Any]:
    out = None if event.exit == NEVER else event.exit
    base: dict[str, Any] = {"tid": event.tid, "in": event.entry, "out": out}
    if isinstance(event, Call):
        record = {"t": "call", **base, "name": event.name, "args": event.args, "ret": event.result}
        if event.file is not None:
            record["file"] = _drop_empty(dataclasses.asdict(event.file))
        if event.extra:
            record["extra"] = event.extra
        return record
    if isinstance(event, Clone):
        return {"t": "clone", **base, "flags": event.flags, "child": event.child}
    if isinstance(event, SetLimit):
        what = {"target": event.target, "resource": event.resource, "soft": event.soft}
        return {"t": "limit", **base, **what}
    if isinstance(event, Exec):
        record = {"t": "exec", **base, "former": event.former}
        if event.image is not None:
            record["image"] = dataclasses.asdict(event.image)
        if event.before is not None:
            record["before"] = _snapshot_to_json(event.before)
        return record | {"maps": _snapshot_to_json(event.snapshot)}
    assert isinstance(event, Exit)
    record = {"t": "exit", **base}
    if event.snapshot is not None:
        record["maps"] = _snapshot_to_json(event.snapshot)
    return record


def _make(kind: type[_Record], values: dict[str, Any]) -> _Record:
    """Return a record with ``values`` from JSON.  Raises ValueError for a value of another type."""
    for name, wanted in typing.get_type_hints(kind).items():
        if name not in values:
            continue
        value = values[name]
        if not isinstance(wanted, types.UnionType):
            wanted = typing.get_origin(wanted) or wanted  # isinstance takes no list[str]
        right = isinstance(value, wanted)
        numbers = value if isinstance(value, tuple) else [value]
        if not right or any(isinstance(n, int) and not -_WORD <= n < _WORD for n in numbers):
            raise ValueError(f"{name} is {quoted(value)}")
    return kind(**values)


def _from_json(line: int, record: dict[str, Any]) -> Event:
    kind = record["t"]
    out = record["out"]
    base = {"line": line, "tid": record["tid"], "entry": record["in"]}
    base["exit"] = NEVER if out is None else out
    if kind == "call":
        file = _make(FileInfo, {"path": "", **record["file"]}) if "file" in record else None
        extra = record.get("extra", {})
        name, args, result = record["name"], tuple(record["args"]), record["ret"]
        if len(args) > 6 or not all(isinstance(n, int) for n in args):
            raise ValueError(f"arguments of a call: {quoted(record['args'])}")
        args = (*args, 0, 0, 0, 0, 0, 0)[:6]
        pair = extra.get("range") or [0, 0]
        if [type(n) for n in (extra.get("size", 0), extra.get("context", 0), *pair)] != [int] * 4:
            raise ValueError(f"data of a call: {quoted(extra)}")
        call = {"name": name, "args": args, "result": result, "file": file, "extra": extra}
        return _make(Call, base | call)
    if kind == "clone":
        return _make(Clone, base | {"flags": record["flags"], "child": record["child"]})
    if kind == "limit":
        what = {key: record[key] for key in ("target", "resource", "soft")}
        return _make(SetLimit, base | what)
    maps = _snapshot_from_json(record.get("maps"))
    if kind == "exec":
        image = record.get("image")
        if image is not None:
            image = _make(Image, {**image, "limits": _make(Limits, image["limits"])})
        before = _snapshot_from_json(record.get("before"))
        what = {"former": record["former"], "image": image, "snapshot": maps, "before": before}
        return _make(Exec, base | what)
    if kind == "exit":
        return _make(Exit, base | {"snapshot": maps})
    raise ValueError(f"unknown kind of line {quoted(kind)}")


class Writer:
    """Writer of a recording; flushes often, so that little is lost if the recorder is killed."""

    def __init__(self, path: Path, command: list[str], machine: MachineSettings) -> None:
        """Create the file and write its header.  Raises OSError if it cannot be created."""
        self.calls = 0
        self._file: IO[str] = (
            gzip.open(path, "wt", encoding="utf-8", compresslevel=4)  # noqa: SIM115
            if path.suffix == ".gz"
            else path.open("w", encoding="utf-8")
        )
        self._flushed = time.monotonic()
        header = {"format": FORMAT, "version": VERSION, "command": command}
        self._line(header | {"machine": dataclasses.asdict(machine)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _line(self, record: dict[str, Any]) -> None:
        # File names need not be UTF-8: Python reads other bytes as surrogates, which JSON escapes.
        self._file.write(json.dumps(record, separators=(",", ":")) + "\n")

    def event(self, event: Event) -> None:
        """Add one event."""
        self._line(_to_json(event))
        self.calls += isinstance(event, Call)
        now = time.monotonic()
        if now - self._flushed > _FLUSH_EVERY:
            self._file.flush()
            self._flushed = now

    def end(self, status: int) -> None:
        """Write the last line, which marks the recording as complete, with the exit code."""
        self._line({"t": "end", "calls": self.calls, "status": status})


def open_text(path: Path) -> IO[str]:
    """Open a log, plain or gzip.  Raises LogError if it cannot be opened."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            magic = file.read(2)
        if magic == _GZIP_MAGIC:
            return gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape")
        return path.open(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise LogError(f"{path}: {error.strerror or error}") from None


def lines_of(path: Path, file: IO[str]) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line; a truncated gzip file ends where its data end.

    Raises LogError for a damaged file.
    """
    try:
        yield from enumerate(file, 1)
    except EOFError:
        return
    except (OSError, gzip.zlib.error) as error:
        raise LogError(f"{path}: damaged: {printable(str(error), 2 * WIDTH)}") from None


def is_recording(first_line: str) -> bool:
    """Return True if a file that starts with this line claims to be a recording."""
    return first_line.startswith('{"format":')


def read_recording(path: Path) -> Log:
    """Read a recording.  Raises LogError, with the line, for a file that is not one."""
    log = Log(path=str(path), kind="recording", complete=False)
    number = 0
    with open_text(path) as file:
        pending: tuple[int, Exception] | None = None
        for number, text in lines_of(path, file):
            if pending is not None:
                raise LogError(f"{path}: line {pending[0]}: {_reason(pending[1])}")
            try:
                record = parse_json(text)
                if number == 1:
                    _read_header(log, record)
                elif record["t"] == "end":
                    log.complete = True
                else:
                    log.events.append(_from_json(number, record))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                pending = number, error
    if pending is not None and (number == 1 or pending[1].__class__ is not json.JSONDecodeError):
        raise LogError(f"{path}: line {pending[0]}: {_reason(pending[1])}")
    # A recorder that was killed leaves an incomplete last line: ignore it.
    if not log.complete:
        log.notes.append("the recording was cut short; snapshots at the exits are missing")
    return log


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg}"
    if isinstance(error, KeyError):
        return f"{quoted(error.args[0])} is missing"
    return printable(str(error), 2 * WIDTH)


def _read_header(log: Log, record: dict[str, Any]) -> None:
    if record.get("format") != FORMAT:
        raise ValueError("not a recording of memory calls")
    if record["version"] != VERSION:
        version = quoted(record["version"])
        raise ValueError(
            f"the recording has version {version}, this program reads version {VERSION}"
        )
    log.command = [str(word) for word in record["command"]]
    log.machine = _make(MachineSettings, record["machine"])

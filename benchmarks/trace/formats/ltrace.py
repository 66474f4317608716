"""Logs of ltrace: ``ltrace -e malloc+free+realloc+calloc -o FILE COMMAND``.

    malloc(100)                                      = 0x55bf778482a0
    28032 14:22:01.123456 calloc(4, 25)              = 0x5600        -f (pid), -t, -tt, -ttt or -r
    [pid 28032] realloc(nil, 500 <unfinished ...>    nil or 0 is NULL
    [pid 28032] <... realloc resumed> )              = 0x5700
    prog->free(0x5600)                               = <void>        -e malloc@MAIN; also indented
    +++ exited (status 0) +++                        with pids: the end of a thread

Other calls, and what the program itself prints between the lines, are skipped.  ltrace shows the
calls of the program, not those inside the libraries that it uses: blocks that they allocate are
freed without having been seen, which is no error.  Threads and forked children look alike: each pid
is read as a thread.  A free takes effect where it begins, any other call where its result is.
Source: ltrace(1), output of version 0.7.3.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import numpy as np

from allocators.base import operation as ops
from benchmarks.trace.formats.objects import LATE, Records
from benchmarks.trace.formats.packing import Source, whole_lines
from benchmarks.trace.formats.piece import Piece, format_address, line_of
from kernel.engine.foreign import quoted

NAME = "ltrace"
NOTE = "ltrace shows the program's own calls, not those inside libraries"

#: Functions by name: operation, and their arguments.
_FUNCTIONS = {
    "malloc": (ops.MALLOC, "SIZE"),
    "_Znwm": (ops.MALLOC, "SIZE"),
    "_Znam": (ops.MALLOC, "SIZE"),
    "valloc": (ops.ALIGNED, "SIZE"),
    "calloc": (ops.CALLOC, "N, SIZE"),
    "realloc": (ops.REALLOC, "POINTER, SIZE"),
    "reallocarray": (ops.REALLOC, "POINTER, N, SIZE"),
    "memalign": (ops.ALIGNED, "ALIGN, SIZE"),
    "aligned_alloc": (ops.ALIGNED, "ALIGN, SIZE"),
    "free": (ops.FREE, "POINTER"),
    "cfree": (ops.FREE, "POINTER"),
    "_ZdlPv": (ops.FREE, "POINTER"),
    "_ZdaPv": (ops.FREE, "POINTER"),
    "_ZdlPvm": (ops.FREE, "POINTER"),
    "posix_memalign": (ops.ALIGNED, "its result, which ltrace does not show"),
}
_NAMES = "|".join(sorted(_FUNCTIONS, key=len, reverse=True)).encode()
_PREFIX = (
    rb"[ \t]*(?:\[pid (?P<traced>\d+)\][ \t]+|(?P<bare>\d+)[ \t]+)?"
    rb"(?:(?P<clock>\d\d:\d\d:\d\d(?:\.\d+)?)[ \t]+|(?P<seconds>\d+\.\d+)[ \t]+)?"
    rb"(?:\[0x[0-9a-f]+\][ \t]+)?(?:[^\s()]+->)?"
)
_CALL = rb"(?P<name>" + _NAMES + rb")(?:@[\w.]+)?\("
_RESUMED = rb"<\.\.\. (?P<resumed>" + _NAMES + rb")(?:@[\w.]+)? resumed>"
_EXITED = rb"(?P<exited>\+\+\+ (?:exited|killed))"
_LINE = re.compile(
    _PREFIX + rb"(?:" + _CALL + rb"|" + _RESUMED + rb"|" + _EXITED + rb")(?P<rest>.*)"
)
_BEGUN = re.compile(rb"(?P<given>[^()]*?),?\s*<unfinished \.\.\.>\s*")
_WHOLE = re.compile(rb"(?P<given>[^()]*)\)\s*=\s+(?P<result>\S+)(?:\s+<[\d.]+>)?\s*")
PATTERN = re.compile(
    rb"^" + re.sub(rb"\?P<\w+>", b"?:", _PREFIX + _CALL) + rb"[^()\n]*(?:\)\s*= |<unfinished)",
    re.MULTILINE,
)

_PAGE = 4096
_NS = 1_000_000_000
_DAY = 24 * 3600 * _NS
#: Seconds above it are a date (-ttt), those below the time since the line before (-r).
_EPOCH = 100_000_000
_LIMIT = 1 << 63


def _number(text: bytes) -> int:
    """Return the value of an argument or a result.  Raises ValueError."""
    text = text.strip()
    value = 0 if text in (b"nil", b"NULL", b"<void>") else int(text, 0)
    if not 0 <= value < 2 * _LIMIT:
        raise ValueError
    return value


class _Reader:
    """State between the lines: interrupted calls, the clock, and the pids seen."""

    def __init__(self) -> None:
        self._open: dict[int, list[tuple[str, bytes]]] = defaultdict(list)
        self._start: int | None = None
        self._now = 0
        self._first_pid: int | None = None

    def event(self, line: bytes) -> tuple[int, ...] | None:
        """Return op, pointer, old, size, log2 of the alignment, pid and time of a line.

        Returns None for a line that completes no call.  Raises ValueError or LookupError for a
        malformed one.
        """
        match = _LINE.match(line)
        if match is None:
            return None
        pid = int(match["traced"] or match["bare"] or 0)
        self._first_pid = pid if self._first_pid is None else self._first_pid
        self._set_clock(match["clock"], match["seconds"])
        if match["exited"]:
            ends = pid != self._first_pid
            return (ops.THREAD_END, 0, 0, 0, 0, pid, self._now) if ends else None
        name = (match["name"] or match["resumed"]).decode()
        call = self._call(name, pid, match["rest"], bool(match["resumed"]))
        return call and (*call, pid, self._now)

    def _set_clock(self, clock: bytes | None, seconds: bytes | None) -> None:
        """Advance the time, ns since the first line, by a line's time of any kind."""
        if clock:
            hours, minutes, rest = clock.split(b":")
            now = (int(hours) * 3600 + int(minutes) * 60) * _NS + round(float(rest) * _NS)
        elif seconds:
            whole, _, part = seconds.partition(b".")
            now = int(whole) * _NS + int(part.ljust(9, b"0")[:9])
            if int(whole) < _EPOCH:
                now += self._now + (self._start or 0)
        else:
            return
        if self._start is None:
            self._start = now
        while clock and now - self._start < self._now - _DAY // 2:
            now += _DAY
        self._now = min(max(self._now, now - self._start), _LIMIT - 1)

    def _call(self, name: str, pid: int, rest: bytes, resumed: bool) -> tuple[int, ...] | None:
        """Return op, pointer, old, size and alignment of a call that completes, else None.

        Raises ValueError or LookupError for a malformed one.
        """
        begun = _BEGUN.fullmatch(rest)
        if begun and not resumed:
            self._open[pid].append((name, begun["given"]))
            return _decoded(name, begun["given"], 0) if _FUNCTIONS[name][0] == ops.FREE else None
        whole = _WHOLE.fullmatch(rest)
        if whole is None:
            raise ValueError
        given = whole["given"]
        if resumed:
            opened, given = self._open[pid].pop()
            if opened != name:
                raise ValueError
            if _FUNCTIONS[name][0] == ops.FREE:
                return None
        return _decoded(name, given, _number(whole["result"]))


def _decoded(name: str, given: bytes, result: int) -> tuple[int, ...]:
    """Return op, pointer, old, size and log2 of the alignment of a call.

    Raises ValueError or LookupError.
    """
    op, form = _FUNCTIONS[name]
    # A function without a prototype is shown with more arguments than it has.
    values = dict(zip(form.split(", "), map(_number, given.split(b",")), strict=False))
    if max(result, values.get("POINTER", 0)) >= _LIMIT:
        raise ValueError
    if op == ops.FREE:
        return op, values["POINTER"], 0, 0, 0
    size, align = values["SIZE"] * values.get("N", 1), values.get("ALIGN", _PAGE)
    if align <= 0 or align & (align - 1) or (not 0 <= size < _LIMIT and result):
        raise ValueError
    power = align.bit_length() - 1 if op == ops.ALIGNED else 0
    return op, result, values.get("POINTER", 0), min(size, _LIMIT - 1), power


def pieces(source: Source) -> Iterator[tuple[Piece, float]]:
    """Yield the pieces of a log, and the fraction read."""
    reader = _Reader()
    for text, fraction in whole_lines(source):
        rows, bad = [], []
        lines = text.split(b"\n")
        for i, line in enumerate(lines):
            try:
                found = reader.event(line)
            except (ValueError, LookupError):
                bad.append(i)
                continue
            if found:
                rows.append((i, *found))
        yield _piece(rows, bad, text, len(lines) - text.endswith(b"\n")), fraction


def _piece(rows: list, bad: list[int], text: bytes, length: int) -> Piece:
    columns = np.array(rows, "i8").reshape(-1, 8).T
    line, op, pointer, old, size, align, thread, time = map(np.ascontiguousarray, columns)
    records = Records(
        line=line,
        op=op.astype("u1"),
        pointer=pointer,
        old=old,
        size=size,
        align=align.astype("u1"),
        thread=thread,
        time=time,
        bad=np.array(bad, "i8"),
    )
    explain = partial(_explain, text)
    return Piece(records, length, explain, lambda _row, p: format_address(p), late=LATE)


def _explain(text: bytes, row: int) -> str:
    line = line_of(text, row)
    match = _LINE.match(line)
    name = (match["name"] or match["resumed"]).decode()
    shown = quoted(line.decode("utf-8", "backslashreplace").strip())
    return f"expected '{name}({_FUNCTIONS[name][1]}) = RESULT', found {shown}"

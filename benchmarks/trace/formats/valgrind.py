"""Output of ``valgrind --trace-malloc=yes``, alone or mixed with other lines.

    --123-- malloc(472) = 0x4B07040
    --123-- calloc(3,7) = 0x4D6DCD0
    --123-- memalign(al 64, size 100) = 0x4D6DD80      every aligned allocation of C
    --123-- _ZnwmSt11align_val_t(size 128, al 64) = …  C++; also _Znwm(4) = … and similar
    --123-- realloc(0x4B09090,2048) = 0x4B094D0
    --123-- realloc(0x0,1600)malloc(1600) = 0x4B08A10  realloc(NULL, 1600)
    --123-- realloc(0x4B094D0,0)free(0x4B094D0)        realloc(p, 0); " = 0" on a line of its own
    --123-- free(0x0)                                  _ZdlPvm(0x…) and similar
    --123-- malloc(18446744073709551615)Argument 'size' of function malloc has a fishy …    failed
    --123-- calloc(8589934592,8589934592)malloc(5) = … overflow: it fails without a line end
    --123-- malloc(4916)free(0x4A40040)                a call that another thread interrupted;
    --123--  = 0x4D713A0                               its result is printed later
    --00:00:00:01.753 123-- malloc(10) = 0x4A423B0     with --time-stamp=yes: days to milliseconds

The output does not distinguish threads.  An interrupted call becomes an event at the position of
its result; several results belong to the interrupted calls in the order of the calls.  Lines of a
child process (after fork, or with --trace-children=yes) belong to another heap and are errors; use
--log-file=FILE.%p to separate them.  The free(0x0) at the end are valgrind's own
(--run-libc-freeres=no omits them).
Source: valgrind's manual, and output of version 3.19.
"""

import itertools
import re
from typing import NamedTuple

import numpy as np

from allocators.base import operation as ops
from benchmarks.trace.formats.lines import BAD, NUMBER, WORD, Lines, word
from benchmarks.trace.formats.objects import Records
from benchmarks.trace.formats.piece import format_address
from kernel.engine.foreign import quoted

NAME = "valgrind --trace-malloc"
#: A call of eight fields may follow interrupted calls on the same line.
SPLIT = {"width": 12}

_QUIET = ("", "RKSt9nothrow_t")
_ALIGNED_NEW = [f"_Z{f}{n}St11align_val_t{q}" for f in ("nw", "na") for n in "mj" for q in _QUIET]
_NEW = [f"_Z{f}{n}{q}" for f in ("nw", "na") for n in "mj" for q in _QUIET]
_DELETE = [
    f"_Z{f}Pv{n}{align}{q}"
    for f, n, align, q in itertools.product(
        ("dl", "da"), ("", "m", "j"), ("", "St11align_val_t"), _QUIET
    )
]
#: The traced functions, by form of their arguments.
_FORMS = {
    "SIZE": ["malloc", "__builtin_new", "__builtin_vec_new", *_NEW],
    "N,SIZE": ["calloc"],
    "POINTER,SIZE": ["realloc"],
    "al ALIGN, size SIZE": ["memalign"],
    "size SIZE, al ALIGN": _ALIGNED_NEW,
    "POINTER": ["free", "cfree", "__builtin_delete", "__builtin_vec_delete", *_DELETE],
}
_HASHES = {form: [word(name) for name in names] for form, names in _FORMS.items()}
_ALL = sorted(itertools.chain(*_HASHES.values()))
_MALLOC, _RESULT = word("malloc"), word("=")
#: Words by their hash.
_WORDS = {word(name): name for name in itertools.chain(*_FORMS.values())}
_WORDS |= {word(name): name for name in ("al", "size", "=", "Argument")}
_FORM_OF = {name: form for form, names in _FORMS.items() for name in names}
_POWERS = 1 << np.arange(62)
#: A request of this many bytes or more always fails.
_IMPOSSIBLE_SIZE = 1 << 63

PATTERN = re.compile(
    rb"^--(?:\d+:\d\d:\d\d:\d\d\.\d{3} )?\d+-- ("
    + "|".join(itertools.chain(*_FORMS.values())).encode()
    + rb")\(",
    re.MULTILINE,
)


#: What --time-stamp=yes adds to a line.
_STAMP = re.compile(rb"^--(\d{1,5}):(\d\d):(\d\d):(\d\d)\.(\d{3}) (?=\d+--)")
#: The first line of valgrind's that decides whether the lines have stamps.
_FIRST = re.compile(rb"^--(\d+:\d\d:\d\d:\d\d\.\d{3} )?\d+--", re.MULTILINE)
_UNITS = tuple(unit * 1_000_000 for unit in (86_400_000, 3_600_000, 60_000, 1000, 1))


class Call(NamedTuple):
    """A call without its result: operation, realloc's argument, bytes, log2 of the alignment."""

    op: int
    old: int
    size: int
    align: int


#: A failed request; its arguments do not matter.
_FAILED = Call(ops.MALLOC, 0, 0, 0)


class Reader:
    """Reader of one trace, piece by piece."""

    def __init__(self) -> None:
        #: Hash of "--123--" in the first traced line.
        self._process: int | None = None
        #: Interrupted calls without a result, oldest first.
        self._open: list[Call] = []
        #: Time of each line of the piece, ns since the start; None if the log has no times.
        self._times: np.ndarray | None = None
        self._now = 0
        self._begun = False

    def prepare(self, text: bytes) -> bytes:
        """Return ``text`` without time stamps, which are kept."""
        if not self._begun and (first := _FIRST.search(text)):
            self._begun = True
            self._times = np.empty(0, "i8") if first[1] else None
        if self._times is None:
            return text
        lines, times = text.split(b"\n"), []
        for i, line in enumerate(lines):
            if stamp := _STAMP.match(line):
                lines[i] = b"--" + line[stamp.end() :]
                now = sum(int(n) * unit for n, unit in zip(stamp.groups(), _UNITS, strict=True))
                self._now = max(self._now, now)
            times.append(self._now)
        self._times = np.array(times, "i8")
        return b"\n".join(lines)

    def read(self, lines: Lines) -> Records:
        """Return the records of ``lines``."""
        words = (lines.kinds[:, 0] == WORD) & (lines.kinds[:, 1] == WORD)
        traced = words & np.isin(lines.values[:, 1], _ALL)
        if self._process is None and traced.any():
            self._process = int(lines.values[np.argmax(traced), 0])
        ours = lines.values[:, 0] == self._process
        # realloc(p, 0) and failed requests have a result of 0 on a separate line: skip it.
        late = words & ours & (lines.values[:, 1] == _RESULT) & (lines.values[:, 2] != 0)
        row = np.flatnonzero(traced | late)
        values, kinds, fields = (part[row] for part in lines)

        op, pointer, old, size, align = columns = self._parse_common(values, kinds, fields)
        op[values[:, 0] != self._process] = 255
        good = op != 255
        for i in np.flatnonzero(~good & (values[:, 0] == self._process)):
            n = int(fields[i])
            tokens = [_token(v, k) for v, k in zip(values[i, 1:n], kinds[i, 1:n], strict=True)]
            try:
                found = self._parse_tokens(tokens)
            except (LookupError, TypeError):
                continue
            if n > values.shape[1] and found != (_FAILED, 0):
                continue
            if found:
                call, result = found
                numbers = (call.op, result, *call[1:])
                if max(numbers) >= _IMPOSSIBLE_SIZE:
                    continue
                for column, value in zip(columns, numbers, strict=True):
                    column[i] = value
            good[i] = True

        kept = np.flatnonzero(op != 255)
        return Records(
            line=row[kept],
            op=op[kept],
            pointer=pointer[kept],
            old=old[kept],
            size=size[kept],
            align=align[kept].astype("u1"),
            thread=np.empty(0, "i8"),
            time=np.empty(0, "i8") if self._times is None else self._times[row[kept]],
            bad=row[~good],
        )

    @staticmethod
    def _parse_common(values: np.ndarray, kinds: np.ndarray, fields: np.ndarray) -> tuple:
        """Parse each row that consists of one complete call.

        Returns (n,) arrays: operation (255: other rows), result, realloc's argument, bytes, log2 of
        the alignment.
        """
        n = len(fields)
        op = np.full(n, 255, "u1")
        pointer, old, size, align = (np.zeros(n, "i8") for _ in range(4))
        last = np.clip(fields - 1, 0, values.shape[1] - 1)
        result = values[np.arange(n), last]

        def numbers(*columns: int) -> np.ndarray:
            return np.logical_and.reduce([kinds[:, i] == NUMBER for i in columns])

        for form, hashes in _HASHES.items():
            mine = np.isin(values[:, 1], hashes)
            if form == "SIZE":
                mine &= (fields == 5) & numbers(2, 4) & (values[:, 3] == _RESULT)
                op[mine], size[mine] = ops.MALLOC, values[mine, 2]
            elif form == "N,SIZE":
                # A product that overflows is left to _parse_tokens.
                a, b = values[:, 2], values[:, 3]
                mine &= (fields == 6) & numbers(2, 3, 5) & (values[:, 4] == _RESULT)
                mine &= (a == 0) | ((a * b) // np.maximum(a, 1) == b)
                op[mine], size[mine] = ops.CALLOC, a[mine] * b[mine]
            elif form == "POINTER,SIZE":
                fresh = (fields == 8) & numbers(5) & (values[:, 4] == _MALLOC)
                fresh &= (values[:, 2] == 0) & (values[:, 5] == values[:, 3])
                usual = (fields == 6) & (values[:, 4] == _RESULT)
                mine &= (fresh | usual) & numbers(2, 3)
                mine &= (kinds[np.arange(n), last] == NUMBER) & ((values[:, 6] == _RESULT) | usual)
                op[mine], old[mine], size[mine] = ops.REALLOC, values[mine, 2], values[mine, 3]
            elif form == "POINTER":
                mine &= (fields == 3) & numbers(2)
                op[mine] = ops.FREE
            else:
                power, asked = (3, 5) if form.startswith("al") else (5, 3)
                mine &= (fields == 8) & numbers(3, 5, 7) & (values[:, 6] == _RESULT)
                mine &= values[:, power] > 0
                op[mine], size[mine] = ops.ALIGNED, values[mine, asked]
                align[mine] = np.searchsorted(_POWERS, values[mine, power])
            pointer[mine] = result[mine]
        return op, pointer, old, size, align

    def _parse_tokens(self, tokens: list[str | int]) -> tuple[Call, int] | None:
        """Return the call that completes in a line and its result; None if none completes.

        Raises LookupError or TypeError for a malformed line.
        """
        if tokens[0] == "=":
            result = _result(tokens)
            return self._open.pop(0), result
        while True:
            name = tokens[0]
            call, tokens = _call(name, tokens[1:])
            if call.op == ops.FREE and not tokens:
                return call._replace(old=0), call.old
            if tokens[:1] == ["Argument"]:
                return _FAILED, 0
            if tokens == ["free", call.old] and call.op == ops.REALLOC and call.size == 0:
                return call, 0
            if call.op == ops.REALLOC and call.old == 0 and tokens[:2] == ["malloc", call.size]:
                tokens = tokens[2:]
            if tokens[:1] == ["="]:
                return call, _result(tokens)
            overflow = call.op == ops.CALLOC and call.size >= _IMPOSSIBLE_SIZE
            if overflow and not tokens:
                return _FAILED, 0
            if tokens[0] not in _FORM_OF:
                raise LookupError
            if not overflow:
                self._open.append(call)

    def explain(self, fields: list[str]) -> str:
        """Return the reason why a line with these fields is malformed."""
        if word(fields[0]) != self._process:
            other = quoted(fields[0])[1:-1]
            return f"a line of another process ({other}); separate logs with --log-file=FILE.%p"
        found = quoted(" ".join(fields[1:]))
        if fields[1] == "=":
            return f"a result without a call, found {found}"
        return f"expected '{fields[1]}({_FORM_OF[fields[1]]})' and its result, found {found}"

    def format_pointer(self, pointer: int) -> str:
        """Return the name that the trace has for an object."""
        return format_address(pointer)


def _token(value: np.int64, kind: np.int8) -> str | int:
    """Return a field as a number or a known word; "" for any other word."""
    if kind == NUMBER:
        return int(value)
    return _IMPOSSIBLE_SIZE if kind == BAD else _WORDS.get(int(value), "")


def _result(tokens: list[str | int]) -> int:
    """Return the number after "=" at the end of a line.  Raises LookupError or TypeError."""
    if len(tokens) != 2:
        raise LookupError
    return tokens[1] + 0


def _call(name: str, tokens: list[str | int]) -> tuple[Call, list[str | int]]:
    """Parse the arguments of ``name`` at the start of ``tokens``; return the call and the rest.

    In the call of a free, ``old`` is the argument.  Adding 0 to a token raises TypeError if it is a
    word.  Raises LookupError or TypeError.
    """
    form = _FORM_OF[name]
    if form == "SIZE":
        return Call(ops.MALLOC, 0, tokens[0] + 0, 0), tokens[1:]
    if form == "N,SIZE":
        return Call(ops.CALLOC, 0, (tokens[0] + 0) * (tokens[1] + 0), 0), tokens[2:]
    if form == "POINTER,SIZE":
        return Call(ops.REALLOC, tokens[0] + 0, tokens[1] + 0, 0), tokens[2:]
    if form == "POINTER":
        return Call(ops.FREE, tokens[0] + 0, 0, 0), tokens[1:]
    named = dict(zip(tokens[:4:2], tokens[1:4:2], strict=True))
    return Call(ops.ALIGNED, 0, named["size"] + 0, (named["al"] - 1).bit_length()), tokens[4:]

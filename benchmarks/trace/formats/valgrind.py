"""What ``valgrind --trace-malloc=yes`` prints, alone or among other lines of it and the program.

    --123-- malloc(472) = 0x4B07040
    --123-- calloc(3,7) = 0x4D6DCD0
    --123-- memalign(al 64, size 100) = 0x4D6DD80      every aligned allocation of C
    --123-- _ZnwmSt11align_val_t(size 128, al 64) = …  and of C++; _Znwm(4) = … and the like
    --123-- realloc(0x4B09090,2048) = 0x4B094D0
    --123-- realloc(0x0,1600)malloc(1600) = 0x4B08A10  realloc(NULL, 1600)
    --123-- realloc(0x4B094D0,0)free(0x4B094D0)        realloc(p, 0); " = 0" on a line of its own
    --123-- free(0x0)                                  _ZdlPvm(0x…) and the like
    --123-- malloc(18446744073709551615)Argument 'size' of function malloc has a fishy …    failed
    --123-- calloc(8589934592,8589934592)malloc(5) = … an overflow failed, and its line goes on
    --123-- malloc(4916)free(0x4A40040)                a call that another thread interrupted:
    --123--  = 0x4D713A0                               its result comes later

Threads are not told apart.  A call that was interrupted counts where its result is; results of
several go to the calls in their order.  The lines of a child process (after fork, or with
--trace-children=yes) belong to another heap and are errors: --log-file=FILE.%p parts them.  The
free(0x0) at the end are valgrind's own (--run-libc-freeres=no leaves them out).
Source: valgrind's manual, and output of version 3.19 seen here.
"""

import itertools
import re
from typing import NamedTuple

import numpy as np

from allocators.base import operation as ops
from benchmarks.trace.formats.lines import BAD, NUMBER, WORD, Lines, word
from benchmarks.trace.formats.objects import Records
from benchmarks.trace.formats.piece import spell_address

NAME = "valgrind --trace-malloc"
#: Calls without a result may stand before one of eight fields.
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
#: The functions that are traced, by form of their arguments.
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
#: Words by hash.
_WORDS = {word(name): name for name in itertools.chain(*_FORMS.values())}
_WORDS |= {word(name): name for name in ("al", "size", "=", "Argument")}
_FORM_OF = {name: form for form, names in _FORMS.items() for name in names}
_POWERS = 1 << np.arange(62)
#: A number of bytes from which on nothing can be had.
_TOO_MUCH = 1 << 63

PATTERN = re.compile(
    rb"^--\d+-- (" + "|".join(itertools.chain(*_FORMS.values())).encode() + rb")\(", re.MULTILINE
)


class Call(NamedTuple):
    """A call as it begins: operation, realloc's argument, bytes, log2 of the alignment."""

    op: int
    old: int
    size: int
    align: int


#: A request for more than memory can hold; what failed needs no more said.
_FAILED = Call(ops.MALLOC, 0, 0, 0)


class Reader:
    """Reads one trace, piece by piece."""

    def __init__(self) -> None:
        #: The hash of "--123--" of the first traced line.
        self._process: int | None = None
        #: Calls that were interrupted, oldest first.
        self._open: list[Call] = []

    def read(self, lines: Lines) -> Records:
        """Return the records of ``lines``."""
        words = (lines.kinds[:, 0] == WORD) & (lines.kinds[:, 1] == WORD)
        traced = words & np.isin(lines.values[:, 1], _ALL)
        if self._process is None and traced.any():
            self._process = int(lines.values[np.argmax(traced), 0])
        ours = lines.values[:, 0] == self._process
        # realloc(p, 0) and what failed have their result, 0, on a line of its own.
        late = words & ours & (lines.values[:, 1] == _RESULT) & (lines.values[:, 2] != 0)
        row = np.flatnonzero(traced | late)
        values, kinds, fields = (part[row] for part in lines)

        op, pointer, old, size, align = columns = self._usual(values, kinds, fields)
        op[values[:, 0] != self._process] = 255
        good = op != 255
        for i in np.flatnonzero(~good & (values[:, 0] == self._process)):
            n = int(fields[i])
            tokens = [_token(v, k) for v, k in zip(values[i, 1:n], kinds[i, 1:n], strict=True)]
            try:
                found = self._unusual(tokens)
            except (LookupError, TypeError):
                continue
            if n > values.shape[1] and found != (_FAILED, 0):
                continue
            if found:
                call, result = found
                numbers = (call.op, result, *call[1:])
                if max(numbers) >= _TOO_MUCH:
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
            time=np.empty(0, "i8"),
            bad=row[~good],
        )

    @staticmethod
    def _usual(values: np.ndarray, kinds: np.ndarray, fields: np.ndarray) -> tuple:
        """Operation (255: another form), result, argument, bytes, log2 of alignment of each row."""
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
                # A product that does not fit is no usual line.
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

    def _unusual(self, tokens: list[str | int]) -> tuple[Call, int] | None:
        """The call that ends in a line and its result, None if there is none yet.

        Raises LookupError or TypeError for a line that makes no sense.
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
            overflow = call.op == ops.CALLOC and call.size >= _TOO_MUCH
            if overflow and not tokens:
                return _FAILED, 0
            if tokens[0] not in _FORM_OF:
                raise LookupError
            if not overflow:
                self._open.append(call)

    def explain(self, fields: list[str]) -> str:
        """What is wrong with a line of these fields."""
        if word(fields[0]) != self._process:
            return f"a line of another process ({fields[0]}); each needs a log of its own"
        found = " ".join(fields[1:])
        if fields[1] == "=":
            return f"a result without its call, found {found!r}"
        return f"expected '{fields[1]}({_FORM_OF[fields[1]]})' and its result, found {found!r}"

    def spell(self, pointer: int) -> str:
        """The object as the trace names it."""
        return spell_address(pointer)


def _token(value: np.int64, kind: np.int8) -> str | int:
    """A field as a number, or a word if it is one that is known here."""
    if kind == NUMBER:
        return int(value)
    return _TOO_MUCH if kind == BAD else _WORDS.get(int(value), "")


def _result(tokens: list[str | int]) -> int:
    """The number after "=", which ends a line.  Raises LookupError or TypeError."""
    if len(tokens) != 2:
        raise LookupError
    return tokens[1] + 0


def _call(name: str, tokens: list[str | int]) -> tuple[Call, list[str | int]]:
    """The call of ``name`` that ``tokens`` begin with, and what follows it.

    Adding 0 to a token refuses a word.

    ``old`` is the argument also of a free.  Raises LookupError or TypeError.
    """
    form = _FORM_OF[name]
    if form == "SIZE":
        return Call(ops.MALLOC, 0, tokens[0] + 0, 0), tokens[1:]
    if form == "N,SIZE":
        return Call(ops.CALLOC, 0, tokens[0] * (tokens[1] + 0), 0), tokens[2:]
    if form == "POINTER,SIZE":
        return Call(ops.REALLOC, tokens[0] + 0, tokens[1] + 0, 0), tokens[2:]
    if form == "POINTER":
        return Call(ops.FREE, tokens[0] + 0, 0, 0), tokens[1:]
    told = dict(zip(tokens[:4:2], tokens[1:4:2], strict=True))
    return Call(ops.ALIGNED, 0, told["size"] + 0, (told["al"] - 1).bit_length()), tokens[4:]

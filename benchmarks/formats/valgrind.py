"""What ``valgrind --trace-malloc=yes`` prints, alone or among other lines of it and the program.

    --123-- malloc(472) = 0x4B07040
    --123-- calloc(3,7) = 0x4D6DCD0
    --123-- memalign(al 64, size 100) = 0x4D6DD80      every aligned allocation of C
    --123-- _ZnwmSt11align_val_t(size 128, al 64) = …  and of C++; _Znwm(4) = … and the like
    --123-- realloc(0x4B09090,2048) = 0x4B094D0
    --123-- realloc(0x0,1600)malloc(1600) = 0x4B08A10  realloc(NULL, 1600)
    --123-- realloc(0x4B094D0,0)free(0x4B094D0)        realloc(p, 0); " = 0" on a line of its own
    --123-- free(0x0)                                  _ZdlPvm(0x…) and the like
    --123-- calloc(8589934592,8589934592)malloc(5) = … an overflow leaves no end of its line
    --123-- malloc(18446744073709551615)Argument 'size' of function malloc has a fishy …    failed

Threads are not told apart.  The lines of a child process (after fork, or --trace-children=yes)
belong to another heap and are errors: --log-file=FILE.%p parts them.  The free(0x0) at the end are
valgrind's own (--run-libc-freeres=no leaves them out).
Source: valgrind's manual, and output of version 3.19 seen here.
"""

import itertools
import re

import numpy as np

from benchmarks.events import ALIGNED, CALLOC, FREE, MALLOC, REALLOC
from benchmarks.formats.lines import ABSENT, BAD, NUMBER, WORD, Lines, word
from benchmarks.formats.objects import Records
from benchmarks.formats.piece import spell_address

NAME = "valgrind --trace-malloc"
#: An overflowing calloc may stand before a call of eight fields.
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
_MALLOC, _FREE, _FISHY = word("malloc"), word("free"), word("Argument")
_POWERS = 1 << np.arange(62)

PATTERN = re.compile(
    rb"^--\d+-- (" + "|".join(itertools.chain(*_FORMS.values())).encode() + rb")\(", re.MULTILINE
)


class Reader:
    """Reads one trace, piece by piece."""

    def __init__(self) -> None:
        #: The hash of "--123--" of the first traced line.
        self._process: int | None = None

    def read(self, lines: Lines) -> Records:
        """Return the records of ``lines``."""
        traced = (lines.kinds[:, 0] == WORD) & (lines.kinds[:, 1] == WORD)
        traced &= np.isin(lines.values[:, 1], _ALL)
        row = np.flatnonzero(traced)
        values, kinds, fields = (part[row] for part in lines)
        self._drop_overflows(values, kinds, fields)
        if self._process is None and len(row):
            self._process = int(values[0, 0])
        good = values[:, 0] == self._process

        op, fishy = np.full(len(row), 255, "u1"), np.zeros(len(row), bool)
        pointer, old, size, align = (np.zeros(len(row), "i8") for _ in range(4))
        result = values[np.arange(len(row)), np.clip(fields - 1, 0, values.shape[1] - 1)]
        for form, hashes in _HASHES.items():
            mine = np.isin(values[:, 1], hashes)
            if form == "SIZE":
                fishy[mine] = values[mine, 3] == _FISHY
                mine &= self._numbers(kinds, 2, 4) & (fields == 5)
                op[mine], size[mine] = MALLOC, values[mine, 2]
            elif form == "N,SIZE":
                mine &= self._numbers(kinds, 2, 3, 5) & (fields == 6)
                op[mine], size[mine] = CALLOC, values[mine, 2] * values[mine, 3]
            elif form == "POINTER,SIZE":
                fishy[mine] = values[mine, 4] == _FISHY
                frees = (values[:, 4] == _FREE) & (kinds[:, 4] == WORD)
                mallocs = (values[:, 4] == _MALLOC) & (kinds[:, 4] == WORD)
                usual = (fields == 6) & self._numbers(kinds, 5)
                mine &= (usual | ((fields == 8) & mallocs)) & self._numbers(kinds, 2, 3)
                op[mine], old[mine], size[mine] = REALLOC, values[mine, 2], values[mine, 3]
                result[mine & usual & frees] = 0
            elif form == "POINTER":
                mine &= self._numbers(kinds, 2) & (fields == 3)
                op[mine] = FREE
            else:
                asked, power = (5, 3) if form.startswith("al") else (3, 5)
                mine &= self._numbers(kinds, 3, 5, 7) & (fields == 8)
                mine &= values[:, power] > 0
                op[mine], size[mine] = ALIGNED, values[mine, asked]
                align[mine] = np.searchsorted(_POWERS, values[mine, power])
            pointer[mine] = result[mine]
        # A size that no memory could hold: the request failed, whatever it was.
        op[fishy], pointer[fishy], old[fishy], size[fishy] = MALLOC, 0, 0, 0
        good &= (op != 255) & (size >= 0)

        kept = np.flatnonzero(good)
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
    def _numbers(kinds: np.ndarray, *columns: int) -> np.ndarray:
        """Rows with numbers in ``columns``, be they too large for 64 bits as in an overflow."""
        good = np.ones(len(kinds), bool)
        for i in columns:
            good &= (kinds[:, i] == NUMBER) | (kinds[:, i] == BAD)
        return good

    @staticmethod
    def _drop_overflows(values: np.ndarray, kinds: np.ndarray, fields: np.ndarray) -> None:
        """Take a calloc that overflowed off the beginning of its lines, in place."""
        calloc = _HASHES["N,SIZE"]
        while True:
            found = np.isin(values[:, 1], calloc) & (kinds[:, 4] == WORD)
            found = np.flatnonzero(found & np.isin(values[:, 4], _ALL))
            if not len(found):
                return
            for part in (values, kinds):
                part[found, 1:-3] = part[found, 4:]
            kinds[found, -3:] = ABSENT
            fields[found] -= 3

    def explain(self, fields: list[str]) -> str:
        """What is wrong with a line of these fields."""
        if word(fields[0]) != self._process:
            return f"a line of another process ({fields[0]}); each needs a log of its own"
        form = next(form for form, names in _FORMS.items() if fields[1] in names)
        found = " ".join(fields[1:])
        return f"expected '{fields[1]}({form})' and its result, found {found!r}"

    def spell(self, pointer: int) -> str:
        """The object as the trace names it."""
        return spell_address(pointer)

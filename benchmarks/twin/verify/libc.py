"""Real side: a process with the C library and an untouched heap, which executes operations.

The C library's other memory (text, data, thread-local storage) is touched beforehand, so that the
page faults of an operation are those of the heap.
"""

import os
from collections.abc import Mapping
from contextlib import closing

import numpy as np

from benchmarks.twin.verify.operation import (
    ALIGNED,
    BLOCK,
    CALLOC,
    FREE,
    LIMIT_AS,
    LIMIT_DATA,
    MALLOC,
    READ,
    REALLOC,
    SBRK,
    STRAY,
    THREAD_END,
    THREAD_START,
    TRIM,
    UNBLOCK,
    USABLE,
    USE,
)
from kernel import uapi
from kernel.engine.jit import build_once, jit
from kernel.linux import host
from kernel.linux.host.code import (
    CHUNK,
    OP,
    OP_CALL,
    OP_JOIN,
    OP_LOAD,
    OP_NOP,
    OP_SETRLIMIT,
    OP_STORE,
    OP_SWITCH,
    OP_SYSCALL,
    OP_TOUCH,
    RESULT,
)
from kernel.linux.host.process import HostError, HostProcess
from kernel.linux.scope import cannot_serve

#: The functions called, in the order of :func:`prepare`'s table.
FUNCTIONS = (
    "malloc",
    "calloc",
    "realloc",
    "aligned_alloc",
    "free",
    "malloc_usable_size",
    "malloc_trim",
    "sbrk",
    "pthread_create",
    "pthread_join",
)
#: Indices after these in the table: a thread's entry point, and the address of thread 0's handle.
_ENTRY, _HANDLES = len(FUNCTIONS), len(FUNCTIONS) + 1
#: Maximum number of host operations for one row: switch of threads, call, first word, other pages,
#: break.
MOST_STEPS = 5
#: Columns of OP and RESULT as words.
_KIND, _NR, _ARGS = 0, 1, 2
_VALUE, _SIGNAL, _MINFLT = 0, 1, 4
_PAGE = 4096
#: The glibc version that the twin models.
VERSION = "2.36"


@jit
def _put(ops, n, kind, nr, a, b, c, d, e):
    """Write operation ``n`` of the host.  Returns ``n + 1``."""
    ops[n, _KIND] = kind
    ops[n, _NR] = nr
    ops[n, _ARGS] = a
    ops[n, _ARGS + 1] = b
    ops[n, _ARGS + 2] = c
    ops[n, _ARGS + 3] = d
    ops[n, _ARGS + 4] = e
    ops[n, _ARGS + 5] = 0
    return n + 1


@jit
def _put_call(functions, op, x, ops, n):
    """Write the host operation for the call of one row.  Returns the next index."""
    kind = op.kind
    if kind == MALLOC:
        return _put(ops, n, OP_CALL, 0, functions[0], x.request, 0, 0, 0)
    if kind == CALLOC:
        members = max(op.extra, 1) if x.request >= 0 else 1
        return _put(ops, n, OP_CALL, 0, functions[1], members, x.request // members, 0, 0)
    if kind == REALLOC:
        return _put(ops, n, OP_CALL, 0, functions[2], x.p, x.request, 0, 0)
    if kind == ALIGNED:
        return _put(ops, n, OP_CALL, 0, functions[3], 1 << op.extra, x.request, 0, 0)
    if kind in (FREE, STRAY):
        return _put(ops, n, OP_CALL, 0, functions[4], x.p, 0, 0, 0)
    if kind == USABLE:
        return _put(ops, n, OP_CALL, 0, functions[5], x.p, 0, 0, 0)
    if kind == TRIM:
        return _put(ops, n, OP_CALL, 0, functions[6], 0, 0, 0, 0)
    if kind == SBRK:
        return _put(ops, n, OP_CALL, 0, functions[7], x.request, 0, 0, 0)
    if kind == BLOCK:
        flags = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS | uapi.MAP_FIXED_NOREPLACE
        return _put(ops, n, OP_SYSCALL, uapi.NR_MMAP, x.p, x.request, uapi.PROT_NONE, flags, -1)
    if kind == UNBLOCK and x.p:
        return _put(ops, n, OP_SYSCALL, uapi.NR_MUNMAP, x.p, x.request, 0, 0, 0)
    if kind in (LIMIT_DATA, LIMIT_AS):
        which = uapi.RLIMIT_DATA if kind == LIMIT_DATA else uapi.RLIMIT_AS
        limit = -1 if x.request == uapi.RLIM_INFINITY else x.request
        return _put(ops, n, OP_SETRLIMIT, 0, which, limit, 0, 0, 0)
    if kind == THREAD_START and x.request:
        handle = functions[_HANDLES] + 8 * x.request
        return _put(ops, n, OP_CALL, 0, functions[8], handle, 0, functions[_ENTRY], x.request)
    if kind == THREAD_END and x.request:
        return _put(ops, n, OP_JOIN, 0, functions[9], x.request, 0, 0, 0)
    return _put(ops, n, OP_NOP, 0, 0, 0, 0, 0, 0)


@jit
def prepare(program, expected, functions, turn, ops, steps, begin, end):
    """Write the host operations for rows [begin, end) to ``ops``, (m, 8) words of OP.

    Returns their number.  ``steps[i]``: indices of the call of row ``begin + i`` and of its last
    operation, which reads the break.  ``turn[0]``: the thread that acts, updated.
    """
    n = 0
    for i in range(begin, end):
        x = expected[i]
        if x.thread != turn[0]:
            n = _put(ops, n, OP_SWITCH, 0, x.thread, 0, 0, 0, 0)
            turn[0] = x.thread
        steps[i - begin, 0] = n
        n = _put_call(functions, program[i], x, ops, n)
        if program[i].kind == THREAD_START and x.request and x.value == 0:
            # The new thread touches its stack before it waits for its turn.
            n = _put(ops, n, OP_SWITCH, 0, x.request, 0, 0, 0, 0)
            turn[0] = x.request
        if x.length:
            # The aligned word that contains the first byte belongs to the block, and so does the
            # first word of every further page that the block extends into.
            word = x.address & -8
            write = program[i].use != READ
            n = _put(ops, n, OP_STORE if write else OP_LOAD, 0, word, 0, 0, 0, 0)
            page = (word & -_PAGE) + _PAGE
            last = (x.address + x.length + _PAGE - 1) & -_PAGE
            if page < last:
                n = _put(ops, n, OP_TOUCH, 0, page, last - page, write, 0, 0)
        steps[i - begin, 1] = n
        n = _put(ops, n, OP_SYSCALL, uapi.NR_BRK, 0, 0, 0, 0, 0)
    return n


@jit(inline=True)
def has_answer(kind):
    """Return True if the call returns a value that both sides know and that is compared."""
    return kind not in (FREE, STRAY, TRIM, USE)


@jit
def answers(program, expected, steps, results, actual, begin, end):
    """Write the host's results for rows [begin, end) to ``actual``.

    Returns the first row that differs, or -1.  ``results``: (m, 6) words of RESULT.  A signal is
    stored as a fault count of -signal.
    """
    found = -1
    for i in range(begin, end):
        x = expected[i]
        y = actual[i]
        y.p = x.p
        y.thread = x.thread
        y.request = x.request
        y.address = x.address
        y.length = x.length
        call = steps[i - begin, 0]
        last = steps[i - begin, 1]
        y.value = results[call, _VALUE] if has_answer(program[i].kind) else x.value
        y.minflt = results[call, _MINFLT]
        y.use_minflt = 0
        for n in range(call + 1, last):
            y.use_minflt += results[n, _MINFLT]
            if results[n, _SIGNAL]:
                y.use_minflt = -results[n, _SIGNAL]
        if program[i].kind == THREAD_START:  # faults of the new thread belong to the call
            y.minflt += y.use_minflt
            y.use_minflt = 0
        if results[call, _SIGNAL]:
            y.minflt = -results[call, _SIGNAL]
        y.brk = results[last, _VALUE]
        same = y.value == x.value and y.brk == x.brk
        if found < 0 and not (same and y.minflt == x.minflt and y.use_minflt == x.use_minflt):
            found = i
    return found


class Libc:
    """Process with the C library; its memory is touched, except the heap.

    ``tunables``: glibc.malloc tunables by name.  Raises HostError.
    """

    def __init__(self, tunables: Mapping[str, int]) -> None:
        text = ":".join(f"glibc.malloc.{name}={value}" for name, value in tunables.items())
        self.host = HostProcess(libc={"GLIBC_TUNABLES": text} if text else {})
        self._memory = -1
        try:
            handle, _, entry, number = self.host.create(1)
            functions = [self.host.function(name) for name in FUNCTIONS]
            self.functions = np.array([*functions, entry, handle - 8 * number], "i8")
            self._turn = np.zeros(1, "i8")
            self._warm()
            self._memory = os.open(f"/proc/{self.host.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise
        self._prepare = build_once(prepare)
        self._answers = build_once(answers)

    def close(self) -> None:
        """End the process."""
        self.host.close()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def version(self) -> str:
        """Return the C library's version, from gnu_get_libc_version."""
        op = np.zeros(1, OP)
        op[0] = (OP_CALL, 0, (self.host.function("gnu_get_libc_version"), 0, 0, 0, 0, 0))
        text = self.words(int(self.host.run(op)["value"][0]) & -8, 4).tobytes()
        start = int(self.host.run(op)["value"][0]) & 7
        return text[start:].split(b"\0")[0].decode()

    def writable(self) -> list[tuple[int, int]]:
        """Return start and end of the private writable mappings made by the loader."""
        return [(start, end) for start, end, rights in self._areas() if "w" in rights]

    def _areas(self) -> list[tuple[int, int, str]]:
        """Return start, end and permissions of the private mappings made by the loader."""
        areas = []
        for line in self.host.maps.splitlines():
            span, rights, _offset, _device, _inode, *name = line.split(maxsplit=5)
            start, end = (int(x, 16) for x in span.split("-"))
            special = bool(name) and name[0].startswith("[")
            ours = any(low < end and start < high for low, high in self.host.areas)
            if not special and not ours and "p" in rights:
                areas.append((start, end, rights))
        return areas

    def _warm(self) -> None:
        """Read every page that the loader mapped, and write the value back if it is writable."""
        areas = [area for area in self._areas() if "r" in area[2]]
        pages = [(p, "w" in r) for start, end, r in areas for p in range(start, end, _PAGE)]
        loads = np.zeros(len(pages), OP)
        loads["kind"] = OP_LOAD
        loads["args"][:, 0] = [p for p, _ in pages]
        values = self.host.run(loads, faults=False)["value"]
        stores = loads.copy()
        stores["kind"] = OP_STORE
        stores["args"][:, 1] = values
        self.host.run(stores[[w for _, w in pages]], faults=False)

    def run(
        self,
        program: np.ndarray,
        expected: np.ndarray,
        actual: np.ndarray,
        begin: int,
        end: int,
        *,
        single: bool = False,
    ) -> int:
        """Execute rows [begin, end) in batches.  Returns the first that differs, or -1.

        The results of whole batches are written to ``actual`` and compared with ``expected``.
        ``single``: use batches of one row, so that a row that kills the process can be identified;
        HostError is raised then.  ``self.done``: the row up to which results are known.
        """
        most = 1 if single else CHUNK // MOST_STEPS
        ops = np.zeros(most * MOST_STEPS, OP)
        words = ops.view("i8").reshape(len(ops), -1)
        steps = np.zeros((most, 2), "i8")
        if (program["kind"] == THREAD_START).any():
            self.host.expect_threads()
        self.done = begin
        for start in range(begin, end, most):
            stop = min(start + most, end)
            n = self._prepare(
                program, expected, self.functions, self._turn, words, steps, start, stop
            )
            results = self.host.run(ops[:n])
            answer = results.view("i8").reshape(n, RESULT.itemsize // 8)
            differs = self._answers(program, expected, steps, answer, actual, start, stop)
            self.done = stop
            if differs >= 0:
                return differs
        return -1

    def words(self, address: int, count: int) -> np.ndarray:
        """Read up to ``count`` words of memory, i8; fewer if unmapped memory follows."""
        try:
            data = os.pread(self._memory, 8 * count, address)
        except OSError:
            data = b""
        return np.frombuffer(data[: len(data) // 8 * 8], "i8")


def unavailable() -> str:
    """Return the reason why this host cannot run the real side, on one line; '' if it can."""
    if reason := host.unavailable() or cannot_serve("off"):
        return reason
    try:
        with closing(Libc({})):
            return ""
    except HostError as error:
        return str(error)


def wrong_library() -> str:
    """Return a message if this machine's C library has another version than the twin, else ''."""
    with closing(Libc({})) as libc:
        version = libc.version()
    return "" if version == VERSION else f"the C library is glibc {version}, not {VERSION}"

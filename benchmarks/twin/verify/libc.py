"""The real side: a process that has touched nothing of its heap, and does what it is told.

What its C library needs besides the heap (text, data, its thread's storage) is touched before, so
that the page faults of an operation are those of the heap.
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
#: Behind these in the table: where a thread starts, and where thread 0's handle would be.
_ENTRY, _HANDLES = len(FUNCTIONS), len(FUNCTIONS) + 1
#: Operations of the host that one of ours takes at most: the thread, call, first word, other pages,
#: break.
MOST_STEPS = 5
#: Columns of OP and RESULT as words.
_KIND, _NR, _ARGS = 0, 1, 2
_VALUE, _SIGNAL, _MINFLT = 0, 1, 4
_PAGE = 4096
#: The version that the twin is of.
VERSION = "2.36"


@jit
def _put(ops, n, kind, nr, a, b, c, d, e):
    """Write operation ``n`` of the host; returns ``n + 1``."""
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
    """Write the call of one operation."""
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
    """Write what the host does for rows [begin, end) to ``ops``, (m, 8) words of OP.

    ``steps[i]``: where the call of row ``begin + i`` is, and where its last step, the break's.
    ``turn[0]``: which thread has the turn, before and afterwards.
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
            # It touches its stack before it takes its turn.
            n = _put(ops, n, OP_SWITCH, 0, x.request, 0, 0, 0, 0)
            turn[0] = x.request
        if x.length:
            # The word at a multiple of 8 that holds the first byte is the block's, and the first
            # word of every page that the block reaches into.
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
    """Return whether the call's value is compared: it has one, and both sides know it."""
    return kind not in (FREE, STRAY, TRIM, USE)


@jit
def answers(program, expected, steps, results, actual, begin, end):
    """Put what the host answered for rows [begin, end) into ``actual``; the first row that differs.

    -1 for none.  ``results``, (m, 6) words of RESULT.  A signal becomes a fault count of -signal.
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
        if program[i].kind == THREAD_START:  # what the new thread does belongs to the call
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
    """A process with the C library, its own memory warm and its heap untouched.

    ``tunables``: glibc.malloc tunables by name.  A context manager.  Raises HostError.
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
        """Return what gnu_get_libc_version says."""
        op = np.zeros(1, OP)
        op[0] = (OP_CALL, 0, (self.host.function("gnu_get_libc_version"), 0, 0, 0, 0, 0))
        text = self.words(int(self.host.run(op)["value"][0]) & -8, 4).tobytes()
        start = int(self.host.run(op)["value"][0]) & 7
        return text[start:].split(b"\0")[0].decode()

    def writable(self) -> list[tuple[int, int]]:
        """Start and end of the private writable areas that the process began with."""
        return [(start, end) for start, end, rights in self._areas() if "w" in rights]

    def _areas(self) -> list[tuple[int, int, str]]:
        """Start, end and rights of what the loader mapped."""
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
        """Read every page that the loader mapped, and write the same back to the writable ones."""
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
        """Do rows [begin, end), in batches; the first that differs from ``expected``, else -1.

        What was observed goes to ``actual``, of whole batches.  ``single``: batches of one row, so
        that a row that kills the process is known: raises HostError then.  ``self.done``: rows of
        which the answers are known.
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
        """``count`` words of the process's memory, i8; shorter where it ends."""
        try:
            data = os.pread(self._memory, 8 * count, address)
        except OSError:
            data = b""
        return np.frombuffer(data[: len(data) // 8 * 8], "i8")


def unavailable() -> str:
    """Say why no process can be held against the model here, in one line; '' where it can."""
    if reason := host.unavailable() or cannot_serve("off"):
        return reason
    try:
        with closing(Libc({})):
            return ""
    except HostError as error:
        return str(error)


def wrong_library() -> str:
    """Say what this machine's C library is instead of the original; '' where it is that."""
    with closing(Libc({})) as libc:
        version = libc.version()
    return "" if version == VERSION else f"the C library is glibc {version}, not {VERSION}"

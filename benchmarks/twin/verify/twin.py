"""Twin's side: plays a program on the kernel model and records the expected results."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from allocators.base.contract import perform
from allocators.base.operation import ALLOCATING
from allocators.base.registry import Plugin
from benchmarks.replay.loop import initialise
from benchmarks.twin.verify import operation as ops
from benchmarks.twin.verify.threads import end_thread, note_second_thread, start_thread
from kernel import uapi
from kernel.access import touch
from kernel.brk import sbrk
from kernel.config import KernelConfig
from kernel.engine.branches import Branch, instrument
from kernel.engine.jit import build, jit, source_hash
from kernel.engine.switches import PAGE_SHIFT
from kernel.limits import setrlimit
from kernel.linux.host.code import MAX_THREADS
from kernel.mmap import mmap, munmap
from kernel.page import page_align

#: Expected results of one operation, and the arguments for the real process.
EXPECTED = np.dtype(
    [
        ("p", "i8"),  # address of the block before the call, or argument of the call
        ("thread", "i8"),  # that executes the operation
        ("request", "i8"),  # of the operation; an absolute limit; 0 for a thread without effect
        ("value", "i8"),  # return value of the call
        ("brk", "i8"),  # the break afterwards
        ("minflt", "i8"),  # page faults of the call
        ("address", "i8"),  # first byte of the block that is used; 0 if none
        ("length", "i8"),  # bytes that are used
        ("use_minflt", "i8"),  # page faults of the use
    ]
)
#: Columns of the table of blocks: address (0: none), requested bytes, last address of the slot.
BLOCK_COLUMNS = 3


@jit
def morecore(k, a, increment):
    """Do sbrk as the C library does, -1 on failure; bound to the twin's function if it has one."""
    return max(sbrk(k, increment), -1)


@jit(cold=True)
def _change_world(k, a, op, x, blocks):
    """Execute an operation outside the allocator: sbrk, a blocking mapping, or a limit."""
    mm = k.mm
    if op.kind == ops.SBRK:
        return morecore(k, a, x.request)
    if op.kind == ops.BLOCK:
        x.p = page_align(mm.brk) + x.request
        x.request = op.extra
        flags = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS | uapi.MAP_FIXED_NOREPLACE
        value = mmap(k, x.p, x.request, uapi.PROT_NONE, flags)
        if value > 0:
            blocks[op.slot, 0] = value
            blocks[op.slot, 1] = x.request
        return value
    if op.kind == ops.UNBLOCK:
        x.request = blocks[op.slot, 1]
        blocks[op.slot, 0] = 0
        return munmap(k, x.p, x.request) if x.p else 0
    if x.request < 0:
        x.request = uapi.RLIM_INFINITY
    elif op.kind == ops.LIMIT_DATA:
        x.request += mm.data_vm << PAGE_SHIFT
    else:
        x.request += mm.total_vm << PAGE_SHIFT
    return setrlimit(
        k, uapi.RLIMIT_DATA if op.kind == ops.LIMIT_DATA else uapi.RLIMIT_AS, x.request
    )


@jit(cold=True)
def _start_or_end(k, a, op, x, threads):
    """Start or end thread ``x.request``; set that to 0 if the operation has no effect."""
    number = x.request
    ends = op.kind == ops.THREAD_END
    if number <= 0 or number >= MAX_THREADS or number == x.thread or threads.alive[number] != ends:
        x.request = 0
        return 0
    if ends:
        return end_thread(k, a, threads, number)
    return start_thread(k, a, threads, number)


@jit
def _call(k, a, op, x, blocks, threads):
    """Execute an operation's call and update the table of blocks.  Returns the call's value."""
    kind, slot = op.kind, op.slot
    if kind in ALLOCATING:
        value = perform(k, a, kind, x.p, x.request, 1 << op.extra if kind == ops.ALIGNED else 0)
        if value or kind != ops.REALLOC or x.request == 0:  # a failed realloc keeps the block
            blocks[slot, 0] = value
            blocks[slot, 1] = x.request
            blocks[slot, 2] = value if value or kind != ops.REALLOC else x.p
        return value
    if kind in (ops.FREE, ops.USABLE, ops.TRIM):
        if kind == ops.FREE and x.p:
            blocks[slot, 0] = 0
        return perform(k, a, kind, x.p, 0, 0)
    if kind == ops.STRAY:
        x.p = blocks[slot, 2] + x.request
        return perform(k, a, ops.FREE, x.p, 0, 0)
    if kind in (ops.SBRK, ops.BLOCK, ops.UNBLOCK, ops.LIMIT_DATA, ops.LIMIT_AS):
        return _change_world(k, a, op, x, blocks)
    if kind in (ops.THREAD_START, ops.THREAD_END):
        return _start_or_end(k, a, op, x, threads)
    return 0


@jit
def _use(k, op, x, p, old, size):
    """Touch the block of ``size`` bytes at ``p`` (``old`` bytes before a realloc) as in ``op``."""
    begin = min(old if op.begin == ops.GROWN else op.begin, size)
    length = min(op.length, size - begin)
    if length > 0:
        x.address = p + begin
        x.length = length
        touch(k, x.address, length, 1 if op.use == ops.WRITE else 0)


@jit
def play(k, a, program, expected, blocks, threads, begin, end):
    """Play rows [begin, end) of ``program`` and fill the same rows of ``expected``.

    ``blocks``, (n, BLOCK_COLUMNS), and ``threads``, a THREADS, hold the state left by earlier rows.
    ``k.task.now`` is the current row, also after a signal.
    """
    mm = k.mm
    for i in range(begin, end):
        k.task.now = i
        op = program[i]
        x = expected[i]
        slot = op.slot
        x.thread = op.thread if threads.alive[op.thread] else 0
        k.task.tid = x.thread
        x.p = blocks[slot, 0] if slot >= 0 else 0
        old = blocks[slot, 1] if x.p else 0
        x.request = op.request
        before = mm.minflt
        x.value = _call(k, a, op, x, blocks, threads)
        x.brk = mm.brk
        x.minflt = mm.minflt - before
        x.address = 0
        x.length = 0
        before = mm.minflt
        if op.use != ops.LEAVE and slot >= 0 and blocks[slot, 0]:
            _use(k, op, x, blocks[slot, 0], old, blocks[slot, 1])
        x.use_minflt = mm.minflt - before
    return end


class Twin:
    """Plugin compiled for playing programs.

    ``count_branches``: count the branches of all functions reached in ``k.hits``.  ``bindings``
    replace functions or constants of the plugin (mutations).
    """

    def __init__(
        self,
        plugin: Plugin,
        config: KernelConfig,
        *,
        count_branches: bool = False,
        bindings: Mapping[str, Any] | None = None,
    ) -> None:
        self.plugin = plugin
        everything = plugin.bindings() | config.switches()
        for default in (morecore, note_second_thread):
            name = default.__name__
            everything[name] = getattr(plugin.module, name, default)
        everything |= dict(bindings or {})
        self.branches: list[Branch] = []
        if count_branches:
            self.play, self.branches = _counting(play, everything)
        else:
            self.play = _built(play, everything)
        self.init = _built(initialise, everything)


#: Functions compiled in this process, by the hash of their sources and bindings.
_compiled: dict[str, Callable] = {}
_instrumented: dict[str, tuple[Callable, list[Branch]]] = {}


def _built(function: Callable, bindings: Mapping[str, Any]) -> Callable:
    """Build ``function``, or reuse an identical build: most settings do not change the loop."""
    key = source_hash(function, **bindings)
    if key not in _compiled:
        _compiled[key] = build(function, **bindings)
    return _compiled[key]


def _counting(function: Callable, bindings: Mapping[str, Any]) -> tuple[Callable, list[Branch]]:
    """Build a copy of ``function`` that counts branches.  Returns it and the list of branches."""
    key = source_hash(function, **bindings)
    if key not in _instrumented:
        counting, branches = instrument(function, **bindings)
        _instrumented[key] = build(counting), branches
    return _instrumented[key]

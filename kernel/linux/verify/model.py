"""The model's side of a comparison: does an operation as the real process does it."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from kernel.access import access, load, store
from kernel.config import KernelConfig
from kernel.engine.branches import Branch, instrument
from kernel.engine.jit import build_once, jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.fault import handle_mm_fault
from kernel.limits import setrlimit
from kernel.linux.state import COUNTERS, ModelSide
from kernel.linux.verify.generator import Area, View
from kernel.linux.verify.operation import OP_LOAD, OP_SETRLIMIT, OP_STORE, OP_SYSCALL, OP_TOUCH, Op
from kernel.page import page_size
from kernel.syscall import syscall
from kernel.types import SimulatedSignal
from kernel.uapi import RLIM_INFINITY, RLIMIT_AS
from kernel.vma import find_vma

#: The counters that a View has, in its order.
_VIEWED = tuple(map(COUNTERS.index, ("VmSize", "VmData", "VmLck", "RssAnon")))


class Result(NamedTuple):
    """The result of one operation; ``value`` is 0 where a signal came instead."""

    value: int
    sig: int
    si_code: int
    si_addr: int
    minflt: int
    majflt: int


@jit
def _reach(k, addr, write):
    """Let the fault handler judge an address that is in no area.

    The hook of accesses alone would take one that folds onto a mapped page for that page: the
    price of its one AND (kernel.access), which is no rule of Linux's to compare.
    """
    i = find_vma(k, addr)
    if i == k.mm.map_count or k.vma[i].vm_start > addr:
        handle_mm_fault(k, addr, write)


@jit
def execute(k, kind, nr, a, b, c, d, e, f):
    """Do one operation; its value (of OP_TOUCH, of whole pages: their number).

    Raises SimulatedSignal as the process would be killed.
    """
    if kind == OP_SYSCALL:
        return syscall(k, nr, a, b, c, d, e, f)
    if kind == OP_LOAD:
        _reach(k, a, 0)
        return load(k, a)
    if kind == OP_STORE:
        _reach(k, a, 1)
        store(k, a, b)
    elif kind == OP_TOUCH:
        for addr in range(a, a + b, page_size()):
            _reach(k, addr, c)
            if c:
                store(k, addr, d)
            else:
                access(k, addr, 0)
        return b >> PAGE_SHIFT
    elif kind == OP_SETRLIMIT:
        return setrlimit(k, a, b)
    return 0


@cache
def _instrumented() -> tuple[Callable, list[Branch]]:
    return instrument(execute)


def counted_branches() -> list[Branch]:
    """The branches of the model, by their number in ``k.hits``."""
    return _instrumented()[1]


class Model(ModelSide):
    """A simulated process as one side of a comparison.

    ``count_branches`` uses a build that counts them in ``k.hits``; ``bindings`` replace functions
    or constants of the kernel in a build of its own (mutation checks).
    """

    def __init__(
        self, config: KernelConfig, *, count_branches: bool = False, **bindings: Any
    ) -> None:
        super().__init__(config)
        self.branches = counted_branches() if count_branches else []
        switches = config.switches()
        if bindings:
            self._execute = build_once(execute, cache=False, **switches, **bindings)
        else:
            self._execute = build_once(
                _instrumented()[0] if count_branches else execute, **switches
            )
        self._vma = self.k["vma"].view(np.ndarray)
        self.compile()

    def do(self, op: Op) -> Result:
        """Do one operation."""
        before = self.faults
        value, sig = 0, (0, 0, 0)
        try:
            value = self._execute(self.k, op.kind, op.nr, *op.arguments())
        except SimulatedSignal:
            task = self.k.task
            sig = int(task.sig), int(task.si_code), int(task.si_addr)
            task.sig = 0
        self.refresh()
        faults = (now - then for now, then in zip(self.faults, before, strict=True))
        return Result(int(value), *sig, *faults)

    def do_unseen(self, op: Op) -> int:
        """Do one system call without looking at the state; its value."""
        return int(self._execute(self.k, op.kind, op.nr, *op.arguments()))

    def view(self) -> View:
        """Return what the generator of programs sees."""
        areas = [Area(*row) for row in self._vma[: self.k.mm.map_count].tolist()]
        counters = self.state().counters
        return View(areas, self.brk, *(counters[n] >> 12 for n in _VIEWED))

    def compile(self) -> None:
        """Compile what has not been compiled: the patience with operations is not for that."""
        self.do(Op("", OP_SETRLIMIT, 0, (RLIMIT_AS, RLIM_INFINITY)))
        self.reset()
        self.k["hits"][:] = 0

"""The model's side of a comparison: executes operations as the real process does."""

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

#: Indices of a View's counters in State.counters, in the order of View's fields.
_VIEWED = tuple(map(COUNTERS.index, ("VmSize", "VmData", "VmLck", "RssAnon")))


class Result(NamedTuple):
    """Result of one operation; ``value`` is 0 if a signal ended it."""

    value: int
    sig: int
    si_code: int
    si_addr: int
    minflt: int
    majflt: int


@jit
def _reach(k, addr, write):
    """Call the fault handler for an address outside all areas.

    The access hook alone masks the address with a single AND (kernel.access), so it takes an
    address that folds onto a mapped page for that page.  Linux has no such rule to compare with.
    """
    i = find_vma(k, addr)
    if i == k.mm.map_count or k.vma[i].vm_start > addr:
        handle_mm_fault(k, addr, write)


@jit
def execute(k, kind, nr, a, b, c, d, e, f):
    """Execute one operation and return its value; of OP_TOUCH, the number of whole pages.

    Raises SimulatedSignal if the process would receive a fatal signal.
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
    """Return the branches of the model; their numbers are indices into ``k.hits``."""
    return _instrumented()[1]


class Model(ModelSide):
    """Simulated process as one side of a comparison.

    ``count_branches``: use a build that counts branches in ``k.hits``.  ``bindings``: replacements
    of functions or constants of the kernel, in a separate build (for mutation testing).
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
        """Execute one operation."""
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
        """Execute one system call without reading the state; return its value."""
        return int(self._execute(self.k, op.kind, op.nr, *op.arguments()))

    def view(self) -> View:
        """Return the state that the generator of programs uses."""
        areas = [Area(*row) for row in self._vma[: self.k.mm.map_count].tolist()]
        counters = self.state().counters
        return View(areas, self.brk, *(counters[n] >> 12 for n in _VIEWED))

    def compile(self) -> None:
        """Compile everything, so that compilation does not count towards an operation's timeout."""
        self.do(Op("", OP_SETRLIMIT, 0, (RLIMIT_AS, RLIM_INFINITY)))
        self.reset()
        self.k["hits"][:] = 0

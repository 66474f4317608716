"""Compiled driver that runs an address-dependent program against a bump allocator."""

from benchmarks.events.events import MALLOC
from kernel.engine.jit import jit

BASE = 1 << 20


@jit
def next_event(g, last):
    raise NotImplementedError  # bound to the workload's next_event


@jit
def drive_bump(g, log, header):
    """Run a program on a bump allocator; log (op, slot, request), return the number of events."""
    last = 0
    top = BASE
    n = 0
    while n < log.shape[0] and next_event(g, last):
        log[n, 0] = g.op
        log[n, 1] = g.slot
        log[n, 2] = g.request
        n += 1
        last = 0
        if g.op == MALLOC:
            last = top + header
            top += header + g.request
    return n

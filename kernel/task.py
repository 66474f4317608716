"""End a simulated process: record the signal, then raise an exception to leave compiled code.

Under ``_nrt=False`` an exception can contain only constants, so the reason is stored in ``k.task``
and :func:`reason` makes the message from it.
"""

import numpy as np

from kernel import types
from kernel.conservation import CHECKS
from kernel.engine.jit import jit
from kernel.types import SimulatedSignal

_ABORTS = {
    types.ABORT_DOUBLE_FREE: "double free of {addr:#x}",
    types.ABORT_BAD_POINTER: "free or realloc of {addr:#x}, which is not an allocated block",
    types.ABORT_CORRUPT: "the allocator found its own heap corrupted at {addr:#x}",
    types.ABORT_MISALIGNED: "the allocator returned {addr:#x}, which is not aligned as requested",
    types.ABORT_OUTSIDE: "the allocator returned {addr:#x}, a block outside its writable mappings",
}


@jit(cold=True)
def kill(k, sig, code, addr, write):
    """End the simulated process with signal ``sig``; never returns."""
    task = k.task
    task.sig = sig
    task.si_code = code
    task.si_addr = addr
    task.si_write = write
    raise SimulatedSignal


@jit(cold=True)
def abort(k, code, addr):
    """End the process with SIGABRT for the reason ``code`` (ABORT_*); never returns."""
    kill(k, types.SIGABRT, code, addr, 0)


def reason(k: np.record) -> str:
    """Return the reason why the process ended as text, or an empty string while it runs."""
    task = k.task
    sig, code, addr = int(task.sig), int(task.si_code), int(task.si_addr)
    access = "write to" if task.si_write else "read of"
    match sig:
        case 0:
            return ""
        case _ if sig == types.SIGABRT and code == types.ABORT_FRAMES:
            return f"SIGABRT: frames are not conserved: {CHECKS[addr]}: {k.phys.bad}"
        case _ if sig == types.SIGABRT and code == types.ABORT_OUTSIDE and addr < 0:
            return f"SIGABRT: the allocator returned {addr}, which is neither an address nor NULL"
        case _ if sig == types.SIGABRT:
            return "SIGABRT: " + _ABORTS.get(code, "abort code {code} at {addr:#x}").format(
                code=code, addr=addr
            )
        case _ if sig == types.SIGSEGV and code == types.SEGV_MAPERR:
            return f"SIGSEGV: {access} {addr:#x}, where nothing is mapped"
        case _ if sig == types.SIGSEGV and code == types.SEGV_ACCERR:
            return f"SIGSEGV: {access} {addr:#x}, which its mapping does not permit"
        case _ if sig == types.SIGSEGV and code == types.SI_KERNEL:
            return "SIGSEGV: access to a non-canonical address"
        case _ if sig == types.SIGBUS and code == types.BUS_ADRALN:
            return f"SIGBUS: load or store at {addr:#x}, which is not a multiple of its size"
        case _ if sig == types.SIGKILL:
            return f"SIGKILL: out of memory on a page fault at {addr:#x}"
        case _ if sig == types.SIGSYS:
            return (
                f"SIGSYS: the mapping at {addr:#x} would overlap another one in the "
                "simulated-memory window; set a larger kernel.window_bits"
            )
    return f"signal {sig}, code {code}, address {addr:#x}"

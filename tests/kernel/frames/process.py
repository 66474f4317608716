"""A whole process with frames and TLBs; the invariants are checked after each call."""

from kernel.access import load, store, touch
from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.conservation import CHECKS, check_frames
from kernel.engine.jit import build_once, jit
from kernel.syscall import syscall
from kernel.task import reason
from kernel.types import (
    PTE_FRAME,
    PTE_HUGE,
    PTE_LAZY,
    PTE_PRESENT,
    PTE_SWAP,
    SIGKILL,
    SimulatedSignal,
)

PAGE = 4096
#: Pages of a huge page.
HUGE = 512
WINDOW_BITS = 40
#: Address at which tests map: page 0 of :func:`at`, the start of a page-table slot.
ORIGIN = 0x100000000000

_TOUCH, _STORE, _LOAD, _CHECK = -1, -2, -3, -4

#: Small tables, so that entries are evicted too.
GEOMETRY = {
    "tlb_l1_entries": 16,
    "tlb_l1_huge_entries": 4,
    "tlb_l2_entries": 64,
    "tlb_l2_ways": 4,
}


def at(page):
    """Return the address of page number ``page``, relative to ORIGIN."""
    return ORIGIN + page * PAGE


@jit
def enter(k, call, a, b, c, d, e):
    """Run a system call, or another operation for a negative ``call``."""
    if call == _TOUCH:
        touch(k, a, b, c)
    elif call == _STORE:
        store(k, a, b)
    elif call == _LOAD:
        return load(k, a)
    elif call == _CHECK:
        return check_frames(k)
    else:
        return syscall(k, call, a, b, c, d, e, 0)
    return 0


class Unsound(AssertionError):
    """Violation of an invariant."""


class Process:
    """A process with frames and TLBs; :meth:`verify` runs after every call.

    Sizes in MiB.  ``bindings`` replace functions of the kernel.  A signal other than SIGKILL is a
    result: a negative number beyond all errnos.  SIGKILL sets ``killed``.
    """

    def __init__(self, memory=4, swap=16, *, bindings=None, **settings):
        settings = {"overcommit": 1, "window_bits": WINDOW_BITS, "tlb": True} | GEOMETRY | settings
        self.machine = Machine(
            KernelConfig(
                frames=True, memory=int(memory * 2**20), swap=int(swap * 2**20), **settings
            )
        )
        self.k = self.machine.k
        self.mm = self.k.mm
        switches = self.machine.config.switches()
        self._enter = build_once(enter, **(switches | (bindings or {})))
        self.killed = False
        self._translations = {}

    def call(self, nr, a=0, b=0, c=0, d=0, e=0):
        """Run a system call and return its result."""
        return self._do(nr, a, b, c, d, e)

    def touch(self, page, pages=1, write=1):
        """Access whole pages as the program does."""
        return self._do(_TOUCH, at(page), pages * PAGE, write)

    def store(self, page, word):
        """Set the first word of a page."""
        return self._do(_STORE, at(page), word)

    def load(self, page):
        """Return the first word of a page."""
        return self._do(_LOAD, at(page))

    def _do(self, call, a, b=0, c=0, d=0, e=0):
        try:
            result = int(self._enter(self.k, call, a, b, c, d, e))
        except SimulatedSignal:
            signal = int(self.k.task.sig)
            self.killed = signal == SIGKILL
            result = -10000 - signal
            if not self.killed:
                self.k.task.sig = 0
        accessed = (a, a + (b if call == _TOUCH else 8)) if call < 0 else (0, 0)
        self.verify(*accessed)
        return result

    def verify(self, start=0, end=0):
        """Raise Unsound if frames are not conserved or a translation is stale.

        [start, end) has just been accessed: its pages may have been mapped to other frames.
        """
        code = int(self._enter(self.k, _CHECK, 0, 0, 0, 0, 0))
        if code:
            raise Unsound(f"{CHECKS[code]}: {self.k.phys.bad}")
        found = {}
        for level in self.k.tlb_level:
            for tag in level.tag[: int(level.sets * level.ways)].tolist():
                if tag:
                    page = tag >> 1 << 9 if tag & 1 else tag >> 1
                    found[tag] = self._translate(page, huge=tag & 1)
                    fresh = page * PAGE < end and (page + (HUGE if tag & 1 else 1)) * PAGE > start
                    if not fresh and self._translations.get(tag) != found[tag]:
                        raise Unsound(f"a stale translation of page {page:#x}: {found[tag]}")
        self._translations = found

    def _translate(self, page, huge):
        """Return the page tables' translation of page number ``page``: its frame or other state."""
        folded = page & ((1 << (WINDOW_BITS - 12)) - 1)
        state = int(self.k.pte[folded])
        if not state & PTE_PRESENT or bool(state & PTE_HUGE) != bool(huge):
            raise Unsound(f"a translation of page {page:#x} that contradicts its state {state:#x}")
        return self._pfn(folded) if state & PTE_FRAME else state & PTE_PRESENT

    def _pfn(self, folded):
        from kernel.engine.memory import windows

        return int(windows[int(self.k["pfn"])][folded])

    def state(self, page):
        """Return the state of page ``page``: 'frame', 'lazy', 'swap' or another."""
        f = int(self.k.pte[(at(page) >> 12) & ((1 << (WINDOW_BITS - 12)) - 1)])
        if f & PTE_FRAME:
            return "lazy" if f & PTE_LAZY else "frame"
        return "swap" if f & PTE_SWAP else "zero" if f & PTE_PRESENT else ""

    def states(self, page, n):
        """Return the set of the states of ``n`` pages."""
        return {self.state(page + i) for i in range(n)}

    def why(self):
        """Return the model's explanation of the process's end."""
        return reason(self.k)

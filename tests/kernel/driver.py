"""A process of the model for tests: all kernel functions are called through one compiled entry."""

from kernel.access import (
    clear,
    copy,
    hold,
    load,
    load_half,
    peek,
    poke,
    prefetch,
    store,
    store_half,
    touch,
)
from kernel.boot import Machine
from kernel.brk import brk, sbrk
from kernel.config import KernelConfig
from kernel.engine.jit import build_once, jit
from kernel.layout import get_unmapped_area
from kernel.madvise import madvise
from kernel.mmap import mmap, munmap
from kernel.syscall import syscall
from kernel.task import abort, reason
from kernel.types import (
    PTE_FILE,
    PTE_FRAME,
    PTE_ZERO,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_MAYSHARE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    SimulatedSignal,
)
from kernel.uapi import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    NR_MLOCK,
    NR_MLOCK2,
    NR_MMAP,
    NR_MPROTECT,
    NR_MREMAP,
    NR_MUNLOCK,
    NR_SETRLIMIT,
)
from kernel.vma import covered

PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
FIXED = PRIVATE | MAP_FIXED
#: Flags of an area by their names in /proc/PID/smaps.
_WORDS = {
    "gd": VM_GROWSDOWN,
    "lo": VM_LOCKED,
    "lf": VM_LOCKONFAULT,
    "nr": VM_NORESERVE,
    "hg": VM_HUGEPAGE,
    "nh": VM_NOHUGEPAGE,
}
#: Tests share one window size where possible: another size requires another compilation.
WINDOW_BITS = 40

#: Calls of :func:`enter`, by the name of the Process method.
CALLS = (
    "brk",
    "sbrk",
    "mmap",
    "munmap",
    "madvise",
    "touch",
    "load",
    "store",
    "peek",
    "poke",
    "copy",
    "clear",
    "covered",
    "get_unmapped_area",
    "abort",
    "prefetch",
    "syscall",
    "load_half",
    "store_half",
    "hold",
)
(
    _BRK,
    _SBRK,
    _MMAP,
    _MUNMAP,
    _MADVISE,
    _TOUCH,
    _LOAD,
    _STORE,
    _PEEK,
    _POKE,
    _COPY,
    _CLEAR,
    _COVERED,
    _GET_UNMAPPED_AREA,
    _ABORT,
    _PREFETCH,
    _SYSCALL,
    _LOAD_HALF,
    _STORE_HALF,
    _HOLD,
) = range(len(CALLS))


@jit
def enter(k, call, a, b, c, d, e, f, g):
    """Run one call of CALLS; return its result, 0 for a call without one."""
    result = 0
    if call == _BRK:
        result = brk(k, a)
    elif call == _SBRK:
        result = sbrk(k, a)
    elif call == _MMAP:
        result = mmap(k, a, b, c, d)
    elif call == _MUNMAP:
        result = munmap(k, a, b)
    elif call == _MADVISE:
        result = madvise(k, a, b, c)
    elif call == _TOUCH:
        touch(k, a, b, c)
    elif call == _LOAD:
        result = load(k, a)
    elif call == _STORE:
        store(k, a, b)
    elif call == _PEEK:
        result = peek(k, a)
    elif call == _POKE:
        poke(k, a, b)
    elif call == _COPY:
        copy(k, a, b, c)
    elif call == _CLEAR:
        clear(k, a, b)
    elif call == _COVERED:
        result = 1 if covered(k, a, b, c) else 0
    elif call == _GET_UNMAPPED_AREA:
        result = get_unmapped_area(k, a, b, 0, MAP_PRIVATE, 0, 0)
    elif call == _ABORT:
        abort(k, a, b)
    elif call == _PREFETCH:
        prefetch(k, a)
    elif call == _SYSCALL:
        result = syscall(k, a, b, c, d, e, f, g)
    elif call == _LOAD_HALF:
        result = load_half(k, a)
    elif call == _STORE_HALF:
        store_half(k, a, b)
    elif call == _HOLD:
        hold(k, a)
    return result


#: Numbers of the system calls that Process has as methods, in addition to CALLS.
NUMBERS = {
    "mmap_file": NR_MMAP,
    "mprotect": NR_MPROTECT,
    "mremap": NR_MREMAP,
    "mlock": NR_MLOCK,
    "mlock2": NR_MLOCK2,
    "munlock": NR_MUNLOCK,
    "setrlimit": NR_SETRLIMIT,
}


def configured(**settings):
    """Return a KernelConfig with the tests' window."""
    return KernelConfig(**({"window_bits": WINDOW_BITS} | settings))


class Process:
    """A simulated process with a method for each of CALLS and NUMBERS (``process.mmap(...)``).

    ``bindings`` are switches or replaced kernel functions.  A signal raises SimulatedSignal.
    """

    def __init__(self, config=None, **bindings):
        self.machine = Machine(config or configured())
        self.config = self.machine.config
        self.page = self.config.page_size
        self.k = self.machine.k
        self.mm = self.k.mm
        self._enter = build_once(enter, **(self.config.switches() | bindings))

    def __getattr__(self, name):
        if name in NUMBERS:
            return lambda *args: self.syscall(NUMBERS[name], *args)
        if name not in CALLS:
            raise AttributeError(name)
        call = CALLS.index(name)

        def method(a, b=0, c=0, d=0, e=0, f=0, g=0):
            return int(self._enter(self.k, call, a, b, c, d, e, f, g))

        return method

    def map(self, prot=3, pages=1, flags=PRIVATE, addr=0):
        """Map whole pages and return the address."""
        return self.mmap(addr, pages * self.page, prot, flags)

    def dontneed(self, addr, length):
        """Run madvise(MADV_DONTNEED)."""
        return self.madvise(addr, length, MADV_DONTNEED)

    def death(self, name, *args):
        """Return the model's explanation of the signal by which this call kills the process."""
        try:
            getattr(self, name)(*args)
        except SimulatedSignal:
            return reason(self.k)
        return "alive"

    def areas(self):
        """Return (start, end, prot, accounted, noreserve, grows down) of every area."""
        return [
            (
                int(v.vm_start),
                int(v.vm_end),
                int(v.vm_flags) & 7,
                bool(v.vm_flags & VM_ACCOUNT),
                bool(v.vm_flags & VM_NORESERVE),
                bool(v.vm_flags & VM_GROWSDOWN),
            )
            for v in self.k.vma[: self.mm.map_count]
        ]

    def kinds(self):
        """Return (start, end, kind) of every area, the kind as flags of /proc/PID/smaps.

        Includes ``ac`` (accounted) only where the rights do not imply it.
        """
        found = []
        for v in self.k.vma[: self.mm.map_count]:
            f = int(v.vm_flags)
            words = ["".join(c if f & b else "-" for c, b in zip("rwx", (1, 2, 4), strict=True))]
            words[0] += "s" if f & VM_MAYSHARE else "p"
            words += [name for name, bit in _WORDS.items() if f & bit]
            if f & VM_ACCOUNT and not f & 2:
                words.append("ac")
            found.append((int(v.vm_start), int(v.vm_end), " ".join(words)))
        return found

    def levels(self):
        """Return minor faults, RssAnon, page-table pages and locked pages."""
        mm = self.mm
        tables = mm.nr_ptes + mm.nr_pmds + mm.nr_puds
        return tuple(int(n) for n in (mm.minflt, mm.rss, tables, mm.locked_vm))

    def page_state(self, addr):
        """Return 'frame', 'zero', 'file' or '' for the page at ``addr``."""
        state = self.k.pte[(addr & ((1 << self.config.window_bits) - 1)) // self.page]
        kinds = {PTE_FRAME: "frame", PTE_ZERO: "zero", PTE_FILE: "file"}
        return next((kind for bit, kind in kinds.items() if state & bit), "")

    def counters(self):
        """Return all fields of ``mm`` by name."""
        return {name: int(self.mm[name]) for name in self.mm.dtype.names}

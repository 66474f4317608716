"""Random programs of all memory calls on the running Linux and on the model, compared after each.

The real process is kernel.host's: it holds nothing but the calls.  Compared are the result, the
signal, minor faults, the areas, VmSize, VmLck, VmData, VmPTE and RssAnon.
"""

import random
import re
from pathlib import Path

import numpy as np
import pytest

from kernel import host
from kernel.access import access
from kernel.boot import KernelConfig, Machine
from kernel.jit import build, jit
from kernel.syscall import syscall
from kernel.types import SimulatedSignal
from kernel.uapi import (
    NR_BRK,
    NR_MADVISE,
    NR_MLOCK,
    NR_MLOCK2,
    NR_MMAP,
    NR_MPROTECT,
    NR_MREMAP,
    NR_MUNLOCK,
    NR_MUNMAP,
    RLIMIT_MEMLOCK,
)

pytestmark = pytest.mark.skipif(bool(host.unavailable()), reason=host.unavailable() or "usable")

TOUCH = -1
LOCKABLE = 300 * 4096
ORIGIN = 0x600000000000
FLAGS = (0, 0, 0, 0x10, 0x10, 0x100000, 0x4000, 0x8000, 0x2000, 0x20000, 0x40, 0x100)
ADVICE = (4, 4, 8, 8, 22, 23, 20, 21, 0, 1, 2, 10, 11, 16, 17, 18, 19, 15, 99)
HUGE = 2 << 20


@jit
def enter(k, nr, a, b, c, d, e, f):
    if nr == TOUCH:
        access(k, a, b)
        return 0
    return syscall(k, nr, a, b, c, d, e, f)


class Real:
    def __init__(self, process):
        self.process = process
        self.proc = Path(f"/proc/{process.pid}")
        fields = (self.proc / "stat").read_text().rsplit(")", 1)[1].split()
        self.start_data, self.end_data, self.start_brk = (int(fields[n]) for n in (42, 43, 44))
        self.base = self.sizes()

    def areas(self):
        found = re.findall("(?m)^([0-9a-f]+)-([0-9a-f]+) (....)", (self.proc / "maps").read_text())
        areas = [(int(low, 16), int(high, 16), rights) for low, high, rights in found]
        return [area for area in areas if area[0] < 1 << 47]

    def sizes(self):
        text = (self.proc / "status").read_text()
        names = ("VmSize", "VmLck", "VmData", "VmPTE", "RssAnon")
        return [int(re.search(rf"{name}:\s+(\d+)", text)[1]) // 4 for name in names]

    def do(self, nr, *args):
        from kernel.host.process import OP, OP_LOAD, OP_STORE, OP_SYSCALL

        op = np.zeros(1, OP)
        if nr == TOUCH:
            op[0]["kind"] = OP_STORE if args[1] else OP_LOAD
            op[0]["args"] = (args[0], 0x5A5A, 0, 0, 0, 0)
        else:
            op[0]["kind"], op[0]["nr"], op[0]["args"] = OP_SYSCALL, nr, args
        result = self.process.run(op)[0]
        value = 0 if nr == TOUCH else int(result["value"])
        sizes = [now - then for now, then in zip(self.sizes(), self.base, strict=True)]
        return value, int(result["sig"]), int(result["minflt"]), self.areas(), sizes


class Model:
    def __init__(self, real):
        maps = (real.proc / "maps").read_text()
        config = KernelConfig(maps=maps, thp="madvise", overcommit=1, rlimit_memlock=LOCKABLE)
        self.machine = Machine(config)
        self.k, self.mm = self.machine.k, self.machine.k.mm
        self.call = build(enter, **config.switches())
        self.mm.start_data, self.mm.end_data = real.start_data, real.end_data
        self.mm.start_brk = self.mm.brk = real.start_brk
        for low, high, _ in real.areas():
            if not 0x7FFFF7FF7000 <= low < 0x7FFFF7FFF000:  # vdso and vvar are not touched
                self.machine.assume_tables(low, high)
        self.base = self.sizes()

    def areas(self):
        return [
            (
                int(v.vm_start),
                int(v.vm_end),
                "".join(c if v.vm_flags & b else "-" for c, b in zip("rwx", (1, 2, 4), strict=True))
                + ("s" if v.vm_flags & 8 else "p"),
            )
            for v in self.k.vma[: self.mm.map_count]
        ]

    def sizes(self):
        mm = self.mm
        tables = mm.nr_ptes + mm.nr_pmds + mm.nr_puds
        return [int(n) for n in (mm.total_vm, mm.locked_vm, mm.data_vm, tables, mm.rss)]

    def do(self, *op):
        before, sig, value = int(self.mm.minflt), 0, 0
        try:
            value = int(self.call(self.k, *op))
        except SimulatedSignal:
            sig, self.k.task.sig = int(self.k.task.sig), 0
        sizes = [now - then for now, then in zip(self.sizes(), self.base, strict=True)]
        return value, sig, int(self.mm.minflt) - before, self.areas(), sizes


def random_call(rng, areas, start_brk, huge):
    """A call on or near ``areas`` and its arguments; ``huge``: often of 2 MiB and at multiples."""

    def where():
        if areas and rng.random() < 0.8:
            low, high, _ = rng.choice(areas)
            inside = low + rng.randrange((high - low) // 4096) * 4096
            addr = rng.choice((inside, inside, inside, low, high, low - 4096, high - 4096))
            return addr // HUGE * HUGE if huge and rng.random() < 0.5 else addr
        return ORIGIN + rng.randrange(64) * (HUGE if huge and rng.random() < 0.5 else 4096)

    def length():
        if huge and rng.random() < 0.5:
            return rng.randint(1, 3) * HUGE
        return rng.randint(1, 8) * 4096

    kind = rng.choice("mmmmuppRRRlLaaaatttttttttb")
    if kind == "m":
        flags = 0x22 | rng.choice(FLAGS)
        fixed = flags & 0x100010
        addr = where() if fixed or rng.random() < 0.6 else 0
        return NR_MMAP, addr, length(), rng.choice((3, 3, 3, 1, 0, 7)), flags, -1, 0
    if kind == "u":
        return NR_MUNMAP, where(), length(), 0, 0, 0, 0
    if kind == "p":
        return NR_MPROTECT, where(), length(), rng.choice((3, 1, 0, 7, 3)), 0, 0, 0
    if kind == "R":
        flags, old = rng.choice((0, 1, 1, 3, 3, 5, 7)), length()
        target = where() if flags & 2 or rng.random() < 0.3 else 0
        return NR_MREMAP, where(), old, rng.choice((old, old, length())), flags, target, 0
    if kind == "l":
        return rng.choice((NR_MLOCK, NR_MLOCK2)), where(), length(), rng.choice((0, 1)), 0, 0, 0
    if kind == "L":
        return NR_MUNLOCK, where(), length(), 0, 0, 0, 0
    if kind == "a":
        advice = ADVICE + (14,) * 8 * huge
        return NR_MADVISE, where(), length(), rng.choice(advice), 0, 0, 0
    if kind == "b":
        return NR_BRK, start_brk + rng.randrange(40) * 2048, 0, 0, 0, 0, 0
    return TOUCH, where() + 8 * rng.randrange(512), rng.randrange(2), 0, 0, 0, 0


def near(op, own):
    """Whether the call could reach the real process's own areas."""
    nr, addr, length, other, flags, target, _ = op
    if nr == NR_BRK or (nr == NR_MMAP and not flags & 0x100010):
        return False
    ranges = [(addr, addr + (8 if nr == TOUCH else length))]
    if nr == NR_MREMAP:
        ranges = [(addr, addr + max(length, other)), (target, target + max(length, other))]
    return any(
        a < high + (1 << 20) and low - (2 << 20) < b for a, b in ranges for low, high, _ in own
    )


@pytest.mark.parametrize("huge", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_calls_agree(seed, huge):
    from kernel.host.process import HostProcess

    rng = random.Random(seed)
    with HostProcess(limits={RLIMIT_MEMLOCK: LOCKABLE}) as process:
        real = Real(process)
        own = real.areas()
        model = Model(real)
        for n in range(250):
            areas = [a for a in model.areas() if not any(a[0] < h and w < a[1] for w, h, _ in own)]
            op = random_call(rng, areas, real.start_brk, huge)
            if not near(op, own):
                assert (n, op, *model.do(*op)) == (n, op, *real.do(*op))

"""The model and its oracle side by side: run each operation on both and compare their states.

A program is a list of steps, each a tuple of small numbers, so that Hypothesis can shrink it and a
seeded generator can produce it; :meth:`Pair.do` defines the meaning of the numbers.
"""

import random
from dataclasses import dataclass, replace

from kernel.task import reason
from kernel.types import VM_PFNMAP, VM_SPECIAL, SimulatedSignal
from tests.kernel import oracle as o
from tests.kernel.driver import Process, configured

#: Operations of a step; a more frequent operation is listed more often.
KINDS = (
    "write",
    "mmap_fixed",
    "mmap_fixed",
    "mmap_fixed",
    "write",
    "write",
    "read",
    "munmap",
    "dontneed",
    "sbrk",
    "brk",
    "store",
    "load",
    "mmap",
    "mmap_hint",
    "mmap_noreplace",
    "mmap_mistaken",
)
PROTECTIONS = (3, 3, 3, 3, 3, 3, 7, 7, 1, 0, 2, 4)
FLAGS = (0, 0, 0, 0, 0, o.NORESERVE, o.POPULATE, o.NORESERVE | o.POPULATE)
#: Lengths: pages, additional bytes (may be negative), and 1 to add a page-table slot.
LENGTHS = (
    (1, 0, 0),
    (1, 0, 0),
    (2, 0, 0),
    (2, 0, 0),
    (3, 0, 0),
    (3, 0, 0),
    (4, 0, 0),
    (4, 0, 0),
    (1, 1, 0),
    (8, 0, 0),
    (6, -1, 0),
    (0, 0, 0),
    (0, 0, 1),
    (0, -8, 1),
    (2, 0, 1),
    (0, -1, 0),
)
#: Addresses, as indices of Pair.places: mostly one place, so that areas meet.
PLACES = (2, 2, 2, 2, 2, 2, 0, 1, 3, 4, 5)
#: One more than the largest value of each number of a step.
STEP = (len(KINDS), len(PLACES), 8, len(LENGTHS), len(PROTECTIONS), len(FLAGS), 8)
#: Limits: pages of RLIMIT_AS and RLIMIT_DATA in addition to those used at boot, pages of memory,
#: overcommit mode, areas in addition to those at boot; 0 for no limit.
LIMITS = (48, 32, 32, 3, 8)


class Mismatch(AssertionError):
    """Disagreement of model and oracle."""


@dataclass(frozen=True)
class Limits:
    """Resource limits of one program, in the units of LIMITS."""

    rlim_as: int = 0
    rlim_data: int = 0
    memory: int = 0
    overcommit: int = 2
    areas: int = 0


class Pair:
    """A process of the model and its oracle, both just booted."""

    def __init__(self, page=4096, limits=None, **bindings):
        limits = limits or Limits()
        config = configured(page_size=page)
        boot = Process(config, **bindings)
        used, data, committed = boot.mm.total_vm, boot.mm.data_vm, boot.mm.committed
        sizes = {
            "rlimit_as": limits.rlim_as and int(used) + limits.rlim_as,
            "rlimit_data": limits.rlim_data and int(data) + limits.rlim_data,
            # With overcommit 2 the pages committed at boot count; otherwise only frames do.
            "memory": limits.memory and limits.memory + int(committed) * (limits.overcommit == 2),
        }
        sizes = {name: pages * page for name, pages in sizes.items()}
        config = replace(config, overcommit=limits.overcommit, **sizes)
        self.model = Process(config, **bindings)
        self.page = page
        mm = self.model.mm
        areas = [
            (
                start,
                end,
                o.Area(
                    prot,
                    account,
                    noreserve,
                    stack,
                    f"file {v.vm_file}" if v.vm_file else "",
                    bool(v.vm_flags & VM_SPECIAL),
                    bool(v.vm_flags & VM_PFNMAP),
                ),
            )
            for (start, end, prot, account, noreserve, stack), v in zip(
                self.model.areas(), self.model.k.vma[: mm.map_count], strict=True
            )
        ]
        self.oracle = o.Oracle(
            page,
            areas,
            int(mm.end_data - mm.start_data),
            int(mm.brk),
            rlim_as=sizes["rlimit_as"],
            rlim_data=sizes["rlimit_data"],
            memory=sizes["memory"],
            overcommit=limits.overcommit,
        )
        if limits.areas:
            self.oracle.max_map_count = mm.max_map_count = len(areas) + limits.areas
        slot = self.slot = page * page // 8
        self.places = (
            int(mm.start_brk),
            int(mm.mmap_base) - 16 * page,
            # Around the ends of what a PTE page, a PMD page (not at 64 KiB) and a PUD page map.
            0x600000000000 + 3 * slot - 4 * page,
            0x600000000000 + (slot * page // 8 if slot < 1 << 29 else 20 * slot) - 4 * page,
            0x708000000000 - 4 * page,
            0x10000,
        )
        self.alive = True
        self.compare()

    def run(self, program):
        """Run the steps while both processes live, and compare after each."""
        for step in program:
            if self.alive:
                self.do(*step)
                self.compare()
        self.compare_pages()

    def do(self, kind, place, offset, length, protection, flags, tweak):
        """Run one step on both sides and compare the results."""
        name = KINDS[kind]
        page = self.page
        address = self.places[PLACES[place]] + offset * page
        pages, extra, slots = LENGTHS[length]
        if slots and tweak < 6:
            address = self.places[2] + 4 * page  # a whole page-table slot
        size = pages * page + extra + slots * self.slot
        prot, flags = PROTECTIONS[protection], FLAGS[flags] | o.PRIVATE | o.ANONYMOUS
        if slots:
            flags &= ~o.POPULATE  # thousands of faults test no more than a few
        odd = tweak if tweak < 3 else 0
        if name == "mmap":
            self.call("mmap", 0, size, prot, flags)
        elif name == "mmap_hint":
            self.call("mmap", address + odd, size, prot, flags)
        elif name == "mmap_fixed":
            self.call("mmap", address, size, prot, flags | o.FIXED)
        elif name == "mmap_noreplace":
            self.call("mmap", address, size, prot, flags | o.FIXED_NOREPLACE)
        elif name == "mmap_mistaken":
            self._mistaken_mmap(address, size, prot, flags, tweak)
        elif name == "munmap":
            self.call("munmap", address + odd, size)
        elif name == "dontneed":
            self.call("madvise", address + odd, size, o.DONTNEED + (tweak == 3))
        elif name == "brk":
            start = self.places[0] if place else 0  # no break can be at 0
            self.call("brk", start + offset * page + 3 * odd)
        elif name == "sbrk":
            self.call("sbrk", (size - slots * self.slot) * (-1 if tweak < 3 else 1))
        elif name in ("read", "write"):
            self.call("touch", address + tweak, min(size, 3 * page), int(name == "write"))
        elif name == "load":
            self.call("load", address + 8 * tweak)
        else:
            self.call("store", address + 8 * tweak, 1 + offset)

    def _mistaken_mmap(self, address, size, prot, flags, tweak):
        if tweak < 2:
            self.call("mmap", address + 1, size, prot, flags | o.FIXED)
        elif tweak == 2:
            self.call("mmap", (1 << 47) - self.page + prot, size, prot, flags | o.FIXED)
        elif tweak == 3:
            self.call("mmap", 0x8000, size, prot, flags | o.FIXED)
        elif tweak == 4:
            self.call("mmap", address, 1 << 47, prot, flags)
        elif tweak == 5:
            self.call("mmap", address, (1 << 47) - 2 * self.page, prot, flags)
        elif tweak == 6:
            self.call("mmap", address, size, prot, flags & ~o.PRIVATE)
        else:
            self.call("mmap", -self.page, size, prot, flags | (o.FIXED if prot else 0))

    def call(self, name, *args):
        """Run one call on both sides; raise Mismatch if their results or signals differ."""
        try:
            theirs = getattr(self.oracle, name)(*args)
        except o.Killed as killed:
            theirs = killed.why
        task = self.model.k.task
        try:
            ours = getattr(self.model, name)(*args)
        except SimulatedSignal:
            ours = tuple(int(task[f]) for f in ("sig", "si_code", "si_addr", "si_write"))
            self.alive = ours[0] == o.SIGSEGV  # SIGSEGV changes no state: both can continue
        if ours != theirs:
            shown = ", ".join(hex(a) for a in args)
            raise Mismatch(f"{name}({shown}): {ours}, expected {theirs} ({reason(self.model.k)})")
        return ours

    def compare(self):
        """Raise Mismatch if any counter or area differs."""
        if not self.alive:
            return
        expected = self.oracle.state()
        found = self.model.counters() | {"areas": self.model.areas()}
        wrong = [f"{n}: {found[n]}, not {x}" for n, x in expected.items() if found[n] != x]
        if wrong:
            raise Mismatch("; ".join(wrong))

    def compare_pages(self):
        """Raise Mismatch if a page's state differs."""
        resident = self.oracle.resident() if self.alive else {}
        for p in self.oracle.area if self.alive else ():
            found = self.model.page_state(p * self.page)
            if found != resident.get(p, ""):
                raise Mismatch(f"page {p * self.page:#x}: {found!r}, expected {resident.get(p)!r}")


def random_program(seed, length=60):
    """Return a program from a seed, to find mutations without Hypothesis."""
    rng = random.Random(seed)
    return [tuple(rng.randrange(n) for n in STEP) for _ in range(length)]


def random_limits(seed):
    """Return limits from a seed; two of three programs have none."""
    rng = random.Random(seed)
    return Limits(*(rng.randrange(n) for n in LIMITS)) if seed % 3 == 2 else Limits()

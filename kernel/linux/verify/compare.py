"""Two sides, the real process and the model, one operation at a time; the first difference.

The real process starts with mappings of its own (the harness of kernel.linux.host), and the model
with the same ones: it is built from the text of /proc/PID/maps.  They are left alone by every
program.
"""

import contextlib
import os
import resource
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kernel.config import KernelConfig
from kernel.engine.jit import build_once
from kernel.linux.host.files import ALIGNING, file_system
from kernel.linux.host.observe import FILE, HUGE, PRESENT, SWAPPED, ZERO, Observer, host_settings
from kernel.linux.host.process import OP, HostProcess
from kernel.linux.verify.model import (
    AREA_KINDS,
    AREA_ROW,
    COUNTERS,
    MAX_AREAS,
    MAX_REGIONS,
    REGION_ROW,
    WINDOW_BITS,
    Model,
    Result,
    State,
    host_areas,
    host_regions,
)
from kernel.linux.verify.operation import OP_SETRLIMIT, Op, result_words
from kernel.linux.verify.program import FDS, Ground
from kernel.maps import MMAP_MIN_ADDR
from kernel.types import VM_MAYEXEC, VM_MAYREAD, VM_MAYWRITE
from kernel.uapi import RLIM_INFINITY

#: Random layouts that are tried, one in ten does not fit the model's window.
_STARTS = 20
#: Models that are kept: each takes an address space of its own.
_MOST_MODELS = 4
_FIELDS = dict(
    zip(COUNTERS, ("vm_size", "vm_data", "vm_stk", "vm_lck", "vm_pte", "rss_anon"), strict=True)
)


@dataclass(frozen=True)
class Setting:
    """How the process of a program is set up.  ``seed`` makes the program."""

    seed: str
    thp: bool = False
    legacy: bool = False
    unlimited: bool = False  # no limit of the stack: mappings go lower
    randomize: bool = False

    def words(self) -> str:
        """The setting in a few words."""
        named = [n for n, v in asdict(self).items() if v is True and n != "thp"]
        return ", ".join([f"seed {self.seed}", f"thp {'on' if self.thp else 'off'}", *named])


class Difference(NamedTuple):
    """What both sides disagree on after an operation."""

    what: str
    real: str
    model: str


@dataclass(frozen=True)
class File:
    """A file that programs map: its descriptor here, VM_MAY* as opened, and its alignment."""

    fd: int
    may: int
    thp_align: bool


@contextlib.contextmanager
def files() -> Iterator[list[File]]:
    """Files to map, for FDS: memory files read-write and read-only; on disk also write-only.

    On disk means in the working or the temporary directory, whichever aligns large mappings.
    """
    with contextlib.ExitStack() as stack:

        def opened(path: str, flags: int) -> int:
            fd = os.open(path, flags | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        every = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
        memory = []
        for name in ("verify-rw", "verify-ro"):
            fd = os.memfd_create(name, os.MFD_CLOEXEC)
            stack.callback(os.close, fd)
            memory.append(fd)
        found = [
            File(memory[0], every, thp_align=False),
            File(
                opened(f"/proc/self/fd/{memory[1]}", os.O_RDONLY),
                every & ~VM_MAYWRITE,
                thp_align=False,
            ),
        ]
        folder = next(
            (f for f in (".", tempfile.gettempdir()) if file_system(f) in ALIGNING),
            tempfile.gettempdir(),
        )
        align = file_system(folder) in ALIGNING
        noexec = VM_MAYEXEC if os.statvfs(folder).f_flag & os.ST_NOEXEC else 0
        for flags, lacks in (
            (os.O_RDWR, 0),
            (os.O_RDONLY, VM_MAYWRITE),
            (os.O_WRONLY, VM_MAYREAD),
        ):
            fd, path = tempfile.mkstemp(prefix="verify-", dir=folder)
            os.close(fd)
            try:
                found.append(File(opened(path, flags), every & ~lacks & ~noexec, thp_align=align))
            finally:
                Path(path).unlink()
        yield found


class Real:
    """The real process as one side of a comparison."""

    def __init__(self, setting: Setting, opened: Sequence[File]) -> None:
        self.host = HostProcess(
            randomize=setting.randomize,
            stack_unlimited=setting.unlimited,
            legacy_layout=setting.legacy,
            files=[f.fd for f in opened],
        )
        try:
            self.observer = Observer(self.host.pid)
        except BaseException:
            self.host.close()
            raise
        self.protected = np.zeros((0, 2), "i8")
        self.base: tuple[int, ...] = (0,) * len(COUNTERS)
        self._host_areas = build_once(host_areas)
        self._host_regions = build_once(host_regions)
        self._rows = np.zeros(MAX_AREAS, AREA_ROW)
        self._ids = np.zeros(MAX_AREAS, "i8")
        self._regions = np.zeros(MAX_REGIONS, REGION_ROW)
        self._op = np.zeros(1, OP)

    def close(self) -> None:
        """End the process."""
        self.observer.close()
        self.host.close()

    def do(self, op: Op) -> Result:
        """Do one operation."""
        args = op.args + (0,) * (6 - len(op.args))
        if op.kind == OP_SETRLIMIT and args[1] == RLIM_INFINITY:
            args = (args[0], -1, 0, 0, 0, 0)
        self._op[0] = (op.kind, op.nr, args)
        value, *rest = self.host.run(self._op)[0].tolist()
        return Result(0 if rest[0] else value, *rest)

    def do_all(self, ops: Sequence[Op]) -> list[int]:
        """Do system calls at once; their values."""
        batch = np.zeros(len(ops), OP)
        for row, op in zip(batch, ops, strict=True):
            row["kind"], row["nr"] = op.kind, op.nr
            row["args"] = op.args + (0,) * (6 - len(op.args))
        return self.host.run(batch)["value"].tolist()

    def state(self) -> State:
        """The state after the last operation.  Overwritten by the next."""
        areas = self.observer.areas().view(np.recarray)
        n = self._host_areas(areas, self.protected, self._rows, self._ids)
        found = self.observer.residency()
        m = self._host_regions(found, self.protected, self._regions)
        status = self.observer.status()
        counters = tuple(
            int(status[f]) - b for f, b in zip(_FIELDS.values(), self.base, strict=True)
        )
        return State(self._rows[:n], self._regions[:m], counters)


class Pair:
    """A real process and its model, just started.  A context manager."""

    def __init__(
        self,
        setting: Setting,
        opened: Sequence[File],
        models: "Models",
    ) -> None:
        self.setting = setting
        for left in reversed(range(_STARTS)):
            self.real = Real(setting, opened)
            try:
                self.model = models.model(setting, self.real.host)
                self.ground = self._align(opened)
                break
            except ValueError:
                # A random layout that the model's window cannot hold: another will do.
                self.real.close()
                if not left or not self.real.host.randomized:
                    raise
            except BaseException:
                self.real.close()
                raise

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *error: object) -> None:
        self.real.close()

    def _align(self, opened: Sequence[File]) -> Ground:
        """Let the model begin where the real process is, less what is the harness's own."""
        host, k = self.real.host, self.model.k
        mm = k.mm
        spans = [(int(v.vm_start), int(v.vm_end)) for v in k.vma[: mm.map_count]]
        protected = np.array(spans, "i8")
        self.real.protected = self.model.protected = protected
        mm.start_brk = mm.brk = host.start_brk
        mm.dac_mmap_min_addr = host_settings()["mmap_min_addr"] or 0
        # A build may round hints up to more than the setting says.
        mm.mmap_min_addr = max(mm.dac_mmap_min_addr, MMAP_MIN_ADDR)
        mm.end_data = mm.start_data + host.data_bytes
        if host.randomized and self.setting.legacy:
            mm.mmap_legacy_base = min(start for start, _ in _kernel_pages(host))
        adopt_limits(mm, host.pid)
        for n, (fd, file) in enumerate(zip(FDS, opened, strict=True)):
            entry = k.file[fd]
            entry.id = mm.files + n
            entry.may = file.may
            entry.thp_align = file.thp_align
        mm.files += len(FDS)
        for region in self.real.observer.residency():
            self.model.machine.assume_tables(int(region["start"]), int(region["end"]))
        self.model.refresh()
        real, model = self.real.state(), self.model.state()
        # Linux counts the text, stack and shared memory of the harness, whose pages the model
        # does not know; from here on only changes count.
        self.real.base = tuple(r - m for r, m in zip(real.counters, model.counters, strict=True))
        stack = next(
            (
                s
                for (s, _), v in zip(spans, k.vma[: mm.map_count], strict=True)
                if v.vm_flags & 0x100
            ),
            int(mm.task_size),
        )
        return Ground(
            protected=tuple(spans),
            stack=stack,
            start_brk=int(mm.start_brk),
            mmap_base=int(mm.mmap_base),
            legacy_base=int(mm.mmap_legacy_base),
            window=1 << WINDOW_BITS,
            memlock=int(mm.rlim_memlock),
            memory=int(mm.memory + mm.swap) << 12 if mm.overcommit == 0 else 0,
            thp=self.setting.thp,
            randomized=host.randomized,
        )

    def step(self, op: Op) -> tuple[Result, list[Difference]]:
        """Do ``op`` on both sides; the model's result, and in what they differ."""
        theirs = self.real.do(op)
        ours = self.model.do(op)
        real, model = self.real.state(), self.model.state()
        if (
            theirs == ours
            and real.counters == model.counters
            and real.areas.tobytes() == model.areas.tobytes()
            and real.regions.tobytes() == model.regions.tobytes()
        ):
            return ours, []
        return ours, list(_differences(theirs, ours, real, model))

    def crowd(self, ops: Sequence[Op]) -> tuple[Result, list[Difference]]:
        """Do all of ``ops`` on both sides; what the last gave, and in what they differ then.

        Also when one of them gave something else on the two sides.
        """
        theirs = self.real.do_all(ops[:-1])
        for op, real in zip(ops[:-1], theirs, strict=True):
            ours = self.model.do_unseen(op)
            if real != ours:
                return self.model.do(op), [Difference(op.words(), str(real), str(ours))]
        return self.step(ops[-1])

    def both(self) -> tuple[State, State]:
        """The states after the last operation, real and model."""
        return self.real.state(), self.model.state()


def adopt_limits(mm: np.record, pid: int) -> None:
    """Give the model the soft limits of a real process."""
    for name in ("as", "data", "memlock", "stack"):
        soft = resource.prlimit(pid, getattr(resource, f"RLIMIT_{name.upper()}"))[0]
        mm[f"rlim_{name}"] = RLIM_INFINITY if soft == resource.RLIM_INFINITY else soft


def _differences(theirs: Result, ours: Result, real: State, model: State) -> Iterator[Difference]:
    if theirs[:4] != ours[:4]:
        yield Difference("result", result_words(*theirs[:4]), result_words(*ours[:4]))
    for name in ("minflt", "majflt"):
        if getattr(theirs, name) != getattr(ours, name):
            yield Difference(name, str(getattr(theirs, name)), str(getattr(ours, name)))
    for name, r, m in zip(COUNTERS, real.counters, model.counters, strict=True):
        if r != m:
            yield Difference(name, f"{r // 1024} kB", f"{m // 1024} kB")
    for what, r, m in (
        ("areas", area_lines(real.areas), area_lines(model.areas)),
        ("residency", region_lines(real.regions), region_lines(model.regions)),
    ):
        if r != m:
            yield Difference(
                what,
                "; ".join(line for line in r if line not in m) or "nothing more",
                "; ".join(line for line in m if line not in r) or "nothing more",
            )


def area_lines(rows: np.ndarray) -> list[str]:
    """Areas in words, one a line, much as /proc/PID/maps has them."""
    lines = []
    for start, end, prot, shared, offset, file, kind in rows.tolist():
        rights = "".join(c if prot & b else "-" for c, b in zip("rwx", (1, 2, 4), strict=True))
        name = f"file {file} at {offset:#x}" if AREA_KINDS[kind] == "file" else AREA_KINDS[kind]
        lines.append(f"{start:012x}-{end:012x} {rights}{'s' if shared else 'p'} {name}".rstrip())
    return lines


def region_lines(rows: np.ndarray) -> list[str]:
    """Runs of resident pages in words, one a line."""
    lines = []
    for start, end, state in rows.tolist():
        huge = "huge " if state & HUGE else ""
        kind = "zero" if state & ZERO else "swapped" if state & SWAPPED else "frame"
        if state & FILE:
            kind = "file"
        if not state & (PRESENT | SWAPPED):
            kind = f"state {state}"
        lines.append(f"{start:012x}-{end:012x} {huge}{kind} ({(end - start) >> 12})")
    return lines


def _kernel_pages(host: HostProcess) -> list[tuple[int, int]]:
    """Where the kernel's own pages lie in user space (vdso, vvar)."""
    lines = [line.split() for line in host.maps.splitlines() if "[vvar" in line or "[vdso" in line]
    return [tuple(int(part, 16) for part in line[0].split("-")) for line in lines]


class Models:
    """Models by the maps that they start from: the same again is reset, which is quick.

    ``bindings`` replace parts of the kernel (mutation checks).
    """

    def __init__(self, *, count_branches: bool = False, **bindings: Any) -> None:
        self._count_branches = count_branches
        self._bindings = bindings
        self._kept: dict[tuple, Model] = {}
        self._settings = host_settings()

    def forget(self) -> None:
        """Keep no model: a broken one may not be reset by what it has broken."""
        self._kept.clear()

    def model(self, setting: Setting, host: HostProcess) -> Model:
        """A model of ``host`` as it has just started."""
        # Inodes differ with every start, and say nothing here.
        lines = tuple(tuple(line.split()[:3]) for line in host.maps.splitlines())
        key = (lines, setting.legacy)
        if key in self._kept:
            self._kept[key].reset()
            return self._kept[key]
        if len(self._kept) == _MOST_MODELS:  # maps of a random layout do not come again
            self._kept.pop(next(iter(self._kept)))
        found = self._settings
        model = Model(
            KernelConfig(
                maps=host.maps,
                # The kernel's own pages were the first to be placed, top-down.
                mmap_base=max(end for _, end in _kernel_pages(host)),
                window_bits=WINDOW_BITS,
                legacy_layout=setting.legacy,
                overcommit=int(found["overcommit_memory"] or 0),
                memory=int(found["memory"]),
                swap=int(found["swap"]),
                thp=str(found["thp_enabled"] or "never"),
                max_map_count=min(int(found["max_map_count"] or 65530), 65530),
            ),
            count_branches=self._count_branches,
            **self._bindings,
        )
        self._kept[key] = model
        return model

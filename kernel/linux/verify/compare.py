"""Two sides, the real process and the model, one operation at a time; the first difference.

The real process starts with mappings of its own (the harness of kernel.linux.host), and the model
with the same ones: it is built from the text of /proc/PID/maps.  They are left alone by every
program.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kernel.linux.host.code import OP
from kernel.linux.host.files import ALIGNING, file_system
from kernel.linux.host.process import HostProcess
from kernel.linux.state import (
    WINDOW_BITS,
    Difference,
    Models,
    RealSide,
    State,
    align,
    differences,
    same,
)
from kernel.linux.verify.generator import FDS, Ground
from kernel.linux.verify.model import Model, Result
from kernel.linux.verify.operation import OP_SETRLIMIT, Op, result_words
from kernel.types import VM_GROWSDOWN, VM_MAYEXEC, VM_MAYREAD, VM_MAYWRITE
from kernel.uapi import RLIM_INFINITY

#: Random layouts that are tried, one in ten does not fit the model's window.
_STARTS = 20


@dataclass(frozen=True)
class ProcessSetting:
    """The process of a program as it is set up.  ``seed`` makes the program, or names it."""

    seed: str
    thp: bool = False
    legacy: bool = False
    unlimited: bool = False  # no limit of the stack: mappings go lower
    randomize: bool = False

    def words(self) -> str:
        """The setting in a few words."""
        return f"seed {self.seed}, {self.kind().removesuffix(', plain')}"

    def kind(self) -> str:
        """The setting without its seed."""
        named = [n for n, v in asdict(self).items() if v is True and n != "thp"]
        return ", ".join([f"thp {'on' if self.thp else 'off'}", *(named or ["plain"])])

    def name(self) -> str:
        """The setting for the name of a file: the seed says it all."""
        return self.seed.replace("/", "-")


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
        for flags, lacks in ((os.O_RDWR, 0), (os.O_RDONLY, VM_MAYWRITE), (os.O_WRONLY, VM_MAYREAD)):
            fd, path = tempfile.mkstemp(prefix="verify-", dir=folder)
            os.close(fd)
            try:
                found.append(File(opened(path, flags), every & ~lacks & ~noexec, thp_align=align))
            finally:
                Path(path).unlink()
        yield found


class Real(RealSide):
    """The real process as one side of a comparison."""

    def __init__(self, setting: ProcessSetting, opened: Sequence[File]) -> None:
        host = HostProcess(
            randomize=setting.randomize,
            stack_unlimited=setting.unlimited,
            legacy_layout=setting.legacy,
            files=[f.fd for f in opened],
        )
        try:
            super().__init__(host)
        except BaseException:
            host.close()
            raise
        self._op = np.zeros(1, OP)

    def close(self) -> None:
        """End the process."""
        super().close()
        self.host.close()

    def do(self, op: Op) -> Result:
        """Do one operation."""
        args = op.arguments()
        if op.kind == OP_SETRLIMIT and args[1] == RLIM_INFINITY:
            args = (args[0], -1, 0, 0, 0, 0)
        self._op[0] = (op.kind, op.nr, args)
        value, *rest = self.host.run(self._op)[0].tolist()
        return Result(0 if rest[0] else value, *rest)

    def do_all(self, ops: Sequence[Op]) -> list[int]:
        """Do system calls at once; their values."""
        batch = np.array([(op.kind, op.nr, op.arguments()) for op in ops], OP)
        return self.host.run(batch)["value"].tolist()


class Pair:
    """A real process and its model, just started.  A context manager."""

    def __init__(self, setting: ProcessSetting, opened: Sequence[File], models: Models) -> None:
        self.setting = setting
        for left in reversed(range(_STARTS)):
            self.real = Real(setting, opened)
            try:
                self.model: Model = models.model(
                    self.real.host,
                    # The kernel's own pages were the first to be placed, top-down.
                    mmap_base=max(end for _, end in _kernel_pages(self.real.host)),
                    legacy_layout=setting.legacy,
                )
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
        """Let the model begin where the real process is; what stays the same from then on."""
        host, k = self.real.host, self.model.k
        mm = k.mm
        if host.randomized and self.setting.legacy:
            mm.mmap_legacy_base = min(start for start, _ in _kernel_pages(host))
        for n, (fd, file) in enumerate(zip(FDS, opened, strict=True)):
            entry = k.file[fd]
            entry.id = mm.files + n
            entry.may = file.may
            entry.thp_align = file.thp_align
        mm.files += len(FDS)
        align(self.real, self.model)
        areas = k.vma[: mm.map_count]
        stacks = (int(v.vm_start) for v in areas if v.vm_flags & VM_GROWSDOWN)
        return Ground(
            protected=tuple(map(tuple, self.real.protected.tolist())),
            stack=next(stacks, int(mm.task_size)),
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
        real, model = self.both()
        if theirs == ours and same(real, model):
            return ours, []
        return ours, [*_results(theirs, ours), *differences(real, model)]

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


def _results(theirs: Result, ours: Result) -> Iterator[Difference]:
    """In what the results of one operation differ."""
    if theirs[:4] != ours[:4]:
        yield Difference("result", result_words(*theirs[:4]), result_words(*ours[:4]))
    for name in ("minflt", "majflt"):
        if getattr(theirs, name) != getattr(ours, name):
            yield Difference(name, str(getattr(theirs, name)), str(getattr(ours, name)))


def _kernel_pages(host: HostProcess) -> list[tuple[int, int]]:
    """Return where the kernel's own pages lie in user space (vdso, vvar)."""
    lines = [line.split() for line in host.maps.splitlines() if "[vvar" in line or "[vdso" in line]
    return [tuple(int(part, 16) for part in line[0].split("-")) for line in lines]

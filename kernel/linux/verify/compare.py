"""Comparison of a real process and the model, one operation at a time.

The real process starts with the mappings of its harness (kernel.linux.host).  The model is built
from the text of /proc/PID/maps and starts with the same mappings, which no program changes.
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

#: Maximum number of random layouts to try; one in ten does not fit into the model's window.
_STARTS = 20


@dataclass(frozen=True)
class ProcessSetting:
    """Setting of a program: the set-up of its process, and the seed.

    ``seed`` generates a random program or names a handwritten one.
    """

    seed: str
    thp: bool = False
    legacy: bool = False
    unlimited: bool = False  # no stack limit: mappings start lower
    randomize: bool = False

    def describe(self) -> str:
        """Return the setting as text."""
        return f"seed {self.seed}, {self.kind().removesuffix(', plain')}"

    def kind(self) -> str:
        """Return the setting without its seed, as text."""
        named = [n for n, v in asdict(self).items() if v is True and n != "thp"]
        return ", ".join([f"thp {'on' if self.thp else 'off'}", *(named or ["plain"])])

    def name(self) -> str:
        """Return a file name for the setting, which the seed determines."""
        return self.seed.replace("/", "-")


@dataclass(frozen=True)
class File:
    """File that programs map.

    ``fd``: descriptor in this process.  ``may``: VM_MAY* flags by the mode of opening.
    ``thp_align``: True if large mappings of it are aligned to huge pages.
    """

    fd: int
    may: int
    thp_align: bool


@contextlib.contextmanager
def files() -> Iterator[list[File]]:
    """Open the files for FDS: two memfds (read-write, read-only) and three files on disk.

    Those on disk are read-write, read-only and write-only, in the first of the working directory
    and the temporary directory whose file system aligns large mappings.
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
    """Real process as one side of a comparison."""

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
        """Kill the process."""
        super().close()
        self.host.close()

    def do(self, op: Op) -> Result:
        """Execute one operation."""
        args = op.arguments()
        if op.kind == OP_SETRLIMIT and args[1] == RLIM_INFINITY:
            args = (args[0], -1, 0, 0, 0, 0)
        self._op[0] = (op.kind, op.nr, args)
        value, *rest = self.host.run(self._op)[0].tolist()
        return Result(0 if rest[0] else value, *rest)

    def do_all(self, ops: Sequence[Op]) -> list[int]:
        """Execute system calls in one batch; return their values."""
        batch = np.array([(op.kind, op.nr, op.arguments()) for op in ops], OP)
        return self.host.run(batch)["value"].tolist()


class Pair:
    """Real process and its model, both in their initial state; a context manager."""

    def __init__(self, setting: ProcessSetting, opened: Sequence[File], models: Models) -> None:
        self.setting = setting
        for left in reversed(range(_STARTS)):
            self.real = Real(setting, opened)
            try:
                self.model: Model = models.model(
                    self.real.host,
                    # The kernel places vdso and vvar first, top-down.
                    mmap_base=max(end for _, end in _kernel_pages(self.real.host)),
                    legacy_layout=setting.legacy,
                )
                self.ground = self._align(opened)
                break
            except ValueError:
                # The random layout does not fit into the model's window: try another one.
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
        """Set the model to the real process's initial state; return the constants of that state."""
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
        """Execute ``op`` on both sides; return the model's result and the differences."""
        theirs = self.real.do(op)
        ours = self.model.do(op)
        real, model = self.both()
        if theirs == ours and same(real, model):
            return ours, []
        return ours, [*_results(theirs, ours), *differences(real, model)]

    def crowd(self, ops: Sequence[Op]) -> tuple[Result, list[Difference]]:
        """Execute all ``ops`` on both sides; return the last result and the differences after it.

        If the return values of an earlier operation differ, stop there and return that difference.
        """
        theirs = self.real.do_all(ops[:-1])
        for op, real in zip(ops[:-1], theirs, strict=True):
            ours = self.model.do_unseen(op)
            if real != ours:
                return self.model.do(op), [Difference(op.describe(), str(real), str(ours))]
        return self.step(ops[-1])

    def both(self) -> tuple[State, State]:
        """Return the states after the last operation, real and model."""
        return self.real.state(), self.model.state()


def _results(theirs: Result, ours: Result) -> Iterator[Difference]:
    """Yield the differences between the results of one operation."""
    if theirs[:4] != ours[:4]:
        yield Difference("result", result_words(*theirs[:4]), result_words(*ours[:4]))
    for name in ("minflt", "majflt"):
        if getattr(theirs, name) != getattr(ours, name):
            yield Difference(name, str(getattr(theirs, name)), str(getattr(ours, name)))


def _kernel_pages(host: HostProcess) -> list[tuple[int, int]]:
    """Return the (start, end) addresses of the kernel's mappings in user space (vdso, vvar)."""
    lines = [line.split() for line in host.maps.splitlines() if "[vvar" in line or "[vdso" in line]
    return [tuple(int(part, 16) for part in line[0].split("-")) for line in lines]

"""A process that holds a real library and plays a program on it (benchmarks.real.machine).

::

    with RealProcess(library, slots=1000, touch="all") as real:
        answers, log = real.play(prepare(events))

It is kernel.host's tiny process: no heap and no threads of its own, no address randomisation, on
one processor, without capabilities.  What the library does is the only thing that happens in it.
"""

import mmap
import os
import re
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from time import monotonic, perf_counter
from types import TracebackType
from typing import NamedTuple

import numpy as np

from benchmarks.events import ALIGNED, Events, column
from benchmarks.real import machine
from benchmarks.real.library import Library, LibraryError
from benchmarks.replay import TOUCH_NAMES
from kernel.host.process import (
    FIRST_FILE,
    OP,
    OP_CALL,
    OP_SYSCALL,
    OP_TOUCH,
    HostError,
    HostProcess,
)

#: Seconds that one event may take.
PATIENCE = 20.0

#: Anonymous areas below this, bytes, are the loader's.
_LARGE = 1 << 16

_MMAP, _SIGACTION, _PRCTL, _ARCH_PRCTL, _OPENAT = 9, 13, 157, 158, 257
_SHARED_FIXED, _PRIVATE_FIXED = 0x11, 0x12
_SIGNAL_FLAGS = 0x4C000004  # SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTORER
_ARCH_SET_GS, _AT_FDCWD = 0x1001, -100
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_SECCOMP_RET_TRAP, _SECCOMP_RET_ALLOW = 0x30000, 0x7FFF0000


class State(NamedTuple):
    """Memory, in pages: areas, the writable of them, resident frames of the process's own."""

    total: int
    writable: int
    private: int


def prepare(events: Events) -> np.ndarray:
    """The (n,) EVENT records of ``events``, for a process with one thread."""
    n = len(events.op)
    todo = np.zeros(n, machine.EVENT)
    for name in ("op", "slot", "size"):
        todo[name] = getattr(events, name)
    # aligned_alloc: C knows no alignment below that of a pointer, and malloc gives 16 anyway.
    aligned = 1 << np.maximum(column(events, "align").astype("i8"), 4)
    todo["extra"] = np.where(todo["op"] == ALIGNED, aligned, column(events, "offset"))
    todo["turn"] = -1
    return todo


class RealProcess:
    """One process with ``library``, and a table of ``slots`` objects.

    ``observe``: write down every change of memory; without, an event costs nothing but itself.
    ``sees_calls`` says whether system calls are among what is written down.  ``start``: the memory
    when nothing has been asked of the library yet, and ``own`` what of it the library mapped when
    it was loaded.  ``seconds``: spent in batches so far.

    Raises LibraryError when the library is not what runs, HostError where no process can be made.
    """

    def __init__(self, library: Library, *, slots: int, touch: str, observe: bool = True) -> None:
        self.library, self.seconds = library, 0.0
        self._begun, self._event_base = 0, 0
        code, entries = machine.the_code()
        self._entries = entries
        self._table = PAGE
        self._block = _whole_pages(self._table + max(slots, 1) * machine.OBJECT.itemsize)
        parts = _block_parts()
        total = self._block + parts["end"]
        shared = os.memfd_create("real", os.MFD_CLOEXEC)
        try:
            os.ftruncate(shared, total)
            self._memory = mmap.mmap(shared, total)
            self._host = HostProcess(libc=library.environment, files=[code, shared])
        finally:
            os.close(shared)
        self.pid = self._host.pid
        try:
            self._common = self._records(machine.COMMON, 0, 1)[0]
            self._control = self._records(machine.CONTROL, self._block, 1)[0]
            self._events = self._records(machine.EVENT, self._block + parts["events"], BATCH)
            self._answers = self._records(machine.ANSWER, self._block + parts["answers"], BATCH)
            self._log = self._records(machine.RECORD, self._block + parts["log"], LOG_ROOM)
            self._set_up(total, parts, touch, observe)
            self.start, self.own = self.state(), self._own()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RealProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._host.close()

    def state(self) -> State:
        """What /proc/PID/statm says now."""
        text = Path(f"/proc/{self.pid}/statm").read_text()
        size, resident, shared, _text, _lib, data, _dirty = map(int, text.split())
        return State(size, data, resident - shared)

    def _own(self) -> State:
        """What the library has mapped by now: the break, and large areas that no file asked for.

        An anonymous area right behind a file's is its variables; small ones are the loader's.
        """
        total = writable = private = 0
        behind = 0  # end of a file's area
        text = Path(f"/proc/{self.pid}/smaps").read_text()
        for area in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
            span, rights, _offset, _device, inode, *name = area.splitlines()[0].split(maxsplit=5)
            start, end = (int(x, 16) for x in span.split("-"))
            if int(inode):
                behind = end
            own = name == ["[heap]"] or not (name or int(inode) or start == behind)
            if own and rights[3] == "p" and end - start >= _LARGE:
                total += (end - start) // PAGE
                writable += (end - start) // PAGE if "w" in rights else 0
                private += int(re.search(r"Anonymous:\s*(\d+)", area)[1]) * 1024 // PAGE
        return State(total, writable, private)

    def play(self, todo: np.ndarray, stuck: Callable[[], None] | None = None):
        """Do the events ``todo`` (EVENT, at most BATCH); yields pieces (answers, log records).

        The pieces are copies, in order; RECORD.event counts from the beginning of the piece.
        Raises LibraryError when the library crashes, aborts or does not return.
        """
        first = 0
        while first < len(todo):
            part = todo[first : first + BATCH]
            self._events[: len(part)] = part
            self._control["count"] = len(part)
            self._control["log"] = self._log_address
            done = self._run(len(part))
            used = (int(self._control["log"]) - self._log_address) // machine.RECORD.itemsize
            if self._control["lost"]:
                raise LibraryError(
                    f"{self.library.name}: event {self._begun + done} made more than "
                    f"{machine.MARGIN} system calls"
                )
            self._begun += done
            first += done
            yield self._answers[:done].copy(), self._log[:used].copy()

    # --- inside -------------------------------------------------------------------------------

    def _records(self, dtype: np.dtype, at: int, count: int) -> np.ndarray:
        return np.frombuffer(self._memory, dtype, count, at)

    def _run(self, count: int) -> int:
        """Let the process do a batch; returns the number of events done."""
        seen, since = -1, monotonic()

        def watch() -> None:
            nonlocal seen, since
            done = int(self._control["done"])
            if done != seen:
                seen, since = done, monotonic()
            elif monotonic() - since > PATIENCE:
                raise LibraryError(
                    f"{self.library.name}: event {self._begun + done} has not ended after "
                    f"{PATIENCE:g} s"
                )

        call = np.array(
            [(OP_CALL, 0, (self._entries["play"], self._place(self._block), 0, 0, 0, 0))], OP
        )
        begin = perf_counter()
        try:
            result = self._host.run(call, faults=False, waiting=watch)[0]
        except HostError as error:
            event = self._begun + int(self._control["done"])
            raise LibraryError(f"{self.library.name}: event {event}: {error}") from None
        self.seconds += perf_counter() - begin
        if result["sig"]:
            event = self._begun + int(self._control["done"])
            name = signal.Signals(int(result["sig"])).name
            raise LibraryError(
                f"{self.library.name}: event {event}: {name} at address {int(result['si_addr']):#x}"
            )
        return int(result["value"])

    def _place(self, offset: int) -> int:
        """The address in the process of an offset in the shared memory."""
        return machine.SHARED + offset

    def _syscall(self, number: int, *args: int) -> int:
        op = np.array([(OP_SYSCALL, number, (*args, *(0,) * (6 - len(args))))], OP)
        return int(self._host.run(op, faults=False)["value"][0])

    def _must(self, what: str, number: int, *args: int) -> int:
        value = self._syscall(number, *args)
        if value < 0:
            raise HostError(f"{what}: {os.strerror(-value)}")
        return value

    def _set_up(self, total: int, parts: dict[str, int], touch: str, observe: bool) -> None:
        fixed = machine.CODE, PAGE, mmap.PROT_READ | mmap.PROT_EXEC, _PRIVATE_FIXED, FIRST_FILE, 0
        self._must("mapping the code", _MMAP, *fixed)
        fixed = machine.SHARED, total, mmap.PROT_READ | mmap.PROT_WRITE, _SHARED_FIXED
        self._must("mapping shared memory", _MMAP, *fixed, FIRST_FILE + 1, 0)
        all_pages = np.array([(OP_TOUCH, 0, (machine.SHARED, total, 1, 0, 0, 0))], OP)
        self._host.run(all_pages, faults=False)

        common, control = self._common, self._control
        for name in machine.FUNCTIONS:
            path, common[name] = self._host.provider(name)
            if not self.library.is_file(path):
                raise LibraryError(f"{self.library.name}: {name} would come from {path}")
        common["table"] = self._place(self._table)
        common["touch"] = TOUCH_NAMES.index(touch)
        control["own"] = self._place(self._block)
        control["events"] = self._place(self._block + parts["events"])
        control["answers"] = self._place(self._block + parts["answers"])
        self._log_address = self._place(self._block + parts["log"])
        control["log"] = self._log_address
        control["log_end"] = self._log_address + LOG_ROOM * machine.RECORD.itemsize
        scratch = machine.COMMON.fields["scratch"][1]
        self._must("setting a register", _ARCH_PRCTL, _ARCH_SET_GS, self._place(self._block))
        self.sees_calls = False
        if not observe:
            return
        name = b"/proc/self/statm\0"
        self._memory[scratch : scratch + len(name)] = name
        statm = self._must("/proc/self/statm", _OPENAT, _AT_FDCWD, self._place(scratch), 0)
        common["statm"] = statm
        self.sees_calls = self._trap_calls(scratch)
        common["options"] = machine.OPTION_LOG | (0 if self.sees_calls else machine.OPTION_EVERY)

    def _trap_calls(self, scratch: int) -> bool:
        """Have memory calls end in ``trapped``; False where that is refused."""
        action = struct.pack(
            "=4Q", self._entries["trapped"], _SIGNAL_FLAGS, self._entries["restorer"], 0
        )
        self._memory[scratch : scratch + len(action)] = action
        if self._syscall(_SIGACTION, signal.SIGSYS, self._place(scratch), 0, 8):
            return False
        code = _filter()
        header = struct.pack("=H6xQ", len(code) // 8, self._place(scratch + 16))
        self._memory[scratch : scratch + 16] = header
        self._memory[scratch + 16 : scratch + 16 + len(code)] = code
        return not self._syscall(
            _PRCTL, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._place(scratch)
        )


PAGE = mmap.PAGESIZE
BATCH, LOG_ROOM = machine.BATCH, machine.LOG_ROOM


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _block_parts() -> dict[str, int]:
    """Where the parts of a thread's block are, from its beginning."""
    sizes = {
        "control": machine.CONTROL.itemsize,
        "events": BATCH * machine.EVENT.itemsize,
        "answers": BATCH * machine.ANSWER.itemsize,
        "log": LOG_ROOM * machine.RECORD.itemsize,
    }
    at, parts = 0, {}
    for name, size in sizes.items():
        parts[name] = at
        at += _whole_pages(size)
    return parts | {"end": at}


def _filter() -> bytes:
    """A seccomp filter: memory calls that ``trapped`` does not make itself are signals."""
    load, equal, at_least, leave = 0x20, 0x15, 0x35, 0x06
    trap, allow = (leave, 0, 0, _SECCOMP_RET_TRAP), (leave, 0, 0, _SECCOMP_RET_ALLOW)
    low, high = machine.CODE & 0xFFFFFFFF, machine.CODE >> 32
    code = [(load, 0, 0, 12), (equal, 0, 4, high)]  # the instruction pointer's halves
    code += [(load, 0, 0, 8), (at_least, 0, 2, low), (at_least, 1, 0, low + PAGE), allow]
    code += [(load, 0, 0, 0)]
    for number in machine.WATCHED:
        code += [(equal, 0, 1, number), trap]
    code.append(allow)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)

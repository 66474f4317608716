"""A process that holds a real library and plays a program on it (benchmarks.real.machine_code).

::

    with RealProcess(library, slots=1000, touch="all") as real:
        answers, log = real.play(prepare(events))

It is kernel.linux.host's tiny process: no heap and no threads of its own, no address randomisation,
on one processor, without capabilities.  What the library does is the only thing that happens in it.
"""

import mmap
import os
import re
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, perf_counter
from typing import NamedTuple

import numpy as np

from allocators.base.library import Library, LibraryError
from benchmarks.events.events import ALIGNED, Events, column
from benchmarks.events.touch import TOUCH_NAMES
from benchmarks.real import machine_code
from kernel.linux.host.code import OP, OP_CALL, OP_SYSCALL, OP_TOUCH
from kernel.linux.host.process import FIRST_FILE, HostError, HostProcess

PAGE = mmap.PAGESIZE
#: Where in the shared memory arguments of system calls are laid out.
SCRATCH = machine_code.COMMON.fields["scratch"][1]
#: Seconds that one event may take.
PATIENCE = 20.0

#: Anonymous areas below this, bytes, are the loader's.
_LARGE = 1 << 16

_MMAP, _SIGACTION, _PRCTL, _ARCH_PRCTL, _OPENAT = 9, 13, 157, 158, 257
_SHARED_FIXED, _PRIVATE_FIXED = 0x11, 0x12
_SIGNAL_FLAGS = 0x4C000004  # SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTORER
_MADVISE, _MADV_POPULATE_READ = 28, 22
_ARCH_SET_GS, _AT_FDCWD = 0x1001, -100
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_SECCOMP_RET_TRAP, _SECCOMP_RET_ALLOW = 0x30000, 0x7FFF0000


class PageCounts(NamedTuple):
    """Memory, in pages: areas, the writable of them, resident frames of the process's own."""

    total: int
    writable: int
    private: int


def prepare(events: Events) -> np.ndarray:
    """The (n,) EVENT records of ``events``, for a process with one thread."""
    n = len(events.op)
    todo = np.zeros(n, machine_code.EVENT)
    for name in ("op", "slot", "size"):
        todo[name] = getattr(events, name)
    # aligned_alloc: C knows no alignment below that of a pointer, and malloc gives 16 anyway.
    aligned = 1 << np.maximum(column(events, "align").astype("i8"), 4)
    todo["extra"] = np.where(todo["op"] == ALIGNED, aligned, column(events, "offset"))
    todo["turn"] = -1
    return todo


class Block:
    """What one thread of the process and this one share: see benchmarks.real.machine_code.

    ``address``: in the process.  ``signal_stack`` and ``stack``: offsets of a thread's own.
    """

    def __init__(self, memory: mmap.mmap, offset: int, batch: int, log_room: int) -> None:
        parts, self.size = _parts(batch, log_room)
        self.memory, self.offset = memory, offset
        self.address = machine_code.SHARED + offset
        self.control = np.frombuffer(memory, machine_code.CONTROL, 1, offset)[0]
        self.events = np.frombuffer(memory, machine_code.EVENT, batch, offset + parts["events"])
        self.answers = np.frombuffer(memory, machine_code.ANSWER, batch, offset + parts["answers"])
        self.log = np.frombuffer(memory, machine_code.RECORD, log_room, offset + parts["log"])
        self.signal_stack = self.address + parts["signal_stack"]
        self.stack = self.address + parts["stack"]
        self._parts = parts

    def set_up(self) -> None:
        """Fill in what stays; the memory is all zeros before."""
        control, parts = self.control, self._parts
        control["own"] = self.address
        control["events"] = self.address + parts["events"]
        control["answers"] = self.address + parts["answers"]
        control["log"] = self.address + parts["log"]
        control["log_end"] = int(control["log"]) + self.log.nbytes

    def give(self, todo: np.ndarray) -> None:
        """Lay out events (EVENT, at most a batch) and an empty log."""
        self.events[: len(todo)] = todo
        self.control["count"] = len(todo)
        self.control["done"] = 0
        self.control["log"] = self.address + self._parts["log"]

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the answers and of the log."""
        done = int(self.control["done"])
        used = int(self.control["log"]) - self.address - self._parts["log"]
        return self.answers[:done].copy(), self.log[: used // self.log.itemsize].copy()


class RealProcess:
    """One process with ``library``, and a table of ``slots`` objects.

    ``observe``: write down every change of memory; without, an event costs nothing but itself.
    ``sees_calls`` says whether system calls are among what is written down.  ``start``: the memory
    when nothing has been asked of the library yet, and ``own`` what of it the library mapped when
    it was loaded.  ``seconds``: spent in batches so far.

    Raises LibraryError when the library is not what runs, HostError where no process can be made.
    """

    #: Threads that there is room for, events in a batch of one, records in its log.
    THREADS, BATCH, LOG_ROOM = 1, machine_code.BATCH, machine_code.LOG_ROOM

    def __init__(self, library: Library, *, slots: int, touch: str, observe: bool = True) -> None:
        self.library, self.seconds = library, 0.0
        self._begun = 0
        code, self._entries = machine_code.the_code()
        first = PAGE + _whole_pages(max(slots, 1) * machine_code.OBJECT.itemsize)
        size = _parts(self.BATCH, self.LOG_ROOM)[1]
        total = first + self.THREADS * size
        shared = os.memfd_create("real", os.MFD_CLOEXEC)
        try:
            os.ftruncate(shared, total)
            self._memory = mmap.mmap(shared, total)
            self._host = HostProcess(libc=library.environment, files=[code, shared])
        finally:
            os.close(shared)
        self.pid = self._host.pid
        try:
            self.common = np.frombuffer(self._memory, machine_code.COMMON, 1)[0]
            self.table = np.frombuffer(self._memory, machine_code.OBJECT, max(slots, 1), PAGE)
            self.blocks = [
                Block(self._memory, first + n * size, self.BATCH, self.LOG_ROOM)
                for n in range(self.THREADS)
            ]
            self._set_up(total, first + size, touch, observe)
            self.start, self.own = self.state(), self._own()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RealProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._host.close()

    def state(self) -> PageCounts:
        """The memory now."""
        size, resident, shared, _text, _lib, data, _dirty = map(int, self.statm().split())
        return PageCounts(size, data, resident - shared)

    def statm(self) -> str:
        """What /proc/PID/statm says now."""
        return Path(f"/proc/{self.pid}/statm").read_text()

    def _own(self) -> PageCounts:
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
        return PageCounts(total, writable, private)

    def play(self, todo: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Do the events ``todo`` (EVENT, any number); yields pieces (answers, log records).

        The pieces are in order; RECORD.event counts from the beginning of the piece.  Raises
        LibraryError when the library crashes, aborts or does not return.
        """
        block, first = self.blocks[0], 0
        while first < len(todo):
            block.give(todo[first : first + self.BATCH])
            self._run("play")
            self._check_lost()
            answers, log = block.take()
            first += len(answers)
            yield answers, log

    # --- inside -------------------------------------------------------------------------------

    def _done(self) -> int:
        """Events done in the running batch."""
        return sum(int(block.control["done"]) for block in self.blocks)

    def _run(self, entry: str) -> None:
        """Let the main thread do a batch by ``entry`` of the code."""
        seen, since = -1, monotonic()

        def watch() -> None:
            nonlocal seen, since
            done = self._done()
            if done != seen:
                seen, since = done, monotonic()
            elif monotonic() - since > PATIENCE:
                raise LibraryError(
                    f"{self.library.name}: event {self._begun + done} has not ended after "
                    f"{PATIENCE:g} s"
                )

        begin = perf_counter()
        try:
            result = self._call(self._entries[entry], self.blocks[0].address, waiting=watch)
        except HostError as error:
            event = self._begun + self._done()
            raise LibraryError(f"{self.library.name}: event {event}: {error}") from None
        self.seconds += perf_counter() - begin
        self._begun += self._done()
        if result["sig"]:
            name = signal.Signals(int(result["sig"])).name
            raise LibraryError(
                f"{self.library.name}: event {self._begun}: {name} at address "
                f"{int(result['si_addr']):#x}"
            )

    def _check_lost(self) -> None:
        """Raise LibraryError when a log had no room for all calls of an event."""
        if any(int(block.control["lost"]) for block in self.blocks):
            raise LibraryError(
                f"{self.library.name}: event {self._begun} made more than {machine_code.MARGIN} "
                "system calls"
            )

    def _call(
        self, function: int, *args: int, waiting: Callable[[], None] | None = None
    ) -> np.void:
        op = np.array([(OP_CALL, 0, (function, *args, *(0,) * (5 - len(args))))], OP)
        return self._host.run(op, faults=False, waiting=waiting)[0]

    def _touch(self, first: int, last: int) -> None:
        """Write zeros to shared memory, so that no page of it is a fault later; offsets."""
        op = np.array([(OP_TOUCH, 0, (machine_code.SHARED + first, last - first, 1, 0, 0, 0))], OP)
        self._host.run(op, faults=False)

    def _syscall(self, number: int, *args: int) -> int:
        op = np.array([(OP_SYSCALL, number, (*args, *(0,) * (6 - len(args))))], OP)
        return int(self._host.run(op, faults=False)["value"][0])

    def _must(self, what: str, number: int, *args: int) -> int:
        value = self._syscall(number, *args)
        if value < 0:
            raise HostError(f"{what}: {os.strerror(-value)}")
        return value

    def _set_up(self, total: int, touched: int, touch: str, observe: bool) -> None:
        executable = mmap.PROT_READ | mmap.PROT_EXEC
        fixed = machine_code.CODE, PAGE, executable, _PRIVATE_FIXED, FIRST_FILE, 0
        self._must("mapping the code", _MMAP, *fixed)
        fixed = machine_code.SHARED, total, mmap.PROT_READ | mmap.PROT_WRITE, _SHARED_FIXED
        self._must("mapping shared memory", _MMAP, *fixed, FIRST_FILE + 1, 0)
        self._touch(0, touched)
        common, main = self.common, self.blocks[0]
        for name in machine_code.FUNCTIONS:
            path, common[name] = self._host.provider(name)
            if not self.library.is_file(path):
                raise LibraryError(f"{self.library.name}: {name} would come from {path}")
        common["table"] = machine_code.SHARED + PAGE
        common["touch"] = TOUCH_NAMES.index(touch)
        main.set_up()
        self._map_files()
        self._must("setting a register", _ARCH_PRCTL, _ARCH_SET_GS, main.address)
        self.sees_calls = False
        if not observe:
            return
        name = b"/proc/self/statm\0"
        self._memory[SCRATCH : SCRATCH + len(name)] = name
        scratch = machine_code.SHARED + SCRATCH
        common["statm"] = self._must("/proc/self/statm", _OPENAT, _AT_FDCWD, scratch, 0)
        self.sees_calls = self._trap_calls()
        common["options"] = machine_code.OPTION_LOG
        if not self.sees_calls:
            common["options"] |= machine_code.OPTION_EVERY

    def _map_files(self) -> None:
        """Have the pages of libraries that are only read mapped: their faults are nobody's work.

        A kernel that cannot (before Linux 5.14) counts some faults more.
        """
        for line in self._host.maps.splitlines():
            span, rights, _offset, _device, inode, *_name = line.split(maxsplit=5)
            if int(inode) and rights[:2] == "r-":
                start, end = (int(x, 16) for x in span.split("-"))
                self._syscall(_MADVISE, start, end - start, _MADV_POPULATE_READ)

    def _trap_calls(self) -> bool:
        """Have memory calls end in ``trapped``; False where that is refused."""
        scratch = machine_code.SHARED + SCRATCH
        trapped, restorer = self._entries["trapped"], self._entries["restorer"]
        action = struct.pack("=4Q", trapped, _SIGNAL_FLAGS, restorer, 0)
        self._memory[SCRATCH : SCRATCH + len(action)] = action
        if self._syscall(_SIGACTION, signal.SIGSYS, scratch, 0, 8):
            return False
        code = _filter()
        header = struct.pack("=H6xQ", len(code) // 8, scratch + 16)
        self._memory[SCRATCH : SCRATCH + 16 + len(code)] = header + code
        return not self._syscall(_PRCTL, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, scratch)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _parts(batch: int, log_room: int) -> tuple[dict[str, int], int]:
    """Where the parts of a thread's block are, from its beginning, and how large it is."""
    sizes = {
        "control": machine_code.CONTROL.itemsize,
        "events": batch * machine_code.EVENT.itemsize,
        "answers": batch * machine_code.ANSWER.itemsize,
        "log": log_room * machine_code.RECORD.itemsize,
        "signal_stack": machine_code.SIGNAL_STACK_SIZE,
        "stack": machine_code.STACK_SIZE,
    }
    at, parts = 0, {}
    for name, size in sizes.items():
        parts[name] = at
        at += _whole_pages(size)
    return parts, at


def _filter() -> bytes:
    """A seccomp filter: memory calls that ``trapped`` does not make itself are signals."""
    load, equal, at_least, leave = 0x20, 0x15, 0x35, 0x06
    trap, allow = (leave, 0, 0, _SECCOMP_RET_TRAP), (leave, 0, 0, _SECCOMP_RET_ALLOW)
    low, high = machine_code.CODE & 0xFFFFFFFF, machine_code.CODE >> 32
    code = [(load, 0, 0, 12), (equal, 0, 4, high)]  # the instruction pointer's halves
    code += [(load, 0, 0, 8), (at_least, 0, 2, low), (at_least, 1, 0, low + PAGE), allow]
    code += [(load, 0, 0, 0)]
    for number in machine_code.WATCHED:
        code += [(equal, 0, 1, number), trap]
    code.append(allow)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)

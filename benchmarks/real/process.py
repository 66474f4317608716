"""Process that contains a real library and plays a program on it (benchmarks.real.machine_code).

::

    with RealProcess(library, slots=1000, touch="all") as real:
        answers, log = real.play(prepare(events))

It is the minimal process of kernel.linux.host: without heap or threads of its own, without address
randomisation, on one processor, without capabilities.  All activity in it is the library's.

A large alignment makes the addresses at which a process starts visible: the distance to the next
multiple costs memory.  The heap and the mappings therefore start where those of a simulated process
do, modulo 1 GiB (RealProcess._align_start).
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
from kernel.maps import FRESH_PROCESS, parse_maps
from kernel.types import VM_GROWSDOWN
from kernel.uapi import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_PRIVATE,
    NR_BRK,
    NR_MMAP,
    PROT_NONE,
)

PAGE = mmap.PAGESIZE
#: Offset in the shared memory of a buffer for arguments of system calls.
SCRATCH = machine_code.COMMON.fields["scratch"][1]
#: Timeout of one event, in seconds.
PATIENCE = 20.0

#: Anonymous mappings smaller than this, in bytes, belong to the loader.
_LARGE = 1 << 16

_SIGACTION, _PRCTL, _ARCH_PRCTL, _OPENAT = 13, 157, 158, 257
_SHARED_FIXED, _PRIVATE_FIXED = 0x11, 0x12
#: A mapping that occupies addresses and nothing else.
_FILLER = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
#: The start of a real process equals that of a simulated one modulo this, bytes.
_LARGEST_ALIGNMENT = 1 << 30
_SIGNAL_FLAGS = 0x4C000004  # SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTORER
_MADVISE, _MADV_POPULATE_READ = 28, 22
_ARCH_SET_GS, _AT_FDCWD = 0x1001, -100
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_SECCOMP_RET_TRAP, _SECCOMP_RET_ALLOW = 0x30000, 0x7FFF0000


class PageCounts(NamedTuple):
    """Memory of a process in pages: mapped, mapped writable and private, resident and private."""

    total: int
    writable: int
    private: int


def prepare(events: Events) -> np.ndarray:
    """Convert ``events`` to (n,) EVENT records for a process with one thread."""
    n = len(events.op)
    todo = np.zeros(n, machine_code.EVENT)
    for name in ("op", "slot", "size"):
        todo[name] = getattr(events, name)
    # aligned_alloc rejects alignments below that of a pointer, and malloc aligns to 16 anyway.
    aligned = 1 << np.maximum(column(events, "align").astype("i8"), 4)
    todo["extra"] = np.where(todo["op"] == ALIGNED, aligned, column(events, "offset"))
    todo["turn"] = -1
    return todo


class Block:
    """Memory shared by one thread of the process and this process (benchmarks.real.machine_code).

    ``address``, ``signal_stack`` and ``stack`` are addresses in the process.
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
        """Fill in the constant fields; the memory must be zero."""
        control, parts = self.control, self._parts
        control["own"] = self.address
        control["events"] = self.address + parts["events"]
        control["answers"] = self.address + parts["answers"]
        control["log"] = self.address + parts["log"]
        control["log_end"] = int(control["log"]) + self.log.nbytes

    def submit(self, todo: np.ndarray) -> None:
        """Write the events ``todo`` (EVENT, at most a batch) and empty the log."""
        self.events[: len(todo)] = todo
        self.control["count"] = len(todo)
        self.control["done"] = 0
        self.control["log"] = self.address + self._parts["log"]

    def collect(self) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of the answers and of the log."""
        done = int(self.control["done"])
        used = int(self.control["log"]) - self.address - self._parts["log"]
        return self.answers[:done].copy(), self.log[: used // self.log.itemsize].copy()


class RealProcess:
    """Process with ``library`` and a table of ``slots`` objects.

    ``observe``: record every change of memory; without it, events have no overhead.
    ``sees_calls``: True if system calls are recorded.  ``trims``: True if the library has a
    malloc_trim of its own.  ``start``: the memory before the first
    event; ``own``: the part of it that the library mapped when it was loaded.  ``seconds``: time
    spent in batches so far.

    Raises LibraryError if another library provides the functions, HostError if the process cannot
    be created.
    """

    #: Maximum number of threads; capacity of a batch in events and of a log in records, per thread.
    THREADS, BATCH, LOG_ROOM = 1, machine_code.BATCH, machine_code.LOG_ROOM

    def __init__(self, library: Library, *, slots: int, touch: str, observe: bool = True) -> None:
        self.library, self.seconds = library, 0.0
        self._begun = 0
        code, self._entries = machine_code.code_file()
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
            self.start = self.state()
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
        """Return the current memory of the process."""
        size, resident, shared, _text, _lib, data, _dirty = map(int, self.statm().split())
        return PageCounts(size, data, resident - shared)

    def statm(self) -> str:
        """Return the current text of /proc/PID/statm."""
        return Path(f"/proc/{self.pid}/statm").read_text()

    def _own(self) -> PageCounts:
        """Measure what the library has mapped: the break and large anonymous mappings.

        An anonymous mapping directly after one of a file holds that file's variables; small ones
        belong to the loader.
        """
        total = writable = private = 0
        file_end = 0  # end of the latest mapping of a file
        text = Path(f"/proc/{self.pid}/smaps").read_text()
        for area in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
            span, rights, _offset, _device, inode, *name = area.splitlines()[0].split(maxsplit=5)
            start, end = (int(x, 16) for x in span.split("-"))
            if int(inode):
                file_end = end
            own = name == ["[heap]"] or not (name or int(inode) or start == file_end)
            if own and rights[3] == "p" and end - start >= _LARGE:
                total += (end - start) // PAGE
                writable += (end - start) // PAGE if "w" in rights else 0
                private += int(re.search(r"Anonymous:\s*(\d+)", area)[1]) * 1024 // PAGE
        return PageCounts(total, writable, private)

    def play(self, todo: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Execute the events ``todo`` (EVENT, any number); yield pieces (answers, log records).

        The pieces are in order; RECORD.event counts from the beginning of the piece.  Raises
        LibraryError if the library crashes, aborts or does not return.
        """
        block, first = self.blocks[0], 0
        while first < len(todo):
            block.submit(todo[first : first + self.BATCH])
            self._run("play")
            self._check_lost()
            answers, log = block.collect()
            first += len(answers)
            yield answers, log

    # --- inside -------------------------------------------------------------------------------

    def _done(self) -> int:
        """Return the number of events done in the current batch."""
        return sum(int(block.control["done"]) for block in self.blocks)

    def _run(self, entry: str) -> None:
        """Let the main thread execute a batch by calling ``entry`` of the code."""
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
        """Raise LibraryError if an event made more system calls than the log can hold."""
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
        """Write zeros to shared memory between two offsets, so that it causes no faults later."""
        op = np.array([(OP_TOUCH, 0, (machine_code.SHARED + first, last - first, 1, 0, 0, 0))], OP)
        self._host.run(op, faults=False)

    def _syscall(self, number: int, *args: int) -> int:
        op = np.array([(OP_SYSCALL, number, (*args, *(0,) * (6 - len(args))))], OP)
        return int(self._host.run(op, faults=False)["value"][0])

    def _checked_syscall(self, what: str, number: int, *args: int) -> int:
        value = self._syscall(number, *args)
        if value < 0:
            raise HostError(f"{what}: {os.strerror(-value)}")
        return value

    def _set_up(self, total: int, touched: int, touch: str, observe: bool) -> None:
        executable = mmap.PROT_READ | mmap.PROT_EXEC
        fixed = machine_code.CODE, PAGE, executable, _PRIVATE_FIXED, FIRST_FILE, 0
        self._checked_syscall("mapping the code", NR_MMAP, *fixed)
        fixed = machine_code.SHARED, total, mmap.PROT_READ | mmap.PROT_WRITE, _SHARED_FIXED
        self._checked_syscall("mapping shared memory", NR_MMAP, *fixed, FIRST_FILE + 1, 0)
        self._touch(0, touched)
        common, main = self.common, self.blocks[0]
        for name in machine_code.FUNCTIONS:
            path, common[name] = self._host.provider(name)
            if not self.library.is_file(path):
                raise LibraryError(f"{self.library.name}: {name} would come from {path}")
        path, address = self._host.provider(machine_code.OPTIONAL)
        self.trims = self.library.is_file(path)
        common[machine_code.OPTIONAL] = address if self.trims else 0
        common["table"] = machine_code.SHARED + PAGE
        common["touch"] = TOUCH_NAMES.index(touch)
        main.set_up()
        self._map_files()
        self.own = self._own()
        self._align_start()
        self._checked_syscall("setting a register", _ARCH_PRCTL, _ARCH_SET_GS, main.address)
        self.sees_calls = False
        if not observe:
            return
        name = b"/proc/self/statm\0"
        self._memory[SCRATCH : SCRATCH + len(name)] = name
        scratch = machine_code.SHARED + SCRATCH
        common["statm"] = self._checked_syscall("/proc/self/statm", _OPENAT, _AT_FDCWD, scratch, 0)
        self.sees_calls = self._trap_calls()
        common["options"] = machine_code.OPTION_LOG
        if not self.sees_calls:
            common["options"] |= machine_code.OPTION_EVERY

    def _map_files(self) -> None:
        """Map the read-only pages of libraries, whose faults are not the allocator's work.

        On kernels without MADV_POPULATE_READ (before Linux 5.14), some more faults are counted.
        """
        for line in self._host.maps.splitlines():
            span, rights, _offset, _device, inode, *_name = line.split(maxsplit=5)
            if int(inode) and rights[:2] == "r-":
                start, end = (int(x, 16) for x in span.split("-"))
                self._syscall(_MADVISE, start, end - start, _MADV_POPULATE_READ)

    def _align_start(self) -> None:
        """Move the starts of the heap and of the mappings to where a simulated process has them.

        Both then agree modulo 1 GiB.  A library's own heap, or one at a random address, stays.
        """
        fresh, start = parse_maps(FRESH_PROCESS), self._host.start_brk
        if self._syscall(NR_BRK, 0) == start and not self._host.randomized:
            self._syscall(NR_BRK, start + (fresh.start_brk - start) % _LARGEST_ALIGNMENT)
        areas = parse_maps(Path(f"/proc/{self.pid}/maps").read_text()).areas
        *lower, low = _mapped_above(areas, start)
        for area in reversed(lower):  # no mapping fits between those of the loader
            if low["vm_start"] - area["vm_end"] >= _LARGEST_ALIGNMENT:
                break
            self._fill(int(area["vm_end"]), int(low["vm_start"]))
            low = area
        end = int(low["vm_start"])
        wanted = int(_mapped_above(fresh.areas, fresh.start_brk)["vm_start"][0])
        self._fill(end - (end - wanted) % _LARGEST_ALIGNMENT, end)

    def _fill(self, start: int, end: int) -> None:
        if start < end:
            filler = start, end - start, PROT_NONE, _FILLER, -1, 0
            self._checked_syscall("mapping a filler", NR_MMAP, *filler)

    def _trap_calls(self) -> bool:
        """Redirect memory system calls to ``trapped``.  Returns False if that is not permitted."""
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


def _mapped_above(areas: np.ndarray, heap: int) -> np.ndarray:
    """Return the areas above the heap, without the stack."""
    return areas[(areas["vm_start"] > heap) & (areas["vm_flags"] & VM_GROWSDOWN == 0)]


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _parts(batch: int, log_room: int) -> tuple[dict[str, int], int]:
    """Return the offsets of the parts of a thread's block, and the size of the block, in bytes."""
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
    """Build a seccomp filter that traps memory calls, except those made by the code itself."""
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

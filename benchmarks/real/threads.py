"""Replay of a trace's threads on real threads, in the order of each thread and of each object.

No other order is kept.  An event waits only for the earlier events of the same object::

    thread 0    malloc A ──── malloc B ── free C
                     ╲                   ╱
    thread 1          ╲──── free A   malloc C

A trace reuses slots for other objects, which would make unrelated objects wait for each other:
:class:`Naming` assigns a unique number to every object of a batch.
"""

import os
import signal
import struct
from collections.abc import Iterator

import numpy as np

from allocators.base.library import ONE, REAL, Library, LibraryError
from benchmarks.events.events import FREE, REALLOC, THREAD_END, Events, column
from benchmarks.events.threads import ThreadError, ThreadNumbers, lives
from benchmarks.real import machine_code
from benchmarks.real.process import SCRATCH, RealProcess, prepare
from benchmarks.workloads import Workload
from kernel.engine.jit import build_once, jit

_SIGACTION, _SA_RESTORER = 13, 0x04000000
#: Bytes reserved for a pthread_attr_t.
_ATTRIBUTES = 64


@jit
def name_objects(op, slot, size, held, spare, gone, counts, turns, ids, turn):
    """Fill in the object number (``ids``) and the ``turn`` of each of (n,) events; -1: no object.

    ``held`` (slots,): number + 1 of the object in a slot.  ``spare``: stack of ``counts[0]`` unused
    numbers; ``gone``: the ``counts[1]`` numbers of objects that died.  ``turns``: events so far, by
    number.
    """
    for i in range(op.shape[0]):
        s = int(slot[i])
        ids[i] = turn[i] = -1
        if s < 0 or op[i] >= THREAD_END:
            continue
        n = held[s] - 1
        if n < 0:
            counts[0] -= 1
            n = spare[counts[0]]
            held[s] = n + 1
            turns[n] = 0
        ids[i] = n
        turn[i] = turns[n]
        turns[n] += 1
        if op[i] == FREE or (op[i] == REALLOC and size[i] == 0 and turn[i] > 0):
            held[s] = 0
            gone[counts[1]] = n
            counts[1] += 1


def has_real_threads(library: Library, workload: Workload) -> bool:
    """Return True if the threads of ``workload`` are real threads on ``library``.

    A workload that reacts to addresses (a program) always has one thread.  AUTO means one thread
    for a stream of events, too, which cannot be timed on real threads.
    """
    if workload.program is not None or library.threads == ONE:
        return False
    return library.threads == REAL or (workload.stream is None and workload.has_threads)


class Naming:
    """Object numbers for ``slots`` slots.

    At most ``batch`` objects may die between two calls of :meth:`reuse`.
    """

    def __init__(self, slots: int, batch: int) -> None:
        self.numbers = max(slots, 1) + batch
        self._held = np.zeros(max(slots, 1), "i8")
        self._turns = np.zeros(self.numbers, "i8")
        self._spare = np.arange(self.numbers)[::-1].copy()
        self._gone = np.zeros(batch, "i8")
        self._counts = np.array([self.numbers, 0], "i8")
        self._name = build_once(name_objects)

    def name(self, events: Events) -> tuple[np.ndarray, np.ndarray]:
        """Return each event's object number and its count of earlier events; -1: no object."""
        n = len(events.op)
        ids, turn = np.zeros(n, "i8"), np.zeros(n, "i8")
        tables = (self._held, self._spare, self._gone, self._counts, self._turns)
        self._name(events.op, events.slot, events.size, *tables, ids, turn)
        return ids, turn

    def reuse(self) -> np.ndarray:
        """Release the numbers of objects that died, and return them."""
        left, died = self._counts.tolist()
        gone = self._gone[:died].copy()
        self._spare[left : left + died] = gone
        self._counts[:] = left + died, 0
        return gone


class ThreadedProcess(RealProcess):
    """Process with one thread for each thread of the program; the first is its main thread.

    The stacks are in the shared memory and therefore not measured.  Memory that the C library
    allocates for a thread is measured, because it comes from the library under test.  The threads
    run on all processors.
    """

    THREADS, BATCH, LOG_ROOM = machine_code.MOST_THREADS, 1 << 13, machine_code.MARGIN + (1 << 12)

    def __init__(self, library: Library, *, slots: int, touch: str, observe: bool = True) -> None:
        self.naming = Naming(slots, self.BATCH)
        super().__init__(library, slots=self.naming.numbers, touch=touch, observe=observe)
        try:
            os.sched_setaffinity(self.pid, os.sched_getaffinity(0))
            names = ("attr_init", "attr_setstack", "create", "join")
            self._pthread = {name: self._host.function(f"pthread_{name}") for name in names}
            self._crash_by_default()
        except BaseException:
            self.close()
            raise
        self._alive = {0}
        self._numbers = ThreadNumbers(self.THREADS)
        self._touched = {0}
        #: Number of threads started so far, with the main thread.
        self.thread_count = 1

    def parts(self, events: Events) -> Iterator[Events]:
        """Yield the next events of the trace in parts for :meth:`play_threads`.

        Numbers of threads that ended are used again, by a new thread in a later part.  Raises
        LibraryError if too many threads are alive at once.
        """
        try:
            yield from lives(self._numbers.of(events))
        except ThreadError as error:
            raise LibraryError(f"{self.library.name}: {error}") from None

    def play_threads(self, events: Events) -> tuple[Events, np.ndarray, np.ndarray]:
        """Execute at most BATCH events, a part of :meth:`parts`.

        Returns them in the order they ended, answers, and log.

        The slots of the returned events are object numbers, and RECORD.event is an index into these
        events.  Raises LibraryError.
        """
        threads = column(events, "thread")
        ids, turn = self.naming.name(events)
        todo = prepare(events)
        todo["slot"], todo["turn"] = ids, turn
        left = {int(t): np.flatnonzero(threads == t) for t in np.unique(threads)}
        answers = np.zeros(len(todo), machine_code.ANSWER)
        owners, logs = [], []
        while left:
            for rows, answered, log in self._round(todo, left):
                answers[rows] = answered
                if len(log):
                    owners.append(rows[np.minimum(log["event"], len(rows) - 1)])
                    logs.append(log)
        self.table["turn"][self.naming.reuse()] = 0
        order = np.argsort(answers["place"], kind="stable")
        rank = np.empty(len(order), "i8")
        rank[order] = np.arange(len(order))
        log = self._in_order([rank[rows] for rows in owners], logs, len(order) - 1)
        moved = events._replace(slot=ids.astype("i4"))
        moved = Events(*(data[order] if len(data) else data for data in moved))
        return moved, answers[order], log

    def _in_order(self, ranks: list[np.ndarray], logs: list[np.ndarray], last: int) -> np.ndarray:
        """Merge the threads' logs, and append the current memory, while all threads wait."""
        now = np.zeros(1, machine_code.RECORD)
        if self.common["options"]:
            now["nr"], now["event"] = machine_code.AFTER, last
            now["statm"] = self.statm().encode()
            now["length"] = len(now["statm"][0])
        log = np.concatenate([*logs, now]) if self.common["options"] else now[:0]
        log["event"][: len(log) - 1] = np.concatenate([*ranks, np.empty(0, "i8")])
        return log[np.argsort(log["event"], kind="stable")]

    def _round(
        self, todo: np.ndarray, left: dict[int, np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Run all threads until they are done or a log is full; yield rows, answers, log of each.

        ``left``: rows to execute, by thread; rows that are done are removed.
        """
        for thread in set(left) - self._alive:
            self._create(thread)
        others = [t for t in left if t]
        self.common["stop"] = self.common["ready"] = 0
        self.common["others"] = len(others)
        self.common["other"][: len(others)] = [self.blocks[t].address for t in others]
        nothing = np.empty(0, "i8")
        for thread in {0, *left}:
            self.blocks[thread].submit(todo[left.get(thread, nothing)[: self.BATCH]])
        self._run("lead")
        for thread in others:
            if self.blocks[thread].control["ended"]:
                self._join(thread)
        self._check_lost()
        for thread in list(left):
            answers, log = self.blocks[thread].collect()
            done = len(answers)
            if done:
                yield left[thread][:done], answers, log
            left[thread] = left[thread][done:]
            if not len(left[thread]):
                del left[thread]

    def _create(self, thread: int) -> None:
        """Start a thread, which waits for its first batch.  Raises LibraryError."""
        block = self.blocks[thread]
        if thread not in self._touched:
            self._touch(block.offset, block.offset + block.size)
            self._touched.add(thread)
        block.control["ended"] = 0
        block.control["go"] = block.control["finished"]
        block.control["stack_t"] = block.signal_stack, 0, machine_code.SIGNAL_STACK_SIZE
        block.set_up()
        attributes = machine_code.SHARED + SCRATCH
        self._memory[SCRATCH : SCRATCH + _ATTRIBUTES] = bytes(_ATTRIBUTES)
        place = block.address + machine_code.CONTROL.fields["thread"][1]
        for name, *args in (
            ("attr_init", attributes),
            ("attr_setstack", attributes, block.stack, machine_code.STACK_SIZE),
            ("create", place, attributes, self._entries["thread"], block.address),
        ):
            result = self._call(self._pthread[name], *args)
            if result["sig"] or result["value"] & 0xFFFFFFFF:
                raise LibraryError(
                    f"{self.library.name}: cannot start thread {thread}: "
                    f"{os.strerror(int(result['value']) & 0xFFFFFFFF)}"
                )
        self._alive.add(thread)
        self.thread_count += 1

    def _join(self, thread: int) -> None:
        """Wait for the end of a thread."""
        self._call(self._pthread["join"], int(self.blocks[thread].control["thread"]), 0)
        self._alive.discard(thread)

    def _crash_by_default(self) -> None:
        """Restore the default action of signals: the host's handler supports one thread only."""
        action = struct.pack("=4Q", 0, _SA_RESTORER, self._entries["restorer"], 0)
        self._memory[SCRATCH : SCRATCH + len(action)] = action
        for number in (signal.SIGSEGV, signal.SIGBUS):
            self._checked_syscall(
                "a signal", _SIGACTION, number, machine_code.SHARED + SCRATCH, 0, 8
            )

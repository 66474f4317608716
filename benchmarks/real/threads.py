"""The threads of a program on real threads: each in its own order, objects in theirs.

Nothing else is kept in order.  An event waits only for the events before it of the same object::

    thread 0    malloc A ──── malloc B ── free C
                     ╲                   ╱
    thread 1          ╲──── free A   malloc C

Slots of a trace are filled again by other objects, which would make strangers wait for each other:
:class:`Naming` gives every object of a batch a number of its own.
"""

import os
import signal
import struct
from collections.abc import Iterator

import numpy as np

from allocators.base.library import Library, LibraryError
from benchmarks.events.events import FREE, REALLOC, THREAD_END, Events, column
from benchmarks.real import machine_code
from benchmarks.real.process import SCRATCH, RealProcess, prepare
from kernel.engine.jit import build_once, jit

_SIGACTION, _SA_RESTORER = 13, 0x04000000
#: Bytes of a pthread_attr_t, and of what a thread's stack begins with.
_ATTRIBUTES = 64


@jit
def name_objects(op, slot, size, held, spare, gone, counts, turns, ids, turn):
    """Give the objects of (n,) events numbers ``ids`` and the events their ``turn``; -1: none.

    ``held`` (slots,): number + 1 of the object in a slot.  ``spare``: numbers that nobody has, of
    which ``counts[0]`` are left; ``gone``: those whose objects died, ``counts[1]``.  ``turns``:
    events so far, by number.
    """
    for i in range(op.shape[0]):
        s = int(slot[i])
        ids[i] = turn[i] = -1
        if s < 0 or op[i] == THREAD_END:
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


class Naming:
    """Numbers for the objects of ``slots`` slots; at most ``batch`` die before :meth:`reuse`."""

    def __init__(self, slots: int, batch: int) -> None:
        self.numbers = max(slots, 1) + batch
        self._held = np.zeros(max(slots, 1), "i8")
        self._turns = np.zeros(self.numbers, "i8")
        self._spare = np.arange(self.numbers)[::-1].copy()
        self._gone = np.zeros(batch, "i8")
        self._counts = np.array([self.numbers, 0], "i8")
        self._name = build_once(name_objects)

    def name(self, events: Events) -> tuple[np.ndarray, np.ndarray]:
        """Number of each event's object, and how many events of it come before; -1: no object."""
        n = len(events.op)
        ids, turn = np.zeros(n, "i8"), np.zeros(n, "i8")
        tables = (self._held, self._spare, self._gone, self._counts, self._turns)
        self._name(events.op, events.slot, events.size, *tables, ids, turn)
        return ids, turn

    def reuse(self) -> np.ndarray:
        """Numbers whose objects have died; they may be given again."""
        left, died = self._counts.tolist()
        gone = self._gone[:died].copy()
        self._spare[left : left + died] = gone
        self._counts[:] = left + died, 0
        return gone


class ThreadedProcess(RealProcess):
    """A process that has a thread for each of the program's; the first is its main thread.

    Their stacks are in the shared memory, so that no thread adds to what is measured, but what the
    C library allocates for one does: it asks the library for it.  They run on all processors.
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
        #: Threads that there were.
        self.threads_seen = {0}

    def play_threads(self, events: Events) -> tuple[Events, np.ndarray, np.ndarray]:
        """Do at most BATCH events; returns them as they ended, their answers, and the log.

        The events' slots are the objects' numbers.  RECORD.event counts in the order returned.
        Raises LibraryError.
        """
        threads = column(events, "thread")
        if len(threads) and int(threads.max()) >= self.THREADS:
            raise LibraryError(f"{self.library.name}: more than {self.THREADS} threads")
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
        """The threads' logs as one, and after it what the memory is now that all rest."""
        now = np.zeros(1, machine_code.RECORD)
        if self.common["options"]:
            now["nr"], now["event"] = machine_code.AFTER, last
            now["statm"] = self.statm().encode()
        log = np.concatenate([*logs, now]) if self.common["options"] else now[:0]
        log["event"][: len(log) - 1] = np.concatenate([*ranks, np.empty(0, "i8")])
        return log[np.argsort(log["event"], kind="stable")]

    def _round(
        self, todo: np.ndarray, left: dict[int, np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Let all threads go on until they are done or a log is full; rows, answers and log each.

        ``left``: rows to do, by thread; what is done is taken away.
        """
        for thread in set(left) - self._alive:
            self._create(thread)
        others = [t for t in left if t]
        self.common["stop"] = self.common["ready"] = 0
        self.common["others"] = len(others)
        self.common["other"][: len(others)] = [self.blocks[t].address for t in others]
        nothing = np.empty(0, "i8")
        for thread in {0, *left}:
            self.blocks[thread].give(todo[left.get(thread, nothing)[: self.BATCH]])
        self._run("lead")
        for thread in others:
            if self.blocks[thread].control["ended"]:
                self._join(thread)
        self._check_lost()
        for thread in list(left):
            answers, log = self.blocks[thread].take()
            done = len(answers)
            if done:
                yield left[thread][:done], answers, log
            left[thread] = left[thread][done:]
            if not len(left[thread]):
                del left[thread]

    def _create(self, thread: int) -> None:
        """Start a thread; it waits for its first batch."""
        block = self.blocks[thread]
        if thread not in self.threads_seen:
            self._touch(block.offset, block.offset + block.size)
            self.threads_seen.add(thread)
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
                    f"{self.library.name}: thread {thread} cannot be started: "
                    f"{os.strerror(int(result['value']) & 0xFFFFFFFF)}"
                )
        self._alive.add(thread)

    def _join(self, thread: int) -> None:
        """Wait for a thread that ends."""
        self._call(self._pthread["join"], int(self.blocks[thread].control["thread"]), 0)
        self._alive.discard(thread)

    def _crash_by_default(self) -> None:
        """Let the process die of its signals: the host's handler knows the main thread only."""
        action = struct.pack("=4Q", 0, _SA_RESTORER, self._entries["restorer"], 0)
        self._memory[SCRATCH : SCRATCH + len(action)] = action
        for number in (signal.SIGSEGV, signal.SIGBUS):
            self._must("a signal", _SIGACTION, number, machine_code.SHARED + SCRATCH, 0, 8)

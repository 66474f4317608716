"""Worker processes that may crash or hang, with the current operation of each.

A worker does one task at a time.  Compiled code that indexes out of bounds kills its process, and
an endless loop cannot be interrupted.  Each worker therefore writes the number of the operation
that it starts to shared memory: the parent loses only that worker, and knows the operation.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

import numpy as np

#: Seconds between checks of workers that have sent nothing.
_POLL_INTERVAL = 0.5


class Mistake(ValueError):
    """Request that cannot be carried out; one line says why.  Commands exit with code 2."""


class TaskProgress:
    """Progress that a worker reports to its parent.  Without arguments it reports to no process.

    ``replace_worker``: the process must not take another task (a loop may still run in it).
    """

    def __init__(self, shared: Any = None, connection: Connection | None = None) -> None:
        self._shared = np.frombuffer(shared, "i8") if shared else np.zeros(2, "i8")
        self._connection = connection
        self.replace_worker = False

    def start_operation(self, n: int) -> None:
        """Record the start of operation ``n``."""
        self._shared[0] = n
        self._shared[1] += 1

    def start_part(self, text: str) -> None:
        """Report the start of a part of the task."""
        if self._connection:
            self._connection.send(text)

    def send_interim(self, result: Any) -> None:
        """Send what the task has found so far, in case that it does not end."""
        if self._connection:
            self._connection.send(_Interim(result))


#: Sets up a worker: returns a context manager whose value is the function that does one task.
OpenWorker = Callable[[TaskProgress], AbstractContextManager[Callable[[Any], Any]]]


@dataclass
class Lost:
    """Task whose worker was lost in operation number ``operation``.

    ``part``: last part of the task that the worker reported.  ``how``: cause of the loss, as text.
    ``hung``: the parent killed the worker because it made no progress.  ``interim``: what it had
    found before (:meth:`TaskProgress.send_interim`), None if nothing.
    """

    operation: int
    part: str
    how: str
    hung: bool = False
    interim: Any = None


@dataclass
class _Interim:
    """Message of a worker that is not the last one of its task."""

    result: Any


@dataclass
class _Failed:
    """Exception that ended a worker, as text."""

    error: str


def serve(open_worker: OpenWorker, connection: Connection, shared: Any = None) -> None:
    """Do the tasks received until the connection is closed.

    For each task, send the name of each part as it starts, interim results, and (result, last).
    ``last``: the worker takes no more tasks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    progress = TaskProgress(shared, connection)
    try:
        with open_worker(progress) as work:
            while not progress.replace_worker:
                result = work(connection.recv())
                connection.send((result, progress.replace_worker))
    except EOFError:
        return
    except Mistake as mistake:
        connection.send((mistake, True))
    except Exception as error:
        connection.send((_Failed(f"{type(error).__name__}: {error}"), True))
        raise


class Worker:
    """Process that does one task at a time: ``task``, currently in its part ``part``."""

    def __init__(self, open_worker: OpenWorker, method: str) -> None:
        context = multiprocessing.get_context(method)
        shared = context.RawArray("b", 16)
        self._position = np.frombuffer(shared, "i8")
        self.connection, theirs = context.Pipe()
        arguments = (open_worker, theirs, shared)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        # Ctrl-C is the parent's to handle, also while the process starts; serve() unblocks it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()

    def start_task(self, task: Any) -> None:
        """Start ``task`` in the process."""
        self.task, self.part, self.interim = task, "starting", None
        self._position[0] = 0
        self._moves, self._since = int(self._position[1]), monotonic()
        self._began = self._moves
        with suppress(BrokenPipeError):  # the process has died: receive() reports it
            self.connection.send(task)

    @property
    def operation(self) -> int:
        """Number of the current operation."""
        return int(self._position[0])

    def receive(self) -> tuple[Any, bool] | None:
        """Receive one message: return (result, last) for a result, None for any other message.

        ``last``: the process takes no more tasks.
        """
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            return self.lost(f"the process died ({how})"), True
        if isinstance(message, str):
            self.part = message
            return None
        if isinstance(message, _Interim):
            self.interim = message.result
            return None
        result, last = message
        if isinstance(result, _Failed):
            result = self.lost(result.error)
        return result, last

    def lost(self, how: str, *, hung: bool = False) -> Lost:
        """Return the result of a task that did not end."""
        return Lost(self.operation, self.part, how, hung=hung, interim=self.interim)

    def hangs(self, timeout: float) -> bool:
        """Return True if no operation has started for ``timeout`` seconds.

        The timeout starts with the first operation, since compilation may precede it.
        """
        moves = int(self._position[1])
        if moves != self._moves:
            self._moves, self._since = moves, monotonic()
        return moves != self._began and monotonic() - self._since > timeout

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_tasks(
    open_worker: OpenWorker,
    tasks: Iterable[Any],
    jobs: int = 1,
    *,
    method: str = "fork",
    timeout: float | None = None,
    on_progress: Callable[[list[Worker]], None] = lambda workers: None,
) -> Iterator[tuple[Any, Any]]:
    """Yield each task with its result or a :class:`Lost`, in order of completion.

    ``open_worker``: sets up a worker.  ``tasks``: consumed one at a time, when a worker is free.
    ``jobs``: maximum number of concurrent tasks.  ``method``: start method of the processes; with
    "fork" they inherit compiled code.  ``timeout``: seconds without a new operation after which a
    worker is killed.  ``on_progress``: callback that periodically receives the busy workers, to
    read their ``task``, ``part`` and ``operation`` (its number).

    Kills its workers when it is closed.  Raises a Mistake that a worker raises; any other exception
    in a worker is returned as a Lost, as if the worker had died.
    """
    waiting = iter(tasks)
    workers: dict[Connection, Worker] = {}
    idle: list[Worker] = []
    try:
        while True:
            while len(workers) < jobs and (task := next(waiting, _EXHAUSTED)) is not _EXHAUSTED:
                worker = idle.pop() if idle else Worker(open_worker, method)
                workers[worker.connection] = worker
                worker.start_task(task)
            if not workers:
                return
            on_progress(list(workers.values()))
            ready = wait(list(workers), _POLL_INTERVAL)
            for connection, worker in list(workers.items()):
                if connection in ready:
                    found = worker.receive()
                elif timeout is not None and worker.hangs(timeout):
                    found = worker.lost("does not return", hung=True), True
                else:
                    found = None
                if found is None:
                    continue
                result, last = found
                del workers[connection]
                if last:
                    worker.end()
                else:
                    idle.append(worker)
                if isinstance(result, Mistake):
                    raise result
                yield worker.task, result
    finally:
        for worker in [*workers.values(), *idle]:
            worker.end()


_EXHAUSTED = object()

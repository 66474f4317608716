"""Worker processes that may die, hang or be asked to end, and where each of them is.

A worker takes one task at a time.  Compiled code that indexes out of bounds takes its process with
it, and code that loops for ever cannot be interrupted: so each worker writes the number of the
operation that it begins into memory that the parent sees, and the parent loses no more than that
worker, and knows where.
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

#: Seconds between looks at workers that tell nothing.
_LOOK = 0.5


class Mistake(ValueError):
    """The task cannot be done as asked; the reason in one line: the command's exit code is 2."""


class Place:
    """The place of a worker, as its work tells the parent.  One of its own tells nobody.

    ``retire``: the process is not to take another task (a loop may still run in it).
    """

    def __init__(self, shared: Any = None, connection: Connection | None = None) -> None:
        self._shared = np.frombuffer(shared, "i8") if shared else np.zeros(2, "i8")
        self._connection = connection
        self.retire = False

    def at(self, n: int) -> None:
        """Operation ``n`` begins."""
        self._shared[0] = n
        self._shared[1] += 1

    def say(self, text: str) -> None:
        """A part of the task begins."""
        if self._connection:
            self._connection.send(text)


#: Sets a worker up: a context that gives what does one task.
Open = Callable[[Place], AbstractContextManager[Callable[[Any], Any]]]


@dataclass
class Lost:
    """The end of a task whose worker did not come back from operation ``at``.

    ``part``: the last part of the task that it told of.  ``how`` it was lost, in words; ``hung``:
    it was ended here because it did not move.
    """

    at: int
    part: str
    how: str
    hung: bool = False


@dataclass
class _Failed:
    """An exception that has ended a worker, in words."""

    error: str


def serve(opened: Open, connection: Connection, shared: Any = None) -> None:
    """Do the tasks that come, until nobody asks: sends each part's name, then (result, last)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    place = Place(shared, connection)
    try:
        with opened(place) as work:
            while not place.retire:
                result = work(connection.recv())
                connection.send((result, place.retire))
    except EOFError:
        return
    except Mistake as mistake:
        connection.send((mistake, True))
    except Exception as error:
        connection.send((_Failed(f"{type(error).__name__}: {error}"), True))
        raise


class Worker:
    """A process that does one task at a time: ``task``, of which ``part`` runs."""

    def __init__(self, opened: Open, method: str) -> None:
        context = multiprocessing.get_context(method)
        shared = context.RawArray("b", 16)
        self._position = np.frombuffer(shared, "i8")
        self.connection, theirs = context.Pipe()
        arguments = (opened, theirs, shared)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def give(self, task: Any) -> None:
        """Let it begin ``task``."""
        self.task, self.part = task, "starting"
        self._position[0] = 0
        self._moves, self._since = int(self._position[1]), monotonic()
        self._began = self._moves
        with suppress(BrokenPipeError):  # it has died: receive tells
            self.connection.send(task)

    @property
    def at(self) -> int:
        """The operation that it does."""
        return int(self._position[0])

    def receive(self) -> tuple[Any, bool] | None:
        """The result, if that is what it has to tell, and whether it takes no more."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            return Lost(self.at, self.part, f"the process died ({how})"), True
        if isinstance(message, str):
            self.part = message
            return None
        result, last = message
        if isinstance(result, _Failed):
            result = Lost(self.at, self.part, result.error)
        return result, last

    def hangs(self, patience: float) -> bool:
        """Return whether it has begun no operation for ``patience`` seconds, after its first."""
        moves = int(self._position[1])
        if moves != self._moves:
            self._moves, self._since = moves, monotonic()
        return moves != self._began and monotonic() - self._since > patience

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_tasks(
    opened: Open,
    tasks: Iterable[Any],
    jobs: int = 1,
    *,
    method: str = "fork",
    patience: float | None = None,
    told: Callable[[list[Worker]], None] = lambda workers: None,
) -> Iterator[tuple[Any, Any]]:
    """Yield each task and its result, or a :class:`Lost`, as they end; ``jobs`` run at a time.

    ``opened``: sets a worker up.  ``tasks``: taken one by one, as workers are free.  ``method``:
    how processes are started; "fork" gives them what was compiled here.  ``patience``: seconds
    after which a worker that begins no further operation is ended.  ``told``: hears now and then of
    the workers: their ``task``, ``part`` and operation ``at``.

    Ends its workers when it is closed.  Raises a Mistake of theirs; any other exception of one is a
    Lost, as when it dies.
    """
    waiting = iter(tasks)
    workers: dict[Connection, Worker] = {}
    idle: list[Worker] = []
    try:
        while True:
            while len(workers) < jobs and (task := next(waiting, _NONE)) is not _NONE:
                worker = idle.pop() if idle else Worker(opened, method)
                workers[worker.connection] = worker
                worker.give(task)
            if not workers:
                return
            told(list(workers.values()))
            ready = wait(list(workers), _LOOK)
            for connection, worker in list(workers.items()):
                if connection in ready:
                    found = worker.receive()
                elif patience is not None and worker.hangs(patience):
                    found = Lost(worker.at, worker.part, "does not come back", hung=True), True
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


_NONE = object()

"""Watchdog: run code that may not end in a thread, and watch its progress from the calling thread.

Compiled code runs without the GIL, so the calling thread can handle Ctrl-C, report progress, and
detect that the running event (``k.task.now``) has not changed for too long.  Python code of a
plugin reports no progress: it has a time limit.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

#: Timeout of one event, seconds.  The longest legitimate event, a touch of terabytes, takes less.
PATIENCE = 20.0
#: Longest time between two checks of the running event, seconds.
_INTERVAL = 0.1


class SoftLockup(RuntimeError):
    """Error raised when the code does not advance; its thread still runs, so exit soon.

    ``event``: number of the event that does not end.  ``where``: the place in words (default: the
    event).  ``thread``: identifier of the thread.
    """

    def __init__(self, event: int, seconds: float, where: str = "", thread: int = 0) -> None:
        where = where or f"event {event}"
        super().__init__(f"{where} has not ended after {seconds:g} s: it loops for ever")
        self.event = event
        self.seconds = seconds
        self.thread = thread

    def line(self, path: Path | str) -> int:
        """Return the line that the thread is executing in the Python file ``path``, or 0."""
        frame = sys._current_frames().get(self.thread)
        while frame is not None and frame.f_code.co_filename != str(path):
            frame = frame.f_back
        return frame.f_lineno if frame is not None else 0


def watched(
    k: np.record,
    function: Callable,
    *args: Any,
    patience: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Any:
    """Run ``function(*args)`` in a thread, watch ``k.task.now`` meanwhile, and return the result.

    Calls ``progress`` a few times per second with the running event.  Raises the exceptions of the
    function, and SoftLockup if one event takes longer than ``patience`` seconds (default PATIENCE).
    """
    return _watch(lambda: int(k.task.now), function, args, patience, progress)


def limited(function: Callable, *args: Any, seconds: float | None = None) -> Any:
    """Run Python code, ``function(*args)``, in a thread, and return the result.

    Raises the exceptions of the function, and SoftLockup if it takes longer than ``seconds``
    (default PATIENCE).
    """
    return _watch(lambda: 0, function, args, seconds, None)


def _watch(
    position: Callable[[], int],
    function: Callable,
    args: tuple,
    patience: float | None,
    progress: Callable[[int], None] | None,
) -> Any:
    """Run ``function(*args)``; raise SoftLockup if ``position()`` is unchanged for too long."""
    patience = PATIENCE if patience is None else patience
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function(*args))
        except BaseException as error:  # handed to the caller below
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    last, since = -1, monotonic()
    pause = 0.001  # start short, so that a short call returns without delay
    while True:
        thread.join(pause)
        if not thread.is_alive():
            break
        pause = min(2 * pause, _INTERVAL)
        now = position()
        if now != last:
            last, since = now, monotonic()
        elif monotonic() - since > patience:
            raise SoftLockup(now, patience, thread=thread.ident)
        if progress is not None:
            progress(now)
    if failure:
        raise failure[0]
    return result[0]

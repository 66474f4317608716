"""Watchdog: run a compiled loop, which cannot be interrupted, in a thread and watch its progress.

Compiled code runs without the GIL, so the calling thread can handle Ctrl-C, report progress, and
detect that the running event (``k.task.now``) has not changed for too long.
"""

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import numpy as np

#: Timeout of one event, seconds.  The longest legitimate event, a touch of terabytes, takes less.
PATIENCE = 20.0
#: Longest time between two checks of the running event, seconds.
_INTERVAL = 0.1


class SoftLockup(RuntimeError):
    """Error raised when the loop does not advance; its thread still runs, so exit soon.

    ``event`` is the number of the event that does not end; ``where`` says so in more words.
    """

    def __init__(self, event: int, seconds: float, where: str = "") -> None:
        where = where or f"event {event}"
        super().__init__(f"{where} has not ended after {seconds:g} s: it loops for ever")
        self.event = event
        self.seconds = seconds


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
        now = int(k.task.now)
        if now != last:
            last, since = now, monotonic()
        elif monotonic() - since > patience:
            raise SoftLockup(now, patience)
        if progress is not None:
            progress(now)
    if failure:
        raise failure[0]
    return result[0]

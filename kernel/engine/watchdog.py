"""A compiled loop cannot be interrupted; run it beside a thread that watches whether it advances.

Compiled code runs without the GIL, so the calling thread stays free: for Ctrl-C, for progress, and
to notice that the running event (``k.task.now``) has not changed for too long.
"""

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import numpy as np

#: Seconds that one event may take.  The longest honest one, a touch of terabytes, takes less.
PATIENCE = 20.0
#: Seconds between looks at the clock while the loop runs.
_INTERVAL = 0.1


class SoftLockup(RuntimeError):
    """The loop has not advanced; its thread still runs, so the process should end soon.

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
    """Return ``function(*args)``, run in a thread while this one watches ``k.task.now``.

    ``progress`` is called a few times a second with the running event.  What the function raises
    is raised here; SoftLockup when one event takes longer than ``patience`` (PATIENCE) seconds.
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
    pause = 0.001  # short calls should not wait for a long look
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

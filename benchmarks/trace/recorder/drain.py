"""Move full chunks out of recordings whose program cannot write them itself (recorder.c).

A program that may not make system calls, open files or let them grow leaves a full chunk in the
shared memory of NAME.buffers, marked FULL::

    program   USED ──► FULL          FREE ──► USED
    here               FULL ──► NAME.drained, zeroed ──► FREE

An interruption between the two steps leaves the chunk in both files; the reader takes it once.
"""

import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks.trace.recorder import raw

#: Seconds between two looks at the directory, and while chunks arrive.
_POLL, _SOON = 0.05, 0.0005


class _Buffers:
    """Shared memory of one image.  Raises OSError or ValueError if it cannot be mapped."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, 0
        self._map()
        self.pid = int(path.stem.partition("-")[0])

    def _map(self) -> None:
        with self._path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if size < raw.HEADER:
                raise ValueError("no header yet")
            if size != self._size:
                self._memory, self._size = mmap.mmap(file.fileno(), size), size
                self._states = np.frombuffer(self._memory, "<i8", raw.SLOTS, 8 * raw.STATES)

    def drain(self) -> bool:
        """Move the chunks that are full; return True if there were any.  Raises OSError."""
        full = np.flatnonzero(self._states == raw.FULL)
        if not len(full):
            return False
        self._map()
        for slot in full.tolist():
            begin = slot * raw.CHUNK
            with self._path.with_suffix(".drained").open("ab") as file:
                file.write(self._memory[begin : begin + raw.CHUNK])
            self._memory[begin : begin + raw.CHUNK] = bytes(raw.CHUNK)
            self._states[slot] = raw.FREE_SLOT
        return True


class Drain:
    """Context manager in which a thread drains the images of the raw recording ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, _Buffers | None] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)

    def __enter__(self) -> "Drain":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        wait = _POLL
        while not self._done.wait(wait):
            if wait == _POLL:
                self._look()
            busy = False
            for name, buffers in self._known.items():
                if buffers is None:
                    continue
                try:
                    busy |= buffers.drain()
                except OSError:  # a full disk: the program loses events, and their number is known
                    self._known[name] = None
            wait = _SOON if busy else _POLL

    def _look(self) -> None:
        """Map the buffers of new images, and forget those of processes that have ended."""
        for path in self._directory.glob("*.buffers"):
            if path.name not in self._known:
                with suppress(OSError, ValueError):
                    self._known[path.name] = _Buffers(path)
        for name, buffers in self._known.items():
            if buffers and not Path("/proc", str(buffers.pid)).exists():
                self._known[name] = None

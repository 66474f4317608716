"""Reader of raw recordings: the events of one image in order, in bounded memory.

The sequence numbers of an image's events are dense, so no sorting is needed: a window of numbers
is filled from every chunk that contains some of them.

    numbers   0 ........ W ........ 2W ....        chunk of thread 1   ──────   ───────
    window    [ op pointer … ]                     chunk of thread 2       ─────────

A realloc has two numbers: 5 at its begin and 9 at its end in this example.  It is placed at the
second, when it certainly owns its new address.  If another thread obtains the old address before
that, it is placed just before that event:

    thread 1   5: realloc(A) begins ........................... 9: it returns B
    thread 2                          7: malloc returns A
    order                     realloc A→B, malloc A

B is free at that point: the realloc took B before it released A, and the event that freed B has an
even lower number.  (The event that obtains A may itself be a realloc that is placed early, and so
on.)
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.events import events as ev
from benchmarks.trace.formats.objects import Records
from kernel.engine.jit import build_once, jit

#: Bytes of a chunk and of a header, and a header's first word; the same as in recorder.c.
CHUNK = 131072
HEADER = 65536
MAGIC = 0x3352434552424D4D
#: Words of the header: the number of images that could not be recorded, and a state for each of
#: the first SLOTS chunks of the file; two states (recorder.c, benchmarks.trace.recorder.drain).
UNRECORDED, SLOTS = 7, 1024
STATES = HEADER // 8 - SLOTS
FULL, FREE_SLOT = 1, 2
#: Words before a chunk's records.
HEAD = 2
#: Operation codes in the files: those of benchmarks.events.events plus one, and four more.
MALLOC, FREE, REALLOC, CALLOC, ALIGNED = (
    op + 1 for op in (ev.MALLOC, ev.FREE, ev.REALLOC, ev.CALLOC, ev.ALIGNED)
)
OTHER = 6
THREAD_END = ev.THREAD_END + 1
BEGIN, ORIGIN, TIME = 9, 10, 11
#: Added to the operation of an allocation whose record is a single word.
SHORT = 11
#: Only in windows: a realloc without an end, and one that was already written to the output.
UNFINISHED, PLACED = 16, 17
#: Only in windows: the first of malloc_trim, mallopt and sbrk, which files hold as kinds of OTHER.
TRIM = 20

#: Sequence numbers per window.
WINDOW = 1 << 20

#: Row of one sequence number.  op 0: no record has the number.
ROW = np.dtype(
    [
        ("op", "u1"),
        ("align", "u1"),  # log2
        ("thread", "i4"),
        ("pointer", "i8"),  # returned, or freed
        ("old", "i8"),  # realloc's argument; the event's offset of mallopt and sbrk
        ("bytes", "i8"),  # requested
        ("time", "i8"),  # ticks
    ],
    align=True,
)

_SHORT_ADDRESS, _SHORT_SIZE = ((1 << 44) - 1) << 4, (1 << 12) - 1
_ADDRESS, _SIZE, _TICKS = (1 << 52) - 1, (1 << 56) - 1, (1 << 60) - 1


@jit
def fill(row, op, align, thread, pointer, old, size, time):
    """Set all fields of a row."""
    row.op = op
    row.align = align
    row.thread = thread
    row.pointer = pointer
    row.old = old
    row.bytes = size
    row.time = time


@jit
def fill_other(row, thread, packed, value, time):
    """Set all fields of a row from a record of OTHER: ``packed`` is its parameter and kind."""
    kind = packed & 15
    if kind == 0:
        fill(row, TRIM, 0, thread, 0, 0, value & _SIZE, time)
        return
    if kind == 1:
        value = (packed >> 4) << 32 | value & 0xFFFFFFFF  # ev.mallopt_offset
    fill(row, TRIM + kind, 0, thread, 0, value, 0, time)


@jit
def decode(words, first, window):
    """Write the records of a chunk whose numbers are in ``window`` to it.

    ``words``: int64, 0 after the last one written.  ``window``: (n,) ROW of the numbers from
    ``first`` on.  Returns the last number of the chunk.
    """
    n = window.shape[0]
    thread = number = origin = now = 0
    begin = -1
    old = 0
    i = 0
    while i < words.shape[0]:
        word = int(words[i])
        op = (word >> 60) & 15
        i += 1
        if op == 0:
            break  # end of the records
        if op == ORIGIN:
            thread, number = word & _TICKS, int(words[i])
            now = origin = int(words[i + 1])
            i += 2
            continue
        if op == TIME:
            now = origin + (word & _TICKS)
            continue
        size = 0
        align = 0
        if op > SHORT:
            op -= SHORT
            number += (word >> 56) & 15
            pointer = (word >> 8) & _SHORT_ADDRESS
            size = word & _SHORT_SIZE
        else:
            number += (word >> 52) & 255
            pointer = word & _ADDRESS
            if op == OTHER:
                if 0 <= number - first < n:
                    fill_other(window[number - first], thread, pointer, int(words[i]), now)
                i += 1
                continue
            if op in (MALLOC, REALLOC, CALLOC, ALIGNED):
                size = int(words[i]) & _SIZE
                align = (int(words[i]) >> 56) & 255
                i += 1
        at = number - first
        if op == BEGIN:
            begin = at
            old = pointer
            if 0 <= at < n:
                window[at].op = UNFINISHED
            continue
        if op != REALLOC:
            old = 0
        elif old and 0 <= begin < n:
            fill(window[begin], BEGIN, align, thread, pointer, old, size, now)
        if 0 <= at < n:
            fill(window[at], op, align, thread, pointer, old, size, now)
        old = 0
    return number


@jit
def make_way(pending, m, stack, pointer, out, n):
    """Append to ``out`` the reallocs that must have released ``pointer`` before it is reused.

    ``pending``: the ``m`` reallocs in progress.  ``stack`` (m,): scratch.  ``n``: number of rows
    already in ``out``; returns the new number.
    """
    depth = 0
    while pointer:
        found = -1
        for j in range(m):
            if pending[j].op == BEGIN and pending[j].old == pointer:
                found = j
        if found < 0:
            break
        pending[found].op = PLACED
        stack[depth] = found
        depth += 1
        pointer = pending[found].pointer  # the address that this realloc obtains in turn
    while depth:
        depth -= 1
        out[n] = pending[stack[depth]]
        out[n].op = REALLOC
        n += 1
    return n


@jit
def order(window, pending, m, stack, out):
    """Write the events of ``window`` to ``out``, each realloc once.

    ``pending``: buffer of the reallocs in progress, of which the first ``m`` are from earlier
    windows.  ``out``: has room for the rows of ``window`` and ``pending``.  Returns the number of
    events in ``out`` and of reallocs in progress.
    """
    n = 0
    for i in range(window.shape[0]):
        op = window[i].op
        if op == 0 or op == UNFINISHED:
            continue
        if op == BEGIN:
            pending[m] = window[i]
            m += 1
            continue
        if op == REALLOC and window[i].old:
            mine = -1
            for j in range(m):
                if pending[j].thread == window[i].thread:
                    mine = j
            if mine >= 0:
                placed = pending[mine].op == PLACED
                m -= 1
                pending[mine] = pending[m]
                if placed:
                    continue
        if op != FREE and op != THREAD_END:
            n = make_way(pending, m, stack, window[i].pointer, out, n)
        out[n] = window[i]
        n += 1
    return n, m


class Image:
    """Recording of one process image.  Raises ValueError if its header was not written."""

    def __init__(self, buffers: Path) -> None:
        self.buffers = buffers
        self._chunks = buffers.with_suffix(".chunks")
        with buffers.open("rb") as file:
            header = file.read(HEADER)
        words = np.frombuffer(header[:64], "<i8")
        if len(header) < HEADER or words[0] != MAGIC:
            raise ValueError("no header")
        #: Process IDs of the image and its parent; its start in ns since the epoch and in ticks.
        self.pid, self.parent, self.started, self.start_ticks = map(int, words[1:5])
        #: Images that came from this one by fork or exec, and could not be recorded.
        self.unrecorded = int(words[UNRECORDED])
        program, arguments = header[64:][: words[5]], header[64 + words[5] :][: words[6]]
        self.program = program.decode(errors="replace")
        self.arguments = [a.decode(errors="replace") for a in arguments.split(b"\0")[:-1]]
        #: Sequence numbers without a record: lost to a full disk, or to a kill during a write.
        self.missing = 0
        self._index()

    def _index(self) -> None:
        """Find the chunks, and the first and last sequence number of each."""
        found = []
        drained = self.buffers.with_suffix(".drained")
        for path in (self.buffers, drained, self._chunks):
            if not path.exists():
                continue
            with path.open("rb") as file:
                for slot in range(path is self.buffers, -(-path.stat().st_size // CHUNK)):
                    file.seek(slot * CHUNK)
                    head = np.frombuffer(file.read(8 * (HEAD + 2)), "<i8")
                    if len(head) == HEAD + 2 and head[HEAD] != 0:
                        found.append((path, slot, int(head[HEAD + 1]), int(head[1])))
        # A kill or a full disk may leave half a chunk in a file; the copy in the file before it is
        # then complete.
        whole: set[int] = set()
        self._places = []
        for path in (self.buffers, drained, self._chunks):
            places = [c for c in found if c[0] is path and c[2] not in whole]
            whole.update(first for _, _, first, _ in places)
            self._places += places
        nowhere = np.zeros(0, ROW).view(np.recarray)
        last = []
        for path, slot, _, number in self._places:
            if path is self.buffers:  # the recorder fills in the last number only in .chunks
                number = build_once(decode)(self._read(path, slot), 0, nowhere)
            last.append(number)
        self._first = np.array([c[2] for c in self._places], "i8")
        self._last = np.array(last, "i8")

    def _read(self, path: Path, slot: int) -> np.ndarray:
        """Return the words of a chunk, zero beyond the end of the file."""
        n = CHUNK - 8 * HEAD
        with path.open("rb") as file:
            file.seek(slot * CHUNK + 8 * HEAD)
            return np.frombuffer(file.read(n).ljust(n, b"\0"), "<i8").astype("i8")

    @property
    def numbers(self) -> int:
        """Lower bound on how many sequence numbers were assigned."""
        return int(self._last.max()) + 1 if len(self._last) else 0

    def records(self) -> Iterator[tuple[Records, float]]:
        """Yield the events in order, piece by piece, and the fraction done; times in ticks."""
        pending = np.zeros(0, ROW).view(np.recarray)
        now = self.start_ticks
        for first in range(0, self.numbers, WINDOW):
            n = min(WINDOW, self.numbers - first)
            window = np.zeros(n, ROW).view(np.recarray)
            for i in np.flatnonzero((self._first < first + n) & (self._last >= first)):
                path, slot, _, _ = self._places[i]
                build_once(decode)(self._read(path, slot), first, window)
            self.missing += int(np.count_nonzero(window.op == 0))
            m = len(pending)
            room = m + int(np.count_nonzero(window.op == BEGIN))
            pending = np.concatenate([pending, np.zeros(room - m, ROW)]).view(np.recarray)
            out = np.zeros(n + room, ROW).view(np.recarray)
            count, m = build_once(order)(window, pending, m, np.zeros(room, "i8"), out)
            pending = pending[:m]
            out = out[:count]
            # Threads read the clock only now and then: make the times non-decreasing.
            time = np.maximum.accumulate(np.maximum(out.time, now))
            now = int(time[-1]) if count else now
            yield (
                Records(
                    line=np.zeros(count, "i8"),
                    op=np.where(out.op < TRIM, out.op - 1, out.op - TRIM + ev.TRIM),
                    pointer=np.ascontiguousarray(out.pointer),
                    old=np.ascontiguousarray(out.old),
                    size=np.ascontiguousarray(out.bytes),
                    align=np.ascontiguousarray(out.align),
                    thread=out.thread.astype("i8"),
                    time=time,
                    bad=np.empty(0, "i8"),
                ),
                (first + n) / self.numbers,
            )


def images(directory: Path) -> tuple[list[Image], int]:
    """Return the images in a raw recording, in the order of their starts, and how many are missing.

    Missing are images that could not be recorded.  Raises OSError.
    """
    found, missing = [], 0
    for path in sorted(directory.glob("*.buffers")):
        try:
            found.append(Image(path))
        except ValueError:
            missing += 1
    missing += sum(image.unrecorded for image in found)
    return sorted(found, key=lambda image: image.started), missing

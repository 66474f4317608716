"""Events that are decoded or generated in pieces while they are replayed, in bounded memory.

    decoder thread    piece 3    piece 4    piece 5      pyarrow releases the GIL
                         └─ at most AHEAD pieces are finished or in progress
    replay thread        piece 1    piece 2              compiled code releases it too

A piece holds about 2**20 events of some tens of bytes each.  At most AHEAD + 1 pieces are in
memory: the one that is replayed and those after it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from benchmarks.events.events import Events, make_events, read_only
from benchmarks.events.facts import Facts

#: Number of pieces decoded ahead of the one that is replayed.
AHEAD = 2


@dataclass(frozen=True)
class Stream:
    """Events that can be iterated over any number of times.

    ``facts``: totals over all events.  ``names``: the columns present.  ``make`` returns a new
    iterator over the pieces, from the first; another thread calls and advances it.
    """

    facts: Facts
    names: tuple[str, ...]
    make: Callable[[], Iterator[Events]] = field(repr=False)

    def empty_piece(self) -> Events:
        """Return a piece without events that has the same array types as all others."""
        return read_only(make_events(**{name: np.empty(0) for name in self.names}))

    def pieces(self) -> Iterator[Events]:
        """Yield the pieces, decoding ahead; errors of the decoder thread are raised here."""
        return ahead(map(read_only, self.make()))


def ahead(pieces: Iterator[Events]) -> Iterator[Events]:
    """Yield ``pieces``, advancing their iterator up to AHEAD pieces early in another thread."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoder") as pool:
        waiting = deque(pool.submit(next, pieces, None) for _ in range(AHEAD))
        try:
            while (piece := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, pieces, None))
                yield piece
        finally:
            pool.shutdown(cancel_futures=True)

"""Events that are read or made piece by piece, beside their replay, in bounded memory.

    another thread    piece 3    piece 4    piece 5      decodes; pyarrow needs no GIL
                         └─ at most AHEAD are done or begun
    replay               piece 1    piece 2              compiled; needs no GIL either

Each piece holds about 2**20 events, some tens of bytes each; so many are in memory as are ahead,
and the one that is replayed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from benchmarks.events.events import Events, make_events, read_only
from benchmarks.events.facts import Facts

#: Pieces that are decoded, or being decoded, while one is replayed.
AHEAD = 2


@dataclass(frozen=True)
class Stream:
    """Events that can be gone through again and again.

    ``facts``: what all of them come to.  ``names``: their columns.  ``make`` begins anew and yields
    successive pieces; it is called and advanced by another thread.
    """

    facts: Facts
    names: tuple[str, ...]
    make: Callable[[], Iterator[Events]] = field(repr=False)

    def none(self) -> Events:
        """A piece without events, of the type of all the others."""
        return read_only(make_events(**{name: np.empty(0) for name in self.names}))

    def pieces(self) -> Iterator[Events]:
        """The pieces; the next are made while one is used.  What making raises is raised here."""
        return ahead(map(read_only, self.make()))


def ahead(pieces: Iterator[Events]) -> Iterator[Events]:
    """Pass ``pieces`` on, which are asked for early, in another thread."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoder") as pool:
        waiting = deque(pool.submit(next, pieces, None) for _ in range(AHEAD))
        try:
            while (piece := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, pieces, None))
                yield piece
        finally:
            pool.shutdown(cancel_futures=True)

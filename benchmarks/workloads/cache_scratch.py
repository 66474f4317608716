"""Cache_scratch: threads get small blocks from one thread, free them, and use blocks of their own.

    thread 0   ▣▣▣▣            one block for each of the others, side by side in a cache line
    thread 1   free ▣, then  malloc, write, write, …, free;  malloc, write, …
    thread 2   free ▣, then  …

An allocator that lets a thread reuse the block that it was given has threads write to one cache
line from then on: passive false sharing.

Source: Berger et al., "Hoard: a scalable memory allocator for multithreaded applications",
ASPLOS 2000.
"""

from types import SimpleNamespace

from allocators.base.settings import number
from allocators.base.settings import size as size_setting
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import room, write_over
from benchmarks.workloads.base.prng import Random

OPERATIONS = number(100_000, low=1, high=1 << 31, text="malloc and free in all")
THREADS = number(4, low=1, high=1024, text="threads beside the main one")
SIZE = size_setting(8, low=1, high=1 << 20, text="bytes of a block")
WRITES = number(10, low=0, high=1 << 20, text="times that a block is written while it lives")


def check_settings(s: SimpleNamespace) -> None:
    """Every thread frees the block that it was given."""
    room(s.operations, 2 * s.threads, "for the blocks that are handed over")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Threads take turns event by event.  Nothing is random."""
    return write_over(s.operations, s.threads, s.size, s.writes, handed=True)

"""Cache_scratch: threads free small blocks allocated by one thread, then use their own blocks.

    thread 0   ▣▣▣▣            one block for each other thread, adjacent in a cache line
    thread 1   free ▣, then  malloc, write, write, …, free;  malloc, write, …
    thread 2   free ▣, then  …

If an allocator lets each thread reuse the block that it freed, the threads write to one cache line
from then on: passive false sharing.

Source: Berger et al., "Hoard: a scalable memory allocator for multithreaded applications",
ASPLOS 2000.
"""

from types import SimpleNamespace

from allocators.base.settings import number
from allocators.base.settings import size as size_setting
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import require_operations, write_over
from benchmarks.workloads.base.prng import Random

OPERATIONS = number(100_000, low=1, high=1 << 31, text="total malloc and free calls")
THREADS = number(4, low=1, high=1024, text="threads in addition to the main thread")
SIZE = size_setting(8, low=1, high=1 << 20, text="bytes of a block")
WRITES = number(10, low=0, high=1 << 20, text="times that a block is written before its free")


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless every thread can free the block that it received."""
    require_operations(s.operations, 2 * s.threads, "for the blocks that are handed over")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Interleave the threads event by event.  Nothing is random."""
    return write_over(s.operations, s.threads, s.size, s.writes, handed=True)

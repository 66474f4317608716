"""Cache_thrash: each thread allocates a small block, writes it repeatedly, and frees it.

    thread 0   malloc, write, write, …, free;  malloc, write, …
    thread 1   malloc, write, …

If an allocator gives blocks of one cache line to several threads, these share the line: active
false sharing.

Source: Berger et al., "Hoard: a scalable memory allocator for multithreaded applications",
ASPLOS 2000.
"""

from types import SimpleNamespace

from allocators.base.settings import number
from allocators.base.settings import size as size_setting
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import write_over
from benchmarks.workloads.base.prng import Random

OPERATIONS = number(100_000, low=1, high=1 << 31, text="total malloc and free calls")
THREADS = number(4, low=1, high=1024, text="threads")
SIZE = size_setting(8, low=1, high=1 << 20, text="bytes of a block")
WRITES = number(10, low=0, high=1 << 20, text="times that a block is written before its free")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Interleave the threads event by event.  Nothing is random."""
    return write_over(s.operations, s.threads, s.size, s.writes, handed=False)

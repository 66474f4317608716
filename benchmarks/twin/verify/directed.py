"""Directed programs for cases that random programs almost never reach."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.twin.verify.modes import MODES
from benchmarks.twin.verify.operation import (
    ALIGNED,
    BLOCK,
    CALLOC,
    FREE,
    LIMIT_AS,
    LIMIT_DATA,
    MALLOC,
    REALLOC,
    SBRK,
    STRAY,
    THREAD_END,
    THREAD_START,
    TRIM,
    UNBLOCK,
    WRITE,
    Row,
)

#: Name used as the mode of these programs.
MODE = "directed"
_PAGE = 4096
#: Sets of tunables; only a few, because each is compiled.
_NO_TCACHE = {"tcache_count": 0, "arena_test": 18}
_TWO_ARENAS = MODES["threads"].tunables[1]
_NO_PAD = MODES["threads"].tunables[3]


@dataclass(frozen=True)
class Directed:
    """Program and the tunables that it needs."""

    ops: list[Row]
    tunables: Mapping[str, int] = field(default_factory=dict)


#: Directed programs by name.
PROGRAMS: dict[str, Directed] = {}


def _program(tunables: Mapping[str, int] | None = None) -> Callable:
    """Decorator: register the program that a function returns under the function's name."""

    def register(function: Callable[[], list[Row]]) -> Callable:
        PROGRAMS[function.__name__.strip("_")] = Directed(function(), tunables or {})
        return function

    return register


def _row(kind: int, first: int, count: int, size: int = 0) -> list[Row]:
    """Repeat an operation for ``count`` slots from ``first`` on."""
    return [Row(kind, slot, size) for slot in range(first, first + count)]


@_program()
def _mapping_that_cannot_grow() -> list[Row]:
    """Move a mapped block into a hole of the heap when it cannot be remapped."""
    return [
        Row(MALLOC, 0, 200 << 10, use=WRITE, length=200 << 10),
        Row(MALLOC, 1, 400 << 10),
        Row(FREE, 1),
        Row(MALLOC, 2, 300 << 10),
        Row(MALLOC, 3, 2000),
        Row(FREE, 2),
        Row(LIMIT_AS, request=0),
        Row(REALLOC, 0, 280 << 10),
        Row(REALLOC, 0, 900 << 10),
        Row(FREE, 0),
    ]


@_program()
def _mapping_that_cannot_grow_or_move() -> list[Row]:
    """Fail to remap or move a mapped block: realloc returns NULL and keeps the block."""
    return [
        Row(MALLOC, 0, 200 << 10, use=WRITE, length=200 << 10),
        Row(LIMIT_AS, request=0),
        Row(REALLOC, 0, 900 << 10),
        Row(REALLOC, 0, 100 << 10),
        Row(FREE, 0),
    ]


def _unaligned_break() -> list[Row]:
    """Let the program move the break when there is no room to align it again."""
    return [
        Row(MALLOC, 0, 100 << 10),
        Row(SBRK, request=24),
        Row(LIMIT_DATA, request=200 << 10),
        Row(MALLOC, 1, 100 << 10),
    ]


@_program()
def _break_that_cannot_be_aligned() -> list[Row]:
    return [*_unaligned_break(), Row(MALLOC, 2, 5000), Row(FREE, 1), Row(MALLOC, 3, 64)]


@_program()
def _break_that_was_not_aligned() -> list[Row]:
    """Grow a heap whose break is not aligned, which aborts the process."""
    more = [Row(LIMIT_DATA, request=-1), *_row(MALLOC, 2, 4, 100 << 10)]
    return [*_unaligned_break(), *more]


@_program()
def _break_moved_down() -> list[Row]:
    """Let the program itself move the break below malloc's top."""
    return [Row(MALLOC, 0, 120 << 10), Row(SBRK, request=-2 * _PAGE), Row(MALLOC, 1, 100 << 10)]


@_program()
def _misaligned_break_without_contiguity() -> list[Row]:
    """Grow from an unaligned break after a mapping has served as heap: it is not aligned."""
    return [
        Row(MALLOC, 0, 100 << 10),
        Row(BLOCK, 9, 0, _PAGE),
        *_row(MALLOC, 1, 4, 100 << 10),
        Row(UNBLOCK, 9),
        Row(SBRK, request=24),
        *_row(MALLOC, 5, 40, 100 << 10),
    ]


@_program()
def _mapping_as_heap_then_break_again() -> list[Row]:
    """Mix chunks of a mapping that serves as heap with chunks of the break's heap."""
    return [
        Row(MALLOC, 0, 100 << 10),
        Row(BLOCK, 99, 0, _PAGE),
        *_row(MALLOC, 1, 12, 100 << 10),
        Row(UNBLOCK, 99),
        *_row(MALLOC, 13, 12, 100 << 10),
        Row(BLOCK, 99, _PAGE, _PAGE),
        *_row(MALLOC, 25, 12, 70 << 10),
        *[Row(FREE, slot) for slot in range(0, 37, 2)],
        Row(TRIM),
        *[Row(CALLOC, slot, 90 << 10, 1) for slot in range(0, 37, 2)],
        *[Row(FREE, slot) for slot in range(37)],
        Row(TRIM),
    ]


@_program()
def _many_segments() -> list[Row]:
    """Let the program move the break after each of malloc's moves."""
    ops: list[Row] = []
    for slot in range(0, 1400, 2):
        ops += [Row(MALLOC, slot, 120 << 10), Row(SBRK, request=_PAGE), Row(MALLOC, slot + 1, 40)]
    return ops + [Row(FREE, slot) for slot in range(0, 1400, 3)]


@_program()
def _smallest_top_is_left_behind() -> list[Row]:
    """Abandon a top of 32 bytes, which has room for its fencepost only."""
    heap, tcache, first = 132 << 10, 0x290, 100 << 10
    rest = heap - tcache - first - 32
    cut = [Row(MALLOC, 0, first - 8), Row(MALLOC, 1, rest - 8), Row(SBRK, request=_PAGE)]
    return [*cut, Row(MALLOC, 2, first), Row(FREE, 1), Row(FREE, 0), Row(MALLOC, 3, 64)]


@_program()
def _smallest_top_is_trimmed() -> list[Row]:
    """Trim a top of 32 bytes: malloc_trim makes it larger."""
    rest = (132 << 10) - 0x290 - (100 << 10) - 32
    cut = [Row(MALLOC, 0, (100 << 10) - 8), Row(MALLOC, 1, rest - 8)]
    return [Row(TRIM), *cut, Row(TRIM), Row(TRIM), *_row(MALLOC, 2, 3, 1000), Row(TRIM)]


@_program()
def _no_memory_at_all() -> list[Row]:
    """Refuse all memory, even for the tcache, whose allocation the next call tries again."""
    refused = [
        Row(LIMIT_AS, request=0),
        Row(MALLOC, 0, 24),
        Row(CALLOC, 0, 2000, 1),
        Row(ALIGNED, 0, 9, 6),
    ]
    return [*refused, Row(LIMIT_AS, request=-1), *_row(MALLOC, 1, 3, 24)]


@_program()
def _impossible_requests_sort_first() -> list[Row]:
    """Make huge requests: those that are searched for consolidate, impossible ones do not."""
    ops: list[Row] = []
    largest = (1 << 63) - 1
    for op in (
        Row(ALIGNED, 20, 100, 46),
        Row(ALIGNED, 20, 100, 47),
        Row(ALIGNED, 20, 100, 62),
        Row(ALIGNED, 20, largest - 4096, 12),
        Row(ALIGNED, 20, largest - 55 - 4096, 12),
        Row(ALIGNED, 20, largest - 54 - 4096, 12),
        Row(MALLOC, 20, largest),
        Row(CALLOC, 20, largest, 1),
        Row(REALLOC, 30, largest - 8),
        Row(REALLOC, 30, largest - 7),
        Row(REALLOC, 30, largest - 6),
        Row(REALLOC, 30, largest),
        Row(MALLOC, 20, -1),
    ):
        ops += [Row(MALLOC, 30, 24), *_row(MALLOC, 0, 12, 40), *_row(FREE, 0, 12), op]
        ops += _row(MALLOC, 0, 12, 40)
    return ops


@_program()
def _tcache_in_a_mapping() -> list[Row]:
    """Refuse the break from the start, with room for one page only."""
    limit = [Row(LIMIT_DATA, request=_PAGE), Row(MALLOC, 0, 24), Row(LIMIT_DATA, request=-1)]
    return [*limit, *_row(MALLOC, 1, 9, 24), *_row(FREE, 1, 9), *_row(MALLOC, 1, 9, 24)]


@_program()
def _tcache_in_another_arena() -> list[Row]:
    """Leave too little memory for a mapping as heap, but enough for another arena's heap."""
    return [
        Row(BLOCK, 30, 0, _PAGE),
        Row(LIMIT_DATA, request=600 << 10),
        Row(MALLOC, 0, 24),
        *_row(MALLOC, 1, 9, 24),
        *_row(FREE, 1, 9),
        Row(LIMIT_DATA, request=-1),
        *_row(MALLOC, 1, 9, 24),
        Row(ALIGNED, 10, 3000, 8),
        *_row(FREE, 1, 9),
        Row(UNBLOCK, 30),
        *_row(MALLOC, 11, 5, 60 << 10),
    ]


@_program()
def _tcache_in_an_arena_without_room() -> list[Row]:
    """Reserve another arena's space that the limit does not allow to use."""
    return [
        Row(BLOCK, 30, 0, _PAGE),
        Row(LIMIT_DATA, request=64 << 10),
        Row(MALLOC, 0, 24),
        Row(LIMIT_DATA, request=-1),
        *_row(MALLOC, 1, 3, 24),
    ]


@_program()
def _freed_twice_at_once() -> list[Row]:
    return [Row(MALLOC, 0, 100), Row(FREE, 0), Row(STRAY, 0)]


@_program()
def _freed_twice_in_a_list() -> list[Row]:
    return [*_row(MALLOC, 0, 3, 100), *_row(FREE, 0, 3), Row(STRAY, 0)]


@_program(_NO_TCACHE)
def _freed_twice_first_in_a_fastbin() -> list[Row]:
    return [*_row(MALLOC, 0, 2, 40), Row(FREE, 1), Row(STRAY, 1)]


@_program(_NO_TCACHE)
def _freed_twice_into_the_top() -> list[Row]:
    return [Row(MALLOC, 0, 2000), Row(FREE, 0), Row(STRAY, 0)]


@_program(_NO_TCACHE)
def _freed_twice_before_a_used_chunk() -> list[Row]:
    return [*_row(MALLOC, 0, 2, 2000), Row(FREE, 0), Row(STRAY, 0)]


@_program()
def _freed_at_a_wrong_place() -> list[Row]:
    return [Row(MALLOC, 0, 2000), Row(STRAY, 0, 8)]


@_program({"tcache_max": 40, "tcache_unsorted_limit": 2})
def _small_tcache() -> list[Row]:
    """Use sizes that fastbins and small bins serve but the tcache does not; limit the sorting."""
    ops = _row(MALLOC, 0, 40, 100) + _row(FREE, 0, 40) + [Row(MALLOC, 90, 5000)]
    ops += _row(MALLOC, 0, 40, 100) + _row(MALLOC, 100, 40, 24)
    ops += [Row(FREE, slot) for slot in range(0, 40, 2)] + [Row(MALLOC, 91, 5000)]
    ops += _row(MALLOC, 40, 30, 100)
    blocks = [Row(MALLOC, slot, (24, 200)[slot % 2]) for slot in range(200, 260)]
    ops += blocks + [Row(FREE, slot) for slot in range(200, 260)] + _row(CALLOC, 200, 20, 24)
    return ops + _row(FREE, 0, 20) + _row(MALLOC, 0, 20, 100)


@_program({"tcache_unsorted_limit": 1, "mxfast": 0})
def _sorting_stops_when_the_tcache_can_serve() -> list[Row]:
    """Put chunks of the right size before and after others in the unsorted list."""
    ops = [Row(MALLOC, slot, (104, 48, 300, 48)[slot % 4]) for slot in range(80)]
    ops += [Row(FREE, slot) for slot in (*range(0, 36, 4), *range(2, 60, 4), 36, 40)]
    ops += _row(MALLOC, 200, 8, 104) + _row(CALLOC, 210, 2, 104)
    return ops + _row(MALLOC, 220, 6, 104) + _row(MALLOC, 230, 12, 300)


@_program()
def _free_of_64_kib() -> list[Row]:
    """Free chunks of 64 KiB − 16 and of 64 KiB while fastbins hold chunks."""
    ops: list[Row] = []
    for size in (65512, 65528):
        ops += [*_row(MALLOC, 0, 12, 40), Row(MALLOC, 20, size), Row(MALLOC, 21, 80_000)]
        ops += [*_row(FREE, 0, 12), Row(FREE, 20), Row(MALLOC, 22, 100), *_row(MALLOC, 0, 12, 40)]
    return ops


@_program()
def _ten_thousand_unsorted() -> list[Row]:
    """Exceed the number of chunks that one search sorts."""
    ops = _row(MALLOC, 0, 20_010, 1040)
    ops += [Row(FREE, slot) for slot in range(0, 20_010, 2)]
    return [*ops, Row(MALLOC, 0, 1100), Row(MALLOC, 2, 1040), Row(MALLOC, 4, 5000)]


# --- Threads --------------------------------------------------------------------------------------


def _start(*numbers: int, by: int = 0) -> list[Row]:
    return [Row(THREAD_START, request=n, thread=by) for n in numbers]


def _end(*numbers: int, by: int = 0) -> list[Row]:
    return [Row(THREAD_END, request=n, thread=by) for n in numbers]


def _by(thread: int, ops: list[Row]) -> list[Row]:
    """Assign operations to another thread."""
    return [op._replace(thread=thread) for op in ops]


@_program()
def _threads_before_anything_else() -> list[Row]:
    """Use another thread first: thread 0 still has the main arena without a request."""
    return [*_start(1), *_by(1, _row(MALLOC, 0, 2, 24)), *_row(MALLOC, 2, 2, 24), *_end(1)]


@_program()
def _stacks_are_kept_and_freed() -> list[Row]:
    """Cache more stacks than allowed: the joiner frees one, and the latest is reused first."""
    ops = [*_start(1, 2, 3, 4, 5, 6), *_by(1, [Row(MALLOC, 0, 24)])]
    ops += [*_end(3, 2, by=1), *_end(1, 6, 5, 4), Row(MALLOC, 1, 264)]
    return ops + _start(7, 8) + _end(8, 7) + _row(MALLOC, 2, 9, 264)


@_program()
def _threads_that_cannot_start() -> list[Row]:
    """Start threads without memory for a stack, for its pages, or for the vector from malloc."""
    tight = [Row(MALLOC, 2, 4096 - 1008), Row(LIMIT_AS, request=(8 << 20) + _PAGE)]
    return [
        Row(MALLOC, 0, 24),
        Row(LIMIT_AS, request=0),
        *_start(1),
        Row(LIMIT_AS, request=-1),
        Row(LIMIT_DATA, request=1 << 20),
        *_start(1),
        Row(LIMIT_DATA, request=-1),
        # Of 0x21000 bytes, the first three blocks and the tcache use 0x20ba0.
        Row(MALLOC, 1, 0x20000 - 8),
        *tight,
        *_start(1),
        Row(LIMIT_AS, request=-1),
        *_start(1),
        *_by(1, _row(MALLOC, 3, 3, 24)),
    ]


@_program()
def _arenas_are_used_again() -> list[Row]:
    """Reuse arenas of ended threads, the most recently left first."""
    ops = [*_start(1, 2, 3), Row(MALLOC, 0, 24)]
    for thread in (1, 2, 3):
        ops += _by(thread, _row(MALLOC, 10 * thread, 9, 3000))
    ops += [*_row(FREE, 10, 4), *_by(3, _row(FREE, 20, 9)), *_end(2, 1), *_start(4, 5, 6)]
    for thread in (4, 5, 6, 3):
        ops += _by(thread, _row(MALLOC, 10 * thread, 9, 2000))
    return ops + _end(3, 4, 5, 6) + [Row(TRIM)]


@_program(_TWO_ARENAS)
def _arenas_are_shared() -> list[Row]:
    """Share arenas among more threads in turn, and end the threads one by one."""
    ops = [Row(MALLOC, 0, 24), *_start(1, 2, 3, 4, 5)]
    for thread in (3, 1, 2, 5, 4):
        ops += _by(thread, _row(MALLOC, 10 * thread, 9, 500))
    ops += [*_by(2, _row(FREE, 10, 30)), *_end(3, 5), *_start(3), *_by(3, _row(MALLOC, 60, 5, 500))]
    ops += [*_end(1, 2, 4), *_start(1, 2), *_by(1, _row(MALLOC, 70, 5, 500))]
    return ops + _by(2, _row(MALLOC, 80, 5, 500)) + [*_row(FREE, 60, 30), *_end(1, 2, 3)]


@_program()
def _more_threads_than_arenas() -> list[Row]:
    """Start more threads than the limit of eight arenas per core allows on two cores."""
    ops = [Row(MALLOC, 0, 24)]
    for thread in range(1, 20):
        ops += [*_start(thread), *_by(thread, _row(MALLOC, 10 * thread, 3, 1000))]
    return ops + [op for thread in range(1, 20, 3) for op in _end(thread)] + _start(1)


@_program(_NO_TCACHE)
def _cores_are_counted_late() -> list[Row]:
    """Apply the core-based limit only above arena_test arenas."""
    return PROGRAMS["more_threads_than_arenas"].ops


#: Raises the mmap threshold, so that larger blocks also come from heaps.
_LARGE = [Row(MALLOC, 0, (32 << 20) - 5000), Row(FREE, 0)]


def _fill_heap(first: int, size: int = 100 << 10) -> list[Row]:
    """Allocate more blocks than a heap of 64 MiB holds."""
    return _row(MALLOC, first, (66 << 20) // size, size)


@_program()
def _second_heap() -> list[Row]:
    """Add heaps, and unmap them when they are empty, with frees in several orders."""
    ops = [Row(MALLOC, 0, 24), *_start(1), *_by(1, _fill_heap(10))]
    ops += _by(1, [Row(FREE, slot) for slot in range(684, 630, -1)])
    ops += _by(1, _row(MALLOC, 631, 54, 100 << 10))
    ops += [Row(FREE, slot) for slot in range(640, 685)] + _by(1, [Row(TRIM)])
    ops += _by(1, _row(MALLOC, 640, 45, 100 << 10))
    ops += [Row(FREE, slot) for slot in (*range(684, 600, -2), *range(683, 600, -2))]
    return ops + _by(1, _row(MALLOC, 601, 84, 100 << 10)) + _row(FREE, 10, 675) + _end(1)


@_program()
def _heaps_of_two_arenas() -> list[Row]:
    """Interleave the heaps of two arenas in the address space."""
    ops = [*_LARGE, *_start(1, 2)]
    for thread, first in ((1, 100), (2, 200), (1, 300)):
        ops += _by(thread, _fill_heap(first, 1 << 20))
    ops += _by(2, [*_row(FREE, 300, 66), *_row(FREE, 100, 66)])
    return ops + _by(1, [*_fill_heap(100, 1 << 20), *_row(FREE, 200, 66)]) + _end(1, 2)


def _full_heap(last: int) -> list[Row]:
    """Fill thread 1's heap, leaving a top of ``last`` bytes."""
    room = (64 << 20) - 0xB60 - 60 * ((1 << 20) + 16) - last
    rest = [Row(MALLOC, 70, room - 0x8000 - 8), Row(MALLOC, 71, 0x8000 - 8)]
    return [*_start(1), *_by(1, [*_row(MALLOC, 0, 60, 1 << 20), *rest])]


@_program()
def _heap_full_to_its_end() -> list[Row]:
    """Abandon small tops: 32 bytes hold the heap's fencepost only; 48 and 64 a smaller chunk."""
    ops = _LARGE
    for last in (32, 48, 64, 80):
        ops = ops + _full_heap(last)
        ops += _by(1, [*_row(MALLOC, 80, 3, 60_000), *_row(MALLOC, 83, 2, 24), Row(MALLOC, 85, 40)])
        ops += _by(1, [Row(FREE, 71), *_row(FREE, 80, 6)])
        ops += [*_by(1, _row(FREE, 0, 60)), Row(FREE, 70), Row(TRIM), *_end(1)]
    return ops


@_program()
def _second_heap_for_a_large_block() -> list[Row]:
    """Need a second heap although the first has room; its remaining top fits the tcache."""
    ops = [*_LARGE, *_start(1)]
    for slot, size in enumerate(((20 << 20) - 0xB60 - 0x108, (16 << 20) - 8, 31 << 20), 1):
        ops.append(Row(MALLOC, slot, size, thread=1))
    return ops + _by(1, [Row(FREE, 3), *_row(MALLOC, 4, 9, 200), *_row(FREE, 1, 2)]) + _end(1)


@_program(_NO_PAD)
def _heap_without_pad() -> list[Row]:
    """Use the smallest heaps, whose ends are trimmed as soon as they are free."""
    ops = [
        *_start(1),
        *_by(1, _row(MALLOC, 0, 30, 20_000)),
        *_by(1, [Row(FREE, 29), Row(FREE, 28)]),
    ]
    ops += _by(1, [Row(FREE, slot) for slot in range(27, 0, -1)]) + _by(
        1, _row(MALLOC, 0, 30, 70_000)
    )
    return (
        ops
        + _by(1, [Row(FREE, slot) for slot in range(29, 0, -1)])
        + _by(1, _row(CALLOC, 0, 9, 90_000))
    )


@_program()
def _heap_that_may_not_grow() -> list[Row]:
    """Refuse the growth of a heap: malloc tries a mapping, then the main arena, then fails."""
    ops = [
        Row(MALLOC, 0, 24),
        *_start(1),
        *_by(1, _row(MALLOC, 1, 5, 24)),
        Row(LIMIT_DATA, request=0),
    ]
    ops += _by(1, _row(MALLOC, 10, 4, 100_000)) + _by(1, _row(CALLOC, 20, 4, 100_000))
    ops += _by(1, [Row(MALLOC, 29, 200_000), Row(ALIGNED, 30, 50_000, 12), Row(REALLOC, 1, 60_000)])
    ops += [Row(LIMIT_DATA, request=150_000)]
    ops += _by(1, _row(MALLOC, 40, 4, 60_000)) + _by(
        1, [Row(REALLOC, 2, 40_000), Row(CALLOC, 41, 9999)]
    )
    ops += [
        Row(LIMIT_DATA, request=-1),
        *_by(1, _row(FREE, 10, 50)),
        *_by(1, _row(MALLOC, 10, 9, 9000)),
    ]
    return ops + _end(1)


@_program()
def _thread_without_room_for_an_arena() -> list[Row]:
    """Fail to reserve an arena, reserve it only if aligned by chance, or forbid its use."""
    ops = [Row(MALLOC, 0, 24), *_start(1, 2, 3, 4)]
    ops += [Row(LIMIT_AS, request=1 << 20), *_by(1, _row(MALLOC, 10, 3, 24))]
    ops += [Row(LIMIT_AS, request=(64 << 20) + _PAGE), *_by(2, _row(MALLOC, 20, 3, 24))]
    ops += [
        Row(LIMIT_AS, request=-1),
        Row(LIMIT_DATA, request=_PAGE),
        *_by(3, _row(MALLOC, 30, 3, 24)),
    ]
    ops += [Row(LIMIT_DATA, request=-1)]
    for thread in (1, 2, 3, 4):
        ops += _by(thread, _row(MALLOC, 10 * thread + 3, 3, 24))
    return ops + _end(1, 2, 3, 4)


@_program()
def _heaps_that_lie_by_chance() -> list[Row]:
    """Reserve heaps in the space left by earlier reservations, under varying limits."""
    some = (64 << 20) + (1 << 20)
    ops = [Row(MALLOC, 0, 24), *_start(1, 2, 3, 4, 5, 6), *_by(1, _row(MALLOC, 10, 3, 24))]
    ops += [
        Row(LIMIT_AS, request=some),
        *_by(2, _row(MALLOC, 20, 3, 24)),
        Row(LIMIT_AS, request=-1),
    ]
    ops += [*_by(3, _row(MALLOC, 30, 3, 24)), Row(LIMIT_AS, request=1 << 20)]
    ops += [*_by(4, _row(MALLOC, 40, 3, 24)), Row(LIMIT_AS, request=-1)]
    for thread in (4, 5, 6):
        ops += _by(thread, _row(MALLOC, 10 * thread + 3, 3, 24))
    return ops + _end(1, 2, 3, 4, 5, 6)


@_program()
def _something_lies_where_a_heap_would() -> list[Row]:
    """Occupy the space next to a heap, so that the next heap needs another aligned place."""
    ops = [Row(MALLOC, 0, 24), *_start(1, 2, 3, 4)]
    for thread in (1, 2):
        ops += _by(thread, _row(MALLOC, 10 * thread, 3, 24))
    ops += [Row(MALLOC, 5, 200 << 20), *_row(MALLOC, 6, 4, 40 << 20)]
    for thread in (3, 4):
        ops += _by(thread, _row(MALLOC, 10 * thread, 3, 24))
    return ops + _end(1, 2, 3, 4)


@_program()
def _moved_to_another_arena() -> list[Row]:
    """Grow a block whose arena cannot grow: realloc moves it to another arena."""
    ops = [
        Row(MALLOC, 0, 125_000),
        Row(MALLOC, 1, 24),
        *_start(1),
        *_by(1, _row(MALLOC, 10, 40, 100)),
    ]
    ops += _by(1, [Row(MALLOC, 60, 50_000), Row(MALLOC, 61, 24), *_row(FREE, 10, 40)])
    ops += [Row(FREE, 0), Row(LIMIT_DATA, request=0), *_by(1, [Row(REALLOC, 60, 120_000)])]
    ops += [*_by(1, [Row(REALLOC, 61, 120_000)]), Row(LIMIT_DATA, request=-1)]
    return [*ops, *_by(1, _row(MALLOC, 70, 9, 20_000)), Row(FREE, 60), *_end(1)]


@_program()
def _main_arena_that_cannot_serve() -> list[Row]:
    """Move thread 0 to another arena: one without threads, a new one, or a shared one."""
    ops = [
        Row(MALLOC, 0, 24),
        *_start(1, 2),
        *_by(1, _row(MALLOC, 1, 3, 24)),
        Row(BLOCK, 99, 0, _PAGE),
    ]
    ops += [
        Row(LIMIT_DATA, request=600 << 10),
        *_row(MALLOC, 10, 3, 100_000),
        *_row(MALLOC, 20, 3, 24),
    ]
    ops += [Row(ALIGNED, 15, 90_000, 8), Row(CALLOC, 16, 90_000), *_row(MALLOC, 30, 3, 100_000)]
    ops += [Row(LIMIT_DATA, request=-1), *_row(MALLOC, 40, 3, 24), *_end(1), *_row(FREE, 10, 30)]
    ops += [
        *_by(2, _row(MALLOC, 50, 3, 1000)),
        *_end(2),
        *_start(3),
        *_by(3, _row(MALLOC, 60, 3, 24)),
    ]
    return [*ops, Row(UNBLOCK, 99), *_row(MALLOC, 70, 3, 100000)]


@_program(_TWO_ARENAS)
def _main_arena_that_cannot_serve_where_two_are_all() -> list[Row]:
    return PROGRAMS["main_arena_that_cannot_serve"].ops


@_program()
def _request_larger_than_a_heap() -> list[Row]:
    """Make requests that no heap can hold: a new arena is created without them and fails too.

    For some, the sum of the size and an arena's record slightly exceeds 2**64.
    """
    ops = [Row(MALLOC, 0, 24), *_start(1, 2, 3, 4), Row(LIMIT_DATA, request=700 << 10)]
    ops += [
        Row(MALLOC, 9, (64 << 20) - 100_000),
        Row(MALLOC, 1, 100 << 20),
        *_row(MALLOC, 2, 3, 24),
    ]
    ops += _by(1, [*_row(MALLOC, 5, 3, 24), Row(MALLOC, 8, 100 << 20)])
    ops += _by(2, [Row(ALIGNED, 20, -(1 << 60), 11), *_row(MALLOC, 21, 3, 24)])
    ops += _by(3, [Row(ALIGNED, 30, -(70 << 10), 11), *_row(MALLOC, 31, 3, 24)])
    ops += [Row(LIMIT_DATA, request=-1), *_by(4, [Row(ALIGNED, 40, -1, 11), Row(MALLOC, 41, 24)])]
    largest = (1 << 63) - 1
    for thread, size in ((5, -1), (6, largest), (7, largest - 7), (8, largest - 6), (0, largest)):
        ops += [*_start(thread), *_by(thread, [Row(REALLOC, 41, size), Row(MALLOC, 42, 24)])]
        ops += _by(thread, [Row(CALLOC, 43, size, 1), Row(ALIGNED, 44, size, 6)])
    return ops + _by(1, [Row(MALLOC, 9, 100 << 20)]) + _end(*range(1, 9))


@_program(_NO_PAD)
def _tcache_before_the_block() -> list[Row]:
    """Let a thread's first free or realloc place its tcache in the free chunk before the block."""
    ops: list[Row] = []
    for then in (Row(FREE, 1, thread=2), Row(REALLOC, 1, 9000, thread=2)):
        ops += [*_start(1), Row(MALLOC, 1, 5208, thread=1), *_start(2), *_end(1), then, *_end(2)]
    return ops


@_program()
def _freed_by_another_thread() -> list[Row]:
    """Free blocks into another thread's tcache, and from there into their own arena."""
    ops = [Row(MALLOC, 0, 24), *_start(1, 2), *_by(1, _row(MALLOC, 10, 40, 100))]
    ops += [*_by(2, _row(FREE, 10, 30)), *_by(2, _row(MALLOC, 50, 12, 100)), *_row(FREE, 40, 8)]
    ops += [*_row(MALLOC, 70, 9, 100), *_end(2, by=1), *_by(1, _row(MALLOC, 80, 30, 100))]
    return ops + _row(FREE, 50, 12) + _row(FREE, 70, 40) + _end(1)

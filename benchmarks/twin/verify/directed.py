"""Programs written by hand for what random ones hardly ever do."""

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

#: What takes the place of a mode's name for these.
MODE = "directed"
_PAGE = 4096
#: Sets of tunables, few because each is compiled.
_NO_TCACHE = {"tcache_count": 0, "arena_test": 18}
_TWO_ARENAS = MODES["threads"].tunables[1]
_NO_PAD = MODES["threads"].tunables[3]


@dataclass(frozen=True)
class Directed:
    """A program and the tunables that it is for."""

    ops: list[Row]
    tunables: Mapping[str, int] = field(default_factory=dict)


#: By name.
PROGRAMS: dict[str, Directed] = {}


def _program(tunables: Mapping[str, int] | None = None) -> Callable:
    """Register what a function returns under its name."""

    def register(function: Callable[[], list[Row]]) -> Callable:
        PROGRAMS[function.__name__.strip("_")] = Directed(function(), tunables or {})
        return function

    return register


def _row(kind: int, first: int, count: int, size: int = 0) -> list[Row]:
    """The same for ``count`` slots from ``first`` on."""
    return [Row(kind, slot, size) for slot in range(first, first + count)]


@_program()
def _mapping_that_cannot_grow() -> list[Row]:
    """A mapped block moves into a hole of the heap when it cannot be remapped."""
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
    """Neither remapped nor moved: NULL, and the block stays."""
    return [
        Row(MALLOC, 0, 200 << 10, use=WRITE, length=200 << 10),
        Row(LIMIT_AS, request=0),
        Row(REALLOC, 0, 900 << 10),
        Row(REALLOC, 0, 100 << 10),
        Row(FREE, 0),
    ]


def _unaligned_break() -> list[Row]:
    """The program has moved the break, and there is no room to align it again."""
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
    """The next growth ends the process."""
    more = [Row(LIMIT_DATA, request=-1), *_row(MALLOC, 2, 4, 100 << 10)]
    return [*_unaligned_break(), *more]


@_program()
def _break_moved_down() -> list[Row]:
    """Memory that malloc has is given back by the program itself."""
    return [Row(MALLOC, 0, 120 << 10), Row(SBRK, request=-2 * _PAGE), Row(MALLOC, 1, 100 << 10)]


@_program()
def _misaligned_break_without_contiguity() -> list[Row]:
    """Once a mapping has served as heap, nothing aligns the break."""
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
    """The same with an aligned break: chunks of both places live together."""
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
    """The program moves the break whenever malloc has."""
    ops: list[Row] = []
    for slot in range(0, 1400, 2):
        ops += [Row(MALLOC, slot, 120 << 10), Row(SBRK, request=_PAGE), Row(MALLOC, slot + 1, 40)]
    return ops + [Row(FREE, slot) for slot in range(0, 1400, 3)]


@_program()
def _smallest_top_is_left_behind() -> list[Row]:
    """A top of 32 bytes has room for its fence only."""
    heap, tcache, first = 132 << 10, 0x290, 100 << 10
    rest = heap - tcache - first - 32
    cut = [Row(MALLOC, 0, first - 8), Row(MALLOC, 1, rest - 8), Row(SBRK, request=_PAGE)]
    return [*cut, Row(MALLOC, 2, first), Row(FREE, 1), Row(FREE, 0), Row(MALLOC, 3, 64)]


@_program()
def _smallest_top_is_trimmed() -> list[Row]:
    """malloc_trim makes it larger."""
    rest = (132 << 10) - 0x290 - (100 << 10) - 32
    cut = [Row(MALLOC, 0, (100 << 10) - 8), Row(MALLOC, 1, rest - 8)]
    return [Row(TRIM), *cut, Row(TRIM), Row(TRIM), *_row(MALLOC, 2, 3, 1000), Row(TRIM)]


@_program()
def _no_memory_at_all() -> list[Row]:
    """Not even for the tcache, which the next call tries again."""
    refused = [
        Row(LIMIT_AS, request=0),
        Row(MALLOC, 0, 24),
        Row(CALLOC, 0, 2000, 1),
        Row(ALIGNED, 0, 9, 6),
    ]
    return [*refused, Row(LIMIT_AS, request=-1), *_row(MALLOC, 1, 3, 24)]


@_program()
def _impossible_requests_sort_first() -> list[Row]:
    """A request that is searched for consolidates, one that cannot be does not."""
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
    """The break is refused from the start, and there is room for one page only."""
    limit = [Row(LIMIT_DATA, request=_PAGE), Row(MALLOC, 0, 24), Row(LIMIT_DATA, request=-1)]
    return [*limit, *_row(MALLOC, 1, 9, 24), *_row(FREE, 1, 9), *_row(MALLOC, 1, 9, 24)]


@_program()
def _tcache_in_another_arena() -> list[Row]:
    """Too little for a mapping as heap, enough for another arena's."""
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
    """The other arena's space is reserved but may not be used."""
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
    """Sizes that fastbins and small bins serve, but no tcache; and a limit to sorting."""
    ops = _row(MALLOC, 0, 40, 100) + _row(FREE, 0, 40) + [Row(MALLOC, 90, 5000)]
    ops += _row(MALLOC, 0, 40, 100) + _row(MALLOC, 100, 40, 24)
    ops += [Row(FREE, slot) for slot in range(0, 40, 2)] + [Row(MALLOC, 91, 5000)]
    ops += _row(MALLOC, 40, 30, 100)
    blocks = [Row(MALLOC, slot, (24, 200)[slot % 2]) for slot in range(200, 260)]
    ops += blocks + [Row(FREE, slot) for slot in range(200, 260)] + _row(CALLOC, 200, 20, 24)
    return ops + _row(FREE, 0, 20) + _row(MALLOC, 0, 20, 100)


@_program({"tcache_unsorted_limit": 1, "mxfast": 0})
def _sorting_stops_when_the_tcache_can_serve() -> list[Row]:
    """Chunks of the right size before and behind others in the unsorted list."""
    ops = [Row(MALLOC, slot, (104, 48, 300, 48)[slot % 4]) for slot in range(80)]
    ops += [Row(FREE, slot) for slot in (*range(0, 36, 4), *range(2, 60, 4), 36, 40)]
    ops += _row(MALLOC, 200, 8, 104) + _row(CALLOC, 210, 2, 104)
    return ops + _row(MALLOC, 220, 6, 104) + _row(MALLOC, 230, 12, 300)


@_program()
def _free_of_64_kib() -> list[Row]:
    """Chunks of 64 KiB less 16, and of 64 KiB, are freed while fastbins hold chunks."""
    ops: list[Row] = []
    for size in (65512, 65528):
        ops += [*_row(MALLOC, 0, 12, 40), Row(MALLOC, 20, size), Row(MALLOC, 21, 80_000)]
        ops += [*_row(FREE, 0, 12), Row(FREE, 20), Row(MALLOC, 22, 100), *_row(MALLOC, 0, 12, 40)]
    return ops


@_program()
def _ten_thousand_unsorted() -> list[Row]:
    """One search sorts no more than so many."""
    ops = _row(MALLOC, 0, 20_010, 1040)
    ops += [Row(FREE, slot) for slot in range(0, 20_010, 2)]
    return [*ops, Row(MALLOC, 0, 1100), Row(MALLOC, 2, 1040), Row(MALLOC, 4, 5000)]


# --- Threads --------------------------------------------------------------------------------------


def _start(*numbers: int, by: int = 0) -> list[Row]:
    return [Row(THREAD_START, request=n, thread=by) for n in numbers]


def _end(*numbers: int, by: int = 0) -> list[Row]:
    return [Row(THREAD_END, request=n, thread=by) for n in numbers]


def _by(thread: int, ops: list[Row]) -> list[Row]:
    """The same done by another thread."""
    return [op._replace(thread=thread) for op in ops]


@_program()
def _threads_before_anything_else() -> list[Row]:
    """The first thread has the main arena, though it has asked for nothing itself."""
    return [*_start(1), *_by(1, _row(MALLOC, 0, 2, 24)), *_row(MALLOC, 2, 2, 24), *_end(1)]


@_program()
def _stacks_are_kept_and_freed() -> list[Row]:
    """Five are more than are kept; who joins frees, and starts with what was kept last."""
    ops = [*_start(1, 2, 3, 4, 5, 6), *_by(1, [Row(MALLOC, 0, 24)])]
    ops += [*_end(3, 2, by=1), *_end(1, 6, 5, 4), Row(MALLOC, 1, 264)]
    return ops + _start(7, 8) + _end(8, 7) + _row(MALLOC, 2, 9, 264)


@_program()
def _threads_that_cannot_start() -> list[Row]:
    """No room for a stack, none of it may be written, none for what malloc is asked."""
    tight = [Row(MALLOC, 2, 4096 - 1008), Row(LIMIT_AS, request=(8 << 20) + _PAGE)]
    return [
        Row(MALLOC, 0, 24),
        Row(LIMIT_AS, request=0),
        *_start(1),
        Row(LIMIT_AS, request=-1),
        Row(LIMIT_DATA, request=1 << 20),
        *_start(1),
        Row(LIMIT_DATA, request=-1),
        # 0x21000 bytes, of which the first three take 0x20ba0 with the tcache.
        Row(MALLOC, 1, 0x20000 - 8),
        *tight,
        *_start(1),
        Row(LIMIT_AS, request=-1),
        *_start(1),
        *_by(1, _row(MALLOC, 3, 3, 24)),
    ]


@_program()
def _arenas_are_used_again() -> list[Row]:
    """An arena that a thread has left is the next one's, the last left first."""
    ops = [*_start(1, 2, 3), Row(MALLOC, 0, 24)]
    for thread in (1, 2, 3):
        ops += _by(thread, _row(MALLOC, 10 * thread, 9, 3000))
    ops += [*_row(FREE, 10, 4), *_by(3, _row(FREE, 20, 9)), *_end(2, 1), *_start(4, 5, 6)]
    for thread in (4, 5, 6, 3):
        ops += _by(thread, _row(MALLOC, 10 * thread, 9, 2000))
    return ops + _end(3, 4, 5, 6) + [Row(TRIM)]


@_program(_TWO_ARENAS)
def _arenas_are_shared() -> list[Row]:
    """Threads beyond the number of arenas take them in turn, and leave them one by one."""
    ops = [Row(MALLOC, 0, 24), *_start(1, 2, 3, 4, 5)]
    for thread in (3, 1, 2, 5, 4):
        ops += _by(thread, _row(MALLOC, 10 * thread, 9, 500))
    ops += [*_by(2, _row(FREE, 10, 30)), *_end(3, 5), *_start(3), *_by(3, _row(MALLOC, 60, 5, 500))]
    ops += [*_end(1, 2, 4), *_start(1, 2), *_by(1, _row(MALLOC, 70, 5, 500))]
    return ops + _by(2, _row(MALLOC, 80, 5, 500)) + [*_row(FREE, 60, 30), *_end(1, 2, 3)]


@_program()
def _more_threads_than_arenas() -> list[Row]:
    """Eight for each of two cores."""
    ops = [Row(MALLOC, 0, 24)]
    for thread in range(1, 20):
        ops += [*_start(thread), *_by(thread, _row(MALLOC, 10 * thread, 3, 1000))]
    return ops + [op for thread in range(1, 20, 3) for op in _end(thread)] + _start(1)


@_program(_NO_TCACHE)
def _cores_are_counted_late() -> list[Row]:
    """Only when there are more arenas than arena_test."""
    return PROGRAMS["more_threads_than_arenas"].ops


#: Larger blocks come from the heaps too once a mapping of this size has been freed.
_LARGE = [Row(MALLOC, 0, (32 << 20) - 5000), Row(FREE, 0)]


def _fill_heap(first: int, size: int = 100 << 10) -> list[Row]:
    """Blocks of more than a heap of 64 MiB holds."""
    return _row(MALLOC, first, (66 << 20) // size, size)


@_program()
def _second_heap() -> list[Row]:
    """Heaps are added, and go when nothing is left in them, in any order of the frees."""
    ops = [Row(MALLOC, 0, 24), *_start(1), *_by(1, _fill_heap(10))]
    ops += _by(1, [Row(FREE, slot) for slot in range(684, 630, -1)])
    ops += _by(1, _row(MALLOC, 631, 54, 100 << 10))
    ops += [Row(FREE, slot) for slot in range(640, 685)] + _by(1, [Row(TRIM)])
    ops += _by(1, _row(MALLOC, 640, 45, 100 << 10))
    ops += [Row(FREE, slot) for slot in (*range(684, 600, -2), *range(683, 600, -2))]
    return ops + _by(1, _row(MALLOC, 601, 84, 100 << 10)) + _row(FREE, 10, 675) + _end(1)


@_program()
def _heaps_of_two_arenas() -> list[Row]:
    """They lie among each other."""
    ops = [*_LARGE, *_start(1, 2)]
    for thread, first in ((1, 100), (2, 200), (1, 300)):
        ops += _by(thread, _fill_heap(first, 1 << 20))
    ops += _by(2, [*_row(FREE, 300, 66), *_row(FREE, 100, 66)])
    return ops + _by(1, [*_fill_heap(100, 1 << 20), *_row(FREE, 200, 66)]) + _end(1, 2)


def _full_heap(last: int) -> list[Row]:
    """Thread 1's heap is full to its end but for ``last`` bytes: its top."""
    room = (64 << 20) - 0xB60 - 60 * ((1 << 20) + 16) - last
    rest = [Row(MALLOC, 70, room - 0x8000 - 8), Row(MALLOC, 71, 0x8000 - 8)]
    return [*_start(1), *_by(1, [*_row(MALLOC, 0, 60, 1 << 20), *rest])]


@_program()
def _heap_full_to_its_end() -> list[Row]:
    """A top of 32 bytes has room for the heap's fence only; of 48 and 64, for a chunk less."""
    ops = _LARGE
    for last in (32, 48, 64, 80):
        ops = ops + _full_heap(last)
        ops += _by(1, [*_row(MALLOC, 80, 3, 60_000), *_row(MALLOC, 83, 2, 24), Row(MALLOC, 85, 40)])
        ops += _by(1, [Row(FREE, 71), *_row(FREE, 80, 6)])
        ops += [*_by(1, _row(FREE, 0, 60)), Row(FREE, 70), Row(TRIM), *_end(1)]
    return ops


@_program()
def _second_heap_for_a_large_block() -> list[Row]:
    """The first has room, but not enough; the rest of its top is small enough for the tcache."""
    ops = [*_LARGE, *_start(1)]
    for slot, size in enumerate(((20 << 20) - 0xB60 - 0x108, (16 << 20) - 8, 31 << 20), 1):
        ops.append(Row(MALLOC, slot, size, thread=1))
    return ops + _by(1, [Row(FREE, 3), *_row(MALLOC, 4, 9, 200), *_row(FREE, 1, 2)]) + _end(1)


@_program(_NO_PAD)
def _heap_without_pad() -> list[Row]:
    """The smallest heaps, whose ends are given back as soon as they are free."""
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
    """The kernel refuses: a mapping of its own, the main arena, nothing."""
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
    """None can be reserved, or only where it lies by chance, or it may not be written to."""
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
    """Below a heap there is room for one more, below that for what was not taken of two."""
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
    """The place beside a heap has been taken meanwhile, and no other is aligned."""
    ops = [Row(MALLOC, 0, 24), *_start(1, 2, 3, 4)]
    for thread in (1, 2):
        ops += _by(thread, _row(MALLOC, 10 * thread, 3, 24))
    ops += [Row(MALLOC, 5, 200 << 20), *_row(MALLOC, 6, 4, 40 << 20)]
    for thread in (3, 4):
        ops += _by(thread, _row(MALLOC, 10 * thread, 3, 24))
    return ops + _end(1, 2, 3, 4)


@_program()
def _moved_to_another_arena() -> list[Row]:
    """realloc where the block's own arena cannot grow, behind a chunk that becomes free by it."""
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
    """The first thread goes over to another arena: one left, a new one, one in turn."""
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
    """No heap holds it: the other arena begins without it, and refuses too.

    Or its size and an arena's record are little beyond 2**64.
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
    """A thread's first free, or realloc, makes its tcache of the free chunk before the block."""
    ops: list[Row] = []
    for then in (Row(FREE, 1, thread=2), Row(REALLOC, 1, 9000, thread=2)):
        ops += [*_start(1), Row(MALLOC, 1, 5208, thread=1), *_start(2), *_end(1), then, *_end(2)]
    return ops


@_program()
def _freed_by_another_thread() -> list[Row]:
    """Into the other's tcache, and from there into the arena it came from."""
    ops = [Row(MALLOC, 0, 24), *_start(1, 2), *_by(1, _row(MALLOC, 10, 40, 100))]
    ops += [*_by(2, _row(FREE, 10, 30)), *_by(2, _row(MALLOC, 50, 12, 100)), *_row(FREE, 40, 8)]
    ops += [*_row(MALLOC, 70, 9, 100), *_end(2, by=1), *_by(1, _row(MALLOC, 80, 30, 100))]
    return ops + _row(FREE, 50, 12) + _row(FREE, 70, 40) + _end(1)

"""Programs written by hand for what random ones hardly ever do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.verify.operation import (
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
    TRIM,
    UNBLOCK,
    WRITE,
    Op,
)

#: What takes the place of a mode's name for these.
MODE = "directed"
_PAGE = 4096
_NO_TCACHE = {"tcache_count": 0}


@dataclass(frozen=True)
class Directed:
    """A program and the tunables that it is for."""

    ops: list[Op]
    tunables: Mapping[str, int] = field(default_factory=dict)


#: By name.
PROGRAMS: dict[str, Directed] = {}


def _program(tunables: Mapping[str, int] | None = None) -> Callable:
    """Register what a function returns under its name."""

    def register(function: Callable[[], list[Op]]) -> Callable:
        PROGRAMS[function.__name__.strip("_")] = Directed(function(), tunables or {})
        return function

    return register


def _row(kind: int, first: int, count: int, size: int = 0) -> list[Op]:
    """The same for ``count`` slots from ``first`` on."""
    return [Op(kind, slot, size) for slot in range(first, first + count)]


@_program()
def _mapping_that_cannot_grow() -> list[Op]:
    """A mapped block moves into a hole of the heap when it cannot be remapped."""
    return [
        Op(MALLOC, 0, 200 << 10, use=WRITE, length=200 << 10),
        Op(MALLOC, 1, 400 << 10),
        Op(FREE, 1),
        Op(MALLOC, 2, 300 << 10),
        Op(MALLOC, 3, 2000),
        Op(FREE, 2),
        Op(LIMIT_AS, request=0),
        Op(REALLOC, 0, 280 << 10),
        Op(REALLOC, 0, 900 << 10),
        Op(FREE, 0),
    ]


@_program()
def _mapping_that_cannot_grow_or_move() -> list[Op]:
    """Neither remapped nor moved: NULL, and the block stays."""
    return [
        Op(MALLOC, 0, 200 << 10, use=WRITE, length=200 << 10),
        Op(LIMIT_AS, request=0),
        Op(REALLOC, 0, 900 << 10),
        Op(REALLOC, 0, 100 << 10),
        Op(FREE, 0),
    ]


def _unaligned_break() -> list[Op]:
    """The program has moved the break, and there is no room to align it again."""
    return [
        Op(MALLOC, 0, 100 << 10),
        Op(SBRK, request=24),
        Op(LIMIT_DATA, request=200 << 10),
        Op(MALLOC, 1, 100 << 10),
    ]


@_program()
def _break_that_cannot_be_aligned() -> list[Op]:
    return [*_unaligned_break(), Op(MALLOC, 2, 5000), Op(FREE, 1), Op(MALLOC, 3, 64)]


@_program()
def _break_that_was_not_aligned() -> list[Op]:
    """The next growth ends the process."""
    more = [Op(LIMIT_DATA, request=-1), *_row(MALLOC, 2, 4, 100 << 10)]
    return [*_unaligned_break(), *more]


@_program()
def _break_moved_down() -> list[Op]:
    """Memory that malloc has is given back by the program itself."""
    return [Op(MALLOC, 0, 120 << 10), Op(SBRK, request=-2 * _PAGE), Op(MALLOC, 1, 100 << 10)]


@_program()
def _misaligned_break_without_contiguity() -> list[Op]:
    """Once a mapping has served as heap, nothing aligns the break."""
    return [
        Op(MALLOC, 0, 100 << 10),
        Op(BLOCK, 9, 0, _PAGE),
        *_row(MALLOC, 1, 4, 100 << 10),
        Op(UNBLOCK, 9),
        Op(SBRK, request=24),
        *_row(MALLOC, 5, 40, 100 << 10),
    ]


@_program()
def _mapping_as_heap_then_break_again() -> list[Op]:
    """The same with an aligned break: chunks of both places live together."""
    return [
        Op(MALLOC, 0, 100 << 10),
        Op(BLOCK, 99, 0, _PAGE),
        *_row(MALLOC, 1, 12, 100 << 10),
        Op(UNBLOCK, 99),
        *_row(MALLOC, 13, 12, 100 << 10),
        Op(BLOCK, 99, _PAGE, _PAGE),
        *_row(MALLOC, 25, 12, 70 << 10),
        *[Op(FREE, slot) for slot in range(0, 37, 2)],
        Op(TRIM),
        *[Op(CALLOC, slot, 90 << 10, 1) for slot in range(0, 37, 2)],
        *[Op(FREE, slot) for slot in range(37)],
        Op(TRIM),
    ]


@_program()
def _many_segments() -> list[Op]:
    """The program moves the break whenever malloc has."""
    ops: list[Op] = []
    for slot in range(0, 1400, 2):
        ops += [Op(MALLOC, slot, 120 << 10), Op(SBRK, request=_PAGE), Op(MALLOC, slot + 1, 40)]
    return ops + [Op(FREE, slot) for slot in range(0, 1400, 3)]


@_program()
def _smallest_top_is_left_behind() -> list[Op]:
    """A top of 32 bytes has room for its fence only."""
    heap, tcache, first = 132 << 10, 0x290, 100 << 10
    rest = heap - tcache - first - 32
    cut = [Op(MALLOC, 0, first - 8), Op(MALLOC, 1, rest - 8), Op(SBRK, request=_PAGE)]
    return [*cut, Op(MALLOC, 2, first), Op(FREE, 1), Op(FREE, 0), Op(MALLOC, 3, 64)]


@_program()
def _no_memory_at_all() -> list[Op]:
    """Not even for the tcache, which the next call tries again."""
    refused = [
        Op(LIMIT_AS, request=0),
        Op(MALLOC, 0, 24),
        Op(CALLOC, 0, 2000, 1),
        Op(ALIGNED, 0, 9, 6),
    ]
    return [*refused, Op(LIMIT_AS, request=-1), *_row(MALLOC, 1, 3, 24)]


@_program()
def _impossible_requests_sort_first() -> list[Op]:
    """What is searched for consolidates, what cannot be does not."""
    ops: list[Op] = []
    largest = (1 << 63) - 1
    for op in (
        Op(ALIGNED, 20, 100, 46),
        Op(ALIGNED, 20, 100, 47),
        Op(ALIGNED, 20, 100, 62),
        Op(ALIGNED, 20, largest - 4096, 12),
        Op(ALIGNED, 20, largest - 55 - 4096, 12),
        Op(ALIGNED, 20, largest - 54 - 4096, 12),
        Op(MALLOC, 20, largest),
        Op(CALLOC, 20, largest, 1),
        Op(REALLOC, 30, largest - 8),
        Op(REALLOC, 30, largest - 7),
        Op(REALLOC, 30, largest - 6),
        Op(REALLOC, 30, largest),
        Op(MALLOC, 20, -1),
    ):
        ops += [Op(MALLOC, 30, 24), *_row(MALLOC, 0, 12, 40), *_row(FREE, 0, 12), op]
        ops += _row(MALLOC, 0, 12, 40)
    return ops


@_program()
def _tcache_in_a_mapping() -> list[Op]:
    """The break is refused from the start, and there is room for one page only."""
    limit = [Op(LIMIT_DATA, request=_PAGE), Op(MALLOC, 0, 24), Op(LIMIT_DATA, request=-1)]
    return [*limit, *_row(MALLOC, 1, 9, 24), *_row(FREE, 1, 9), *_row(MALLOC, 1, 9, 24)]


@_program()
def _tcache_in_another_arena() -> list[Op]:
    """Too little for a mapping as heap, enough for another arena's."""
    return [
        Op(BLOCK, 30, 0, _PAGE),
        Op(LIMIT_DATA, request=600 << 10),
        Op(MALLOC, 0, 24),
        *_row(MALLOC, 1, 9, 24),
        *_row(FREE, 1, 9),
        Op(LIMIT_DATA, request=-1),
        *_row(MALLOC, 1, 9, 24),
        Op(ALIGNED, 10, 3000, 8),
        *_row(FREE, 1, 9),
        Op(UNBLOCK, 30),
        *_row(MALLOC, 11, 5, 60 << 10),
    ]


@_program()
def _tcache_in_an_arena_without_room() -> list[Op]:
    """The other arena's space is reserved but may not be used."""
    return [
        Op(BLOCK, 30, 0, _PAGE),
        Op(LIMIT_DATA, request=64 << 10),
        Op(MALLOC, 0, 24),
        Op(LIMIT_DATA, request=-1),
        *_row(MALLOC, 1, 3, 24),
    ]


@_program()
def _freed_twice_at_once() -> list[Op]:
    return [Op(MALLOC, 0, 100), Op(FREE, 0), Op(STRAY, 0)]


@_program()
def _freed_twice_in_a_list() -> list[Op]:
    return [*_row(MALLOC, 0, 3, 100), *_row(FREE, 0, 3), Op(STRAY, 0)]


@_program(_NO_TCACHE)
def _freed_twice_first_in_a_fastbin() -> list[Op]:
    return [*_row(MALLOC, 0, 2, 40), Op(FREE, 1), Op(STRAY, 1)]


@_program(_NO_TCACHE)
def _freed_twice_into_the_top() -> list[Op]:
    return [Op(MALLOC, 0, 2000), Op(FREE, 0), Op(STRAY, 0)]


@_program(_NO_TCACHE)
def _freed_twice_before_a_used_chunk() -> list[Op]:
    return [*_row(MALLOC, 0, 2, 2000), Op(FREE, 0), Op(STRAY, 0)]


@_program()
def _freed_at_a_wrong_place() -> list[Op]:
    return [Op(MALLOC, 0, 2000), Op(STRAY, 0, 8)]


@_program({"tcache_max": 40, "tcache_unsorted_limit": 2})
def _small_tcache() -> list[Op]:
    """Sizes that fastbins and small bins serve, but no tcache; and a limit to sorting."""
    ops = _row(MALLOC, 0, 40, 100) + _row(FREE, 0, 40) + [Op(MALLOC, 90, 5000)]
    ops += _row(MALLOC, 0, 40, 100) + _row(MALLOC, 100, 40, 24)
    ops += [Op(FREE, slot) for slot in range(0, 40, 2)] + [Op(MALLOC, 91, 5000)]
    ops += _row(MALLOC, 40, 30, 100)
    blocks = [Op(MALLOC, slot, (24, 200)[slot % 2]) for slot in range(200, 260)]
    ops += blocks + [Op(FREE, slot) for slot in range(200, 260)] + _row(CALLOC, 200, 20, 24)
    return ops + _row(FREE, 0, 20) + _row(MALLOC, 0, 20, 100)


@_program({"tcache_unsorted_limit": 1, "mxfast": 0})
def _sorting_stops_when_the_tcache_can_serve() -> list[Op]:
    """Chunks of the right size before and behind others in the unsorted list."""
    ops = [Op(MALLOC, slot, (104, 48, 300, 48)[slot % 4]) for slot in range(80)]
    ops += [Op(FREE, slot) for slot in (*range(0, 36, 4), *range(2, 60, 4), 36, 40)]
    ops += _row(MALLOC, 200, 8, 104) + _row(CALLOC, 210, 2, 104)
    return ops + _row(MALLOC, 220, 6, 104) + _row(MALLOC, 230, 12, 300)


@_program()
def _free_of_64_kib() -> list[Op]:
    """Chunks of 64 KiB less 16, and of 64 KiB, are freed while fastbins hold chunks."""
    ops: list[Op] = []
    for size in (65512, 65528):
        ops += [*_row(MALLOC, 0, 12, 40), Op(MALLOC, 20, size), Op(MALLOC, 21, 80_000)]
        ops += [*_row(FREE, 0, 12), Op(FREE, 20), Op(MALLOC, 22, 100), *_row(MALLOC, 0, 12, 40)]
    return ops


@_program()
def _ten_thousand_unsorted() -> list[Op]:
    """One search sorts no more than so many."""
    ops = _row(MALLOC, 0, 20_010, 1040)
    ops += [Op(FREE, slot) for slot in range(0, 20_010, 2)]
    return [*ops, Op(MALLOC, 0, 1100), Op(MALLOC, 2, 1040), Op(MALLOC, 4, 5000)]

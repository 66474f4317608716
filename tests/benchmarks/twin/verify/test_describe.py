"""Operations are formatted as C code."""

import pytest

from benchmarks.twin.verify import operation as ops
from benchmarks.twin.verify.operation import NAMES, Row

WORDS = {
    "malloc": "b3 = malloc(48)",
    "calloc": "b3 = calloc(4, 12)",
    "realloc": "b3 = realloc(b3, 48)",
    "aligned_alloc": "b3 = aligned_alloc(16, 48)",
    "free": "free(b3)",
    "malloc_usable_size": "malloc_usable_size(b3)",
    "malloc_trim": "malloc_trim(0)",
    "use": "nothing",
    "sbrk": "sbrk(48)",
    "block": "mmap(4 bytes, 48 above the break)",
    "unblock": "munmap(mapping above the break)",
    "limit_data": "setrlimit(RLIMIT_DATA, current + 48)",
    "limit_as": "setrlimit(RLIMIT_AS, current + 48)",
    "stray": "free(last address of b3 + 48)",
    "thread_start": "pthread_create(thread 48)",
    "thread_end": "pthread_join(thread 48, which returns)",
}


def test_every_kind_has_a_description():
    assert set(WORDS) == set(NAMES.values())


@pytest.mark.parametrize("kind", NAMES, ids=NAMES.get)
def test_format_of_each_kind(kind):
    assert Row(kind, slot=3, request=48, extra=4).describe() == WORDS[NAMES[kind]]


def test_use_and_thread_are_shown():
    row = Row(ops.MALLOC, 3, 48, use=ops.WRITE, begin=8, length=16, thread=2)
    assert row.describe() == "[thread 2] b3 = malloc(48); write b3[8 … +16]"

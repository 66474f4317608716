"""Mistakes that are found in a function's source, before anything is compiled."""

from pathlib import Path

import pytest

from kernel.engine.jit import WalkError, check_fields, jit, source_hash

pytestmark = pytest.mark.once


@jit
def two(k, n, scale=1):
    return n * scale


@jit
def fail(k):
    raise ValueError


def line_of(function, text):
    """Line of the test file that holds ``text`` in ``function``."""
    first = function.__code__.co_firstlineno
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(i for i in range(first, len(lines)) if text in lines[i - 1])


def message(function):
    with pytest.raises(WalkError) as caught:
        source_hash(function)
    return str(caught.value)


@jit
def too_few(k):
    return two(k)


@jit
def too_many(k):
    return two(k, 1, 2, 3)


@jit
def no_such_word(k):
    return two(k, 1, factor=3)


@pytest.mark.parametrize("function", [too_few, too_many, no_such_word])
def test_a_call_with_wrong_arguments(function):
    said = message(function)
    line = line_of(function, "return two")
    assert said.startswith(f"{__file__}:{line}: {function.__name__}() calls two(")


@jit
def falls_off(k, n):
    if n:
        return 1
    two(k, n)


@jit
def returns_bare(k, n):
    if n:
        return  # nothing
    return 1


@jit
def loop_may_end(k, n):
    while True:
        if n:
            break
        return 1


@pytest.mark.parametrize(
    ("function", "text"),
    [(falls_off, "two(k, n)"), (returns_bare, "# nothing"), (loop_may_end, "while True")],
)
def test_a_path_without_a_result(function, text):
    assert message(function).startswith(f"{__file__}:{line_of(function, text)}: ")


@jit
def never_returns(k):
    fail(k)


@jit
def aborts_at_the_end(k, n):
    if n == 1:
        return 1
    if n:
        return two(k, n)
    never_returns(k)


@jit
def loops_for_ever(k, n):
    while True:
        while n < 9:
            if n == 5:
                break
            n += 1
        if n:
            return 1
        n += 1


@jit
def all_branches(k, n):
    if n:
        return 1
    elif k:
        raise ValueError
    else:
        return 2


@jit
def nothing_at_all(k, n):
    two(k, n)


@pytest.mark.parametrize(
    "function", [aborts_at_the_end, loops_for_ever, all_branches, nothing_at_all]
)
def test_what_is_right_passes(function):
    assert source_hash(function)


@jit
def inner(k, s):
    return s.top + s.topp


@jit
def outer(k, a):
    return inner(k, a) + k.anything


def test_a_field_that_the_state_lacks_is_found_in_what_it_is_handed_to():
    with pytest.raises(WalkError, match=r"inner\(\) uses s.topp: it has start, top") as caught:
        check_fields(outer, 1, ("start", "top"))
    assert f"{__file__}:{line_of(inner, 's.topp')}: " in str(caught.value)
    check_fields(outer, 1, ("top", "topp"))

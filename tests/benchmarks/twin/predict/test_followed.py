"""engine.branches.followed: each conditional is told with the way it went, constants are not."""

from types import SimpleNamespace

import pytest

from kernel.engine.branches import followed
from kernel.engine.jit import build, jit

pytestmark = pytest.mark.usefixtures("plain")

ON = True


@jit
def inner(k, n):
    """A callee."""
    while n > 0:
        n -= 1
    return n


@jit
def outer(k, n):
    """Branches of all kinds."""
    if ON:
        k.seen += 1
    if n > 2:
        k.seen += 10
    elif n > 1:
        k.seen += 20
    for i in range(n):
        k.seen += i
    inner(k, n)
    return k.seen


@jit
def note(k, branch, taken):
    """What follows."""
    k.told.append((branch, taken))


def told(n, within="", **bindings):
    k = SimpleNamespace(seen=0, told=[])
    result = build(followed(outer, note, within, **bindings))(k, n)
    assert result == build(outer, **bindings)(SimpleNamespace(seen=0), n)
    return k.told


def test_each_conditional_is_told_with_its_way():
    first, *rounds = told(3)
    assert first[1] == 1  # the elif is not reached
    assert [taken for _, taken in rounds] == [1, 1, 1, 0, 1, 1, 1, 0]  # for, then while
    assert len({branch for branch, _ in [first, *rounds]}) == 3


def test_an_else_is_told_of_the_same_conditional():
    (first, no), (second, yes), *_ = told(2)
    assert (no, yes) == (0, 1)
    assert told(3)[0] == (first, 1)
    assert told(1)[1] == (second, 0)


def test_constants_are_no_branches():
    assert told(1) == told(1, ON=False)


def test_only_chosen_modules_are_followed():
    assert told(3, within="nowhere") == []

"""Test of report_branches: each conditional and its outcome, except constant ones."""

from types import SimpleNamespace

import pytest

from kernel.engine.branches import report_branches
from kernel.engine.jit import build, jit

pytestmark = pytest.mark.usefixtures("plain")

ON = True


@jit
def inner(k, n):
    """Count down to zero."""
    while n > 0:
        n -= 1
    return n


@jit
def outer(k, n):
    """Use every kind of branch."""
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
    """Append a branch and its outcome."""
    k.branches.append((branch, taken))


def branches(n, within="", **bindings):
    k = SimpleNamespace(seen=0, branches=[])
    result = build(report_branches(outer, note, within, **bindings))(k, n)
    assert result == build(outer, **bindings)(SimpleNamespace(seen=0), n)
    return k.branches


def test_each_conditional_is_reported_with_its_outcome():
    first, *rounds = branches(3)
    assert first[1] == 1  # the elif is not reached
    assert [taken for _, taken in rounds] == [1, 1, 1, 0, 1, 1, 1, 0]  # for, then while
    assert len({branch for branch, _ in [first, *rounds]}) == 3


def test_both_outcomes_are_reported_for_the_same_conditional():
    (first, no), (second, yes), *_ = branches(2)
    assert (no, yes) == (0, 1)
    assert branches(3)[0] == (first, 1)
    assert branches(1)[1] == (second, 0)


def test_constants_are_not_branches():
    assert branches(1) == branches(1, ON=False)


def test_only_chosen_modules_report_branches():
    assert branches(3, within="nowhere") == []

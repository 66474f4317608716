"""Shrink a program that shows a difference: remove operations, then simplify their arguments."""

import time
from collections.abc import Callable, Iterable
from typing import Any

#: Runs a program; returns its operations up to the first difference, None if both sides agree.
Reproduce = Callable[[list[Any]], list[Any] | None]
#: Returns strictly simpler forms of an operation, the simplest first.
Variants = Callable[[Any], Iterable[Any]]


def shrink(
    ops: list[Any], reproduce: Reproduce, variants: Variants, seconds: float = 60
) -> list[Any]:
    """Return the shortest program found in ``seconds`` that shows a difference, as ``ops`` does."""
    deadline = time.monotonic() + seconds
    ops = _remove_operations(ops, reproduce, deadline)
    ops = _simplify_operations(ops, reproduce, variants, deadline)
    return _remove_operations(ops, reproduce, deadline)


def _remove_operations(ops: list[Any], reproduce: Reproduce, deadline: float) -> list[Any]:
    """Remove runs of operations: first half the program at a time, finally single operations."""
    size = max(len(ops) // 2, 1)
    while True:
        before = len(ops)
        end = len(ops) - 1  # the last one shows the difference
        while end > 0:
            start = max(end - size, 0)
            if time.monotonic() > deadline:
                return ops
            shorter = reproduce(ops[:start] + ops[end:])
            if shorter is not None:
                ops = shorter
                end = min(start, len(ops) - 1)
            else:
                end = start
        if size > 1:
            size = max(size // 2, 1)
        elif len(ops) == before:
            return ops


def _simplify_operations(
    ops: list[Any], reproduce: Reproduce, variants: Variants, deadline: float
) -> list[Any]:
    """Replace each operation by a simpler form that still shows the difference."""
    n = len(ops) - 1
    while n >= 0:
        changed = True
        while changed and n < len(ops):
            changed = False
            for op in variants(ops[n]):
                if time.monotonic() > deadline:
                    return ops
                found = reproduce([*ops[:n], op, *ops[n + 1 :]])
                if found is not None:
                    ops, changed = found, True
                    break
        n = min(n, len(ops)) - 1
    return ops

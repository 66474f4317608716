"""Make a program that shows a difference shorter: first without some operations, then simpler."""

import time
from collections.abc import Callable, Iterable
from typing import Any

#: Runs a program; the operations up to the first difference, or None where there is none.
Shows = Callable[[list[Any]], list[Any] | None]
#: Simpler forms of an operation, the simplest first; each is strictly simpler.
Variants = Callable[[Any], Iterable[Any]]


def shrink(ops: list[Any], shows: Shows, variants: Variants, seconds: float = 60) -> list[Any]:
    """The shortest program found in ``seconds`` that shows a difference; ``ops`` does."""
    deadline = time.monotonic() + seconds
    ops = _fewer(ops, shows, deadline)
    ops = _simpler(ops, shows, variants, deadline)
    return _fewer(ops, shows, deadline)


def _fewer(ops: list[Any], shows: Shows, deadline: float) -> list[Any]:
    """Leave out runs of operations, half of them at first, in the end one."""
    size = max(len(ops) // 2, 1)
    while True:
        before = len(ops)
        end = len(ops) - 1  # the last one shows the difference
        while end > 0:
            start = max(end - size, 0)
            if time.monotonic() > deadline:
                return ops
            shorter = shows(ops[:start] + ops[end:])
            if shorter is not None:
                ops = shorter
                end = min(start, len(ops) - 1)
            else:
                end = start
        if size > 1:
            size = max(size // 2, 1)
        elif len(ops) == before:
            return ops


def _simpler(ops: list[Any], shows: Shows, variants: Variants, deadline: float) -> list[Any]:
    """Replace arguments by simpler ones where the difference stays."""
    n = len(ops) - 1
    while n >= 0:
        changed = True
        while changed and n < len(ops):
            changed = False
            for op in variants(ops[n]):
                if time.monotonic() > deadline:
                    return ops
                found = shows([*ops[:n], op, *ops[n + 1 :]])
                if found is not None:
                    ops, changed = found, True
                    break
        n = min(n, len(ops)) - 1
    return ops

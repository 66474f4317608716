"""Allocator that does nothing, so that its replay measures the replay loop alone."""

from types import SimpleNamespace

import numpy as np

from allocators.base.contract import align_up
from allocators.base.registry import Plugin
from kernel.brk import sbrk
from kernel.engine.jit import jit

#: Bytes of the one block that serves every request: a page of the largest page size.
_PAGE = 65536

STATE = np.dtype([("page", "i8")])


@jit
def init(k, a):
    """Extend the break by the page."""
    a.page = align_up(sbrk(k, _PAGE), 16)


@jit
def malloc(k, a, size):
    """Return the page, for any size."""
    return a.page


@jit
def free(k, a, p):
    """Do nothing."""


@jit
def usable_size(k, a, p):
    """Return the size of the page."""
    return _PAGE


def plugin() -> Plugin:
    """Return this allocator as a plugin."""
    module = SimpleNamespace(
        STATE=STATE, init=init, malloc=malloc, free=free, usable_size=usable_size
    )
    return Plugin("harness", module, {})

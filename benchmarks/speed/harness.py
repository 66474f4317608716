"""A policy that does nothing: what is left is the replay loop itself."""

from types import SimpleNamespace

import numpy as np

from allocators.base.contract import align_up
from allocators.base.registry import Plugin
from kernel.brk import sbrk
from kernel.engine.jit import jit

#: One page of the largest size, bytes, serves every request.
_PAGE = 65536

STATE = np.dtype([("page", "i8")])


@jit
def init(k, a):
    """Map the page."""
    a.page = align_up(sbrk(k, _PAGE), 16)


@jit
def malloc(k, a, size):
    """Return the page, whatever is asked."""
    return a.page


@jit
def free(k, a, p):
    """Do nothing."""


@jit
def usable_size(k, a, p):
    """Claim the page."""
    return _PAGE


def plugin() -> Plugin:
    """The empty policy as a plugin."""
    module = SimpleNamespace(
        STATE=STATE, init=init, malloc=malloc, free=free, usable_size=usable_size
    )
    return Plugin("harness", module, {})

"""The machine's own malloc as a plugin: the replay loop calls the C library and nothing else.

Its blocks are real memory, so the program's touch writes there; the kernel model stands idle.
What malloc runs is the process's: LD_PRELOAD replaces it.
"""

import ctypes
from types import SimpleNamespace
from typing import Any

from allocators.base.contract import ALIGNMENT, NO_STATE
from allocators.base.registry import Plugin
from kernel.engine.jit import disabled, jit
from kernel.engine.memory import store_word


@jit
def libc_malloc(size):
    """The C library's malloc; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def libc_free(p):
    """The C library's free; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def libc_realloc(p, size):
    """The C library's realloc; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def libc_calloc(count, size):
    """The C library's calloc; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def libc_aligned_alloc(alignment, size):
    """The C library's aligned_alloc; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def init(k, a):
    """Have nothing to prepare."""


@jit
def malloc(k, a, size):
    """Call the C library."""
    return libc_malloc(size)


@jit
def free(k, a, p):
    """Call the C library."""
    libc_free(p)


@jit
def realloc(k, a, p, size):
    """Call the C library."""
    return libc_realloc(p, size)


@jit
def calloc(k, a, size):
    """Call the C library."""
    return libc_calloc(1, size)


@jit
def aligned_alloc(k, a, alignment, size):
    """Call the C library; it knows no alignment below a pointer's, and malloc gives 16 anyway."""
    return libc_aligned_alloc(max(alignment, ALIGNMENT), size)


@jit
def usable_size(k, a, p):
    """Claim nothing: it is asked only to realloc, which the C library does itself."""
    return 0


@jit
def touch(k, addr, length, write):
    """The program writes the first word of its block, for real."""
    store_word(addr, 0, length)


@jit
def leave(k, addr, length, write):
    """The program leaves its memory alone."""


#: Functions of the C library by their bindings: name, number of arguments, whether one returns.
_FUNCTIONS = {
    "libc_malloc": ("malloc", 1, True),
    "libc_free": ("free", 1, False),
    "libc_realloc": ("realloc", 2, True),
    "libc_calloc": ("calloc", 2, True),
    "libc_aligned_alloc": ("aligned_alloc", 2, True),
}


def _functions() -> dict[str, Any]:
    """The functions of this process, callable from the loop."""
    if disabled():
        library, found = ctypes.CDLL(None), {}
        for binding, (name, count, returns) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes = [ctypes.c_ssize_t] * count
            function.restype = ctypes.c_ssize_t if returns else None
            found[binding] = function
        return found
    from numba import types

    return {
        binding: types.ExternalFunction(
            name, (types.intp if returns else types.void)(*[types.intp] * count)
        )
        for binding, (name, count, returns) in _FUNCTIONS.items()
    }


def bindings(*, touches: bool = True) -> dict[str, Any]:
    """What makes the plugin real: the C library's functions, and a touch that writes, or not."""
    return {"touch": touch if touches else leave} | _functions()


def plugin() -> Plugin:
    """The C library's malloc in the form of a plugin; bind :func:`bindings` over its own."""
    functions = (init, malloc, free, realloc, calloc, aligned_alloc, usable_size)
    module = SimpleNamespace(STATE=NO_STATE, **{f.__name__: f for f in functions})
    return Plugin("libc", module, {})


def release(addresses: Any) -> None:
    """Free real blocks by address, (n,) int64; 0 is none."""
    library = ctypes.CDLL(None)
    library.free.argtypes = [ctypes.c_void_p]
    for address in addresses:
        if address:
            library.free(int(address))

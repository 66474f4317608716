"""The malloc of this machine as a plugin: the replay loop calls the C library directly.

Its blocks are real memory, which the program's touch writes; the kernel model is idle.  The malloc
is the one of this process: LD_PRELOAD replaces it.
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
    """Call the C library's malloc; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def libc_free(p):
    """Call the C library's free; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def libc_realloc(p, size):
    """Call the C library's realloc; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def libc_calloc(count, size):
    """Call the C library's calloc; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def libc_aligned_alloc(alignment, size):
    """Call the C library's aligned_alloc; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def libc_trim(pad):
    """Call the C library's malloc_trim; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def init(k, a):
    """Do nothing: the C library initialises itself."""


@jit
def malloc(k, a, size):
    """Call the C library's malloc."""
    return libc_malloc(size)


@jit
def free(k, a, p):
    """Call the C library's free."""
    libc_free(p)


@jit
def realloc(k, a, p, size):
    """Call the C library's realloc."""
    return libc_realloc(p, size)


@jit
def calloc(k, a, size):
    """Call the C library's calloc."""
    return libc_calloc(1, size)


@jit
def aligned_alloc(k, a, alignment, size):
    """Call the C library's aligned_alloc, with at least malloc's alignment of 16.

    The C library rejects alignments below that of a pointer.
    """
    return libc_aligned_alloc(max(alignment, ALIGNMENT), size)


@jit
def usable_size(k, a, p):
    """Return 0: only the generic realloc needs the size, and the C library has its own."""
    return 0


@jit
def trim(k, a):
    """Call the library's malloc_trim."""
    libc_trim(0)


@jit
def touch(k, addr, length, write):
    """Write the first word of the real block at ``addr``."""
    store_word(addr, 0, length)


@jit
def leave(k, addr, length, write):
    """Touch nothing."""


#: Functions of the C library by binding: name, number of arguments, True if it returns a value.
_FUNCTIONS = {
    "libc_malloc": ("malloc", 1, True),
    "libc_free": ("free", 1, False),
    "libc_realloc": ("realloc", 2, True),
    "libc_calloc": ("calloc", 2, True),
    "libc_aligned_alloc": ("aligned_alloc", 2, True),
    "libc_trim": ("malloc_trim", 1, True),
}


def _functions() -> dict[str, Any]:
    """Return this process's functions by binding, callable from the loop."""
    library, found = ctypes.CDLL(None), {}
    known = {b: each for b, each in _FUNCTIONS.items() if hasattr(library, each[0])}
    if disabled():
        for binding, (name, count, returns) in known.items():
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
        for binding, (name, count, returns) in known.items()
    }


def bindings(*, touches: bool = True) -> dict[str, Any]:
    """Return the bindings of the C library's functions and of a touch of real memory.

    ``touches``: write the first word of each block; otherwise touch nothing.
    """
    return {"touch": touch if touches else leave} | _functions()


def plugin(*, trims: bool = False) -> Plugin:
    """Return the C library's malloc as a plugin; :func:`bindings` must override its bindings.

    ``trims``: True if it has a malloc_trim of its own.
    """
    functions = (init, malloc, free, realloc, calloc, aligned_alloc, usable_size)
    functions += (trim,) if trims else ()
    module = SimpleNamespace(STATE=NO_STATE, **{f.__name__: f for f in functions})
    return Plugin("libc", module, {})


def release(addresses: Any) -> None:
    """Free the real blocks at ``addresses``, (n,) int64; 0 means no block."""
    library = ctypes.CDLL(None)
    library.free.argtypes = [ctypes.c_void_p]
    for address in addresses:
        if address:
            library.free(int(address))

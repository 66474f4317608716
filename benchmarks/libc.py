"""The machine's own malloc as a plugin: the replay loop calls the C library and nothing else.

Its blocks are real memory, so the program's touch writes there; the kernel model stands idle.
What malloc runs is the process's: LD_PRELOAD replaces it.
"""

import ctypes
from types import SimpleNamespace
from typing import Any

from allocators.contract import NO_STATE
from allocators.registry import Plugin
from kernel.jit import disabled, jit
from kernel.memory import store_word


@jit
def libc_malloc(size):
    """The C library's malloc; bound by :func:`bindings`."""
    raise NotImplementedError


@jit
def libc_free(p):
    """The C library's free; bound by :func:`bindings`."""
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
def usable_size(k, a, p):
    """Claim nothing: it is asked only to realloc, which no speed comparison does."""
    return 0


@jit
def touch(k, addr, length, write):
    """The program writes the first word of its block, for real."""
    store_word(addr, 0, length)


def _functions() -> dict[str, Any]:
    """malloc and free of this process, callable from the loop."""
    if disabled():
        library = ctypes.CDLL(None)
        library.malloc.restype, library.malloc.argtypes = ctypes.c_ssize_t, [ctypes.c_ssize_t]
        library.free.restype, library.free.argtypes = None, [ctypes.c_ssize_t]
        return {"libc_malloc": library.malloc, "libc_free": library.free}
    from numba import types

    return {
        "libc_malloc": types.ExternalFunction("malloc", types.intp(types.intp)),
        "libc_free": types.ExternalFunction("free", types.void(types.intp)),
    }


def bindings() -> dict[str, Any]:
    """What makes the plugin real: the C library's functions, and a touch that writes."""
    return {"touch": touch} | _functions()


def plugin() -> Plugin:
    """The C library's malloc in the form of a plugin; bind :func:`bindings` over its own."""
    module = SimpleNamespace(
        STATE=NO_STATE, init=init, malloc=malloc, free=free, usable_size=usable_size
    )
    return Plugin("libc", module, {})


def release(addresses: Any) -> None:
    """Free real blocks by address, (n,) int64; 0 is none."""
    library = ctypes.CDLL(None)
    library.free.argtypes = [ctypes.c_void_p]
    for address in addresses:
        if address:
            library.free(int(address))

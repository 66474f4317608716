"""Pieces of a simulated heap, listed by the allocator's own ``walk``."""

from collections.abc import Callable

import numpy as np

from allocators.base.contract import BLOCK_FREE, BLOCK_HEADER, BLOCK_USED, walk
from benchmarks.replay.simulation import AllocatorFailure, Simulation, explain
from kernel.engine.jit import WalkError, jit
from kernel.engine.memory import load_half_word, load_word
from kernel.page import fold, page_of
from kernel.task import kill
from kernel.types import (
    PTE_PRESENT,
    PTE_SWAP,
    SEGV_MAPERR,
    SIGSEGV,
    VM_READ,
    SimulatedSignal,
)
from kernel.vma import covered

#: Name of each kind of piece.
KINDS = {BLOCK_USED: "used", BLOCK_FREE: "free", BLOCK_HEADER: "header"}


@jit
def is_filled(k, addr):
    """Return True if the page of ``addr`` has contents; an unpopulated mapped page reads as 0."""
    if k.pte[page_of(addr)] & (PTE_PRESENT | PTE_SWAP):
        return True
    if not covered(k, addr, addr + 1, VM_READ):
        kill(k, SIGSEGV, SEGV_MAPERR, addr, 0)
    return False


@jit
def look(k, addr, held=False):
    """Load a word like kernel.access.load, but uncounted and without faulting a page in.

    Memory may have run out.
    """
    return load_word(k.window, fold(addr) >> 3) if is_filled(k, addr) else 0


@jit
def look_half(k, addr, held=False):
    """Load a half word like kernel.access.load_half, in the same way as look."""
    return load_half_word(k.window, fold(addr) >> 1) if is_filled(k, addr) else 0


@jit
def run_walk(k, a, rows):
    """Call the plugin's ``walk``."""
    return walk(k, a, rows)


def walker(simulation: Simulation) -> Callable:
    """Return the plugin's ``walk``, specialised for ``simulation`` with uncounted loads.

    Raises AllocatorFailure if the plugin has no ``walk`` or it does not compile.
    """
    plugin = simulation.plugin
    if not hasattr(plugin.module, "walk"):
        raise AllocatorFailure(f"{plugin.name} defines no walk, so its heap cannot be listed")
    bindings = simulation.loop_bindings() | {"load": look, "load_half": look_half}
    try:
        return simulation.specialise(run_walk, bindings)
    except WalkError as error:
        raise AllocatorFailure(str(error)) from None


def pieces(simulation: Simulation, list_pieces: Callable | None = None) -> np.ndarray:
    """Return (address, bytes, kind) of every piece, (pieces, 3) int64, sorted by address.

    ``list_pieces``: a :func:`walker` of the simulation; without it the function makes one, which
    compiles the first time.  Does not change the simulation.  Raises AllocatorFailure if the walk
    fails.
    """
    list_pieces = list_pieces or walker(simulation)
    rows = np.zeros((4096, 3), "i8")
    try:
        while (count := list_pieces(simulation.k, simulation.a, rows)) > len(rows):
            rows = np.zeros((count, 3), "i8")
    except SimulatedSignal:
        raise AllocatorFailure(f"walk: {simulation.reason()}") from None
    except Exception as error:
        raise AllocatorFailure(f"walk: the plugin raised {explain(error)}") from error
    rows = rows[:count]
    return rows[np.argsort(rows[:, 0], kind="stable")]

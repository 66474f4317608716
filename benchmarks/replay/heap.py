"""The heap of a simulation as the allocator itself lists it."""

import numpy as np

from allocators.base.contract import BLOCK_FREE, BLOCK_HEADER, BLOCK_USED, walk
from benchmarks.replay.simulation import AllocatorFailure, Simulation, explain
from kernel.engine.jit import WalkError, build, jit
from kernel.task import reason
from kernel.types import SimulatedSignal

#: Names of the kinds of pieces.
KINDS = {BLOCK_USED: "used", BLOCK_FREE: "free", BLOCK_HEADER: "header"}


@jit
def run_walk(k, a, rows):
    """Call the plugin's walk."""
    return walk(k, a, rows)


def pieces(simulation: Simulation) -> np.ndarray:
    """Return (address, bytes, kind) of every piece, (pieces, 3) int64, sorted by address.

    The first call for an allocator compiles.  Walking loads the allocator's metadata as the
    allocator would: counters move, blocks do not.  Raises AllocatorFailure when the plugin has no
    walk, or it fails.
    """
    plugin = simulation.plugin
    if not hasattr(plugin.module, "walk"):
        raise AllocatorFailure(f"{plugin.name} defines no walk, so that nobody can list its heap")
    rows = np.zeros((4096, 3), "i8")
    try:
        list_pieces = build(run_walk, **simulation.loop_bindings())
        while (count := list_pieces(simulation.k, simulation.a, rows)) > len(rows):
            rows = np.zeros((count, 3), "i8")
    except SimulatedSignal:
        raise AllocatorFailure(f"walk: {reason(simulation.k)}") from None
    except WalkError as error:
        raise AllocatorFailure(str(error)) from None
    except Exception as error:
        raise AllocatorFailure(f"walk: the plugin raised {explain(error)}") from error
    rows = rows[:count]
    return rows[np.argsort(rows[:, 0], kind="stable")]

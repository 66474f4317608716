"""Workloads, traces, the replay loop, measurement and results, in nine storeys.

    events < trace < workloads < replay < speed < real < run < twin < interactive

Each imports only those before it, besides allocators/ and kernel/; interactive draws by analysis/
too.  ``from benchmarks import simulate`` is one run for notebooks, and ``python -m benchmarks``
lists the project's commands.
"""

from typing import Any

from kernel.engine.command import begin

begin()


def __getattr__(name: str) -> Any:
    """Import ``simulate`` when it is asked for: no other part needs the compiler or pandas."""
    if name != "simulate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from benchmarks.interactive import simulate

    return simulate

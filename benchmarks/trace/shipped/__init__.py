"""Traces of real programs, recorded by benchmarks.trace.recorder: ``workload=sqlite`` and so on.

``make`` defines each program, generates its input, and records the trace files in this folder.
A setting that takes the path of a trace also accepts ``shipped:sqlite``.

``make`` imports trace.recorder; the layers above import only the functions of this file.
"""

from pathlib import Path

PREFIX = "shipped:"
FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the shipped traces."""
    return sorted(path.stem for path in FOLDER.glob("*.parquet"))


def path_of(name: str) -> Path:
    """Return the path of the trace ``name``.  Raises ValueError for an unknown name."""
    if name not in names():
        raise ValueError(f"unknown shipped trace {name!r}; choose one of {', '.join(names())}")
    return FOLDER / f"{name}.parquet"


def name_of(path: Path) -> str | None:
    """Return the name of the shipped trace at ``path``, or None for any other path."""
    return path.stem if path.parent == FOLDER else None

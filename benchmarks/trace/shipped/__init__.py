"""Traces of real programs, recorded by benchmarks.trace.recorder: ``workload=sqlite`` and so on.

``make`` says what each program did, makes its input, and records it; what it wrote is here.  Where
a setting takes the path of a trace, ``shipped:sqlite`` names one of these.

``make`` imports trace.recorder; the storeys above import only the names and paths here.
"""

from pathlib import Path

PREFIX = "shipped:"
FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The traces of this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.parquet"))


def path_of(name: str) -> Path:
    """Where the trace ``name`` is.  Raises ValueError for an unknown one."""
    if name not in names():
        raise ValueError(f"no trace {name!r} is shipped (there are: {', '.join(names())})")
    return FOLDER / f"{name}.parquet"


def name_of(path: Path) -> str | None:
    """The name of the shipped trace at ``path``, or None for any other path."""
    return path.stem if path.parent == FOLDER else None

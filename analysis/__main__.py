"""``python -m analysis RESULT_DIRECTORY… -o DIR``: draw the figures of stored results.

Writes one PNG and one SVG per figure, and ``table.csv`` with a row per run.  Exits with 1 and one
line on the standard error if a result cannot be drawn; nothing is written then.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pandas as pd

from analysis import fig_faults, fig_memory, fig_pareto, fig_theory, fig_time, style
from analysis.load import ResultError, Results, load

#: The figures by name: modules with METRICS and ``draw(results) -> Figure``.
FIGURES: dict[str, ModuleType] = {
    "time": fig_time,
    "memory": fig_memory,
    "pareto": fig_pareto,
    "faults": fig_faults,
}
#: Figures of experiments of their own, drawn only when asked for by name.
ON_REQUEST: dict[str, ModuleType] = {"theory": fig_theory}
ALL = FIGURES | ON_REQUEST
#: Which of them show measured time, and which memory over time.
TIMED = {"time", "pareto"}
SAMPLED = {"memory"}
#: Seconds between lines of progress.
PATIENCE = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    chosen = [name for name in ALL if name in options.figures]
    report = _progress()
    try:
        if options.out.exists() and not options.out.is_dir():
            raise ResultError(f"{options.out}: not a directory")
        results = load(
            options.results,
            timing=bool(TIMED & set(chosen)),
            timelines=bool(SAMPLED & set(chosen)),
            metrics={metric for name in chosen for metric in ALL[name].METRICS},
            gaps=options.gaps,
            progress=report,
        )
        for run in results.skipped.itertuples(index=False):
            reason = f": {run.reason}" if run.reason else ""
            print(f"skipped {run.directory} ({run.status}{reason})")
        files = write(results, chosen, options.out, report)
    except (ResultError, OSError) as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 1
    for file in files:
        print(f"wrote {file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__.split("\n")[0])
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULT_DIRECTORY",
        help="a run's directory, or one that holds such directories at any depth",
    )
    parser.add_argument(
        "-o", "--out", required=True, type=Path, metavar="DIR", help="where the figures go"
    )
    parser.add_argument(
        "--figures",
        type=_figure_names,
        default=list(FIGURES),
        metavar="NAME,…",
        help=f"which to draw, of {','.join(ALL)} (default: all but {','.join(ON_REQUEST)})",
    )
    parser.add_argument(
        "--gaps",
        action="store_true",
        help="draw a gap where an allocator was not run on a workload, in place of an error",
    )
    return parser


def _figure_names(text: str) -> list[str]:
    """The names in a comma-separated list."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ALL:
            raise argparse.ArgumentTypeError(f"no figure {name!r}; there are {', '.join(ALL)}")
    return names


def _progress() -> Callable[[str, int, int], None]:
    """A function that says on the standard error how far the work is, every PATIENCE seconds."""
    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > PATIENCE:
            last = now
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return report


def write(
    results: Results, names: Sequence[str], out: Path, report: Callable[[str, int, int], None]
) -> list[Path]:
    """Draw the figures ``names`` and the table into ``out``: all of them, or none on an error."""
    out = out.absolute()
    parent = next(path for path in out.parents if path.exists())
    with (
        tempfile.TemporaryDirectory(prefix=".analysis-", dir=parent) as scratch,
        style.publication(),
    ):
        for done, name in enumerate(names):
            report("drawing figures", done, len(names))
            style.save(ALL[name].draw(results), Path(scratch), name)
        table(results).to_csv(Path(scratch) / "table.csv", index=False)
        out.mkdir(parents=True, exist_ok=True)
        return [file.replace(out / file.name) for file in sorted(Path(scratch).iterdir())]


def table(results: Results) -> pd.DataFrame:
    """A row per run, skipped ones included: ``Results.runs`` with the reason of ``skipped``."""
    return pd.concat([results.runs, results.skipped], ignore_index=True)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m analysis RESULT_DIRECTORY… -o DIR``: draw figures from stored results.

Writes one PNG and one SVG per figure, and ``table.csv`` with a row per run.  If a result cannot be
drawn, writes nothing, prints one line on standard error and exits with 1.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pandas as pd

from analysis import compare, fig_faults, fig_memory, fig_pareto, fig_theory, fig_time, style
from analysis.load import ResultError, Results, load
from kernel.engine.command import EXIT_FAILED, OneLineParser, report_exit, run, text_of
from kernel.engine.output import replacing

#: Figures by name: modules with METRICS and ``draw(results) -> Figure``.
FIGURES: dict[str, ModuleType] = {
    "time": fig_time,
    "memory": fig_memory,
    "pareto": fig_pareto,
    "faults": fig_faults,
}
#: Figures of special experiments, drawn only if named with --figures.
ON_REQUEST: dict[str, ModuleType] = {"theory": fig_theory}
ALL = FIGURES | ON_REQUEST
#: Figures that need measured times, and figures that need timelines.
TIMED = {"time", "pareto"}
SAMPLED = {"memory"}
#: Name of the table of runs.
TABLE = "table.csv"
#: Seconds between progress lines.
REPORT_INTERVAL = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "compare":
        return compare.main(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    chosen = [name for name in ALL if name in options.figures]
    report = _progress()
    try:
        _check_output(options.out, chosen)
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
    except ResultError as error:
        return report_exit("analysis", str(error), EXIT_FAILED)
    except OSError as error:
        return report_exit("analysis", text_of(error), EXIT_FAILED)
    for file in files:
        print(f"wrote {file}")
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m analysis", description=__doc__.split("\n")[0])
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULT_DIRECTORY",
        help="directory of a run, or a directory with runs at any depth",
    )
    parser.add_argument(
        "-o", "--out", required=True, type=Path, metavar="DIR", help="output directory"
    )
    parser.add_argument(
        "--figures",
        type=_figure_names,
        default=list(FIGURES),
        metavar="NAME,…",
        help=f"figures to draw, from {','.join(ALL)} (default: all except {','.join(ON_REQUEST)})",
    )
    parser.add_argument(
        "--gaps",
        action="store_true",
        help="leave a gap where an allocator has no run on a workload, instead of an error",
    )
    return parser


def _check_output(out: Path, names: Sequence[str]) -> None:
    """Raise ResultError if a file that is to be written in ``out`` cannot be."""
    if out.exists() and not out.is_dir():
        raise ResultError(f"{out}: not a directory")
    folder = next(path for path in (out, *out.absolute().parents) if path.exists())
    pictures = [f"{name}{suffix}" for name in names for suffix in style.PICTURES]
    for name in [*pictures, TABLE]:
        style.check_output(folder / name)


def _figure_names(text: str) -> list[str]:
    """Return the names in a comma-separated list.  Raises argparse.ArgumentTypeError."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ALL:
            raise argparse.ArgumentTypeError(f"no figure {name!r}; choose from {', '.join(ALL)}")
    return names


def _progress() -> Callable[[str, int, int], None]:
    """Return a function that prints progress on standard error, at most every REPORT_INTERVAL s."""
    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > REPORT_INTERVAL:
            last = now
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return report


def write(
    results: Results, names: Sequence[str], out: Path, report: Callable[[str, int, int], None]
) -> list[Path]:
    """Write the figures ``names`` and the table to ``out``; write nothing if one fails."""
    out = out.absolute()
    parent = next(path for path in out.parents if path.exists())
    with (
        tempfile.TemporaryDirectory(prefix=".analysis-", dir=parent) as scratch,
        style.publication(),
    ):
        for done, name in enumerate(names):
            report("drawing figures", done, len(names))
            style.save(ALL[name].draw(results), Path(scratch), name)
        table(results).to_csv(Path(scratch) / TABLE, index=False)
        out.mkdir(parents=True, exist_ok=True)
        written = [out / file.name for file in sorted(Path(scratch).iterdir())]
        for path in written:
            with replacing(path) as temporary:
                shutil.copyfile(Path(scratch) / path.name, temporary)
        return written


def table(results: Results) -> pd.DataFrame:
    """Return one row per run, including skipped ones: ``Results.runs`` and ``skipped``."""
    return pd.concat([results.runs, results.skipped], ignore_index=True)


if __name__ == "__main__":
    sys.exit(run("analysis", main))

"""``python -m kernel.linux.calibrate``: measure the prices of kernel work on this machine.

The command writes them to conf/kernel/cost/host.yaml, for ``python bench.py kernel/cost=host``.
Exit codes: 0 written, 1 the reference table cannot be read or the file cannot be written, 2 bad
arguments, 77 this host cannot be measured, 130 interrupted: nothing is written.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernel import PROJECT
from kernel.engine.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SKIP, OneLineParser, run
from kernel.engine.output import unwritable, write_text

#: The project's cost tables.
TABLES = PROJECT / "conf" / "kernel" / "cost"

#: Number of fresh processes, and of batches of each size that every process times.
PROCESSES, QUICK_PROCESSES = 15, 3
ROUNDS, QUICK_ROUNDS = 31, 9


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m kernel.linux.calibrate",
        description="Measure what system calls and page faults cost on this machine, and write "
        "the prices to a cost table for bench.py.",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="cost table to write (default: the project's conf/kernel/cost/host.yaml)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"measure {QUICK_PROCESSES} processes instead of {PROCESSES}: a trial run, "
        "not precise enough for comparisons",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the table"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    path = options.output or TABLES / "host.yaml"
    if reason := unwritable(path):
        parser.error(f"--output {_shown(path)}: {reason}")
    try:
        return _calibrate(path, quick=options.quick, as_json=options.json)
    except KeyboardInterrupt:
        if options.json:
            print(json.dumps({"status": "interrupted"}))
        else:
            _complain("interrupted: nothing written")
        return EXIT_INTERRUPTED


def _calibrate(path: Path, *, quick: bool, as_json: bool) -> int:
    # Late imports: argument errors are reported at once, and not all platforms can import these.
    from kernel.linux.host import unavailable

    if reason := unavailable():
        return _skip(reason, as_json=as_json)
    from kernel.linux.calibrate.measures import NEIGHBOURHOOD
    from kernel.linux.calibrate.prices import (
        PricesError,
        describe_machine,
        make_prices,
        read_table,
        table_text,
    )
    from kernel.linux.host.process import HostError

    try:
        reference = read_table(TABLES / "reference.yaml")
        processes = _measure(
            QUICK_PROCESSES if quick else PROCESSES, QUICK_ROUNDS if quick else ROUNDS
        )
    except HostError as error:
        return _skip(str(error), as_json=as_json)
    except OSError as error:
        return _skip(f"the host process cannot be created: {error.strerror}", as_json=as_json)
    except PricesError as error:
        _complain(str(error))
        return EXIT_FAILED
    prices = make_prices(processes, reference, NEIGHBOURHOOD)
    machine = describe_machine()
    try:
        write_text(path, table_text(prices, machine))
    except OSError as error:
        _complain(f"{_shown(path)}: {error.strerror}")
        return EXIT_FAILED
    if as_json:
        content = {
            "status": "ok",
            "file": str(path),
            "machine": asdict(machine),
            "prices": {name: asdict(price) for name, price in prices.items()},
        }
        print(json.dumps(content))
    else:
        _print_table(prices, str(machine))
        print(f"written: {_shown(path)}")
    return 0


def _measure(processes: int, rounds: int) -> list[dict[str, float | str]]:
    """Measure in fresh processes, one at a time, and show progress."""
    from contextlib import closing

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from kernel.linux.calibrate.measures import measure_process
    from kernel.linux.host.observe import host_settings

    swap = bool(host_settings()["swap"])
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), "processes", TextColumn("{task.description}"))
    every = []
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=processes)
        for _ in range(processes):
            found = {}
            with closing(measure_process(rounds, swap=swap)) as results:
                for name, value in results:
                    found[name] = value
                    progress.update(task, description=name)
            every.append(found)
            progress.advance(task)
    return every


def _print_table(prices: Mapping[str, Any], machine: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from kernel.cost import COSTS
    from kernel.linux.calibrate.prices import ADDITIONAL

    table = Table("price", "ns", "quartiles", "meaning", caption=machine, box=None)
    for column in table.columns[1:3]:
        column.justify = "right"
    for name, price in prices.items():
        spread, meaning = f"{price.q1:,.1f}–{price.q3:,.1f}", (COSTS | ADDITIONAL)[name]
        if price.reason:
            spread, meaning = "–", f"reference value, not measured: {price.reason}"
        table.add_row(name, f"{price.ns:,.1f}", spread, meaning)
    console = Console()
    if not console.is_terminal:  # lines in a file or a pipe should not be wrapped
        console.width = 120
    console.print(table)


def _skip(reason: str, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"status": "skipped", "reason": reason}))
    else:
        _complain(f"nothing measured: {reason}")
    return EXIT_SKIP


def _complain(text: str) -> None:
    print(f"kernel.linux.calibrate: {text}", file=sys.stderr)


def _shown(path: Path) -> str:
    """Return the path, relative to the working directory if it is below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    sys.exit(run("kernel.linux.calibrate", main))

"""``python -m benchmarks.speed [NAME …]``: time replays against this machine's malloc.

The same churn workload is replayed through every allocator, through the C library with the same
loop, and through a policy that does nothing.  The first word of each block is touched in all cases.
Each round runs every row once, so that a slow period of the machine affects all rows alike; medians
are reported.
"""

import json
import sys
from statistics import median
from typing import Any

from allocators.base import registry
from allocators.base.registry import PluginError
from benchmarks import workloads
from benchmarks.speed import CHURN
from benchmarks.workloads import WorkloadError
from kernel.engine.command import EXIT_USAGE, OneLineParser, positive, report_exit, run, whole
from kernel.engine.progress import Progress, shown_progress

#: An allocator whose replay takes longer than this, in seconds, is not repeated.
PATIENCE = 5.0


class _Row:
    """One allocator: its simulations without and with instruments, and their times."""

    def __init__(self, name: str, simulation: Any, counted: Any = None) -> None:
        self.name, self.simulation, self.counted = name, simulation, counted
        self.seconds: list[float] = []
        self.counted_seconds: list[float] = []

    def run(self) -> None:
        """Take one sample, unless the first one took longer than PATIENCE."""
        if self.seconds and self.seconds[0] > PATIENCE:
            return
        self.seconds.append(self.simulation.replay())
        if self.counted is not None:
            self.counted_seconds.append(self.counted.replay())

    @property
    def first(self) -> int:
        """Index of the first sample that counts: the one before it is the warm-up."""
        return 1 if len(self.seconds) > 1 else 0

    def median(self) -> float:
        """Return the median time of a replay, in seconds."""
        return median(self.seconds[self.first :])

    def counted_ratio(self) -> float:
        """Return the median over the rounds of time with ÷ time without instruments."""
        pairs = zip(self.counted_seconds, self.seconds, strict=True)
        return median([with_ / without for with_, without in pairs][self.first :])


def _rows(names: list[str], workload: Any, with_counting: bool, progress: Progress) -> list[_Row]:
    from benchmarks.events.touch import TOUCH_FIRST
    from benchmarks.real import libc
    from benchmarks.replay.simulation import TIMED, Simulation
    from benchmarks.speed import harness
    from kernel.config import KernelConfig

    kernel = KernelConfig()
    plain = TIMED | {"TOUCH": TOUCH_FIRST}
    counting = plain | {"COUNT": True, "TIMELINE": True}
    progress(0.0, "preparing libc and the harness")
    rows = [
        _Row("libc", Simulation(libc.plugin(), workload, kernel, plain | libc.bindings())),
        _Row("harness", Simulation(harness.plugin(), workload, kernel, plain)),
    ]
    for name in names:
        plugin = registry.load(name)
        progress(0.0, f"preparing {plugin.label}")
        timed = Simulation(plugin, workload, kernel, plain)
        counted = Simulation(plugin, workload, kernel, counting) if with_counting else None
        rows.append(_Row(plugin.label, timed, counted))
    return rows


def measure(names: list[str], events: int, rounds: int, counting: bool) -> list[dict[str, Any]]:
    """Replay ``events`` events through each allocator ``rounds`` times.

    Returns one dict per row: name, ns_per_event and ratio_to_libc (medians), checksum; with
    ``counting`` also counted_ratio: the time with counted loads, stores and timeline divided by the
    time without.
    """
    from benchmarks.real import libc

    with shown_progress("speed") as progress:
        progress(0.0, "preparing the workload")
        workload = workloads.load(CHURN | {"operations": events})
        rows = _rows(names, workload, counting, progress)
        for number in range(rounds + 1):
            for row in rows:
                progress(number / (rounds + 1), row.name)
                row.run()
                if row.name == "libc":
                    libc.release(row.simulation.objects[:, 0])
    reference = rows[0].median()
    result = []
    for row in rows:
        seconds = row.median()
        entry = {
            "name": row.name,
            "ns_per_event": seconds / rows[0].simulation.length * 1e9,
            "ratio_to_libc": seconds / reference,
            "checksum": int(row.simulation.r.checksum),
        }
        if row.counted is not None:
            entry["counted_ratio"] = row.counted_ratio()
        result.append(entry)
    return result


def main() -> int:
    """Parse the arguments, measure and print.  Returns the exit code."""
    parser = OneLineParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="allocators or .py files (default: all allocators)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print name, ns_per_event and ratio_to_libc as JSON"
    )
    parser.add_argument(
        "--events",
        type=whole(CHURN["live"]),
        default=5_000_000,
        metavar="N",
        help="events to replay (%(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        default=5,
        metavar="N",
        help="samples per allocator (%(default)s)",
    )
    parser.add_argument("--counting", action="store_true", help="also time with instruments on")
    args = parser.parse_args()
    names = args.names or registry.names()
    try:
        workloads.validate(CHURN | {"operations": args.events})
        for name in names:
            registry.load(name)
    except (PluginError, WorkloadError) as error:
        return report_exit("benchmarks.speed", str(error), EXIT_USAGE)
    entries = measure(names, args.events, args.rounds, args.counting)
    if args.json:
        keys = ("name", "ns_per_event", "ratio_to_libc")
        for entry in entries:
            print(f"{entry['name']}: checksum {_hex(entry['checksum'])}", file=sys.stderr)
        print(json.dumps([{key: entry[key] for key in keys} for entry in entries], indent=2))
    else:
        _print_table(entries)
    return 0


def _hex(checksum: int) -> str:
    """Format the 64 bits of a checksum in hexadecimal."""
    return f"{checksum & 0xFFFFFFFFFFFFFFFF:016x}"


def _print_table(entries: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("allocator", "ns/event", "ratio to libc", "checksum")
    counting = any("counted_ratio" in entry for entry in entries)
    if counting:
        table.add_column("with counting and timeline")
    for entry in entries:
        cells = [
            entry["name"],
            f"{entry['ns_per_event']:.2f}",
            f"{entry['ratio_to_libc']:.2f}",
            _hex(entry["checksum"]),
        ]
        if counting:
            ratio = entry.get("counted_ratio")
            cells.append("" if ratio is None else f"{ratio:.2f} ×")
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(run("benchmarks.speed", main))

"""``python -m benchmarks.speed.marathon``: time a replay of any length, streamed from a file.

It replays the churn of benchmarks.speed without end.  After the fill, every free is followed by a
malloc into the same slot, so that the steady state can be repeated any number of times.

    fill │ period │ period │ period …       memory:  the same arrays each time
                                            stream:  decoded again from Parquet, and checked

Both sides replay the same events (the checksum of the addresses proves it), alternately, each in
its own process.  The time of an event includes the time that the loop waits for the next piece.
Memory is the process's peak resident set (VmHWM), which includes a few hundred MB for Python and
the compiler.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

from allocators.base import registry
from allocators.base.registry import PluginError
from kernel.engine.command import OneLineParser, positive, run

#: Events of the period that is repeated: sixteen row groups of Parquet.
PERIOD = 1 << 24
SIDES = ("memory", "stream")
#: Events replayed as a warm-up before the clock starts.
_WARM_UP = 1 << 20


def write_parts(directory: Path, period: int) -> None:
    """Write the fill and one period of the churn, as Parquet traces."""
    from benchmarks import workloads
    from benchmarks.events import parquet
    from benchmarks.events.events import Events
    from benchmarks.speed import CHURN

    live = CHURN["live"]
    events = workloads.load(CHURN | {"operations": live + period}).events
    for name, part in (("fill", slice(live)), ("period", slice(live, None))):
        parquet.write(
            directory / f"{name}.parquet", Events(*(column[part] for column in events)), {}
        )


def _pieces(directory: Path, side: str) -> Iterator[Any]:
    """Yield the fill, then periods for ever: row groups from memory, or decoded each time."""
    from benchmarks.events import parquet

    with (
        parquet.Reader(directory / "fill.parquet") as fill,
        parquet.Reader(directory / "period.parquet") as period,
    ):
        yield from fill.groups()
        kept = list(period.groups()) if side == "memory" else None
        for _ in repeat(None):
            yield from period.groups(threads=False) if kept is None else kept


def run_side(directory: Path, side: str, allocator: str, events: int) -> dict[str, Any]:
    """Replay ``events`` events of one side; meant to be the only work of a process.

    Returns ``seconds`` in the loop, seconds ``waited`` for pieces, the ``checksum`` of the
    addresses, and ``peak_memory``, the peak resident set of this process in bytes.
    """
    from benchmarks.events import parquet
    from benchmarks.events.facts import Facts
    from benchmarks.events.stream import Stream
    from benchmarks.replay.simulation import TIMED, Simulation
    from benchmarks.speed import CHURN
    from benchmarks.workloads import Workload
    from kernel.config import KernelConfig

    def make() -> Iterator[Any]:
        pieces = _pieces(directory, side)
        return parquet.audited(directory / "period.parquet", pieces) if side == "stream" else pieces

    facts = Facts(events, events, CHURN["live"], 0, 0, "")
    workload = Workload(
        name="marathon",
        label="marathon",
        events=None,
        program=None,
        stream=Stream(facts, ("op", "slot", "size"), make),
        slots=facts.slots,
        operations=events,
        fingerprint=facts.fingerprint,
        touch=CHURN["touch"],
        seed=CHURN["seed"],
        provenance={},
    )
    simulation = Simulation(registry.load(allocator), workload, KernelConfig(), TIMED)
    simulation.replay(min(events, _WARM_UP))
    seconds = simulation.replay()
    return {
        "seconds": seconds,
        "waited": simulation.waited,
        "checksum": int(simulation.r.checksum),
        "peak_memory": _peak_resident_set(),
    }


def _peak_resident_set() -> int:
    """Return the peak resident set of this program, in bytes.

    getrusage would include that of the program that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status has no VmHWM")


def measure(allocator: str, events: int, rounds: int) -> dict[str, Any]:
    """Replay ``events`` events from memory and from a stream, alternately, ``rounds`` times each.

    Returns medians over the rounds: nanoseconds per event (``loop``: without waiting) and the ratio
    of the two sides within one round; of the memory, the maximum.
    """
    from kernel.engine.progress import shown_progress

    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name, shown_progress("marathon") as progress:
        directory = Path(name)
        progress(0.0, "writing the trace")
        write_parts(directory, PERIOD)
        for number in range(rounds):
            for i, side in enumerate(SIDES):
                progress((2 * number + i) / (2 * rounds), side)
                found[side].append(_run_in_process(directory, side, allocator, events))
        stored = (directory / "period.parquet").stat().st_size / PERIOD
    return {"allocator": allocator, "events": events, "bytes_per_event": stored} | summarise(
        found, events
    )


def _run_in_process(directory: Path, side: str, allocator: str, events: int) -> dict[str, Any]:
    """Call :func:`run_side` in a new process, so that its peak memory is that of this side."""
    command = [sys.executable, "-m", "benchmarks.speed.marathon", "--side", side, str(directory)]
    command += ["--allocator", allocator, "--events", str(events)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def summarise(found: dict[str, list[dict[str, Any]]], events: int) -> dict[str, Any]:
    """Summarise the runs of both sides, as :func:`measure` returns it."""
    if len({run["checksum"] for runs in found.values() for run in runs}) != 1:
        raise RuntimeError("the allocator returned different addresses on the two sides")
    result: dict[str, Any] = {}
    for side, runs in found.items():
        result[side] = {
            "ns_per_event": median(run["seconds"] + run["waited"] for run in runs) / events * 1e9,
            "loop_ns_per_event": median(run["seconds"] for run in runs) / events * 1e9,
            "peak_memory": max(run["peak_memory"] for run in runs),
        }
    total = {side: [run["seconds"] + run["waited"] for run in found[side]] for side in SIDES}
    pairs = zip(total["stream"], total["memory"], strict=True)
    result["ratio"] = median(streamed / held for streamed, held in pairs)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, measure and print.  Returns the exit code."""
    parser = OneLineParser(
        prog="python -m benchmarks.speed.marathon",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--events", type=positive, default=100_000_000, metavar="N", help="events (%(default)s)"
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        default=3,
        metavar="N",
        help="replays of each side (%(default)s)",
    )
    parser.add_argument(
        "--allocator", default="first_fit", metavar="NAME", help="allocator (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    # Used by the command to start the process of one side.
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "DIRECTORY"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    try:
        registry.load(args.allocator)
    except PluginError as error:
        print(f"marathon: {error}", file=sys.stderr)
        return 2
    try:
        if args.side:
            return _print_side(Path(args.side[1]), args.side[0], args.allocator, args.events)
        result = measure(args.allocator, args.events, args.rounds)
    except subprocess.CalledProcessError:
        return 1  # the process of the side has printed the reason
    except KeyboardInterrupt:
        if not args.side:
            print("marathon: interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # no room for the trace
        print(f"marathon: {error.strerror or error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2)) if args.json else _print_table(result)
    return 0


def _print_side(directory: Path, side: str, allocator: str, events: int) -> int:
    """Print the result of :func:`run_side` as JSON.  Returns the exit code."""
    from benchmarks.replay.simulation import AllocatorFailure
    from kernel.engine.watchdog import SoftLockup

    try:
        print(json.dumps(run_side(directory, side, allocator, events)))
    except (AllocatorFailure, SoftLockup) as error:
        print(f"marathon: {allocator}: {error}", file=sys.stderr)
        return 1
    return 0


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{result['events']:,} events, {result['allocator']}"
    table = Table("trace", "ns/event", "in the loop", "peak memory", title=title)
    for side in SIDES:
        row = result[side]
        times = (f"{row[key]:.2f}" for key in ("ns_per_event", "loop_ns_per_event"))
        table.add_row(side, *times, f"{row['peak_memory'] / (1 << 20):.0f} MiB")
    Console().print(table)
    print(f"ratio {result['ratio']:.3f}; {result['bytes_per_event']:.2f} bytes per event on disk")


if __name__ == "__main__":
    sys.exit(run("benchmarks.speed.marathon", main))

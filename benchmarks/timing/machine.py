"""The condition of the machine before and during timing: other load, stolen time, settings.

Other processes, a hypervisor that runs another guest, and a frequency governor all change what a
clock shows.  None of that is corrected here; it is measured, stored with each value and reported.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil

#: Cores used by other processes, and share of time stolen by the hypervisor, that are reported.
BUSY, STOLEN = 0.1, 0.01
#: Seconds over which the load is measured before timing.
SAMPLE = 1.0
#: Busy processes named in a warning.
_NAMED = 3
_CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Load:
    """Load on the machine during a measurement.

    ``others``: cores used, on average, by processes that are not part of it.  ``stolen``: share of
    the processors' time that the hypervisor gave to others; None where the kernel does not report
    it.
    """

    others: float
    stolen: float | None

    def as_dict(self) -> dict[str, float | None]:
        """Return the values for a stored result."""
        return asdict(self)


class Watch:
    """Measure the load on the machine from now until :meth:`load`, without this process's own.

    The own part includes its children that have been waited for.
    """

    def __init__(self) -> None:
        self._begin = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float, float, float | None]:
        """Return wall time, own, total busy, total and stolen processor time, in seconds."""
        own, cpu = os.times(), psutil.cpu_times()
        stolen = getattr(cpu, "steal", None)
        waiting = cpu.idle + getattr(cpu, "iowait", 0.0)
        # The kernel counts the time of guests as user time, too.
        guests = getattr(cpu, "guest", 0.0) + getattr(cpu, "guest_nice", 0.0)
        total = sum(cpu) - guests
        busy = total - waiting - (stolen or 0.0)
        return time.perf_counter(), sum(own[:4]), busy, total, stolen

    def load(self) -> Load:
        """Return the load since the start of the watch."""
        wall, own, busy, total, stolen = self._read()
        wall0, own0, busy0, total0, stolen0 = self._begin
        others = (busy - busy0 - (own - own0)) / max(wall - wall0, 1e-9)
        share = None
        if stolen is not None and stolen0 is not None:
            share = round((stolen - stolen0) / max(total - total0, 1e-9), 4)
        return Load(round(max(others, 0.0), 3), share)


def _busiest(seconds: float) -> list[str]:
    """Return the names of other processes that use the processor most, measured over a while."""

    def used() -> dict[int, tuple[str, float]]:
        found = {}
        for process in psutil.process_iter(["pid", "name", "cpu_times"]):
            times = process.info["cpu_times"]
            if process.info["pid"] != os.getpid() and times is not None:
                found[process.info["pid"]] = process.info["name"], times.user + times.system
        return found

    before = used()
    time.sleep(seconds)
    spent = sorted(
        ((now - before[pid][1], name) for pid, (name, now) in used().items() if pid in before),
        reverse=True,
    )
    return [name for used_up, name in spent[:_NAMED] if used_up > BUSY * seconds]


def _word(path: Path) -> str:
    """Return the word in a file of sysfs; '' if it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def warnings(sample: float = SAMPLE) -> list[str]:
    """Return what makes timing on this machine unreliable now, a sentence each.

    Takes ``sample`` seconds, in which this process should do nothing else.
    """
    watch = Watch()
    names = _busiest(sample)
    load = watch.load()
    found = []
    if load.others > BUSY:
        busy = f" ({', '.join(names)})" if names else ""
        found.append(f"other processes use {load.others:.1f} of {os.cpu_count()} cores{busy}")
    if load.stolen is not None and load.stolen > STOLEN:
        found.append(f"the hypervisor takes {load.stolen:.0%} of the processors' time")
    governors = {_word(path) for path in _CPU.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    if governors - {"", "performance"}:
        found.append(f"frequency governor: {', '.join(sorted(governors - {''}))}")
    if _word(_CPU / "smt" / "active") == "1":
        found.append("SMT is on: two hardware threads share a core")
    return found


def disturbed(loads: Sequence[Load]) -> list[int]:
    """Return the positions of the rounds that were measured under load which others were not.

    ``loads``: one per round, the heaviest of its measurements.  A constant load disturbs all
    rounds alike and none in particular.
    """
    if not loads:
        return []
    usual = median(load.others for load in loads)
    stolen = median(load.stolen or 0.0 for load in loads)
    return [
        position
        for position, load in enumerate(loads)
        if load.others > usual + BUSY or (load.stolen or 0.0) > stolen + STOLEN
    ]

"""Computation of prices from measurements, and the cost table that bench.py reads."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from kernel.cost import COSTS, check_costs

#: Additional measurements, which are not in the cost table: it has only one price per kind.
ADDITIONAL = {
    "syscall_floor": "a call that does nothing; included in the price of every call",
    "mremap_move": "mremap to another address",
    "page_moved": "each page moved by mremap",
    "returned_by_madvise": "a frame freed by MADV_DONTNEED",
    "returned_by_munmap": "a frame freed by munmap",
}

#: Reason for the missing prices of a host without a swap area.
NO_SWAP = "the host has no swap"

#: Results of one process: nanoseconds by name, or the reason why a price is missing.
Found = Mapping[str, float | str]


class PricesError(ValueError):
    """Unreadable cost table; the message names the file."""


@dataclass(frozen=True)
class Price:
    """Price of a kind of work, ns: median and quartiles over ``processes``.

    If it could not be measured, ``processes`` is 0, ``reason`` says why and ``ns`` is the value of
    the reference table.
    """

    ns: float
    q1: float
    q3: float
    processes: int
    reason: str = ""


def price(samples: Sequence[float]) -> Price:
    """Return the median and quartiles of at least one sample."""
    if len(samples) == 1:
        return Price(samples[0], samples[0], samples[0], 1)
    q1, _, q3 = quantiles(samples, n=4, method="inclusive")
    return Price(median(samples), q1, q3, len(samples))


def _combined(found: Found, neighbourhood: int) -> dict[str, float | str]:
    """Add the prices derived from others: of a frame freed, and of a page swapped out."""
    both = [found.get(f"returned_by_{way}", "not measured") for way in ("madvise", "munmap")]
    reasons = [value for value in both if isinstance(value, str)]
    swapped = found.get("swapped_neighbourhood", NO_SWAP)
    return {
        "fault_major": NO_SWAP,
        **found,
        "page_returned": reasons[0] if reasons else sum(both) / 2,
        "swap_out": swapped if isinstance(swapped, str) else swapped / neighbourhood,
    }


def make_prices(
    processes: Sequence[Found], reference: Mapping[str, float], neighbourhood: int
) -> dict[str, Price]:
    """Return the price of every name in COSTS, and of those in ADDITIONAL that were measured.

    ``reference``: nanoseconds of the prices that were not measured.  ``neighbourhood``: pages
    swapped out per unit of ``swapped_neighbourhood``.
    """
    every = [_combined(found, neighbourhood) for found in processes]
    made = {}
    for name in (*COSTS, *ADDITIONAL):
        values = [found.get(name, "not measured") for found in every]
        samples = [value for value in values if not isinstance(value, str)]
        measured = price(samples) if samples else None
        if measured and measured.ns > 0:
            made[name] = measured
        elif name in COSTS:
            reason = (
                f"below the noise: {measured.ns:.0f} ns"
                if measured
                else Counter(values).most_common(1)[0][0]
            )
            made[name] = Price(*(float(reference[name]),) * 3, 0, reason)
    return made


@dataclass(frozen=True)
class MeasuredMachine:
    """Machine on which prices were measured; ``thp``: its mode of transparent huge pages."""

    cpu: str
    virtual: bool
    release: str
    thp: str

    def __str__(self) -> str:
        kind = "virtual machine" if self.virtual else "not a virtual machine"
        return f"{self.cpu} ({kind}), Linux {self.release}, huge pages: {self.thp}"


def describe_machine(
    cpuinfo: Path = Path("/proc/cpuinfo"),
    thp: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled"),
) -> MeasuredMachine:
    """Return a description of this machine that omits its host name."""
    lines = {
        key.strip(): value.strip()
        for line in reversed(_text(cpuinfo).splitlines())
        if ":" in line
        for key, value in [line.split(":", 1)]
    }
    mode = _text(thp).partition("[")[2].partition("]")[0]
    return MeasuredMachine(
        cpu=lines.get("model name", "unknown processor"),
        virtual="hypervisor" in lines.get("flags", "").split(),
        release=os.uname().release,
        thp=mode or "none",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def table_text(prices: Mapping[str, Price], machine: MeasuredMachine) -> str:
    """Return the contents of the cost table's file."""
    lines = [
        "# Prices of kernel work on one machine, ns, measured by python -m kernel.linux.calibrate.",
        f"# {machine}",
        "# Each line: the median, then the first and third quartiles over fresh processes.",
        *(f"{name}: {_figures(prices[name])}" for name in COSTS),
        "# Additional measurements, which are not part of the table:",
        *(f"# {name}: {_figures(prices[name])}" for name in ADDITIONAL if name in prices),
    ]
    return "\n".join(lines) + "\n"


def _figures(price: Price) -> str:
    if price.reason:
        return f"{price.ns:.1f}  # reference value, not measured: {price.reason}"
    return f"{price.ns:.1f}  # {price.q1:.1f}–{price.q3:.1f}, {price.processes} processes"


def read_table(path: Path) -> dict[str, float]:
    """Return the cost table at ``path``, nanoseconds by name.  Raises PricesError."""
    import yaml  # late: only this function needs it

    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PricesError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PricesError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(table, dict):
        raise PricesError(f"{path}: not a table of names and numbers")
    try:
        check_costs(table)
    except ValueError as error:
        raise PricesError(f"{path}: {error}") from None
    return table

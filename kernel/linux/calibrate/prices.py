"""Prices from what was measured, and the file that bench.py reads them from."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from kernel.cost import COSTS, check_costs

#: What else is measured.  The table has one price a kind, so that these stand beside it.
BESIDE = {
    "syscall_floor": "a call that does nothing; part of the price of every call",
    "mremap_move": "mremap to another place",
    "page_moved": "each page that it moves",
    "returned_by_madvise": "a frame given back by MADV_DONTNEED",
    "returned_by_munmap": "a frame given back by munmap",
}

#: The reason where the host has no swap area.
NO_SWAP = "the host has no swap"

#: What one process found: nanoseconds by name, or the reason why there are none.
Found = Mapping[str, float | str]


class PricesError(ValueError):
    """A cost table that cannot be read; the message names it."""


@dataclass(frozen=True)
class Price:
    """Nanoseconds: median and quartiles over ``processes``.

    Where nothing was measured, ``processes`` is 0, ``reason`` says why and ``ns`` is the value of
    the reference.
    """

    ns: float
    q1: float
    q3: float
    processes: int
    reason: str = ""


def price(samples: Sequence[float]) -> Price:
    """Return median and quartiles of at least one sample."""
    if len(samples) == 1:
        return Price(samples[0], samples[0], samples[0], 1)
    q1, _, q3 = quantiles(samples, n=4, method="inclusive")
    return Price(median(samples), q1, q3, len(samples))


def _combined(found: Found, neighbourhood: int) -> dict[str, float | str]:
    """Add the prices that are made of others: of a frame given back, of a page swapped out."""
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
    """Return the price of every name of COSTS, and of those of BESIDE that were measured.

    ``reference``: nanoseconds for what was not.  ``neighbourhood``: pages that were swapped out for
    each unit of ``swapped_neighbourhood``.
    """
    every = [_combined(found, neighbourhood) for found in processes]
    made = {}
    for name in (*COSTS, *BESIDE):
        values = [found.get(name, "not measured") for found in every]
        samples = [value for value in values if not isinstance(value, str)]
        made_of = price(samples) if samples else None
        if made_of and made_of.ns > 0:
            made[name] = made_of
        elif name in COSTS:
            reason = (
                f"lost in the noise: {made_of.ns:.0f} ns"
                if made_of
                else Counter(values).most_common(1)[0][0]
            )
            made[name] = Price(*(float(reference[name]),) * 3, 0, reason)
    return made


@dataclass(frozen=True)
class MeasuredMachine:
    """Where it was measured.  ``thp``: the host's mode of transparent huge pages."""

    cpu: str
    virtual: bool
    release: str
    thp: str

    def __str__(self) -> str:
        kind = "virtual machine" if self.virtual else "no virtual machine"
        return f"{self.cpu} ({kind}), Linux {self.release}, huge pages: {self.thp}"


def describe_machine(
    cpuinfo: Path = Path("/proc/cpuinfo"),
    thp: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled"),
) -> MeasuredMachine:
    """Describe this machine, without its name."""
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
    """Return the file's contents."""
    lines = [
        "# Nanoseconds of kernel work on one machine, by python -m kernel.linux.calibrate.",
        f"# {machine}",
        "# Each line: the median, then the first and the third quartile over fresh processes.",
        *(f"{name}: {_figures(prices[name])}" for name in COSTS),
        "# Beside the table, which has one price a kind:",
        *(f"# {name}: {_figures(prices[name])}" for name in BESIDE if name in prices),
    ]
    return "\n".join(lines) + "\n"


def _figures(price: Price) -> str:
    if price.reason:
        return f"{price.ns:.1f}  # the reference's value, not measured: {price.reason}"
    return f"{price.ns:.1f}  # {price.q1:.1f}–{price.q3:.1f}, {price.processes} processes"


def read_table(path: Path) -> dict[str, float]:
    """Return the cost table at ``path``, nanoseconds by name.  Raises PricesError."""
    import yaml  # late: only here

    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PricesError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PricesError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(table, dict):
        raise PricesError(f"{path}: not a table of names and numbers")
    try:
        check_costs(table)
    except ValueError as error:
        raise PricesError(f"{path}: {error}") from None
    return table


def write_table(path: Path, text: str) -> None:
    """Replace the file at ``path`` as a whole or not at all.  Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

"""Fleet: allocations of a fleet of servers, from a profile of sizes, rates and live counts.

    size, rate, live       lifetime = live / rate (Little's law); among objects of one size each
    8,  80093.8, 97684.5   is equally likely to be freed next: lifetimes are memoryless
    …

``phase=steady`` starts with the live objects of the steady state and continues with births and
deaths.  ``startup`` starts with an empty heap.  ``both`` runs the startup for half of the
operations, then allocates at once the long-lived objects that are still missing, and continues in
the steady state.

The profile's live heap is scaled to ``live`` bytes, and its rates by the same factor, so that
lifetimes keep their ratios.  With ``live=0`` the heap is as large as the server's, according to
``heap_size.csv`` in the profile's folder (number of the profile, MiB); without that file it is the
sum over the profile's rows.  An object above ``largest`` is allocated in pieces of that size: in a
heap scaled down a thousand times, a huge object can keep its share of the bytes only in pieces.

A run of seconds must match the profile's shares, although few large objects determine them.  So
randomness is distributed evenly: sizes of births are taken at equal steps of the cumulative rate
(systematic sampling).  In the order of sizes, the quantiles of lifetimes, and for large objects the
times of birth, follow a low-discrepancy sequence.  All other times of birth are random.

Profiles: google/fleetbench (tcmalloc), CSV of size, rate, live.  Little, "A proof for the queuing
formula L = λW", Operations Research 9(3), 1961.  Low-discrepancy sequences from the plastic number:
Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018.
"""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from allocators.base.settings import choice, number, size
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import NEVER, lives
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.registry import path
from benchmarks.workloads.base.sizes import Sizes
from kernel.engine.foreign import check_regular, quoted

PATH = path()
PHASE = choice("steady", "startup", "both", text="part of the program's life to generate")
OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls, about")
LIVE = size(64 << 20, low=0, high=1 << 46, text="live bytes in the steady state; 0: the server's")
LARGEST = size(128 << 10, low=8193, high=1 << 46, text="larger objects are split to this, bytes")

STEADY, STARTUP, BOTH = 0, 1, 2
#: Largest size in a profile, bytes.
_MAX_SIZE = 1 << 46
#: Lifetimes are multiples of 2**-24 of their mean.
_LIFE_BITS = 24
#: Objects above this are large, bytes.
_LARGE = 8192
#: 1/p and 1/p**2 of the plastic number p, as 64-bit fractions.
_PLASTIC = (0xC13FA9A902A6328F, 0x91E10DA5C79E7B1D)


class Profile(NamedTuple):
    """Rows of a profile, sorted by size, (n,) each: bytes, allocations/s, live objects."""

    size: np.ndarray
    rate: np.ndarray
    live: np.ndarray


def read_profile(file: Path) -> Profile:
    """Read a profile.  Raises ValueError with one line that names the file and the line."""
    try:
        check_regular(file)
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not a text file") from None
    rows = []
    for i, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(_row(line))
            except ValueError as error:
                raise ValueError(f"{file}: line {i}: {error}") from None
    profile = Profile(*np.array(sorted(rows), "f8").reshape(-1, 3).T)
    if not math.fsum(profile.rate) or not math.fsum(profile.size * profile.live):
        raise ValueError(f"{file}: all rates or all live counts are 0; expected some above 0")
    return profile


def _row(line: str) -> tuple[float, float, float]:
    """Return size, rate and live count of one row.  Raises ValueError."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 3:
        raise ValueError(f"expected size, rate, live; found {len(fields)} fields")
    row = []
    for name, field in zip(("size", "rate", "live"), fields, strict=True):
        try:
            value = float(field)
        except ValueError:
            raise ValueError(f"{name} is {quoted(field)}, not a number") from None
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={field}: must be 0 or more")
        row.append(value)
    if row[0] != int(row[0]) or not 1 <= row[0] <= _MAX_SIZE:
        raise ValueError(f"size={fields[0]}: must be a whole number, 1 to {_MAX_SIZE}")
    if row[2] and not row[1]:
        raise ValueError(f"rate={fields[1]}: must be above 0, since live={fields[2]}")
    return row[0], row[1], row[2]


def read_heap_size(file: Path) -> int:
    """Return the heap size in bytes of the server with the profile ``file``; 0 if unknown.

    Raises ValueError with one line that names the file and the line.
    """
    sizes, number = file.with_name("heap_size.csv"), file.stem.rpartition("_")[2]
    try:
        check_regular(sizes)
        lines = sizes.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{sizes}: {getattr(error, 'strerror', 'not a text file')}") from None
    for i, line in enumerate(lines, 1):
        fields = [field.strip() for field in line.split(",")]
        if fields[0] == number:
            if len(fields) != 2 or not fields[1].isdecimal() or not 0 < int(fields[1]) < 1 << 26:
                raise ValueError(f"{sizes}: line {i}: expected profile, MiB; found {quoted(line)}")
            return int(fields[1]) << 20
    return 0


def _scaled_profile(s: SimpleNamespace) -> Profile:
    """Return the profile, scaled according to the settings."""
    file = Path(s.path)
    return scaled(read_profile(file), s.live or read_heap_size(file), s.largest)


def scaled(profile: Profile, live: int, largest: int) -> Profile:
    """Scale a profile to ``live`` bytes (0: do not scale); split objects above ``largest``."""
    factor = live / math.fsum(profile.size * profile.live) if live else 1.0
    pieces = np.maximum(profile.size / largest, 1.0) * factor
    return Profile(np.minimum(profile.size, largest), profile.rate * pieces, profile.live * pieces)


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless the profile is valid and the operations suffice for it."""
    profile = _scaled_profile(s)
    alive = math.ceil(math.fsum(profile.live))
    need = alive + 1 if s.phase == STEADY else 2 * alive + 2 if s.phase == BOTH else 1
    if s.operations < need:
        raise ValueError(
            f"operations={s.operations}: must be at least {need} for {alive} live objects; "
            "use more operations or a smaller live"
        )


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Generate births and deaths of the phases, then sort them by time."""
    profile = _scaled_profile(s)
    lifetime = profile.live / np.where(profile.rate > 0, profile.rate, 1)
    startup = s.operations if s.phase == STARTUP else s.operations // 2 * (s.phase == BOTH)
    begin = _startup_seconds(profile, lifetime, startup)
    missing = profile.live * np.exp(-begin / np.where(lifetime > 0, lifetime, 1))
    fill = 0 if s.phase == STARTUP else round(math.fsum(missing))
    steady = 0 if s.phase == STARTUP else (s.operations - startup - fill + 1) // 2
    rate = math.fsum(profile.rate)
    parts = [
        (profile.rate, round(rate * begin), 0.0, begin),
        (missing, fill, begin, 0.0),
        (profile.rate, steady, begin, steady / rate),
    ]
    born, died, sizes = [], [], []
    for weight, count, since, length in parts:
        row = _systematic_sample(weight, count, random)
        place = random.bits(count)
        even = _LowDiscrepancy(_PLASTIC[0], random).bits(count)
        large = profile.size[row] > _LARGE
        place[large] = even[large]
        birth = since + length * _fractions(place)
        units = Sizes("exponential", (1 << _LIFE_BITS,)).draw(
            _LowDiscrepancy(_PLASTIC[1], random), count
        )
        life = lifetime[row] * (units / (1 << _LIFE_BITS))
        if not length:  # all births are simultaneous: their order must be randomised here
            order = random.permutation(count)
            row, life = row[order], life[order]
        born.append(birth)
        died.append(birth + life)
        sizes.append(profile.size[row])
    death = np.concatenate(died)
    death[death > begin + parts[-1][3]] = NEVER
    return lives(
        np.concatenate(born), death, np.concatenate(sizes).astype("i8"), operations=s.operations
    )


class _LowDiscrepancy:
    """Replacement of Random: multiples of ``step`` from a random start; no two are close."""

    def __init__(self, step: int, random: Random) -> None:
        self._step, self._next = step, int(random.bits(1)[0])

    def bits(self, n: int) -> np.ndarray:
        """Return the next ``n`` numbers, (n,) uint64."""
        numbers = np.arange(n, dtype=np.uint64) * np.uint64(self._step) + np.uint64(self._next)
        self._next = (self._next + n * self._step) & ((1 << 64) - 1)
        return numbers


def _fractions(bits: np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1) from 64 random bits each."""
    return (bits >> np.uint64(11)) / (1 << 53)


def _systematic_sample(weight: np.ndarray, count: int, random: Random) -> np.ndarray:
    """Return ``count`` sorted rows, (count,) int64, in proportion to ``weight`` to within one."""
    ends = np.cumsum(weight)
    places = (np.arange(count) + _fractions(random.bits(1))[0]) * (ends[-1] / max(count, 1))
    return np.minimum(np.searchsorted(ends, places, side="right"), len(weight) - 1)


def _startup_seconds(profile: Profile, lifetime: np.ndarray, operations: int) -> float:
    """Return the duration of a startup with ``operations`` births and deaths, seconds."""
    low, high = 0.0, operations / math.fsum(profile.rate)
    for _ in range(60):
        middle = (low + high) / 2
        alive = profile.live * -np.expm1(-middle / np.where(lifetime > 0, lifetime, 1))
        if math.fsum(2 * profile.rate * middle - alive) < operations:
            low = middle
        else:
            high = middle
    return high

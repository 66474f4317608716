"""Fleet: what a fleet of servers allocates, from a profile of sizes, rates and live counts.

    size, rate, live       lifetime = live / rate (Little's law); every object of a size is as
    8,  80093.8, 97684.5   likely to die next as any other of it: deaths are memoryless
    …

``phase=steady`` begins with the live objects of the steady state and goes on with births and
deaths; ``startup`` begins with an empty heap; ``both`` starts up for half of the operations, then
allocates at once the long-lived objects that only more time would have brought, and goes on in the
steady state.

The profile's live heap is scaled to ``live`` bytes, and its rates with it, so that lifetimes keep
their ratios.  With ``live=0`` it is as large as the server's heap, which ``heap_size.csv`` beside
the profile tells (number of the profile, MiB), or without that file as its rows come to.  Objects
above ``largest`` are asked for in pieces of that size: in a heap scaled down a thousand times there
is no other way to keep the bytes of an object that is as large as the heap.

A run of seconds must have the profile's shares although they hang on few large objects.  So chance
is spread evenly: births take sizes at equal steps of the cumulated rate, and in the order of sizes
the quantiles of lifetimes, of large objects also the times of birth, follow a sequence that fills
the plane evenly.  All other times of birth are at random.

Profiles: google/fleetbench (tcmalloc), CSV of size, rate, live.  Little, "A proof
for the queuing formula L = λW", Operations Research 9(3), 1961.  Sequences that
fill the plane by the plastic number: Roberts, "The unreasonable effectiveness of quasirandom
sequences", 2018.
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

PATH = path()
PHASE = choice("steady", "startup", "both", text="what is played")
OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="malloc and free in all, about")
LIVE = size(64 << 20, low=0, high=1 << 46, text="bytes live in the steady state; 0: the server's")
LARGEST = size(128 << 10, low=8193, high=1 << 46, text="larger objects come in pieces of this")

STEADY, STARTUP, BOTH = 0, 1, 2
#: Largest size that a profile may name, bytes.
_MAX_SIZE = 1 << 46
#: Lifetimes are multiples of 2**-24 of their mean.
_LIFE_BITS = 24
#: Objects above this are large, bytes.
_LARGE = 8192
#: 1/p and 1/p**2 of the plastic number p, as 64-bit fractions.
_PLASTIC = (0xC13FA9A902A6328F, 0x91E10DA5C79E7B1D)


class Profile(NamedTuple):
    """Rows of a profile, sorted by size, (n,) each: bytes, allocations a second, objects alive."""

    size: np.ndarray
    rate: np.ndarray
    live: np.ndarray


def read_profile(file: Path) -> Profile:
    """Read a profile.  Raises ValueError with one line that names the file and the line."""
    try:
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
        raise ValueError(f"{file}: nothing is allocated or nothing is live in this profile")
    return profile


def _row(line: str) -> tuple[float, float, float]:
    """Size, rate and live count of one row."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 3:
        raise ValueError(f"expected size, rate, live; found {len(fields)} fields")
    row = []
    for name, field in zip(("size", "rate", "live"), fields, strict=True):
        try:
            value = float(field)
        except ValueError:
            raise ValueError(f"{name} is {field!r}, not a number") from None
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={field}: must be 0 or more")
        row.append(value)
    if row[0] != int(row[0]) or not 1 <= row[0] <= _MAX_SIZE:
        raise ValueError(f"size={fields[0]}: must be a whole number, 1 to {_MAX_SIZE}")
    if row[2] and not row[1]:
        raise ValueError(f"rate={fields[1]}: {fields[2]} objects are live that nothing allocates")
    return row[0], row[1], row[2]


def read_heap_size(file: Path) -> int:
    """Bytes of the heap of the server whose profile ``file`` is; 0 where nothing tells them.

    Raises ValueError with one line that names the file and the line.
    """
    sizes, number = file.with_name("heap_size.csv"), file.stem.rpartition("_")[2]
    try:
        lines = sizes.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{sizes}: {getattr(error, 'strerror', 'not a text file')}") from None
    for i, line in enumerate(lines, 1):
        fields = [field.strip() for field in line.split(",")]
        if fields[0] == number:
            if len(fields) != 2 or not fields[1].isdecimal() or not 0 < int(fields[1]) < 1 << 26:
                raise ValueError(f"{sizes}: line {i}: expected profile, MiB; found {line!r}")
            return int(fields[1]) << 20
    return 0


def _played(s: SimpleNamespace) -> Profile:
    """The profile as the settings want it."""
    file = Path(s.path)
    return scaled(read_profile(file), s.live or read_heap_size(file), s.largest)


def scaled(profile: Profile, live: int, largest: int) -> Profile:
    """The profile with ``live`` bytes alive (0: as many as it says), in pieces of ``largest``."""
    factor = live / math.fsum(profile.size * profile.live) if live else 1.0
    pieces = np.maximum(profile.size / largest, 1.0) * factor
    return Profile(np.minimum(profile.size, largest), profile.rate * pieces, profile.live * pieces)


def check_settings(s: SimpleNamespace) -> None:
    """The profile can be read, and the operations reach beyond its live objects."""
    profile = _played(s)
    alive = math.ceil(math.fsum(profile.live))
    need = alive + 1 if s.phase == STEADY else 2 * alive + 2 if s.phase == BOTH else 1
    if s.operations < need:
        raise ValueError(
            f"operations={s.operations}: must be at least {need}, {alive} objects are live; "
            "or take a smaller live"
        )


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Births and deaths of the phases, put in the order of time."""
    profile = _played(s)
    lifetime = profile.live / np.where(profile.rate > 0, profile.rate, 1)
    startup = s.operations if s.phase == STARTUP else s.operations // 2 * (s.phase == BOTH)
    begin = _seconds(profile, lifetime, startup)
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
        row = _evenly(weight, count, random)
        place = random.bits(count)
        even = _Even(_PLASTIC[0], random).bits(count)
        large = profile.size[row] > _LARGE
        place[large] = even[large]
        birth = since + length * _fractions(place)
        units = Sizes("exponential", (1 << _LIFE_BITS,)).draw(_Even(_PLASTIC[1], random), count)
        life = lifetime[row] * (units / (1 << _LIFE_BITS))
        if not length:  # all at one moment, so in the order in which they stand
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


class _Even:
    """A stand-in for Random: numbers a ``step`` apart, from a random start; no two are close."""

    def __init__(self, step: int, random: Random) -> None:
        self._step, self._next = step, int(random.bits(1)[0])

    def bits(self, n: int) -> np.ndarray:
        """The next ``n`` numbers, (n,) uint64."""
        numbers = np.arange(n, dtype=np.uint64) * np.uint64(self._step) + np.uint64(self._next)
        self._next = (self._next + n * self._step) & ((1 << 64) - 1)
        return numbers


def _fractions(bits: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) from 64 random bits each."""
    return (bits >> np.uint64(11)) / (1 << 53)


def _evenly(weight: np.ndarray, count: int, random: Random) -> np.ndarray:
    """``count`` sorted rows, each as often as its ``weight`` says to within one, (count,) int64."""
    ends = np.cumsum(weight)
    places = (np.arange(count) + _fractions(random.bits(1))[0]) * (ends[-1] / max(count, 1))
    return np.minimum(np.searchsorted(ends, places, side="right"), len(weight) - 1)


def _seconds(profile: Profile, lifetime: np.ndarray, operations: int) -> float:
    """How long a start from an empty heap takes for ``operations`` births and deaths."""
    low, high = 0.0, operations / math.fsum(profile.rate)
    for _ in range(60):
        middle = (low + high) / 2
        alive = profile.live * -np.expm1(-middle / np.where(lifetime > 0, lifetime, 1))
        if math.fsum(2 * profile.rate * middle - alive) < operations:
            low = middle
        else:
            high = middle
    return high

"""Distributions of request sizes, in integer arithmetic only: the same sizes on every machine.

``uniform`` and ``list`` are exact.  The others use tables of quantiles: 4096 cells of equal
probability, with linear interpolation inside a cell.  A number in the last 64 cells is looked up in
a second table of 4096 finer cells, and for its last 64 cells in a third, so that the tail is as
smooth as the body.

    p   0                                   63/64                  1
        ├──┼──┼──┼──┼──  …  ──┼──┼──┼──┼──┼──┤                      cells of 2**-12
                                            ├┼┼┼┼┼┼ … ┼┼┼┤           2**-18
                                                         ├┼┼ … ┼┼┤   2**-24

The tables are computed with integers as well: exp2 from roots of two (24 fractional bits, relative
error below 2**-28), normal probabilities from the density summed in steps of 1/256 (error below
1e-6; in the tail, relative error below 5e-5).  Sizes are computed in 1/256 byte and rounded to the
nearest byte, at least 1.  Quantiles are truncated at 1 - 2**-25 (5.4 standard deviations), sizes at
MAX_SIZE.  Sample means are within 0.1 % of the true means, except where the tail is so heavy that
the truncation matters.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from benchmarks.workloads.base.prng import Random

#: Largest size that can be drawn, bytes.
MAX_SIZE = 1 << 30
#: Largest permitted median or mean, bytes.
MAX_CENTRE = 1 << 28

#: Kinds of distributions and the settings that each one uses.
KINDS = {
    "uniform": ("low", "high"),
    "lognormal": ("median", "sigma"),
    "power": ("exponent", "low", "high"),
    "exponential": ("mean",),
    "list": ("choices", "weights"),
}
#: Every setting and its default.
DEFAULTS = {
    "kind": "lognormal",
    "median": 64,
    "sigma": 1.25,
    "mean": 140,
    "exponent": 2,
    "low": 16,
    "high": 1024,
    "choices": (16, 32, 64, 128, 256, 512, 1024),
    "weights": (),
}
#: Bounds of the whole-number settings, inclusive.
_RANGES = {
    "low": (0, MAX_SIZE),
    "high": (0, MAX_SIZE),
    "median": (1, MAX_CENTRE),
    "mean": (1, MAX_CENTRE),
}
#: Bounds of the decimal settings, inclusive.
_DECIMALS = {"sigma": (0, 4), "exponent": (0, 8)}

#: Numbers drawn at a time, few enough to stay in the host's caches.
_BATCH = 1 << 16
_CELL_BITS = 12
_CELLS = 1 << _CELL_BITS
#: Each table covers the last 2**-6 of the previous one.
_ZOOM_BITS = 6
_LEVELS = 3
#: Fractional bits of probabilities, of binary logarithms, of mantissas, and of sizes.
_P_BITS, _LOG_BITS, _MANTISSA_BITS, _SIZE_BITS = 52, 24, 30, 8
#: The grids from which quantiles are read have steps of 1/256.
_GRID_BITS = 8
_LN_2 = Fraction(0xB17217F7D1CF79ABC9E3B398, 1 << 96)


@dataclass(frozen=True)
class Sizes:
    """A size distribution: its kind, and the settings of that kind in the order of KINDS."""

    kind: str
    settings: tuple[Any, ...]

    def draw(self, random: Random, n: int) -> np.ndarray:
        """Draw ``n`` sizes in bytes, (n,) int64, using ``n`` numbers from ``random``."""
        if self.kind == "uniform":
            low, high = self.settings
            return random.below(n, high - low + 1) + low
        if self.kind == "list":
            choices, weights = self.settings
            bounds = np.cumsum(weights or (1,) * len(choices))
            index = np.searchsorted(bounds, random.below(n, int(bounds[-1])), side="right")
            return np.array(choices, np.int64)[index]
        drawn = np.empty(n, np.int64)
        for begin in range(0, n, _BATCH):
            drawn[begin : begin + _BATCH] = self._draw_batch(random, min(_BATCH, n - begin))
        return drawn

    def _draw_batch(self, random: Random, n: int) -> np.ndarray:
        u = random.bits(n)
        sizes, rows = np.empty(n, np.int64), np.arange(n)
        for table in _tables(self):
            # 24 bits select the place: 12 bits the cell, 12 bits the position inside it.
            place = (u >> np.uint64(64 - 2 * _CELL_BITS)).view(np.int64)
            cell, inside = place >> _CELL_BITS, place & (_CELLS - 1)
            low = table[cell]
            sizes[rows] = low + ((table[cell + 1] - low) * inside >> _CELL_BITS)
            far = np.flatnonzero(cell >= _CELLS - (_CELLS >> _ZOOM_BITS))
            rows, u = rows[far], u[far] << np.uint64(_ZOOM_BITS)
        sizes += 1 << (_SIZE_BITS - 1)
        sizes >>= _SIZE_BITS
        return np.clip(sizes, 1, MAX_SIZE, out=sizes)


class SizesSetting:
    """Declaration of a workload's size distribution: a mapping with defaults."""

    def __init__(self, **defaults: Any) -> None:
        """Set the workload's defaults; missing ones come from DEFAULTS."""
        self.mapping = DEFAULTS | defaults
        self.default = self.parse("sizes", self.mapping)

    def parse(self, name: str, value: object) -> Sizes:
        """Return the distribution that the mapping ``value`` defines; missing keys are defaults.

        Raises ValueError with the name and the permitted values, also for a setting that the chosen
        kind does not use.
        """
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}={value}: expected a mapping with {', '.join(DEFAULTS)}")
        for key in value:
            if key not in DEFAULTS:
                raise ValueError(f"{name}: unknown setting {key!r} (it has: {', '.join(DEFAULTS)})")
        given = self.mapping | dict(value)
        kind = given["kind"]
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"{name}.kind={kind}: choose one of {', '.join(KINDS)}")
        for key in value:
            if key not in ("kind", *KINDS[kind]) and not _same(value[key], self.mapping[key]):
                raise ValueError(
                    f"{name}.{key}={value[key]}: sizes of kind {kind} use {', '.join(KINDS[kind])}"
                )
        checked = {key: _check(f"{name}.{key}", key, given[key]) for key in KINDS[kind]}
        if kind in ("uniform", "power") and checked["low"] > checked["high"]:
            raise ValueError(f"{name}.low={checked['low']} is above {name}.high={checked['high']}")
        if kind == "power" and checked["low"] < 1:
            raise ValueError(f"{name}.low=0: a power law starts at 1 or more")
        if kind == "list" and len(checked["weights"]) not in (0, len(checked["choices"])):
            entries = (
                f"{len(checked['weights'])} entries for {len(checked['choices'])} {name}.choices"
            )
            raise ValueError(f"{name}.weights has {entries}; give one for each, or none at all")
        return Sizes(kind, tuple(checked.values()))

    def format(self, sizes: Sizes) -> dict[str, Any]:
        """Return the settings that ``sizes`` uses, in the form of the configuration."""
        spelled = {"kind": sizes.kind}
        for key, value in zip(KINDS[sizes.kind], sizes.settings, strict=True):
            if isinstance(value, Fraction):
                value = int(value) if value.denominator == 1 else float(value)
            spelled[key] = list(value) if isinstance(value, tuple) else value
        return spelled

    def differences(self, name: str, sizes: Sizes) -> list[str]:
        """Return ``name.key=value`` for each setting used that differs from the default."""
        return [
            f"{name}.{key}={value}"
            for key, value in self.format(sizes).items()
            if not _same(value, self.mapping[key])
        ]


def sizes(**defaults: Any) -> SizesSetting:
    """Declare a workload's distribution by its differences from DEFAULTS."""
    return SizesSetting(**defaults)


def _same(a: object, b: object) -> bool:
    """Return True if two settings are equal; a list equals a tuple of the same elements."""
    return (list(a) if isinstance(a, list | tuple) else a) == (
        list(b) if isinstance(b, list | tuple) else b
    )


def _check(name: str, key: str, value: object) -> Any:
    """Return the setting ``key`` in the form that Sizes stores.  Raises ValueError if invalid."""
    if key in _DECIMALS:
        low, high = _DECIMALS[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise ValueError(f"{name}={value}: expected a number")
        if not low <= value <= high:
            raise ValueError(f"{name}={value}: must be {low} to {high}")
        return Fraction(repr(value))  # the decimal as written, not its nearest binary fraction
    if key in _RANGES:
        low, high = _RANGES[key]
        return _whole(name, value, low, high)
    if isinstance(value, str | Mapping) or not hasattr(value, "__iter__"):
        raise ValueError(f"{name}={value}: expected a list of whole numbers")
    low, high = (0, MAX_SIZE) if key == "choices" else (0, 1 << 20)
    numbers = tuple(_whole(f"{name}[{i}]", v, low, high) for i, v in enumerate(value))
    if key == "choices" and not 1 <= len(numbers) <= _CELLS:
        raise ValueError(f"{name}: expected 1 to {_CELLS} sizes, got {len(numbers)}")
    if key == "weights" and numbers and not any(numbers):
        raise ValueError(f"{name}: all weights are 0")
    return numbers


def _whole(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}={value}: expected a whole number")
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: must be {low} to {high}")
    return value


# --- Tables ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _tables(sizes: Sizes) -> tuple[np.ndarray, ...]:
    """Return the sizes at the cell boundaries, 1/256 byte, (4097,) int64 for each level."""
    quantile = {"lognormal": _lognormal, "power": _power, "exponential": _exponential}[sizes.kind]
    ends = np.arange(_CELLS, -1, -1, dtype=np.int64)
    most, least = 1 << _P_BITS, 1 << (_P_BITS - _CELL_BITS - _ZOOM_BITS * (_LEVELS - 1) - 1)
    tables = []
    for level in range(_LEVELS):
        above = ends << (_P_BITS - _CELL_BITS - _ZOOM_BITS * level)
        tables.append(quantile(np.clip(above, least, most - least), *sizes.settings))
    return tuple(tables)


def _lognormal(above: np.ndarray, median: int, sigma: Fraction) -> np.ndarray:
    """Return the sizes that are exceeded with the probabilities ``above`` (in 2**-52)."""
    one = 1 << _P_BITS
    upper = np.minimum(above, one - above)
    z = _read_grid(_normal_grid(), upper) << (_LOG_BITS - 2 * _GRID_BITS - 8)
    z = np.where(above <= one // 2, z, -z)
    factor = round(sigma / _LN_2 * (1 << 20))
    return _times_exp2(median, z * factor >> 20)


def _exponential(above: np.ndarray, mean: int) -> np.ndarray:
    """Return mean · ln 2 · -log2(above)."""
    grid = _exp2(-(np.arange(26 << _GRID_BITS, dtype=np.int64) << (_LOG_BITS - _GRID_BITS)))
    halvings = _read_grid(grid << (_P_BITS - _MANTISSA_BITS), above)
    return halvings * round(mean * _LN_2 * (1 << _SIZE_BITS)) >> (2 * _GRID_BITS + 8)


def _power(above: np.ndarray, exponent: Fraction, low: int, high: int) -> np.ndarray:
    """Return sizes of density size**-exponent between low and high: exponential in log2(size)."""
    span = _log2(high) - _log2(low)
    logs = np.array([i * span >> _CELL_BITS for i in range(_CELLS + 1)], np.int64)
    rate = round((exponent - 1) * (1 << 20))
    if rate:
        # Scaled so that the largest term, at either end, is 1.
        falls = -logs if rate > 0 else logs - span
        terms = _exp2(falls * abs(rate) >> 20).tolist()
        whole = max(1, abs(terms[0] - terms[-1]))
        grid = [(abs(t - terms[-1]) << _P_BITS) // whole for t in terms]
    else:
        grid = [(_CELLS - i) << (_P_BITS - _CELL_BITS) for i in range(_CELLS + 1)]
    steps = _read_grid(np.array(grid, np.int64), above)
    cell, inside = steps >> 16, steps & 0xFFFF
    following = np.minimum(cell + 1, _CELLS)
    return _times_exp2(low, logs[cell] + ((logs[following] - logs[cell]) * inside >> 16))


def _read_grid(grid: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Return the position of ``above`` on the falling ``grid`` (both 2**-52), in 1/65536 step."""
    cell = np.clip(
        len(grid) - 1 - np.searchsorted(grid[::-1], above, side="left"), 0, len(grid) - 2
    )
    height = np.maximum(grid[cell] - grid[cell + 1], 1)
    inside = np.clip(((grid[cell] - above) << 16) // height, 0, 1 << 16)
    return (cell << 16) + inside


@functools.cache
def _normal_grid() -> np.ndarray:
    """Return the probability (2**-52) that a normal deviate exceeds i/256 <= 6, (1537,) int64.

    The density at a grid point follows from its neighbour by multiplication, because
    exp(-(x+h)²/2) = exp(-x²/2) · exp(-hx - h²/2).  The trapezoidal rule between grid points has an
    error of at most h²/12.
    """
    bits, h = 96, Fraction(1, 1 << _GRID_BITS)
    shrink = _exp_minus(h * h, bits)
    ratio = _exp_minus(h * h / 2, bits)
    density, areas = 1 << bits, []
    for _ in range(12 << _GRID_BITS):
        following = density * ratio >> bits
        areas.append(density + following)
        density, ratio = following, ratio * shrink >> bits
    total, above = 2 * sum(areas), sum(areas)
    grid = []
    for area in areas[: (6 << _GRID_BITS) + 1]:
        grid.append((above << _P_BITS) // total)
        above -= area
    return np.array(grid, np.int64)


def _exp_minus(x: Fraction, bits: int) -> int:
    """Return exp(-x) with ``bits`` fractional bits, from its series; 0 <= x < 1."""
    term, total = Fraction(1), Fraction(1)
    for i in range(1, 12):
        term *= -x / i
        total += term
    return round(total * (1 << bits))


@functools.cache
def _exp2_tables() -> tuple[np.ndarray, ...]:
    """Return 2**(i / 2**8), 2**(i / 2**16) and 2**(i / 2**24) for i < 256, 30-bit mantissas."""
    bits = 96
    root, tables = 2 << bits, []
    for _ in range(3):
        for _ in range(8):
            root = math.isqrt(root << bits)
        power, row = 1 << bits, []
        for _ in range(256):
            row.append(power >> (bits - _MANTISSA_BITS))
            power = power * root >> bits
        tables.append(np.array(row, np.int64))
    return tuple(tables)


def _mantissa(log: np.ndarray) -> np.ndarray:
    """Return 2**(fractional part of log), 30 fractional bits, in [1, 2)."""
    a, b, c = _exp2_tables()
    m = a[(log >> 16) & 255] * b[(log >> 8) & 255] >> _MANTISSA_BITS
    return m * c[log & 255] >> _MANTISSA_BITS


def _exp2(log: np.ndarray) -> np.ndarray:
    """Return 2**log with 30 fractional bits, for log <= 0 (in 2**-24)."""
    return _mantissa(log) >> np.minimum(-(log >> _LOG_BITS), 62)


def _times_exp2(centre: int, log: np.ndarray) -> np.ndarray:
    """Return centre · 2**log in 1/256 byte, at most MAX_SIZE; centre < 2**31, log in 2**-24."""
    shift = (_MANTISSA_BITS - _SIZE_BITS) - (log >> _LOG_BITS)
    product = centre * _mantissa(log)
    most = MAX_SIZE << _SIZE_BITS
    left = np.clip(-shift, 0, 62)
    grown = np.where(product > most >> left, most, product << left)
    return np.minimum(np.where(shift > 0, product >> np.clip(shift, 0, 62), grown), most)


def _log2(n: int) -> int:
    """Return log2(n) with 24 fractional bits, rounded down; n >= 1."""
    whole = n.bit_length() - 1
    bits = 96
    x, result = (n << bits) >> whole, whole
    for _ in range(_LOG_BITS):
        x = x * x >> bits
        bit = x >> (bits + 1)
        x >>= bit
        result = 2 * result + bit
    return result

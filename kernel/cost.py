"""Kernel operations that have a price, and the check of cost tables (conf/kernel/cost), ns each."""

from collections.abc import Mapping

from kernel.counters import COUNTERS

#: Description of each priced operation, by its name in cost tables.
COSTS = {counter.price: counter.priced for counter in COUNTERS if counter.price}


def check_costs(table: Mapping[str, object]) -> None:
    """Raise ValueError naming the price if ``table`` has a missing, unknown or invalid price."""
    for name, value in table.items():
        if name not in COSTS:
            raise ValueError(f"{name}: no such price (known: {', '.join(COSTS)})")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
            raise ValueError(f"{name}={value}: expected nanoseconds, from 0 to less than 1e15")
    for name in COSTS:
        if name not in table:
            raise ValueError(f"{name} is missing: {COSTS[name]}, nanoseconds")

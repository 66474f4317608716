"""kernel.cost: a cost table must have all prices and no other, each a valid number."""

import pytest

from kernel.cost import COSTS, check_costs

GOOD = dict.fromkeys(COSTS, 1.5)


def test_a_table_with_every_kind_is_accepted():
    check_costs(GOOD)
    check_costs(dict.fromkeys(COSTS, 0))


@pytest.mark.parametrize("kind", ["brk", "fault_write", "huge_page_returned"])
def test_a_missing_kind_is_named(kind):
    with pytest.raises(ValueError, match=kind):
        check_costs({k: v for k, v in GOOD.items() if k != kind})


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="fault_wrote"):
        check_costs(GOOD | {"fault_wrote": 1.0})


@pytest.mark.parametrize("price", [-1, True, "12", None, float("nan")])
def test_a_malformed_price_is_named(price):
    with pytest.raises(ValueError, match="mmap"):
        check_costs(GOOD | {"mmap": price})

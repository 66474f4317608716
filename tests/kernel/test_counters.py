"""The table of counters: complete, without duplicates, and consistent with the model."""

import ast

import numpy as np
import pytest

from kernel import counters, uapi
from kernel.counters import CALLS, COUNTERS
from kernel.engine.jit import build
from kernel.engine.record import field_adder, field_sum, record
from kernel.types import MM, TLB_STAT, VMSTAT
from tests.conftest import ROOT

RECORDS = {"mm": MM, "vmstat": VMSTAT, "tlb_stat": TLB_STAT}


def written_fields():
    """Return the names of the attributes that compiled code of the model writes."""
    for path in (ROOT / "kernel").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AugAssign) else targets
            yield from (target.attr for target in targets if isinstance(target, ast.Attribute))


def test_every_counter_is_counted():
    assert {counter.field for counter in COUNTERS} <= set(written_fields())


def test_every_counter_is_a_field_of_its_record():
    for counter in COUNTERS:
        assert RECORDS[counter.record][counter.field] == np.dtype("i8"), counter.field
    assert [name for name, _ in counters.fields("vmstat")] == list(VMSTAT.names)
    assert len({counter.field for counter in COUNTERS}) == len(COUNTERS)


@pytest.mark.parametrize("name", ["metric", "price"])
def test_no_two_counters_share_a_name(name):
    named = [getattr(counter, name) for counter in COUNTERS if getattr(counter, name)]
    assert len(set(named)) == len(named)


def test_a_price_says_what_it_is_of_and_a_metric_which_way_is_better():
    for counter in COUNTERS:
        assert bool(counter.price) == bool(counter.priced), counter.field
        assert counter.better in ("", "lower", "higher")
        assert counter.meaning
        assert counter.unit


def test_every_memory_call_that_the_model_answers_is_counted_once():
    numbers = [number for counter in CALLS for number in counter.calls]
    answered = {getattr(uapi, name) for name in dir(uapi) if name.startswith("NR_")}
    assert sorted(numbers) == sorted(answered - {uapi.NR_SETRLIMIT})


def test_lists_of_fields_compile():
    kind = np.dtype([("a", "i8"), ("b", "i8"), ("c", "i8")])
    r, s = record(kind), record(kind)
    r.a, r.b, r.c = 1, 20, 300
    s.a, s.b, s.c = 5, 60, 700
    assert build(field_sum(["a", "c"]))(r) == 301
    build(field_adder(["b", "c"]))(r, s)
    assert (r.a, r.b, r.c) == (1, 80, 1000)

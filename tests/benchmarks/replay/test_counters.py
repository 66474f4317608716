"""Regression test: exact counters of every allocator on pinned workloads."""

import json

import pytest

from allocators.base import registry
from tests.benchmarks.replay.__main__ import TABLE, counters


def test_every_allocator_is_in_the_table():
    assert sorted(json.loads(TABLE.read_text())) == registry.names()


@pytest.mark.parametrize("name", registry.names())
def test_the_counters_are_those_of_the_table(name):
    assert counters(name) == json.loads(TABLE.read_text())[name], (
        "counters changed: if intended, print the new table: python -m tests.benchmarks.replay"
    )

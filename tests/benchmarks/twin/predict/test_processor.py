"""Tests of twin.predict.processor: caches against an oracle, branches against known patterns."""

import random
from collections import OrderedDict
from types import SimpleNamespace

import pytest

from benchmarks.twin.predict import processor
from benchmarks.twin.predict.processor import COUNTS, LINE_SHIFT, Processor, follow, pass_by, reach

pytestmark = pytest.mark.usefixtures("plain")

SIZES = {
    "L1_SETS": 2,
    "L1_WAYS": 2,
    "L2_SETS": 4,
    "L2_WAYS": 2,
    "L3_SETS": 8,
    "L3_WAYS": 4,
}


@pytest.fixture
def kernel(monkeypatch):
    """Stand-in for the kernel that has only a processor, and a function for its counts by name."""
    for name, value in SIZES.items():
        monkeypatch.setattr(processor, name, value)
    watcher = Processor(SIZES)
    k = SimpleNamespace(watch=watcher.address)
    k.count = lambda: dict(zip(COUNTS, watcher.counts().tolist(), strict=True))
    yield k
    watcher.close()


class Oracle:
    """LRU caches, filled at every level that misses."""

    def __init__(self):
        self.levels = [
            [OrderedDict() for _ in range(SIZES[f"L{n}_SETS"])] + [SIZES[f"L{n}_WAYS"]]
            for n in (1, 2, 3)
        ]
        self.counts = dict.fromkeys(("l1", "l2", "l3", "memory"), 0)

    def reach(self, line):
        for name, (*sets, ways) in zip(("l1", "l2", "l3"), self.levels, strict=True):
            lines = sets[line % len(sets)]
            if line in lines:
                lines.move_to_end(line)
                self.counts[name] += 1
                return
            lines[line] = True
            if len(lines) > ways:
                lines.popitem(last=False)
        self.counts["memory"] += 1


def test_caches_agree_with_the_oracle(kernel):
    choice, oracle = random.Random(1), Oracle()
    for _ in range(3000):
        line = int(choice.paretovariate(0.7)) % 64
        reach(kernel, (line << LINE_SHIFT) + choice.randrange(1 << LINE_SHIFT))
        oracle.reach(line)
    found = kernel.count()
    assert {name: found[name] for name in oracle.counts} == oracle.counts
    assert min(oracle.counts.values()) > 20


def test_prefetched_accesses_evict_lines_and_are_not_counted(kernel):
    reach(kernel, 0)
    for line in range(1, 200):
        pass_by(kernel, line << LINE_SHIFT)
    assert kernel.count()["memory"] == 1
    reach(kernel, 0)
    assert kernel.count()["memory"] == 2


@pytest.mark.parametrize(
    ("outcomes", "most"),
    [
        (lambda i, choice: 1, 2),
        (lambda i, choice: i % 2, 12),
        (lambda i, choice: i % 7 == 0, 60),  # a loop of seven iterations
    ],
)
def test_repeating_patterns_are_learnt(kernel, outcomes, most):
    for i in range(2000):
        follow(kernel, 5, int(outcomes(i, None)))
    found = kernel.count()
    assert found["branches"] == 2000
    assert found["mispredict"] <= most


def test_random_branches_are_not_learnt(kernel):
    choice = random.Random(1)
    for _ in range(2000):
        follow(kernel, 5, choice.randrange(2))
    assert 800 < kernel.count()["mispredict"] < 1200


def test_a_branch_is_predicted_from_another(kernel):
    choice = random.Random(1)
    for _ in range(2000):
        first = choice.randrange(2)
        follow(kernel, 5, first)
        follow(kernel, 6, 1 - first)
    assert kernel.count()["mispredict"] < 1250  # half of the first branch, few of the second


def test_geometry_is_that_of_the_machine_or_the_default(tmp_path):
    assert processor.geometry(tmp_path)["L1_SETS"] == processor.L1_SETS
    folder = tmp_path / "index0"
    folder.mkdir()
    for name, text in (
        ("level", "1"),
        ("type", "Data"),
        ("number_of_sets", "128"),
        ("ways_of_associativity", "12"),
        ("coherency_line_size", "64"),
    ):
        (folder / name).write_text(text + "\n")
    found = processor.geometry(tmp_path)
    assert (found["L1_SETS"], found["L1_WAYS"]) == (128, 12)
    (folder / "number_of_sets").write_text("96\n")  # not a power of two
    assert processor.geometry(tmp_path)["L1_SETS"] == processor.L1_SETS

"""Can a stranger add an allocator with one file and one YAML, editing nothing?"""

import json

from tests.bench.conftest import SMALL, result_directory

#: A policy that this project does not have: a stack of equal blocks, one size for all.
PLUGIN = '''
"""Pool: every block has the same size; a freed one is the next one out."""

import numpy as np

from allocators.contract import BLOCK_FREE, BLOCK_USED, Promises, align_up, emit
from allocators.settings import size
from kernel.access import load, store
from kernel.brk import sbrk
from kernel.jit import jit

BLOCK = size(4096, low=64, text="bytes of every block")

STATE = np.dtype([("start", "i8"), ("top", "i8"), ("head", "i8")])


def promises(settings):
    return Promises()


@jit
def init(k, a):
    a.start = align_up(sbrk(k, 0), 16)
    sbrk(k, a.start - sbrk(k, 0))
    a.top = a.start


@jit
def malloc(k, a, size):
    if size > BLOCK:
        return 0
    p = a.head
    if p:
        a.head = load(k, p)
        store(k, p, 0)
        return p
    if sbrk(k, BLOCK) < 0:
        return 0
    p = a.top
    a.top += BLOCK
    return p


@jit
def free(k, a, p):
    store(k, p, a.head)
    a.head = p


@jit
def usable_size(k, a, p):
    return BLOCK
'''
YAML = """# One size for all
name: pool.py
block: 8192
"""


def test_a_new_allocator_runs_everywhere(bench, python, tmp_path):
    home = tmp_path / "mine"
    (home / "allocator").mkdir(parents=True)
    plugin = home / "allocator" / "pool.py"
    plugin.write_text(PLUGIN)
    (home / "allocator" / "pool.yaml").write_text(YAML)

    done = bench(
        *("--config-dir", str(home), "-m", "allocator=pool,bump", "measure=quick"),
        *("workload.sizes.kind=uniform", *SMALL),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    directory = result_directory(done)
    labels = {json.loads(p.read_text())["label"] for p in directory.glob("*/run.json")}
    assert labels == {"pool(block=8192)", "bump"}

    help_text = bench("--config-dir", str(home), "--help").stdout
    assert "pool" in help_text

    speed = python("-m", "benchmarks.speed", "--json", "--events=60000", "--rounds=1", plugin)
    assert speed.returncode == 0, speed.stderr
    rows = json.loads(speed.stdout)
    assert [row["name"] for row in rows] == ["libc", "harness", "pool"]
    assert all(set(row) == {"name", "ns_per_event", "ratio_to_libc"} for row in rows)

    verify = python("-m", "allocators.verify", plugin, "--operations=2000")
    assert verify.returncode == 0, verify.stdout + verify.stderr

    figures = python("-m", "analysis", directory, "-o", tmp_path / "figures")
    assert figures.returncode == 0, figures.stderr
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {
        f"{n}.{e}" for n in ("time", "memory", "pareto", "faults") for e in ("png", "svg")
    } <= made

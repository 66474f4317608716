"""Events are the same on every machine, in every run, and with the JIT disabled.

A deliberate change of a hash changes published numbers: increase benchmarks.run.results.MODEL with
it.  ``python tests/benchmarks/workloads/test_events_are_pinned.py`` prints the new table.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import workloads
from tests.conftest import ROOT

DISTRIBUTIONS = {
    "uniform": {"low": 1, "high": 4096},
    "lognormal": {"median": 100, "sigma": 2.5},
    "power": {"exponent": 1.5, "low": 4, "high": 32_768},
    "exponential": {"mean": 3000},
    "list": {"choices": [16, 24, 400], "weights": [5, 3, 1]},
}
CASES = {
    **{
        f"{name} default": {"name": name}
        for name in (
            *("alloc_test", "cache_scratch", "cache_thrash", "churn", "ffworst", "hoardworst"),
            *("larson", "malloc_simple", "malloc_thread", "mstress", "queue", "ramp"),
            *("realloc_growth", "rptest", "sawtooth", "sh6bench", "stack", "xmalloc_test"),
        )
    },
    "alloc_test small": {"name": "alloc_test", "operations": 1000, "threads": 2, "places": 100},
    "cache_scratch small": {"name": "cache_scratch", "operations": 99, "threads": 2, "writes": 3},
    "ffworst small": {"name": "ffworst", "space": 4096, "rounds": 5},
    "hoardworst small": {"name": "hoardworst", "space": 32_768, "superblock": 4096},
    "malloc_thread small": {"name": "malloc_thread", "operations": 1000, "slots": 9, "turn": 5},
    "mstress small": {"name": "mstress", "operations": 1000, "threads": 2, "scale": 1, "places": 9},
    "rptest small": {"name": "rptest", "operations": 1000, "threads": 3, "blocks": 50, "turn": 5},
    "sawtooth small": {"name": "sawtooth", "operations": 1000, "peak": 70, "order": "lifo"},
    "sh6bench small": {"name": "sh6bench", "operations": 1000, "threads": 2, "blocks": 50},
    "xmalloc_test small": {"name": "xmalloc_test", "operations": 1000, "workers": 2, "batch": 20},
    "churn small": {"name": "churn", "operations": 1000, "live": 50, "seed": 2},
    "larson small": {"name": "larson", "operations": 1000, "threads": 2, "blocks": 20, "seed": 2}
    | {"lifetime": 50, "turn": 5},
    "queue small": {"name": "queue", "operations": 1000, "live": 50, "burst": 7, "seed": 2},
    "ramp small": {"name": "ramp", "operations": 1000, "peak": 99, "plateau": 9, "seed": 2},
    "realloc_growth small": {"name": "realloc_growth", "operations": 1000, "vectors": 9}
    | {"factor": 150, "seed": 2},
    "stack small": {"name": "stack", "operations": 1000, "depth": 30, "seed": 2},
    **{
        f"churn {kind}": {"name": "churn", "operations": 100_000, "live": 100}
        | {"sizes": {"kind": kind} | settings}
        for kind, settings in DISTRIBUTIONS.items()
    },
}
PINNED = {
    "alloc_test default": "545a341b45f8bfa5",
    "cache_scratch default": "e162acf8ffab0b12",
    "cache_thrash default": "33ffdf6fa8fb5bce",
    "churn default": "f1485aea04217d83",
    "ffworst default": "a7d084b9e4fd42f5",
    "hoardworst default": "dafaa662d9940e4c",
    "larson default": "7fc5090d5dd7fdc1",
    "malloc_simple default": "ea338e2e24f7f53d",
    "malloc_thread default": "73a04162594f1391",
    "mstress default": "b10b0c706e1e406e",
    "queue default": "8162a9d31a1a5c6b",
    "ramp default": "a4eea66f9ce41032",
    "realloc_growth default": "9127993657ef7f00",
    "rptest default": "64cd6a4f610fa548",
    "sawtooth default": "68be849c9669284c",
    "sh6bench default": "eb88f70b8e7070cd",
    "stack default": "e08a7a73eed0ab7b",
    "xmalloc_test default": "ca7c52bece4cf186",
    "alloc_test small": "5551d652541f8e70",
    "cache_scratch small": "bcb8ec6dce196b9e",
    "ffworst small": "096b1669cfd91184",
    "hoardworst small": "f93af22584034042",
    "malloc_thread small": "209457d9ec01a8aa",
    "mstress small": "382528e7f8613e90",
    "rptest small": "2904d550da2ca98b",
    "sawtooth small": "622cf56a6ad9a4b6",
    "sh6bench small": "0e9af0aba29245f5",
    "xmalloc_test small": "fc3026982ef5f354",
    "churn small": "9e04f6cd371c8c87",
    "larson small": "1ba7de70676e7a83",
    "queue small": "4cb279e059976171",
    "ramp small": "fa04582cad4a8649",
    "realloc_growth small": "0f6f3b2922c9f487",
    "stack small": "95bf13e98ed6601b",
    "churn uniform": "1b50a527b904e611",
    "churn lognormal": "ebd8e29b7637193a",
    "churn power": "0f962b35b6a6dc9e",
    "churn exponential": "ae51e101d9d7e5a7",
    "churn list": "0f2d44a7f0d44f6e",
}


def fingerprints(cases):
    return {name: workloads.load(CASES[name]).fingerprint[:16] for name in cases}


@pytest.mark.parametrize("case", CASES)
def test_fingerprint(case):
    assert fingerprints([case])[case] == PINNED[case]


def test_the_same_with_the_jit_off():
    cases = [case for case in CASES if "default" not in case]
    code = f"""
import importlib.util, json
spec = importlib.util.spec_from_file_location("pins", {str(Path(__file__))!r})
pins = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pins)
print(json.dumps(pins.fingerprints({cases!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == {case: PINNED[case] for case in cases}


if __name__ == "__main__":
    for case_name, digest in fingerprints(CASES).items():
        print(f'    "{case_name}": "{digest}",')

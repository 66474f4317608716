"""A wrong setting is refused at once, with its name and the permitted values."""

import hashlib
import subprocess
import sys

import pytest
import yaml

from allocators.base.settings import Setting
from benchmarks import workloads
from benchmarks.workloads import WorkloadError
from benchmarks.workloads.base import registry
from tests.conftest import ROOT

WRONG = [
    ({}, "workload.name=None: choose one of alloc_test, cache_scratch"),
    ({"name": "chum"}, "no workload 'chum'; choose one of alloc_test, cache_scratch"),
    ({"name": "registry"}, "no workload 'registry'"),
    ({"name": "nowhere/my.py"}, "no workload file nowhere/my.py"),
    (
        {"name": "churn", "lives": 3},
        "unknown setting 'lives' (it has: operations, live, sizes, seed",
    ),
    ({"name": "churn", "live": -1}, "live=-1: must be 1 to"),
    ({"name": "churn", "live": "many"}, "live=many: expected a whole number"),
    ({"name": "churn", "live": 2.5}, "live=2.5: expected a whole number"),
    ({"name": "churn", "live": True}, "live=True: expected a whole number"),
    ({"name": "churn", "operations": 10, "live": 11}, "operations=10: must be at least 11"),
    ({"name": "churn", "seed": -1}, "seed=-1: expected a whole number from 0"),
    ({"name": "churn", "seed": "1"}, "seed=1: expected a whole number from 0"),
    ({"name": "churn", "touch": "some"}, "touch=some: choose one of nothing, first, all, read"),
    ({"name": "churn", "sizes": 64}, "sizes=64: expected a mapping with kind, median"),
    ({"name": "churn", "sizes": {"kind": "gauss"}}, "sizes.kind=gauss: choose one of uniform,"),
    ({"name": "churn", "sizes": {"kind": ["uniform"]}}, "sizes.kind=['uniform']: choose one of"),
    ({"name": "churn", "sizes": {"sgima": 1}}, "sizes: unknown setting 'sgima'"),
    ({"name": "churn", "sizes": {"sigma": -1}}, "sizes.sigma=-1: must be 0 to 4"),
    ({"name": "churn", "sizes": {"sigma": float("nan")}}, "sizes.sigma=nan: expected a number"),
    ({"name": "churn", "sizes": {"sigma": float("inf")}}, "sizes.sigma=inf: must be 0 to 4"),
    ({"name": "churn", "sizes": {"median": 0}}, "sizes.median=0: must be 1 to"),
    ({"name": "churn", "sizes": {"low": 17}}, "sizes.low=17: sizes of kind lognormal use median"),
    (
        {"name": "churn", "sizes": {"kind": "uniform", "low": 9, "high": 8}},
        "sizes.low=9 is above sizes.high=8",
    ),
    ({"name": "churn", "sizes": {"kind": "power", "low": 0}}, "sizes.low=0: a power law starts"),
    (
        {"name": "churn", "sizes": {"kind": "list", "choices": 5}},
        "sizes.choices=5: expected a list",
    ),
    ({"name": "churn", "sizes": {"kind": "list", "choices": []}}, "sizes.choices: expected 1 to"),
    (
        {"name": "churn", "sizes": {"kind": "list", "choices": [1, "x"]}},
        "sizes.choices[1]=x: expected a whole number",
    ),
    (
        {"name": "churn", "sizes": {"kind": "list", "weights": [1, 2]}},
        "sizes.weights has 2 entries for 7 sizes.choices",
    ),
    (
        {"name": "churn", "sizes": {"kind": "list", "choices": [8], "weights": [0]}},
        "sizes.weights: all weights are 0",
    ),
    ({"name": "larson", "operations": 100}, "operations=100: must be at least 20000"),
    ({"name": "larson", "threads": 1024, "blocks": 1 << 24}, "more than 2**28 blocks"),
    ({"name": "queue", "operations": 100}, "operations=100: must be at least 25000"),
    ({"name": "ramp", "plateau": 60_000}, "plateau=60000 is above peak=50000"),
    ({"name": "ramp", "operations": 1000}, "operations=1000: must be at least 365000"),
    ({"name": "realloc_growth", "factor": 100}, "factor=100: must be 101 to"),
    ({"name": "realloc_growth", "largest": 16}, "smallest=32 is above largest=16"),
    ({"name": "checkerboard", "unit": 48}, "unit=48: must be a power of two"),
    ({"name": "checkerboard", "overhead": 64}, "overhead=64: must be less than unit=64"),
    ({"name": "checkerboard", "rounds": 20}, "budget=1048576: the last round's block takes"),
    ({"name": "robson", "unit": 40}, "unit=40: must be a multiple of 16"),
    ({"name": "robson", "overhead": 64}, "overhead=64: must be less than unit=64"),
    ({"name": "robson", "doublings": 20}, "budget=1048576: the last round's block takes"),
    ({"name": "ffworst", "rounds": 40}, "rounds=40: the last block takes"),
    ({"name": "ffworst", "smallest": 1, "space": 1 << 30}, "smallest=1: more than 2**28 blocks"),
    ({"name": "hoardworst", "smallest": 24}, "smallest=24: must be a multiple of 16"),
    ({"name": "hoardworst", "smallest": 1 << 20}, "smallest=1048576: two must fit into"),
    ({"name": "hoardworst", "space": 4096}, "superblock=262144 is above space=4096"),
    ({"name": "sawtooth", "peak": 2_000_000}, "operations=1000000: must be at least 2000000"),
    ({"name": "malloc_simple", "least": 2000}, "least=2000 is above most=1600"),
    ({"name": "malloc_simple", "operations": 9}, "operations=9: must be at least 115200"),
    ({"name": "malloc_thread", "threads": 1024, "slots": 1 << 20}, "more than 2**28 slots"),
    ({"name": "mstress", "threads": 1024, "scale": 1 << 20}, "more than 2**28 blocks in a round"),
    ({"name": "rptest", "low": 9000}, "low=9000 is above high=8000"),
    ({"name": "rptest", "blocks": 90}, "turn=100: must be at most 20, half of a loop"),
    ({"name": "rptest", "falloff": "steep"}, "falloff=steep: choose one of even, linear"),
    ({"name": "sh6bench", "blocks": 19}, "blocks=19: must be at least 20, 5 per thread"),
    ({"name": "alloc_test", "largest": 1000}, "largest=1000: must be a power of two"),
    ({"name": "alloc_test", "places": 2, "threads": 2}, "places=2: must be at least 4"),
    ({"name": "alloc_test", "operations": 9}, "operations=9: must be at least 131072"),
    ({"name": "cache_scratch", "operations": 7}, "operations=7: must be at least 8"),
    ({"name": "fleet"}, "path=: expected the path of a file"),
    ({"name": "fleet", "path": "nowhere.csv"}, "nowhere.csv: No such file or directory"),
    ({"name": "trace"}, "path=: expected the path of a file"),
    ({"name": "trace", "path": ""}, "path=: expected the path of a file"),
    ({"name": "trace", "path": "nowhere.txt"}, "nowhere.txt: No such file or directory"),
    ({"name": "trace", "path": __file__, "strict": "maybe"}, "strict=maybe: choose one of"),
    ({"name": "trace", "path": __file__}, "unknown trace format (known: "),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=[m for _, m in WRONG])
def test_message(settings, message):
    for check in (workloads.validate, workloads.load):
        with pytest.raises(WorkloadError) as caught:
            check(settings)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", workloads.names())
def test_yaml_files_state_the_declared_defaults(name):
    text = (ROOT / "conf" / "workload" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    config = yaml.safe_load(text)
    assert config.pop("name") == name
    assert config.pop("seed") == "${seed}"
    assert config.pop("touch") == registry.DEFAULT_TOUCH
    declared = registry._declared(registry._import(name))
    assert list(config) == list(declared)
    for key, setting in declared.items():
        if isinstance(setting, Setting):
            assert setting.parse(key, config[key]) == int(setting)
        elif key == "sizes":
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in config[key].items()}
            assert given == setting.mapping
            assert setting.parse(key, config[key]) == setting.default


def test_labels_name_the_settings_that_differ():
    def label(**settings):
        return registry._choose({"name": "churn"} | settings).label

    assert label() == "churn"
    assert label(seed=7) == "churn"
    assert label(live=10, touch="first") == "churn(live=10, touch=first)"
    assert label(sizes={"kind": "lognormal", "median": 64}) == "churn"
    assert label(sizes={"sigma": 0.5}) == "churn(sizes.sigma=0.5)"
    changed = label(sizes={"kind": "uniform", "low": 8})
    assert changed == "churn(sizes.kind=uniform, sizes.low=8)"


OWN = '''
"""One object, freed and allocated again."""
from allocators.base.settings import number
from benchmarks.events.events import FREE, MALLOC, make_events
import numpy as np

ROUNDS = number(3, low=1, text="times")

def generate(s, random):
    n = s.rounds
    return make_events(np.tile([MALLOC, FREE], n), np.zeros(2 * n), np.tile([8, 0], n))
'''


def test_a_user_workload_is_one_file(tmp_path):
    file = tmp_path / "blink.py"
    file.write_text(OWN)
    w = workloads.load({"name": str(file), "rounds": 5, "seed": 2})
    digest = hashlib.sha256(OWN.encode()).hexdigest()[:6]
    label = f"blink@{digest}(rounds=5)"
    assert (w.name, w.label, w.operations, w.slots) == ("blink", label, 10, 1)
    with pytest.raises(WorkloadError, match="rounds=0: must be 1 to"):
        workloads.validate({"name": str(file), "rounds": 0})


PROGRAM = """
import numpy as np
from kernel.engine.record import record
from kernel.engine.jit import jit

def length(s): return 1
def slots(s): return 1
def start(s, random): return record(np.dtype([(f, "i8") for f in {fields}]))

{mark}
def next_event(g, last): return False
"""
FIELDS = ["op", "slot", "request", "align", "offset"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def generate(s, random:\n", "SyntaxError"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("X = 1", "defines neither generate nor next_event"),
        ("def next_event(g, last): return False", "does not define start, length, slots"),
        (PROGRAM.format(fields=FIELDS, mark=""), "next_event must be a function marked @jit"),
        (PROGRAM.format(fields=FIELDS[:-1], mark="@jit"), "a record without offset"),
        (PROGRAM.format(fields=[*FIELDS, "base"], mark="@jit"), "cannot be called 'base'"),
    ],
)
def test_a_broken_file_is_named(tmp_path, source, message):
    file = tmp_path / "broken.py"
    file.write_text(source)
    with pytest.raises(WorkloadError) as caught:
        workloads.load({"name": str(file)})
    assert message in str(caught.value)
    assert "broken" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checking_imports_no_compiler(tmp_path):
    trace, profile = tmp_path / "t.txt", tmp_path / "p.csv"
    trace.write_text("1: malloc 0x10 8\n")
    profile.write_text("1024, 2, 3\n")
    code = f"""
import sys
from benchmarks import workloads
for name in workloads.names():
    files = {{"fleet": {str(profile)!r}}} | dict.fromkeys(("trace", "synth"), {str(trace)!r})
    path = files.get(name)
    workloads.validate({{"name": name}} | ({{"path": path}} if path else {{}}))
loaded = {{"numba", "pandas", "pyarrow", "rich", "hydra"}} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

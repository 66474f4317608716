"""The shipped traces are unchanged and meet their requirements."""

import json

import pytest

from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import ALLOCATOR_OPS, OP_NAMES
from benchmarks.trace import shipped
from benchmarks.trace.__main__ import main
from benchmarks.trace.shipped import make
from tests.benchmarks.trace.shipped_values import TABLE, values

GOLDEN = json.loads(TABLE.read_text())


def operations(name):
    return sum(GOLDEN[name].get(op, 0) for op in OP_NAMES[:ALLOCATOR_OPS])


@pytest.mark.parametrize("name", shipped.names())
def test_golden_values(name):
    assert values(name) == GOLDEN[name]


def test_every_subject_has_a_trace_and_every_trace_a_subject():
    assert sorted(make.SUBJECTS) == shipped.names() == sorted(GOLDEN)


def test_there_is_enough_of_everything():
    assert len(GOLDEN) >= 8
    assert sum(v["allocating_threads"] > 1 for v in GOLDEN.values()) >= 2
    for name, value in GOLDEN.items():
        assert operations(name) >= 200_000
        assert value["peak_live_bytes"] >= 1 << 20
    assert sum(shipped.path_of(name).stat().st_size for name in GOLDEN) <= 12e6


@pytest.mark.parametrize("name", shipped.names())
def test_a_trace_says_how_it_was_made(name):
    path = shipped.path_of(name)
    with parquet.Reader(path) as reader:
        provenance = reader.provenance
        assert path.stat().st_size <= 8 * reader.events
    assert provenance["made_by"].startswith("python -m benchmarks.")  # module path at that time
    assert provenance["made_by"].endswith(f"shipped.make {name}")
    for key in ("command", "arguments", "program", "input", "version", "recorder"):
        assert provenance[key]
    assert sum(provenance["left_out"].values()) < provenance["events"] / 1000
    assert provenance["left_out"].get("never_written", 0) == 0


def test_a_shipped_trace_is_a_workload_with_its_own_name():
    settings = {"name": "trace", "path": "shipped:jq"}
    workload = workloads.load(settings)
    assert workload.label == workloads.label(settings) == "jq"
    assert workload.operations == operations("jq")
    assert workload.provenance["settings"]["path"] == "shipped:jq"
    assert workloads.label(settings | {"touch": "first"}) == "jq(touch=first)"


def test_an_unknown_name():
    with pytest.raises(workloads.WorkloadError, match="unknown shipped trace 'nonesuch'"):
        workloads.validate({"name": "trace", "path": "shipped:nonesuch"})


def test_a_shipped_trace_is_a_file_like_any_other(capsys):
    assert main(["info", str(shipped.path_of("pythreads")), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["peak_live_bytes"] == GOLDEN["pythreads"]["peak_live_bytes"]


def test_make_says_which_program_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    before = shipped.path_of("jq").read_bytes()
    assert make.main(["jq"]) == 1
    assert capsys.readouterr().err == "error: jq: jq: No such file or directory\n"
    assert shipped.path_of("jq").read_bytes() == before


def test_make_refuses_unknown_names(capsys):
    assert make.main(["nonesuch"]) == 2
    assert "unknown program 'nonesuch'" in capsys.readouterr().err

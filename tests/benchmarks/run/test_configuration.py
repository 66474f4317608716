"""Is every YAML file complete, true to its plugin, and fit to run?"""

import pytest

from allocators.base import registry
from benchmarks.replay.metrics import BY_NAME, METRICS
from benchmarks.run.job import check_job
from benchmarks.trace import shipped
from kernel.cost import COSTS
from tests.benchmarks.run.conftest import ROOT, composed

CONF = ROOT / "conf"


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("name", choices("allocator"))
def test_an_allocator_yaml_spells_every_default(name):
    config = composed(f"allocator={name}")
    job = check_job(config)
    assert job.plugin.name == name
    assert job.plugin.label == name  # nothing differs from the defaults
    assert set(config["allocator"]) == {"name", "check_every", *job.plugin.values}


def test_every_allocator_and_workload_has_a_yaml():
    assert choices("allocator") == registry.names()
    folder = ROOT / "benchmarks" / "workloads"
    support = {"__init__", "registry", "pieces", "budget"}
    made = {p.stem for p in folder.glob("*.py")} - support
    assert choices("workload") == sorted([*made, *shipped.names()])


@pytest.mark.parametrize("name", choices("workload"))
def test_a_workload_yaml_is_accepted(name, tmp_path):
    trace = "1: malloc 0x10 8\n"
    files = {"trace": trace, "synth": trace, "fleet": "1024, 2, 3\n"}
    file = tmp_path / "some.txt"
    file.write_text(files.get(name, ""))
    extra = [f"workload.path={file}"] if name in files else []
    job = check_job(composed(f"workload={name}", *extra))
    if name in shipped.names():
        assert job.workload_label == name
    else:
        assert job.workload["name"] == name


@pytest.mark.parametrize("group", ["kernel", "measure", "kernel/cost"])
def test_other_groups_are_accepted(group):
    for name in choices(group):
        job = check_job(composed(f"{group}={name}"))
        assert set(job.cost) == set(COSTS)


@pytest.mark.parametrize("name", choices("experiment"))
def test_an_experiment_begins_with_its_command(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    sweep = "-m " if "sweeper:" in text else ""
    assert text.splitlines()[1] == f"# python bench.py {sweep}experiment={name}"
    check_job(composed(f"experiment={name}"))


def test_metrics_are_declared_once_and_well():
    assert len(BY_NAME) == len(METRICS)
    assert {m.better for m in METRICS} <= {"", "lower", "higher"}
    assert all(m.meaning and m.unit for m in METRICS)
    assert {m.part for m in METRICS} == {"", "frames", "tlb"}

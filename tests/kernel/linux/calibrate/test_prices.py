"""Prices from samples, and the file that stores them; no process is started."""

import pytest

from kernel.cost import COSTS
from kernel.engine.output import write_text
from kernel.linux.calibrate.measures import SWAPPED, marginal, measures
from kernel.linux.calibrate.prices import (
    ADDITIONAL,
    MeasuredMachine,
    Price,
    PricesError,
    describe_machine,
    make_prices,
    price,
    read_table,
    table_text,
)
from tests.conftest import ROOT

MACHINE = MeasuredMachine("Some CPU @ 3 GHz: fast", virtual=True, release="6.18.0", thp="madvise")
REFERENCE = {name: 1000 + i for i, name in enumerate(COSTS)}


def found(**changes):
    """Return possible results of a process: 100, 101, … by name."""
    names = [measure.name for measure in measures(0, swap=True)]
    return {name: 100.0 + i for i, name in enumerate(names)} | changes


# --- pricing --------------------------------------------------------------------------------------


def fake_timer(n, *, fixed=700, unit=25, delay=0):
    return fixed + n * unit + delay


def test_fixed_costs_cancel_out():
    sizes = (64, 320)
    columns = [[fake_timer(n) for _ in range(5)] for n in sizes]
    assert marginal(sizes, *columns) == 25


def test_a_few_disturbed_batches_do_not_change_the_result():
    sizes = (64, 320)
    calm = [fake_timer(sizes[0])] * 7
    disturbed = [fake_timer(sizes[1], delay=d) for d in (0, 0, 9_000_000, 0, 0, 4_000, 0)]
    assert marginal(sizes, calm, disturbed) == 25


def test_median_and_quartiles():
    assert price([5, 1, 4, 2, 3]) == Price(3, 2, 4, 5)
    assert price([7.5]) == Price(7.5, 7.5, 7.5, 1)
    assert price([1, 2]) == Price(1.5, 1.25, 1.75, 2)


def test_derived_prices_are_computed_per_process():
    processes = [
        found(returned_by_madvise=a, returned_by_munmap=b, swapped_neighbourhood=s)
        for a, b, s in ((100, 300, 64), (400, 200, 128), (1000, 0, 6400))
    ]
    made = make_prices(processes, REFERENCE, 64)
    assert made["page_returned"] == Price(300, 250, 400, 3)
    assert made["swap_out"] == Price(2, 1.5, 51, 3)
    assert made["brk"].ns == found()["brk"]


def test_an_unmeasured_price_keeps_the_reference_value():
    processes = [found(mlock="mlock: EPERM", returned_by_munmap="munmap: EINVAL")] * 3
    for process in processes:
        process.pop("fault_major", None)
        process.pop("swapped_neighbourhood", None)
    made = make_prices(processes, REFERENCE, 64)
    for name, reason in (
        ("mlock", "mlock: EPERM"),
        ("page_returned", "munmap: EINVAL"),
        ("fault_major", "the host has no swap"),
        ("swap_out", "the host has no swap"),
    ):
        assert made[name] == Price(*(REFERENCE[name],) * 3, 0, reason)
    assert "returned_by_munmap" not in made


def test_a_price_is_taken_from_the_processes_that_measured_it():
    processes = [found(fault_huge=v) for v in (10.0, "small pages", 30.0)]
    assert make_prices(processes, REFERENCE, 64)["fault_huge"] == Price(20, 15, 25, 2)


@pytest.mark.parametrize("value", [-3.2, 0.0])
def test_no_price_is_zero_or_less(value):
    made = make_prices([found(brk=value, page_moved=value)], REFERENCE, 64)
    assert made["brk"].ns == REFERENCE["brk"]
    assert made["brk"].reason.startswith("below the noise")
    assert "page_moved" not in made


def test_every_price_comes_from_a_measure():
    names = {measure.name for measure in measures(0, swap=True)}
    assert set(COSTS) - names == {"page_returned", "swap_out"}
    assert set(ADDITIONAL) <= names
    without = {measure.name for measure in measures(0, swap=False)}
    assert names - without == {"fault_major", "swapped_neighbourhood"}
    assert SWAPPED[0] < SWAPPED[1]


# --- the file -------------------------------------------------------------------------------------


def test_the_reference_prices_every_kind_in_the_order_of_the_table():
    assert list(read_table(ROOT / "conf" / "kernel" / "cost" / "reference.yaml")) == list(COSTS)


def test_the_file_reads_back(tmp_path):
    made = make_prices([found(), found(brk=150.25), found()], REFERENCE, 64)
    path = tmp_path / "host.yaml"
    write_text(path, table_text(made, MACHINE))
    table = read_table(path)
    assert list(table) == list(COSTS)
    for name, value in table.items():
        assert value == pytest.approx(made[name].ns, abs=0.05)


def test_the_file_names_the_machine_and_the_unmeasured_prices():
    made = make_prices([found(mlock="mlock: EPERM"), found(brk=200.0)], REFERENCE, 64)
    lines = table_text(made, MACHINE).splitlines()
    assert str(MACHINE) in lines[1]
    middle = (found()["brk"] + 200) / 2
    assert any(line.startswith(f"brk: {middle:.1f}  # ") for line in lines)
    assert any(line.endswith(", 2 processes") for line in lines)
    made = make_prices([found(mlock="mlock: EPERM")], REFERENCE, 64)
    text = table_text(made, MACHINE)
    expected = f"mlock: {REFERENCE['mlock']:.1f}  # reference value, not measured: mlock: EPERM"
    assert expected in text.splitlines()
    assert "\n# syscall_floor: " in text


def test_hydra_reads_the_file(tmp_path):
    from benchmarks.run.compose import compose
    from benchmarks.run.job import check_job

    folder = tmp_path / "kernel" / "cost"
    folder.mkdir(parents=True)
    made = make_prices([found()], REFERENCE, 64)
    write_text(folder / "elsewhere.yaml", table_text(made, MACHINE))
    job = check_job(compose(["kernel/cost=elsewhere", f"hydra.searchpath=[file://{tmp_path}]"]))
    assert job.cost["brk"] == pytest.approx(found()["brk"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("brk: [1", "not valid YAML"),
        ("- 1", "not a table"),
        ("mmap: 1", "brk is missing"),
        ("brk: true", "brk=True: expected nanoseconds"),
        ("brk: -1", "brk=-1: expected nanoseconds"),
        ("brq: 1", "brq: no such price"),
    ],
)
def test_an_error_in_a_table_is_reported(tmp_path, text, message):
    path = tmp_path / "reference.yaml"
    path.write_text(text)
    with pytest.raises(PricesError, match=message):
        read_table(path)
    with pytest.raises(PricesError, match="No such file"):
        read_table(tmp_path / "none.yaml")


def test_the_machine_is_described_without_its_name(tmp_path):
    cpuinfo, thp = tmp_path / "cpuinfo", tmp_path / "enabled"
    cpuinfo.write_text("model name\t: A: B\nflags\t\t: fpu hypervisor\n\nmodel name\t: C\n")
    thp.write_text("always [madvise] never\n")
    machine = describe_machine(cpuinfo, thp)
    assert (machine.cpu, machine.virtual, machine.thp) == ("A: B", True, "madvise")
    cpuinfo.write_text("flags : fpu\n")
    machine = describe_machine(cpuinfo, tmp_path / "absent")
    assert (machine.cpu, machine.virtual, machine.thp) == ("unknown processor", False, "none")

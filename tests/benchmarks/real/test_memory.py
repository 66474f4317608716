"""The reported metrics of a real process are what it did."""

import os

import numpy as np
import pytest

from allocators.base import registry
from benchmarks import workloads
from benchmarks.events.events import (
    ALIGNED,
    CALLOC,
    FREE,
    MALLOC,
    REALLOC,
    TOUCH_WRITE,
    make_events,
    operation_count,
    slot_count,
)
from benchmarks.real import machine_code, memory
from benchmarks.real.memory import RealRun, clean_seconds
from benchmarks.real.process import PAGE, RealProcess, prepare
from benchmarks.replay.metrics import BY_NAME, OF_NATIVE_RUNS
from benchmarks.replay.simulation import OBSERVED, Simulation
from benchmarks.workloads import Workload
from kernel.config import KernelConfig
from kernel.cost import COSTS
from kernel.linux.host.process import HostError
from kernel.maps import FRESH_PROCESS, parse_maps

from .conftest import library

SMALL = {"name": "churn", "operations": 30_000, "live": 1500, "seed": 3}
MIB = 1 << 20


def workload(*rows, touch="all"):
    """Build a workload from events (op, slot, size, align log2, offset)."""
    padded = np.array([(*row, *(0,) * (5 - len(row))) for row in rows], "i8")
    op, slot, size, align, offset = padded.T
    events = make_events(op, slot, size, align=align, offset=offset)
    return Workload(
        name="rows",
        label="rows",
        events=events,
        program=None,
        stream=None,
        slots=slot_count(events),
        operations=operation_count(events),
        fingerprint="",
        touch=touch,
        seed=1,
        provenance={},
    )


def test_free_gets_the_address_that_malloc_returned(glibc):
    rows = [(MALLOC, 0, 24), (MALLOC, 1, 24), (FREE, 0, 0), (MALLOC, 2, 20), (FREE, -1, 0)]
    rows += [(ALIGNED, 3, 100, 12), (REALLOC, 4, 40), (REALLOC, 4, 0), (CALLOC, 5, 40)]
    events = workload(*rows).events
    with RealProcess(glibc, slots=6, touch="all") as real:
        answers, _ = next(real.play(prepare(events)))
    first, second, freed, third, null, aligned, grown, gone, cleared = answers["address"].tolist()
    assert (second - first, third, freed, null, gone) == (32, first, 0, 0, 0)
    assert first % PAGE == 0x2A0
    assert aligned % 4096 == 0
    assert grown > second
    assert cleared != grown  # calloc does not take from the tcache (glibc before 2.41)
    assert answers["place"].tolist() == list(range(len(rows)))


@pytest.mark.hardening(12)
@pytest.mark.parametrize("allocate", [MALLOC, CALLOC, REALLOC, ALIGNED])
@pytest.mark.parametrize(
    ("touch", "faults", "resident"),
    [("all", 257, 257), ("read", 257, 1), ("first", 1, 1), ("nothing", 1, 1)],
)
def test_faults_and_memory_of_a_mapped_block(glibc, touch, faults, resident, allocate):
    # A first small block makes the C library create its heap; the large one is mapped: 257 pages
    # including its header, which malloc always writes; calloc does not clear it.
    rows = [(MALLOC, 0, 24), (allocate, 1, MIB), (FREE, 1, 0)]
    before = RealRun(glibc, workload(*rows[:1], touch=touch)).metrics()
    after = RealRun(glibc, workload(*rows, touch=touch)).metrics()
    assert after["faults"] - before["faults"] == faults
    assert after["peak_rss"] - before["end_rss"] == resident * PAGE
    assert after["peak_heap"] - before["end_heap"] == 257 * PAGE
    assert after["end_heap"] == before["end_heap"]
    assert after["end_rss"] == before["end_rss"]
    changed = {n for n in OF_NATIVE_RUNS if n.startswith("syscalls_") and after[n] != before[n]}
    assert changed == {"syscalls_mmap", "syscalls_munmap"}
    assert after["peak_live"] == MIB + 24


@pytest.mark.hardening(12)
@pytest.mark.parametrize("pages", [2, 257])
def test_a_process_starts_where_a_simulated_one_does(pages):
    fresh, gib = parse_maps(FRESH_PROCESS), 1 << 30
    glibc = library("native/glibc", tunables={"mmap_threshold": 4096})
    rows = [(MALLOC, 0, 24), (MALLOC, 1, 130_000), (MALLOC, 2, pages * PAGE - 100)]
    with RealProcess(glibc, slots=3, touch="nothing") as real:
        events = workload(*rows).events  # the second leaves less than two pages of the heap
        small, _, mapped = next(real.play(prepare(events)))[0]["address"].tolist()
        assert real.own == (0, 0, 0)
    mappings = fresh.areas["vm_start"][fresh.areas["vm_start"] > fresh.start_brk].min()
    assert (small - 0x2A0 - fresh.start_brk) % gib == 0
    assert (mapped - 16 + pages * PAGE - int(mappings)) % gib == 0


@pytest.mark.hardening(12)
@pytest.mark.skipif(os.confstr("CS_GNU_LIBC_VERSION") != "glibc 2.36", reason="ptmalloc is 2.36's")
@pytest.mark.usefixtures("plain")
def test_large_alignments_cost_a_real_process_what_they_cost_a_simulated_one(glibc):
    random = np.random.default_rng(5)
    rows = [(ALIGNED, i, int(random.integers(1, 3 * MIB)), 12 + i % 10) for i in range(40)]
    rows += [(FREE, int(i), 0) for i in random.permutation(40)[:30]]
    rows += [(ALIGNED, 40 + i, int(random.integers(1, MIB)), 21 - i % 6) for i in range(40)]
    found = RealRun(glibc, workload(*rows)).metrics()
    simulation = Simulation(registry.load("ptmalloc"), workload(*rows), KernelConfig(), OBSERVED)
    simulation.replay()
    simulated = simulation.metrics(dict.fromkeys(COSTS, 1.0))
    assert found == {name: simulated[name] for name in found}


def test_touch_events_touch(glibc):
    # The last byte before page 3 of the mapping, and the first byte of that page.
    rows = [(MALLOC, 0, MIB), (TOUCH_WRITE, 0, 2, 0, 3 * PAGE - 17)]
    before = RealRun(glibc, workload(*rows[:1], touch="nothing")).metrics()
    after = RealRun(glibc, workload(*rows, touch="nothing")).metrics()
    assert after["faults"] - before["faults"] == 2


def test_metrics_derived_from_events_do_not_depend_on_the_allocator(glibc):
    churn = workloads.load(SMALL)
    run = RealRun(glibc, churn)
    found = run.metrics()
    live, peak, sizes = 0, 0, {}
    for op, slot, size in zip(churn.events.op, churn.events.slot, churn.events.size, strict=True):
        if op == MALLOC:
            sizes[slot] = int(size)
            live += int(size)
        elif op == FREE:
            live -= sizes.pop(slot)
        peak = max(peak, live)
    assert (found["peak_live"], found["end_live"]) == (peak, live)
    assert found["operations"] == churn.operations == run.events
    assert found["end_heap"] == (run.end.writable - run.start.writable) * PAGE
    assert found["end_rss"] == (run.end.private - run.start.private) * PAGE
    assert set(found) == {n for n in OF_NATIVE_RUNS if not BY_NAME[n].timed}
    timeline = run.timeline()
    assert timeline["rss"].max() <= found["peak_rss"]
    assert timeline["rss"][-1] == found["end_rss"]
    assert timeline["syscalls"][-1] == found["syscalls"]
    assert (np.diff(timeline["minor_faults"]) >= 0).all()


def test_glibc_is_deterministic(glibc):
    churn = workloads.load(SMALL)
    first, second = RealRun(glibc, churn), RealRun(glibc, churn)
    assert first.metrics() == second.metrics()
    assert first.r.checksum == second.r.checksum


def test_if_calls_cannot_be_trapped_only_their_counts_are_missing(glibc, monkeypatch):
    grow = workloads.load({"name": "realloc_growth", "operations": 20_000, "seed": 1})
    seen = RealRun(glibc, grow)
    monkeypatch.setattr(RealProcess, "_trap_calls", lambda self: False)
    unseen = RealRun(glibc, grow)
    assert seen.sees_calls
    assert not unseen.sees_calls
    known, unknown = seen.metrics(), unseen.metrics()
    assert known["syscalls"] > 2
    for name, value in known.items():
        assert unknown[name] == (None if name.startswith("syscalls") else value), name


def test_batches_and_full_logs_change_nothing(glibc, monkeypatch):
    grow = workloads.load({"name": "realloc_growth", "operations": 20_000, "seed": 1})
    whole = RealRun(glibc, grow).metrics()
    monkeypatch.setattr(RealProcess, "BATCH", 1000)
    monkeypatch.setattr(RealProcess, "LOG_ROOM", machine_code.MARGIN + 3)
    assert RealRun(glibc, grow).metrics() == whole


def test_a_program_sees_the_addresses_it_gets(glibc, monkeypatch):
    robson = workloads.load({"name": "robson", "budget": 65536, "doublings": 4})
    found = RealRun(glibc, robson).metrics()
    assert found["fragmentation_peaks"] > 50  # impossible for glibc under a fixed trace
    monkeypatch.setattr(memory, "_COLLECTED", 7)
    assert RealRun(glibc, robson).metrics() == found


def test_a_process_that_is_not_observed_records_nothing(glibc):
    churn = workloads.load(SMALL)
    with RealProcess(glibc, slots=churn.slots, touch="all", observe=False) as real:
        pieces = list(memory.play_workload(real, churn))
        assert sum(len(log) for _, _, log in pieces) == 0
    assert clean_seconds(glibc, churn) > 0


@pytest.mark.parametrize("name", ["native/jemalloc", "native/mimalloc", "native/tcmalloc"])
def test_other_libraries(name):
    found = RealRun(library(name), workloads.load(SMALL)).metrics()
    assert found["failed"] == 0
    assert found["peak_heap"] >= found["peak_live"]
    assert found["faults"] > 0


def shrinking(count: int):
    """Return events whose memory loses digits while the log's records are written in place again.

    A MiB, mapped, comes and goes: first beside 200 MiB (five digits of pages), then alone (three).
    """
    pair = [(MALLOC, 1, MIB), (FREE, 1, 0)]
    return [(MALLOC, 0, 200 * MIB), *pair * count, (FREE, 0, 0), *pair * count]


@pytest.mark.hardening(13)
@pytest.mark.parametrize("room", [machine_code.LOG_ROOM, machine_code.MARGIN + 3])
def test_memory_that_shrinks_is_read_right(monkeypatch, room):
    glibc = library("native/glibc", tunables={"mmap_threshold": 1 << 17})  # fixed: a MiB is mapped
    monkeypatch.setattr(RealProcess, "LOG_ROOM", room)
    rows = workload(*shrinking(100), touch="nothing")
    whole = RealRun(glibc, rows)
    monkeypatch.setattr(RealProcess, "BATCH", 50)
    found = RealRun(glibc, rows)
    assert found.metrics() == whole.metrics()
    for name, column in whole.timeline().items():
        assert found.timeline()[name].tolist() == column.tolist(), name
    assert found.end.writable < 10_000 <= 200 * MIB // PAGE  # a digit less


@pytest.mark.hardening(13)
def test_an_unreadable_statm_is_one_line():
    log = np.zeros(2, machine_code.RECORD)
    log["statm"], log["length"] = b"1 2 3 4 5 6 7\n", (14, -9)
    with pytest.raises(HostError, match="cannot read /proc/self/statm"):
        memory._page_counts(log)

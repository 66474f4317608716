"""The events of a workload plugin are checked as a trace's are; the message has file and event."""

import re

import pytest

from allocators.base import registry
from benchmarks import workloads
from benchmarks.events.events import make_events
from benchmarks.replay.simulation import OBSERVED, AllocatorFailure, Simulation
from benchmarks.workloads import WorkloadError
from benchmarks.workloads.base import registry as workload_registry
from kernel.config import KernelConfig
from kernel.engine.watchdog import SoftLockup

pytestmark = [pytest.mark.hardening(8), pytest.mark.usefixtures("plain")]

STORED = """
import numpy as np

from benchmarks.events.events import Events, make_events


def generate(s, random):
    {body}
"""

COMPILED = """
import numpy as np

from kernel.engine.jit import jit
from kernel.engine.record import record

FIELDS = ["op", "slot", "request", "align", "offset", "i"]


def length(s):
    return {length}


def slots(s):
    return {slots}


def start(s, random):
    return record(np.dtype([(f, "{kind}") for f in FIELDS]))


@jit
def next_event(g, last):
    g.i += 1
    g.op = 0
    g.slot = g.i - 1
    g.request = 8
    if g.i == 5:
        {body}
    return g.i < 9
"""


def refused(tmp_path, source):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(WorkloadError) as caught:
        workloads.load({"name": str(path)})
    text = str(caught.value)
    assert re.match(rf"workload mine: {path}:\d+: ", text)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ("[0, 99], [0, 1], [8, 8]", "event 1: impossible columns (op 99"),
        ("[0, 300], [0, 1], [8, 8]", "event 1: op 300: expected a whole number, 0 to 255"),
        ("[0, -1], [0, 1], [8, 8]", "event 1: op -1: expected"),
        ("[0, 1, 1], [0, 0, 0], [8, 0, 0]", "event 2: free of slot 0, which is empty"),
        ("[0, 0], [0, 0], [8, 8]", "event 1: malloc into slot 0, which is in use"),
        ("[0, 0], [0, 1], [8, -5]", "event 1: impossible columns"),
        ("[0, 0], [0, 1], [8, 1.5]", "event 1: size 1.5: expected a whole number"),
        ("[0, 0], [0, 1], [8, np.nan]", "event 1: size nan"),
        ("[0, 0], [0, 1], [8, np.inf]", "event 1: size inf"),
        ("[0, 0], [0, 1], [8, 2.0**63]", "event 1: size 9.22"),
        ("[0, 0], [0, 1], [8, 1 << 62]", "event 1: 4611686018427387904 bytes: sizes and"),
        ("[0, 0], [0, 1], [8, 1 << 70]", "event 1: size 1180591620717411303424"),
        ("[0, 0], [0, 1], [8, None]", "event 1: size None"),
        ("[0, 0], [0, 1], np.ma.masked_equal([8, 9], 9)", "event 1: size is masked: expected"),
        ("[0, 0], [0, 1], ['a', 'b']", "column size holds <U1"),
        ("[0, 0], [0, 1], [8]", "column size has 1 rows, op has 2"),
        ("[0, 0], [], [8, 8]", "column slot has 0 rows, op has 2"),
        ("[0, 0], [0, 1], [[8], [8]]", "column size has 2 dimensions"),
        ("[0, 0], [0, 2**31 - 1], [8, 8]", "event 1: slot 2147483647 in a trace of 2 events"),
        ("[0, 0], [0, 2**40], [8, 8]", "event 1: slot 1099511627776"),
        ("[0, 0], [0, -7], [8, 8]", "event 1: impossible columns (op 0, slot -7"),
        ("[0, 0], [0, 1], [8, 8], thread=[0, -1]", "event 1: impossible columns"),
        ("[0, 0], [0, 1], [8, 8], thread=[0, 5000]", "event 1: thread 5000: must be 0 to 4095"),
        ("[0, 5], [0, 0], [8, 80]", "event 1: touch_read of bytes 0 to 80 of an object of 8"),
    ],
)
def test_an_impossible_event_is_refused(tmp_path, events, message):
    source = STORED.format(body=f"return make_events({events})")
    assert message in refused(tmp_path, source)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("make_events([0], [0], [8])", "generate() returns NoneType: expected Events"),
        ("return [0], [0], [8]", "generate() returns tuple"),
        ("return Events(*[np.array([0.5])] * 8)", "event 0: op 0.5: expected a whole number"),
        ("1 / 0", ":8: ZeroDivisionError: division by zero"),
        ("import os; os._exit(0)", ":8: SystemExit: 0"),
        ("return s.foo", ":8: AttributeError: "),
    ],
)
def test_generate_must_return_events(tmp_path, body, message):
    assert message in refused(tmp_path, STORED.format(body=body))


def test_whole_numbers_of_any_type_are_columns():
    events = make_events([0.0, 1.0], [0, 0], [8.0, 0], thread=[True, False])
    assert events.op.tolist() == [0, 1]
    assert events.size.tolist() == [8, 0]
    assert events.thread.tolist() == [1, 0]


def program(tmp_path, body="pass", length="9", slots="20", kind="i8"):
    path = tmp_path / "mine.py"
    path.write_text(COMPILED.format(body=body, length=length, slots=slots, kind=kind))
    return path


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("g.op = 99", "event 4, next_event(): impossible columns (op 99"),
        ("g.slot = 20", "event 4, next_event(): slot 20: slots() allows 20"),
        ("g.slot = -3", "event 4, next_event(): impossible columns (op 0, slot -3"),
        ("g.slot = 2", "event 4, next_event(): malloc into slot 2, which is in use"),
        ("g.op = 1", "event 4, next_event(): free of slot 4, which is empty"),
        ("g.request = -1", "event 4, next_event(): impossible columns"),
        ("g.request = 1 << 50", "event 4, next_event(): 1125899906842624 bytes: sizes"),
        ("g.op, g.align = 4, 77", "event 4, next_event(): alignment 2**77: sizes and"),
        ("g.op, g.slot, g.offset = 6, 2, 5", "touch_write of bytes 5 to 13 of an object of 8"),
    ],
)
def test_an_impossible_event_of_a_compiled_generator_is_refused(tmp_path, body, message):
    path = program(tmp_path, body)
    workload = workloads.load({"name": str(path)})
    simulation = Simulation(
        registry.load("bump"), workload, KernelConfig(), OBSERVED | {"CHECK_EVERY": 0}, guarded=True
    )
    with pytest.raises(WorkloadError) as caught:
        simulation.replay()
    text = str(caught.value)
    assert text.startswith(f"workload mine: {path}:")
    assert message in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": "-5"}, "length() returns -5: expected a whole number"),
        ({"length": "None"}, "length() returns None"),
        ({"slots": "1.5"}, "slots() returns 1.5"),
        ({"slots": "1 << 50"}, "slots() returns 1125899906842624"),
        ({"slots": "1 // 0"}, "ZeroDivisionError"),
        ({"kind": "f8"}, "field op of the record is float64"),
        ({"body": "g.opp = 1"}, ":29: next_event() uses g.opp: it has op, slot"),
    ],
)
def test_a_compiled_generator_that_no_replay_could_run(tmp_path, changes, message):
    assert message in refused(tmp_path, program(tmp_path, **changes).read_text())


def test_the_record_of_a_compiled_generator_is_no_array(tmp_path):
    source = program(tmp_path).read_text().replace("return record(", "return np.zeros(1, ")
    assert ":18: start() must return a record" in refused(tmp_path, source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def read(s, progress):\n    pass", ":1: read() must return events and a dict"),
        ("def read(s, progress):\n    return 1, {1: object()}", ":1: read() must return events"),
        ("def read(s, progress):\n    return 1, {}", ":1: read() returns int: expected Events"),
        ("def read(s, progress):\n    1 / 0", ":2: ZeroDivisionError: division by zero"),
        ("def read(s, progress):\n    raise SystemExit(0)", ":2: SystemExit: 0"),
        ("generate = 5", ":1: generate must be a function"),
        ("def generate(s): pass\n\ncheck_settings = 5", ":3: check_settings must be a function"),
        ("def next_event(g, last): pass\nstart = length = slots = int", ":1: next_event must be"),
    ],
)
def test_functions_of_another_kind(tmp_path, source, message):
    assert message in refused(tmp_path, source)


@pytest.mark.hardening(7)
def test_an_exception_in_a_compiled_generator_names_its_file(tmp_path):
    path = program(tmp_path, "g.slot = 3 // int(g.i - 5)")
    workload = workloads.load({"name": str(path)})
    simulation = Simulation(registry.load("bump"), workload, KernelConfig(), OBSERVED, guarded=True)
    with pytest.raises(AllocatorFailure, match=rf"^{path}:29: event 4, next_event\(\): Zero"):
        simulation.replay()


@pytest.mark.hardening(6)
def test_a_loop_in_a_compiled_generator_names_its_file(tmp_path, monkeypatch):
    path = program(tmp_path, "while g.i: g.op = 0")
    workload = workloads.load({"name": str(path)})
    simulation = Simulation(registry.load("bump"), workload, KernelConfig(), OBSERVED)
    monkeypatch.setattr("kernel.engine.watchdog.PATIENCE", 0.5)
    with pytest.raises(SoftLockup, match=rf"^{path}:22: event 4, next_event\(\) has not ended"):
        simulation.replay()


#: Loops that do end, after a while: their threads would slow down the tests that follow.
LOOP = "while time.monotonic() < END: pass"
CLOCK = "import time\n\nEND = time.monotonic() + 2\n"


@pytest.mark.hardening(6)
@pytest.mark.parametrize(
    ("source", "what"),
    [
        (STORED.format(body=LOOP), ":11: generate() has not ended after 0.5 s"),
        (LOOP, ":4: the import has not ended after 0.5 s: it loops for ever"),
        (
            f"def generate(s, random): pass\n\ndef check_settings(s):\n    {LOOP}",
            ":7: check_settings() has not ended after 0.5 s",
        ),
    ],
)
def test_a_loop_in_python_code_is_ended(tmp_path, monkeypatch, source, what):
    monkeypatch.delenv("NUMBA_DISABLE_JIT")  # without the JIT there is no limit: for a debugger
    monkeypatch.setattr("kernel.engine.watchdog.PATIENCE", 0.5)
    monkeypatch.setattr(workload_registry, "_PATIENCE", 0.5)
    assert what in refused(tmp_path, CLOCK + source)


def test_two_files_of_one_stem_have_two_labels(tmp_path):
    labels = []
    for name, size in (("a", 8), ("b", 16)):
        folder = tmp_path / name
        folder.mkdir()
        path = folder / "mine.py"
        path.write_text(STORED.format(body=f"return make_events([0], [0], [{size}])"))
        labels.append(workloads.label({"name": str(path)}))
    assert labels[0] != labels[1]
    assert all(re.fullmatch("mine@[0-9a-f]{6}", label) for label in labels)

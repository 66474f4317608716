"""Wild numbers, damaged metadata and files that never end cost nothing but one line."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import FREE, MALLOC, TOUCH_WRITE, make_events
from benchmarks.events.facts import Audit, most_slots
from benchmarks.trace import formats
from benchmarks.trace.__main__ import main
from benchmarks.trace.formats import objects
from benchmarks.workloads import WorkloadError
from tests.conftest import ROOT

pytestmark = pytest.mark.hardening(16)

_FACTS = {"events": 2, "operations": 2, "peak_live": 8, "peak_live_objects": 1}
_FACTS |= {"slots": 1, "fingerprint": "0" * 64}


def write(path, metadata=None, **columns):
    """Write a trace of two events, some columns of which are given, with ``metadata`` as text."""
    given = {"op": [MALLOC, FREE], "slot": [0, 0], "size": [8, 0]} | columns
    types = dict(parquet._dtypes())
    table = pa.table({n: pa.array(np.array(c, types[n])) for n, c in given.items()})
    metadata = '{"schema": 1, "provenance": {}}' if metadata is None else metadata
    pq.write_table(table.replace_schema_metadata({"malloc-bench": metadata}), path)
    return path


def refused(path, capsys, said):
    """Assert that every way to read ``path`` ends with one short line that contains ``said``."""
    for command in ("info", "cat"):
        assert main([command, str(path)]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert said in shown.err
        assert shown.err.count("\n") == 1
        assert shown.err[:-1].isprintable()
        assert len(shown.err) < len(str(path)) + 300
    for how in ("always", "auto"):
        with pytest.raises(WorkloadError) as caught:
            workloads.load({"name": "trace", "path": str(path), "stream": how})
        assert said in str(caught.value)


WILD = [
    ({"slot": [2**31 - 1] * 2}, "event 0: slot 2147483647 in a trace of 2 events"),
    ({"slot": [0, most_slots(2)]}, f"event 1: slot {most_slots(2)} in a trace of 2 events"),
    ({"size": [2**63 - 1, 0]}, "event 0: 9223372036854775807 bytes: sizes and"),
    ({"size": [2**46 + 1, 0]}, "event 0: 70368744177665 bytes: sizes and"),
    ({"size": [8, 2**46 + 1]}, "event 1: 70368744177665 bytes"),
    ({"align": [47, 0]}, "event 0: alignment 2**47: sizes and alignments go up to 2**46"),
    ({"thread": [-(2**31), 0]}, "event 0: impossible columns"),
]


@pytest.mark.parametrize(("columns", "said"), WILD, ids=[said for _, said in WILD])
def test_wild_numbers(tmp_path, capsys, columns, said):
    refused(write(tmp_path / "t.parquet", **columns), capsys, said)


def test_the_largest_numbers_that_a_trace_has(tmp_path, capsys):
    path = write(tmp_path / "t.parquet", size=[2**46, 2**46], thread=[0, 2**31 - 1])
    assert main(["info", str(path), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert [row["thread"] for row in about["by_thread"]] == [0, 2**31 - 1]
    assert about["frees_by_another_thread"] == 1
    assert main(["info", str(path)]) == 0


def test_requests_are_counted_without_overflow():
    n = 1 << 16
    op, slot = np.tile([MALLOC, FREE], n), np.zeros(2 * n)
    events = make_events(op, slot, np.where(op == MALLOC, 2**46, 0))
    audit = Audit()
    assert audit.add(events) is None
    assert audit.add(events) == f"event {2 * n}: a trace requests at most {2**62} bytes in total"


METADATA = [
    ("null", "damaged metadata: malloc-bench is None"),
    ("5", "damaged metadata: malloc-bench is 5"),
    ('"text"', "damaged metadata: malloc-bench is 'text'"),
    ('["schema"]', "damaged metadata"),
    ("{", "damaged trace"),
    ("[" * 200_000, "nested too deeply"),
    ('{"schema": NaN}', "NaN is not a JSON number"),
    ('{"schema": "\\u001b[31m"}', r"schema version '\x1b[31m'"),
    ('{"schema": 1, "provenance": null}', "damaged metadata: provenance None"),
    ('{"schema": 1, "provenance": 5}', "damaged metadata: provenance 5"),
    ('{"schema": 1, "provenance": {"dropped": 5}}', "damaged metadata: provenance {"),
    ('{"schema": 1, "provenance": {"dropped": {"x": "y"}}}', "damaged metadata: provenance {"),
    ('{"schema": 1, "provenance": {"first_problem": 7}}', "damaged metadata: provenance {"),
    ('{"schema": 1, "provenance": {"first_problem": ["a"]}}', "damaged metadata: provenance {"),
    ('{"schema": 1, "provenance": {"format": [1]}}', "damaged metadata: provenance {"),
]


@pytest.mark.parametrize(("text", "said"), METADATA, ids=[text[:50] for text, _ in METADATA])
def test_damaged_metadata(tmp_path, capsys, text, said):
    refused(write(tmp_path / "t.parquet", text), capsys, said)


@pytest.mark.parametrize(
    "facts",
    [
        {"slots": 1 << 40},
        {"peak_live_objects": 3},
        {"operations": 3},
        {"peak_live": 1 << 63},
        {"slots": -1},
        {"slots": None},
        {"more": 1},
    ],
)
def test_facts_that_cannot_be(tmp_path, facts):
    """Facts size the tables of a replay; impossible ones are computed anew."""
    metadata = json.dumps({"schema": 1, "facts": _FACTS | facts})
    path = write(tmp_path / "t.parquet", metadata)
    workload = workloads.load({"name": "trace", "path": str(path), "stream": "always"})
    assert (workload.slots, workload.operations) == (1, 2)


def test_names_in_metadata_reach_no_terminal(tmp_path, capsys):
    dropped = {"\x1b[2J": 1, "y" * 9999: 2}
    provenance = {"format": "[red]\x1b[31m", "unit": "\x07" * 999, "dropped": dropped}
    provenance["first_problem"] = [1, "\x1b" * 999]
    metadata = json.dumps({"schema": 1, "provenance": provenance})
    assert main(["info", str(write(tmp_path / "t.parquet", metadata))]) == 0
    shown = capsys.readouterr()
    assert "[red]\\x1b[31m" in shown.out
    for line in [*shown.out.splitlines(), *shown.err.splitlines()]:
        assert line.isprintable()
        assert len(line) < len(str(tmp_path)) + 400


def test_no_rows(tmp_path, capsys):
    path = write(tmp_path / "t.parquet", op=[], slot=[], size=[])
    assert main(["info", str(path)]) == 0
    for how in ("always", "never"):
        with pytest.raises(WorkloadError, match="no event allocates or frees; nothing to replay"):
            workloads.load({"name": "trace", "path": str(path), "stream": how})


def test_row_groups_are_read_in_pieces(tmp_path, monkeypatch):
    """Many rows take a few bytes in a file, so the size of a row group bounds nothing."""
    n = 100_000
    path = write(
        tmp_path / "t.parquet",
        op=[MALLOC] + [TOUCH_WRITE] * (n - 1),
        slot=np.zeros(n),
        size=np.ones(n),
        offset=np.zeros(n),
    )
    monkeypatch.setattr(parquet, "ROW_GROUP", 1000)
    with parquet.Reader(path) as reader:
        assert reader._file.num_row_groups == 1
        lengths = [len(events.op) for events in reader.checked()]
    assert max(lengths) <= 1000
    assert sum(lengths) == n


def test_empty_lines_are_read_in_bounded_memory(tmp_path):
    """A line of one byte takes a row of fields; here all lines take less than 12 bytes each."""
    lines = 1 << 23
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    small.write_bytes(b"1: malloc 0x10 8\n")
    large.write_bytes(b"1: malloc 0x10 8\n" + b"\n" * lines)
    script = (
        "import resource, sys\n"
        "from benchmarks.trace.__main__ import main\n"
        "for path in sys.argv[1:]:\n"
        "    assert main(['head', path]) == 0\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", script, str(small), str(large)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = (int(line) for line in done.stdout.splitlines()[1::2])
    assert (after - before) * 1024 < 12 * lines


def test_a_limit_on_address_space_is_not_reached(tmp_path):
    """4 GiB are enough for files that ask for 16 and more."""
    files = [write(tmp_path / f"{i}.parquet", **columns) for i, (columns, _) in enumerate(WILD)]
    files.append(write(tmp_path / "thread.parquet", thread=[0, 2**31 - 1]))
    script = (
        "import sys\n"
        "from benchmarks.trace.__main__ import main\n"
        "sys.exit(sum(main(['info', path]) for path in sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )
    assert done.returncode == len(WILD), done.stderr
    assert len(done.stderr.splitlines()) == len(WILD)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1: malloc 0x10 70368744177665\n", ":1: malloc of 70368744177665 bytes with alignment"),
        ("1: memalign 0x10 140737488355328 8\n", ":1: aligned of 8 bytes with alignment 2**47"),
        ("9999999999999999999: malloc 0x10 8\n", ":1: expected"),
        ('{"op": "free", "id": 1, "a": ' + "[" * 200_000 + "\n", ":1: not JSON: nested too deeply"),
        ('{"op": "x\\u001b[31m' + "y" * 5000 + '", "id": 1}\n', ":1: unknown op 'x"),
        ("--7-- calloc(size,7) = 0x10\n", ":1: expected 'calloc(N,SIZE)' and its result"),
        ("v 1 1\nx 1\n+ 8 ffffffff 10\n", ":3: expected '+ SIZE BACKTRACE POINTER'"),
        ("1: malloc 0x10 8\n1: \x1b[31m" + "z" * 9999 + "\n", ":2: unknown operation"),
    ],
)
def test_wild_text(tmp_path, capsys, text, said):
    path = tmp_path / "t"
    path.write_text(text)
    refused(path, capsys, said)
    assert formats.load(path, strict=False)[1]["dropped"]


def test_too_large_is_no_problem_of_a_failed_request(tmp_path):
    path = tmp_path / "t"
    path.write_text("1: malloc 0x0 70368744177665\n1: malloc 0x10 70368744177664\n")
    events, provenance = formats.load(path)
    assert events.size.tolist() == [2**46]
    assert provenance["dropped"] == {objects.PROBLEM_NAMES[objects.FAILED]: 1}


@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
def test_files_that_never_end(tmp_path, capsys, kind):
    path = tmp_path / "t"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("t" if kind == "loop" else "/dev/zero")
    said = {"pipe": "is a pipe", "device": "is a device", "loop": "symbolic links"}[kind]
    refused(path, capsys, said)
    with pytest.raises(WorkloadError, match=said):
        workloads.load({"name": "fleet", "path": str(path)})
    assert main(["convert", str(path), str(tmp_path / "out")]) == 1

"""A damaged or impossible trace causes a one-line error with the position, and leaves no files."""

import gzip
import json
import os
import subprocess
import sys
import zipfile

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import FREE, MALLOC, OP_NAMES, REALLOC, TOUCH_WRITE, make_events
from benchmarks.trace import formats
from benchmarks.trace.__main__ import main
from benchmarks.workloads import WorkloadError
from tests.conftest import ROOT

LINES = [
    ("1: mallok 0x10 8", "unknown operation 'mallok' (known: malloc, free, realloc, calloc"),
    ("1: malloc 0x10", "expected 'malloc PTR SIZE', found 'malloc 0x10'"),
    ("1: malloc 0x10 8 9", "expected 'malloc PTR SIZE', found 'malloc 0x10 8 9'"),
    ("1: malloc 0x10 -8", "expected 'malloc PTR SIZE', found 'malloc 0x10 -8'"),
    ("1: malloc 0x10 99999999999999999999", "expected 'malloc PTR SIZE'"),
    ("1: malloc 0xzz 8", "expected 'malloc PTR SIZE'"),
    ("1: calloc 0x10 4294967296 4294967296", "expected 'calloc PTR N SIZE'"),
    ("1: memalign 0x10 24 8", "expected 'memalign PTR ALIGN SIZE'"),
    ("1: realloc 0x10 0x1000", "expected 'realloc NEW OLD SIZE'"),
    ("malloc 0x10 8", "expected '<thread>: <operation> <pointer> …'"),
    ("\x00\xff", "expected '<thread>: <operation> <pointer> …'"),
    ("1: free 0x10", "free of 0x10, which was never allocated"),
    ("1: free 0x2000", "double free of 0x2000, which was freed before"),
    ("1: realloc 0x10 0x77 8", "realloc of 0x77, which was never allocated"),
    ("1: realloc 0x10 0x3000 8", "realloc of 0x3000, which was freed before"),
    ("1: malloc 0x4000 8", "malloc returned 0x4000, which is still allocated"),
    ("1: realloc 0x5000 0x4000 8", "realloc returned 0x5000, which is still allocated"),
    ("1: free 0xb400007a12345678", "double free of 0xb400007a12345678"),
]


@pytest.mark.parametrize(("line", "message"), LINES, ids=[line for line, _ in LINES])
def test_line(android, line, message, capsys):
    android.write_text(android.read_text() + line + "\n1: malloc 0x10 8\n", encoding="latin-1")
    with pytest.raises(formats.TraceError) as caught:
        formats.load(android)
    assert f"{android}:14: {message}" in str(caught.value)
    assert not list(formats.cache_directory().iterdir())

    events, provenance = formats.load(android, strict=False)
    assert len(events.op) == 14
    assert sum(provenance["dropped"].values()) == 1
    said = capsys.readouterr().err
    assert "dropped 1 ×" in said
    assert f"line 14: {message}" in said
    # After a lenient import, a strict reader still reports the error.
    with pytest.raises(WorkloadError, match=":14: "):
        workloads.load({"name": "trace", "path": str(android)})
    lenient = workloads.load({"name": "trace", "path": str(android), "strict": False})
    assert lenient.label == "trace(small.txt, strict=false)"
    assert lenient.provenance["trace"]["dropped"] == provenance["dropped"]


def test_the_first_error_is_the_one_reported(android):
    good = android.read_text()
    for lines in (["1: free 0x10", "nonsense"], ["nonsense", "1: free 0x10"]):
        android.write_text(good + "\n".join(lines))
        with pytest.raises(formats.TraceError, match=":14: "):
            formats.load(android)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Alloc(8),\nFree(1),\n", ":2: free of number 1, which was never allocated"),
        ("Alloc(8),\nFree(0),\nFree(0),\n", ":3: double free of number 0"),
        (
            "Alloc(8),\nAlloc(x),\n",
            ":2: expected 'Alloc(SIZE),' or 'Free(NUMBER),', found 'Alloc x'",
        ),
        ("1\n2\n3\n4\na 0 8\na 0 8\n", ":6: malloc returned id 0, which is still allocated"),
        (
            "1\n2\n3\n4\na 0 8\nq 0\n",
            ":6: expected 'a ID SIZE', 'r ID SIZE' or 'f ID', found 'q 0'",
        ),
        ("1\n2\n3\n4\na 0 8\nf 1\n", ":6: free of id 1, which was never allocated"),
    ],
)
def test_other_formats(tmp_path, text, message):
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(formats.TraceError) as caught:
        formats.load(path)
    assert message in str(caught.value)


def zip_of(members):
    def make(path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for name, text in members.items():
                z.writestr(name, text)

    return make


def cut_zip(path):
    zip_of({"a.txt": "1: malloc 0x10 8\n" * 5000})(path)
    path.write_bytes(path.read_bytes()[:-30])


def broken_zip(path):
    """Write an archive with a member whose checksum is wrong."""
    zip_of({"a.txt": "".join(f"1: malloc {i * 16:#x} 8\n" for i in range(1, 9999))})(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def cut_gzip(path):
    data = gzip.compress(b"".join(b"1: malloc %#x 8\n" % (i * 16) for i in range(1, 9999)))
    path.write_bytes(data[: len(data) // 2])


FILES = [
    (lambda path: path.write_bytes(b""), "the file is empty"),
    (lambda path: path.write_bytes(b"\n\n"), "the trace is empty"),
    (lambda path: path.write_bytes(gzip.compress(b"")), "the trace is empty"),
    (lambda path: path.write_bytes(b"hello world\n"), "unknown trace format (known: "),
    (lambda path: path.write_bytes(os.urandom(1000).replace(b":", b"")), "unknown trace format"),
    (lambda path: path.mkdir(), "Is a directory"),
    (cut_zip, "truncated or damaged archive"),
    (broken_zip, "truncated or damaged archive"),
    (cut_gzip, "truncated or damaged archive (Compressed file ended"),
    (lambda path: path.write_bytes(b"\x1f\x8bnonsense"), "truncated or damaged gzip file"),
    (zip_of({}), "the archive is empty"),
    (zip_of({"a.txt": "x", "b.txt": "y"}), "contains 2 files (a.txt, b.txt); expected one"),
    (zip_of({"a.txt": ""}), "the trace is empty"),
    (lambda path: path.write_bytes(b"PAR1"), "truncated or damaged trace"),
    (lambda path: path.write_bytes(b"PAR1" + b"x" * 50 + b"PAR1"), "truncated or damaged trace"),
    (
        lambda path: pq.write_table(pa.table({"op": [1]}), path),
        "a Parquet file, but not a trace",
    ),
]


@pytest.mark.parametrize(("make", "message"), FILES, ids=[message for _, message in FILES])
def test_file(tmp_path, make, message, capsys):
    path = tmp_path / "broken"
    make(path)
    for arguments in (["info", str(path)], ["convert", str(path), str(tmp_path / "out.parquet")]):
        assert main(arguments) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"error: {path}")
        assert message in said.err
        assert said.err.count("\n") == 1
    with pytest.raises(WorkloadError, match="broken"):
        workloads.load({"name": "trace", "path": str(path)})
    assert not (tmp_path / "out.parquet").exists()
    assert {p.name for p in tmp_path.iterdir()} <= {"broken", "cache"}


def test_missing_file_on_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trace", "info", "nowhere.txt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "error: nowhere.txt: No such file or directory\n"
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 1


def test_output_that_cannot_be_written(android, tmp_path, capsys):
    assert main(["convert", str(android), str(tmp_path / "no" / "out.parquet")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["convert", str(android), str(android)]) == 1
    assert "would overwrite an input trace" in capsys.readouterr().err
    assert main(["convert", str(android), str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: ")


def test_a_reader_that_goes_away_is_no_traceback(android):
    done = subprocess.run(
        f"{sys.executable} -m benchmarks.trace info {android} --json | true",
        cwd=ROOT,
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


# --- Parquet traces ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([(FREE, 0, 0)], "event 0: free of slot 0, which is empty"),
        ([(MALLOC, 0, 8), (MALLOC, 0, 8)], "event 1: malloc into slot 0, which is in use"),
        (
            [(MALLOC, 0, 8), (REALLOC, 0, 0), (FREE, 0, 0)],
            "event 2: free of slot 0, which is empty",
        ),
        (
            [(MALLOC, 0, 8), (TOUCH_WRITE, 0, 9)],
            "event 1: touch_write of bytes 0 to 9 of an object",
        ),
        ([(TOUCH_WRITE, 3, 1)], "event 0: touch_write of slot 3, which is empty"),
        ([(MALLOC, -1, 8)], "event 0: impossible columns (op 0, slot -1, size 8)"),
        ([(MALLOC, 0, -8)], "event 0: impossible columns"),
        ([(len(OP_NAMES), 0, 8)], f"event 0: impossible columns (op {len(OP_NAMES)}"),
    ],
)
def test_impossible_events(tmp_path, events, message):
    path = tmp_path / "t.parquet"
    parquet.write(path, make_events(*zip(*events, strict=True)), {})
    with pytest.raises(formats.TraceError) as caught:
        formats.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def columns_of(**changes):
    columns = {"op": pa.array([0], "uint8"), "slot": pa.array([0], "int32")}
    return columns | {"size": pa.array([8], "int64")} | changes


@pytest.mark.parametrize(
    ("columns", "schema", "message"),
    [
        (columns_of(), 2, "a trace of schema version 2; this program reads version 1"),
        (columns_of(slot=pa.array([0], "int64")), 1, "column 'slot' is int64, not i4"),
        (columns_of(size=pa.array([None], "int64")), 1, "column 'size' has nulls"),
        ({"op": pa.array([0], "uint8")}, 1, "the column 'slot' is missing"),
    ],
)
def test_other_schemas(tmp_path, columns, schema, message):
    path = tmp_path / "t.parquet"
    metadata = {"malloc-bench": json.dumps({"schema": schema})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    with pytest.raises(formats.TraceError) as caught:
        formats.load(path)
    assert message in str(caught.value)


def test_flipped_bytes_of_a_parquet_trace(tmp_path):
    path = tmp_path / "t.parquet"
    w = workloads.load({"name": "churn", "operations": 3000, "live": 100})
    parquet.write(path, w.events, {})
    data = path.read_bytes()
    caught = []
    footer = len(data) - int.from_bytes(data[-8:-4], "little") - 8
    for place in range(4, footer, 101):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            events, _ = formats.load(path)
        except formats.TraceError as error:
            caught.append(str(error))
        else:  # the byte has no meaning
            assert all((a == b).all() for a, b in zip(events, w.events, strict=True))
    assert len(caught) > 10
    assert all(message.startswith(str(path)) for message in caught)


def test_a_failed_write_leaves_nothing(tmp_path):
    path = tmp_path / "t.parquet"
    w = workloads.load({"name": "churn", "operations": 300, "live": 10})

    def interrupted():
        with parquet.Writer(path) as writer:
            writer.add(w.events)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []

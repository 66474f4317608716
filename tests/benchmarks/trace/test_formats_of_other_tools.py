"""Recordings of other tools are read correctly; impossible events are reported by position."""

import enum
import gzip
import json
import random
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest

from benchmarks.events.events import OP_NAMES, column
from benchmarks.trace import formats
from benchmarks.trace.__main__ import main
from benchmarks.trace.formats import memray, packing


def rows(events):
    """Return operation, slot, size and log2 of the alignment of each event."""
    names = [OP_NAMES[op] for op in events.op]
    columns = (events.slot, events.size, column(events, "align"))
    return list(zip(names, *(c.tolist() for c in columns), strict=True))


HEAPTRACK = """\
v 10400 3
x b /usr/bin/ls
X ls / with: colons, (and more) words than are kept of a line
I 1000 5e2990
m 1 x 557d9dd9b000 0 36c0 4000 15759 1a000 8ed0 232b0 25f8
t 7fb87cd8cb9f 0
+ 11c00 1 557dd5a94540
c a
+ 1d8 a 557dd5aa61e0
R 412
- 557dd5aa61e0
c 1f
+ 8 1 dead
"""
MTRACE = """\
= Start
@ ./mt:[0x11e0] + 0x5595a36b02a0 0xa
@ /a dir (of three)/lib, x.so:(name+0x12)[0x1215] + 0x5595a36b04c0 0x64
@ ./mt:[0x125a] < 0x5595a36b02a0
@ ./mt:[0x125a] > 0x5595a36b0610 0x3e8
@ ./mt:[0x12a0] + 0x5595a36b02a0 0
@ ./mt:[0x12b6] + (nil) 0x4000000000000000
@ ./mt:[0x12d3] ! 0x5595a36b0610 0x4000000000000000
+ 0x10 0x8
@ ./mt:[0x1364] - 0x5595a36b0610
= End
"""
VALGRIND = """\
==7== Memcheck, a memory error detector
free 5 of malloc(3)
--7-- REDIR: 0x401 (ld.so:strlen) redirected to 0x5
--7-- malloc(472) = 0x4B07040
--7-- calloc(3,7) = 0x4D6DCD0
--7-- memalign(al 64, size 100) = 0x4D6DD80
--7-- realloc(0x4B07040,1000) = 0x4D70F70
--7-- realloc(0x0,1600)malloc(1600) = 0x4B08A10
--7-- realloc(0x4B08A10,0)free(0x4B08A10)
--7--  = 0
--7-- _ZnwmSt11align_val_t(size 128, al 64) = 0x4B08A10
--7-- _ZnwmRKSt9nothrow_t(4) = 0x4D6FFA0
--7-- malloc(4611686018427387904) = 0x0
--7-- realloc(0x4D70F70,4611686018427387904) = 0x0
--7-- malloc(18446744073709551615)Argument 'size' of function malloc has a fishy value: -1
--7--  = 0x0
--7-- realloc(0x4D70F70,18446744073709551615)Argument 'size' of function realloc has a value
--7-- calloc(8589934592,8589934592)calloc(18446744073709551615,2)malloc(7) = 0x4D713A0
--7-- malloc_usable_size(0x4D716A0) = 42
--7-- _ZdlPvmSt11align_val_t(0x4B08A10)
--7-- free(0x0)
"""
JSONL = """\
{"ts": 0, "op": "alloc", "id": 7, "size": 64, "addr": 4096}
{"ts": 1, "op": "alloc", "id": 0, "size": 8}
{"ts": 3, "op": "alloc", "id": 9, "size": 640, "addr": 8192, "note": {"by": ["a, b"]}}
{"ts": 2, "op": "free", "id": 7}
{"ts": 4, "op": "free", "id": 0}
{"ts": 5, "op": "alloc", "id": 7, "size": 1}
"""


def field(number, value):
    """Encode a protocol-buffer field: a number or bytes."""
    if isinstance(value, bytes):
        return bytes([number << 3 | 2]) + varint(len(value)) + value
    return bytes([number << 3]) + varint(value)


def varint(value):
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def message(kind, *numbers):
    """Encode one line of a malloc-bench trace; None is an absent field."""
    tags = {"malloc": 1, "free": 2, "realloc": 3, "calloc": 4}
    body = b"".join(field(i + 1, n) for i, n in enumerate(numbers) if n is not None)
    return field(1, field(tags[kind], body))


PROTOBUF = [
    message("malloc", 0, 300),
    message("malloc", 1, 100, 4096),
    message("calloc", 2, 3, 100_000),
    message("realloc", 0, 0, 1 << 40),
    message("realloc", 3, None, 16),
    message("free"),
    message("free", 2, 300_000, 16),
    message("malloc", None, 1 << 62),
    field(2, 4),
]

READ = {
    "heaptrack raw": (
        HEAPTRACK,
        [
            ("malloc", 0, 0x11C00, 0),
            ("malloc", 1, 0x1D8, 0),
            ("free", 1, 0, 0),
            ("malloc", 1, 8, 0),
        ],
        {},
    ),
    "glibc mtrace": (
        MTRACE,
        [
            ("malloc", 0, 10, 0),
            ("malloc", 1, 100, 0),
            ("realloc", 0, 1000, 0),
            ("malloc", 2, 0, 0),
            ("malloc", 3, 8, 0),
            ("free", 0, 0, 0),
        ],
        {"failed_request": 2},
    ),
    "valgrind --trace-malloc": (
        VALGRIND,
        [
            ("malloc", 0, 472, 0),
            ("calloc", 1, 21, 0),
            ("aligned", 2, 100, 6),
            ("realloc", 0, 1000, 0),
            ("realloc", 3, 1600, 0),
            ("realloc", 3, 0, 0),
            ("aligned", 3, 128, 6),
            ("malloc", 4, 4, 0),
            ("malloc", 5, 7, 0),
            ("free", 3, 0, 0),
            ("free", -1, 0, 0),
        ],
        {"failed_request": 4},
    ),
    "fragmetrics JSONL": (
        JSONL,
        [
            ("malloc", 0, 64, 0),
            ("malloc", 1, 8, 0),
            ("free", 0, 0, 0),
            ("malloc", 0, 640, 0),
            ("free", 1, 0, 0),
            ("malloc", 1, 1, 0),
        ],
        {},
    ),
    "malloc-bench protobuf": (
        b"".join(PROTOBUF),
        [
            ("malloc", 0, 300, 0),
            ("aligned", 1, 100, 12),
            ("calloc", 2, 300_000, 0),
            ("realloc", 0, 1 << 40, 0),
            ("realloc", 3, 16, 0),
            ("free", -1, 0, 0),
            ("free", 2, 300_000, 0),
        ],
        {"failed_request": 1},
    ),
}


def write(path, content):
    path.write_bytes(
        content.encode(errors="surrogateescape") if isinstance(content, str) else content
    )
    return path


@pytest.mark.parametrize(
    ("name", "piece"),
    [*((name, piece) for name in READ for piece in (1 << 22, 120)), ("malloc-bench protobuf", 1)],
)
def test_events(tmp_path, name, piece, monkeypatch):
    """The result does not depend on the pieces in which a file is read."""
    content, expected, dropped = READ[name]
    monkeypatch.setattr(packing, "_PIECE", piece)
    events, provenance = formats.load(write(tmp_path / "t", content))
    assert rows(events) == expected
    assert provenance["format"] == name
    assert provenance["dropped"] == dropped
    assert provenance["lines"] == (8 if name.endswith("protobuf") else content.count("\n"))


@pytest.mark.parametrize("name", ["heaptrack raw", "glibc mtrace"])
def test_what_goes_on_in_the_next_piece(tmp_path, name, monkeypatch):
    """A clock, and a realloc of two lines, work across any boundary of pieces."""
    path = write(tmp_path / "t", READ[name][0])
    times = []
    for piece in range(90, 200, 3):
        monkeypatch.setattr(packing, "_PIECE", piece)
        formats.convert(path, tmp_path / "out", strict=True)
        events, _ = formats.load(tmp_path / "out")
        assert rows(events) == READ[name][1]
        times.append(column(events, "time").tolist())
    assert all(time == times[0] for time in times)


def test_packed(tmp_path):
    content, expected, _ = READ["heaptrack raw"]
    packed = {
        "gz": gzip.compress(content.encode()),
        "zst": pa.compress(content.encode(), "zstd", asbytes=True),
    }
    for name, data in packed.items():
        assert rows(formats.load(write(tmp_path / name, data))[0]) == expected
        cut = write(tmp_path / f"cut.{name}", data[: len(data) // 2])
        with pytest.raises(formats.TraceError, match="truncated or damaged archive"):
            formats.load(cut)


def test_heaptrack_has_times_and_call_sites(tmp_path):
    events, _ = formats.load(write(tmp_path / "t", HEAPTRACK))
    assert events.time.tolist() == [0, 10_000_000, 10_000_000, 31_000_000]
    assert events.site.tolist() == [1, 10, 0, 1]


def test_heaptrack_attached_to_a_program(tmp_path):
    path = write(tmp_path / "t", HEAPTRACK + "- beef\n")
    with pytest.raises(formats.TraceError, match=":14: free of 0xbeef, which was never allocated"):
        formats.load(path)
    write(path, HEAPTRACK.replace("I 1000", "A\nI 1000") + "- beef\n")
    events, provenance = formats.load(path)
    assert len(events.op) == 4
    assert provenance["dropped"] == {"free_of_an_object_not_seen_allocated": 1}


def test_calls_that_other_threads_interrupt(tmp_path):
    """A result that valgrind prints late belongs to the oldest call without a result."""
    text = VALGRIND + (
        "--7-- malloc(4916)free(0x4D6FFA0)\n"
        "--7-- memalign(al 16, size 30)malloc(31) = 0x10\n"
        "--7-- realloc(0x4D70F70,2000)free(0x0)\n"
        "--7--  = 0x20\n"
        "--7-- free(0x10)\n"
        "--7--  = 0x30\n"
        "--7--  = 0x40\n"
    )
    events, provenance = formats.load(write(tmp_path / "t", text))
    assert rows(events)[len(READ["valgrind --trace-malloc"][1]) :] == [
        ("free", 4, 0, 0),
        ("malloc", 4, 31, 0),
        ("free", -1, 0, 0),
        ("malloc", 3, 4916, 0),
        ("free", 4, 0, 0),
        ("aligned", 4, 30, 4),
        ("realloc", 0, 2000, 0),
    ]
    assert provenance["dropped"] == {"failed_request": 4}


def test_jsonl_has_no_times(tmp_path):
    assert len(formats.load(write(tmp_path / "t", JSONL))[0].time) == 0


@pytest.mark.parametrize("blank", ["", "\n"])
def test_jsonl_is_in_the_order_of_its_times(tmp_path, blank):
    """Events are sorted by ts if all lines have one, else not; blank lines are ignored."""
    lines = [
        '{"ts": 5, "op": "free", "id": 140234567890}\n',
        '{"ts": 4, "op": "alloc", "id": 140234567890, "size": 3}\n',
    ]
    text = "".join(lines) + blank
    events, _ = formats.load(write(tmp_path / "t", text))
    assert rows(events) == [("malloc", 0, 3, 0), ("free", 0, 0, 0)]
    with pytest.raises(formats.TraceError, match="t:1: free of id 140234567890, which was never"):
        formats.load(write(tmp_path / "t", text.replace('"ts": 4, ', "")))
    # The error reported is the first bad line of the file, not the first by ts.
    bad = text + '{"ts": 1, "op": "free", "id": 3}\n{"ts": 0}\n'
    with pytest.raises(formats.TraceError, match=f"t:{4 if blank else 3}: free of id 3"):
        formats.load(write(tmp_path / "t", bad))


def ordered_jsonl(n):
    """Return ``n`` lines that alternately allocate and free objects."""
    line = '{{"ts": {}, "op": "{}", "id": {}{}}}\n'
    return [
        line.format(ts, *(("free", ts - 1, "") if ts % 2 else ("alloc", ts, ', "size": 8')))
        for ts in range(n)
    ]


def test_jsonl_is_sorted_across_what_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_PIECE", 512)
    lines = ordered_jsonl(400)
    expected = rows(formats.load(write(tmp_path / "t", "".join(lines)))[0])
    assert expected == [("malloc", 0, 8, 0), ("free", 0, 0, 0)] * 200
    mixed = [line for i in range(0, 400, 8) for line in reversed(lines[i : i + 8])]
    path = write(tmp_path / "mixed", "".join(mixed))
    assert rows(formats.load(path)[0]) == expected
    # The first bad line is reported with its line number in the file, in any piece.
    mixed[300] = mixed[300].replace("op", "po")
    with pytest.raises(formats.TraceError, match="mixed:301: unknown op None"):
        formats.load(write(path, "".join(mixed)))


def test_a_line_of_jsonl_that_comes_too_late(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packing, "_PIECE", 512)
    lines = ordered_jsonl(400)
    lines.insert(200, lines.pop(20))
    path = write(tmp_path / "t", "".join(lines))
    with pytest.raises(formats.TraceError, match="t:21: free of id 20, which was never allocated"):
        formats.load(path)
    lines.insert(200, lines.pop(20))  # now the free of the object is as late
    path = write(tmp_path / "t", "".join(lines))
    with pytest.raises(formats.TraceError, match=r"t:200: ts 20 is out of order: ts [0-9]+ prec"):
        formats.load(path)
    events, provenance = formats.load(path, strict=False)
    assert provenance["dropped"] == {"unreadable_line": 2}
    assert provenance["first_problem"][0] == 200
    assert len(events.op) == 398
    assert "2 × unreadable line; first problem: line 200: ts 20 is" in capsys.readouterr().err


BAD = [
    (
        HEAPTRACK,
        "+ 8 1\n",
        ":14: expected '+ SIZE BACKTRACE POINTER' in hexadecimal, found '+ 8 1'",
    ),
    (HEAPTRACK, "+ 8g 1 10\n", ":14: expected '+ SIZE BACKTRACE POINTER'"),
    (HEAPTRACK, "- \n", ":14: expected '- POINTER'"),
    (HEAPTRACK, "? 8\n", ":14: unknown line '? 8'"),
    (HEAPTRACK, "+ 8 1 dead\n", ":14: malloc returned 0xdead, which is still allocated"),
    (HEAPTRACK, "- 557dd5aa61e0\n", ":14: double free of 0x557dd5aa61e0"),
    (MTRACE, "@ x:[0x1] > 0x20 0x8\n", ":12: '> POINTER SIZE' without '< OLD' on the line before"),
    (MTRACE, "@ x:[0x1] < 0x10\n@ x:[0x1] - 0x10\n", ":13: expected '+ POINTER SIZE'"),
    (MTRACE, "@ x:[0x1] + 0x20\n", ":12: expected '+ POINTER SIZE'"),
    (MTRACE, "@ x:[0x1]\n", ":12: expected '@ WHERE' and"),
    (MTRACE, "@ x:[0x1] - 0x5595a36b0610\n", ":12: double free of 0x5595a36b0610"),
    (
        VALGRIND,
        "--7-- malloc(8)\n",
        ":22: expected 'malloc(SIZE)' and its result, found 'malloc 8'",
    ),
    (VALGRIND, "--7-- calloc(8) = 0x10\n", ":22: expected 'calloc(N,SIZE)'"),
    (VALGRIND, "--7-- free(0x10)\n", ":22: free of 0x10, which was never allocated"),
    (VALGRIND, "--7--  = 0x99\n", ":22: a result without a call, found '= 0x99'"),
    (VALGRIND, "--7-- malloc(8)calloc(x)\n", ":22: expected 'malloc(SIZE)' and its result"),
    (VALGRIND, "--7-- malloc(8) = 0x10 7\n", ":22: expected 'malloc(SIZE)' and its result, found"),
    (VALGRIND, "--7-- malloc(8) = 0xg\n", ":22: expected 'malloc(SIZE)' and its result, found"),
    (VALGRIND, "--8-- free(0x0)\n", ":22: a line of another process (--8--)"),
    (JSONL, '{"op": "free", "id": 6}\n', ":7: free of id 6, which was never allocated"),
    (JSONL, '{"op": "free", "id": 0}\n', ":7: double free of id 0"),
    (JSONL, '{"op": "touch", "id": 7}\n', ":7: unknown op 'touch' (known: alloc"),
    (JSONL, '{"op": "alloc", "id": 7}\n', ":7: expected a positive integer as size of alloc"),
    (JSONL, '{"op": "alloc", "id": 7, "size": -1}\n', ":7: expected a positive integer"),
    (JSONL, '{"op": "alloc", "id": 1.5, "size": 1}\n', ":7: expected a whole number as id"),
    (JSONL, '{"op": "free", "id": "7"}\n', ":7: expected a whole number as id, found '7'"),
    (JSONL, '{"op": "free", "id": 7, "size": 1}\n', ":7: a free has no size, found 1"),
    (JSONL, '{"op": "alloc", "id": 8, "size": 0}\n', ":7: expected a positive integer"),
    (JSONL, '{"op": "malloc", "id": 8, "size": 1}\n', ":7: unknown op 'malloc' (known: alloc, "),
    (JSONL, '{"op": "free", "id": 7, "ts": "now"}\n', ":7: expected a whole number as ts"),
    (JSONL, '{"op": "free", "id": 7, "ts": 1.5}\n', ":7: expected a whole number as ts"),
    (JSONL, '{"op": "free", \n', ":7: not JSON: "),
    (JSONL, '{"\udc8e": 1}\n', ":7: not JSON: 'utf-8' codec can't decode byte 0x8e"),
    (JSONL, '{"op": "free", "id": 7, "ts": 4611686018427387904}\n', ":7: expected a whole number"),
    (JSONL, "[]\n", ":7: expected a JSON object"),
    (JSONL, 'null{"op": "free", "id": 7}\n', ":7: not JSON: Extra data"),
    (b"".join(PROTOBUF[:4]), message("free", 9), ": message 5: free of id 9, which was never"),
    (b"".join(PROTOBUF[:4]), message("malloc", 4, 1, 3), ": message 5: not a valid malloc, calloc"),
    (b"".join(PROTOBUF[:4]), field(1, b"\x2a\x00"), ": message 5: not a valid malloc, calloc"),
    (
        b"".join(PROTOBUF[:4]),
        message("calloc", 4, 1 << 40, 1 << 40),
        ": message 5: not a valid malloc",
    ),
]


@pytest.mark.parametrize(("good", "bad", "said"), BAD, ids=[said for _, _, said in BAD])
def test_what_cannot_be(tmp_path, good, bad, said, capsys):
    end = message("free", 1) if isinstance(good, bytes) else ""
    path = write(tmp_path / "t", good + bad + end)
    with pytest.raises(formats.TraceError) as caught:
        formats.load(path)
    assert f"{path}{said}" in str(caught.value)
    before = formats.load(write(tmp_path / "good", good + end))[1]
    _, provenance = formats.load(path, strict=False)
    assert sum(provenance["dropped"].values()) == sum(before["dropped"].values()) + 1
    assert said.partition(": ")[2].partition(": ")[2] in capsys.readouterr().err
    with pytest.raises(formats.TraceError) as caught:  # also from the cache
        formats.load(path)
    assert f"{path}{said}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"".join(PROTOBUF)[:-1], ": message 9: truncated at the end of the file"),
        (b"".join(PROTOBUF[:3]) + b"\xff\xff", ": message 4: not a message of this format"),
        (b"memray\x00rubbish", ": reading a memray capture needs the package memray; install"),
    ],
)
def test_what_cannot_be_read_at_all(tmp_path, content, said, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "memray", None)
    path = write(tmp_path / "t", content)
    assert main(["info", str(path), "--lenient"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}{said}")
    assert error.count("\n") == 1


# --- memray: a fake of the interface that is used, since memray may not be installed -------------

KINDS = enum.Enum(
    "AllocatorType",
    "PYMALLOC_FREE PYMALLOC_MALLOC PYMALLOC_CALLOC PYMALLOC_REALLOC FREE MALLOC REALLOC CALLOC "
    "POSIX_MEMALIGN ALIGNED_ALLOC MEMALIGN VALLOC PVALLOC MMAP MUNMAP",
)
CAPTURE = [
    # address, size, kind, thread
    (0x10, 100, 6, 1),
    (0x20, 0, 5, 1),  # allocated before the recording
    (0x30, 50, 8, 2),
    (0x10, 0, 5, 1),  # realloc's first half
    (0x40, 300, 7, 1),
    (0x7000, 1 << 20, 14, 1),  # mmap
    (0x30, 0, 5, 2),
    (0x50, 8, 7, 1),  # realloc(NULL, 8): the free above is another thread's
    (0x40, 0, 1, 2),
    (0x1000, 9, 12, 2),
    (0x2000, 0, 5, 2),  # a realloc of an object allocated before the recording
    (0x3000, 70, 7, 2),
]


def double(records, total, aggregated=False):
    """Return a fake memray module with the documented interface of FileReader."""

    class FileReader:
        def __init__(self, path):
            self.metadata = SimpleNamespace(total_allocations=total)

        def get_allocation_records(self):
            if aggregated:
                raise NotImplementedError
            for address, size, kind, tid in records:
                yield SimpleNamespace(address=address, size=size, allocator=kind, tid=tid)

    return SimpleNamespace(FileReader=FileReader, AllocatorType=KINDS)


@pytest.mark.parametrize("piece", [1000, 2, 1])
@pytest.mark.parametrize("head", [b"memray\x00", b"\x04\x22\x4d\x18@@\xc0memray\x00"])
def test_memray(tmp_path, monkeypatch, head, piece):
    monkeypatch.setitem(sys.modules, "memray", double(CAPTURE, len(CAPTURE)))
    monkeypatch.setattr(memray, "_PIECE", piece)
    events, provenance = formats.load(write(tmp_path / "t", head))
    assert rows(events) == [
        ("malloc", 0, 100, 0),
        ("calloc", 1, 50, 0),
        ("realloc", 0, 300, 0),
        ("free", 1, 0, 0),
        ("realloc", 1, 8, 0),
        ("free", 0, 0, 0),
        ("aligned", 0, 9, 12),
        ("realloc", 2, 70, 0),
    ]
    assert events.thread.tolist() == [0, 1, 0, 1, 0, 1, 1, 1]
    assert provenance["dropped"] == {"free_of_an_object_not_seen_allocated": 1}
    assert provenance["lines"] == len(CAPTURE)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (double([*CAPTURE, (0x50, 1, 6, 1)], 13), ": record 13: malloc returned 0x50, which is"),
        (double([*CAPTURE, (0x60, 1, 99, 1)], 13), ": record 13: unknown allocator number 99"),
        (double(CAPTURE, 13), ": record 13: truncated: 12 of 13 records"),
        (double(CAPTURE, 12, aggregated=True), ": an aggregated capture has no individual events"),
    ],
)
def test_bad_captures(tmp_path, monkeypatch, module, said):
    monkeypatch.setitem(sys.modules, "memray", module)
    path = write(tmp_path / "t", b"memray\x00")
    with pytest.raises(formats.TraceError) as caught:
        formats.load(path)
    assert str(caught.value).startswith(f"{path}{said}")


@pytest.mark.hardening(11)
def test_a_capture_that_is_cut_is_read_up_to_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "memray", double(CAPTURE, 13))
    path = write(tmp_path / "t", b"memray\x00")
    events, provenance = formats.load(path, strict=False)
    assert len(events.op) == 8
    assert provenance["dropped"]["missing_records"] == 1


def test_a_real_capture(tmp_path):
    memray = pytest.importorskip("memray")
    path = tmp_path / "t"
    with memray.Tracker(path):
        kept = [bytearray(n) for n in range(1000, 2000)]
    about = formats.load(path)[0]
    assert {1001 + n for n in range(1000)} - set(about.size.tolist()) == set()
    assert len(kept) == 1000


# --- One program, recorded with the real tools ---------------------------------------------------

PROGRAM = """\
#include <malloc.h>
#include <mcheck.h>
#include <stdlib.h>
int main(void) {
    mtrace();
    void *marker = malloc(777), *zeroed = calloc(7, 111), *large = malloc(7770), *aligned;
    if (posix_memalign(&aligned, 128, 778)) return 1;
    marker = realloc(marker, 77700);
    large = realloc(large, 7771);
    free(zeroed); free(marker); free(NULL); free(aligned);
    void *shrunk = realloc(large, 0);
    return shrunk != NULL;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    directory = tmp_path_factory.mktemp("program")
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    write(directory / "p.c", PROGRAM)
    subprocess.run(["cc", "-O0", "-w", "p.c", "-o", "p"], cwd=directory, check=True)
    return directory / "p"


def life(events):
    """Return the program's events: requested and freed sizes of its own objects."""
    held, read = {}, []
    for name, slot, size, _ in rows(events):
        if slot < 0:
            continue
        before = held.pop(slot, None)
        if name != "free" and (size or before is None):
            held[slot] = size
        if {before, size} & {777, 778, 7770, 7771, 77700}:
            read.append((name, before, held.get(slot)))
    return read


def with_reallocs(read):
    """Return the same events with a realloc as free and allocation, and calloc as malloc."""
    plain = []
    for _, before, after in read:
        if before is not None:
            plain.append(("free", before, None))
        if after is not None:
            plain.append(("malloc", None, after))
    return plain


EXPECTED = [
    ("malloc", None, 777),
    ("calloc", None, 777),
    ("malloc", None, 7770),
    ("aligned", None, 778),
    ("realloc", 777, 77700),
    ("realloc", 7770, 7771),
    ("free", 777, None),
    ("free", 77700, None),
    ("free", 778, None),
    ("realloc", 7771, None),
]


def test_recorded_by_valgrind(program, tmp_path):
    if not shutil.which("valgrind"):
        pytest.skip("no valgrind")
    log = tmp_path / "log"
    command = ["valgrind", "--tool=memcheck", "--trace-malloc=yes", f"--log-file={log}", program]
    subprocess.run(command, check=True)
    assert life(formats.load(log)[0]) == EXPECTED


def test_recorded_by_heaptrack(program, tmp_path):
    if not shutil.which("heaptrack"):
        pytest.skip("no heaptrack")
    command = ["heaptrack", "--raw", "-o", tmp_path / "log", program]
    subprocess.run(command, check=True, capture_output=True)
    (log,) = tmp_path.glob("log.raw*")
    # heaptrack does not write the last one, a realloc(p, 0) that returns NULL.
    assert with_reallocs(life(formats.load(log)[0])) == with_reallocs(EXPECTED[:-1])


def test_recorded_by_mtrace(program, tmp_path):
    debug = "libc_malloc_debug.so.0"
    environment = {"LD_PRELOAD": debug, "MALLOC_TRACE": str(tmp_path / "log")}
    done = subprocess.run([program], env=environment, check=True, capture_output=True)
    if done.stderr or not (tmp_path / "log").exists():
        pytest.skip("no libc_malloc_debug")
    read = life(formats.load(tmp_path / "log")[0])
    as_written = {"calloc": "malloc", "aligned": "malloc"}
    expected = [(as_written.get(name, name), *sizes) for name, *sizes in EXPECTED]
    expected[-1] = ("free", *expected[-1][1:])  # realloc(p, 0) is written as a free
    assert read == expected


# --- All formats yield the same events -----------------------------------------------------------


def test_one_random_program_in_every_format(tmp_path):
    """Return malloc, realloc and free of one program in the format of each tool."""
    rng = random.Random(4)
    texts = {"android": "", "mtrace": "= Start\n", "jsonl": "", "valgrind": ""}
    bench, live, number = b"", [], 0
    for _ in range(3000):
        draw, size = rng.random(), rng.randrange(1, 1 << rng.randrange(1, 20))
        if live and draw < 0.4:
            p, i = live.pop(rng.randrange(len(live)))
            texts["android"] += f"9: free {p:#x}\n"
            texts["mtrace"] += f"@ p:[0x1] - {p:#x}\n"
            texts["valgrind"] += f"--9-- free({p:#x})\n"
            texts["jsonl"] += json.dumps({"op": "free", "id": i}) + "\n"
            bench += message("free", i)
        elif live and draw < 0.5:
            k = rng.randrange(len(live))
            old, i = live[k]
            number += 1
            p = number * 32
            live[k] = p, i
            texts["android"] += f"9: realloc {p:#x} {old:#x} {size}\n"
            texts["mtrace"] += f"@ p:[0x1] < {old:#x}\n@ p:[0x1] > {p:#x} {size:#x}\n"
            texts["valgrind"] += f"--9-- realloc({old:#x},{size}) = 0x{p:X}\n"
            texts["jsonl"] += json.dumps({"op": "free", "id": i}) + "\n"
            texts["jsonl"] += json.dumps({"op": "alloc", "id": i, "size": size}) + "\n"
            bench += message("realloc", i, i, size)
        else:
            number += 1
            p = number * 32
            live.append((p, number))
            texts["android"] += f"9: malloc {p:#x} {size}\n"
            texts["mtrace"] += f"@ p:[0x1] + {p:#x} {size:#x}\n"
            texts["valgrind"] += f"--9-- malloc({size}) = 0x{p:X}\n"
            texts["jsonl"] += json.dumps({"op": "alloc", "id": number, "size": size}) + "\n"
            bench += message("malloc", number, size)
    read = {name: rows(formats.load(write(tmp_path / name, t))[0]) for name, t in texts.items()}
    read["malloc-bench"] = rows(formats.load(write(tmp_path / "b", gzip.compress(bench)))[0])
    assert len(read["android"]) == 3000
    split = []  # the one format that has no realloc
    for name, *rest in read["android"]:
        split += [("free", rest[0], 0, 0), ("malloc", *rest)] if name == "realloc" else []
        split += [(name, *rest)] if name != "realloc" else []
    for name, events in read.items():
        assert events == (split if name == "jsonl" else read["android"]), name

"""Files as other tools and courses publish them: cut, begun late, with times, or aggregated."""

import gzip
import subprocess
import sys

import pytest

from benchmarks.events.events import OP_NAMES, THREAD_END, column
from benchmarks.trace import formats
from benchmarks.trace.__main__ import main
from benchmarks.trace.formats import packing
from tests.benchmarks.trace.conftest import ANDROID

pytestmark = pytest.mark.hardening(11)


def read(tmp_path, text, strict=True):
    """Return operation, slot and size of each event, the events, and what was dropped."""
    path = tmp_path / "t"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    events, provenance = formats.load(path, strict=strict)
    rows = zip(events.op.tolist(), events.slot.tolist(), events.size.tolist(), strict=True)
    return [(OP_NAMES[op], *rest) for op, *rest in rows], events, provenance["dropped"]


def refusal(tmp_path, text):
    """Return the message without the path with which strict reading ends."""
    with pytest.raises(formats.TraceError) as caught:
        read(tmp_path, text)
    return str(caught.value).removeprefix(str(tmp_path / "t"))


# --- malloc-lab ----------------------------------------------------------------------------------

REP = "0\n3\n7\n0\nf -1\nr 0 16\na 1 100\nr 0 64\nf 1\nr 2 32\nf 0\n"


@pytest.mark.parametrize("header", ["0\n3\n7\n0\n", "3\n7\n", "3 7\n"])
@pytest.mark.parametrize("piece", [1 << 20, 8])
def test_malloc_lab_as_the_course_driver_reads_it(tmp_path, monkeypatch, header, piece):
    monkeypatch.setattr(packing, "_PIECE", piece)
    if header == "3 7\n":
        header = "3\n\n7\n"
    rows, _, dropped = read(tmp_path, header + REP.removeprefix("0\n3\n7\n0\n"))
    assert rows == [
        ("free", -1, 0),
        ("realloc", 0, 16),
        ("malloc", 1, 100),
        ("realloc", 0, 64),
        ("free", 1, 0),
        ("realloc", 1, 32),
        ("free", 0, 0),
    ]
    assert dropped == {}


def test_malloc_lab_realloc_of_a_freed_id_allocates(tmp_path):
    rows, _, _ = read(tmp_path, "0\n1\n4\n1\na 0 8\nf 0\nr 0 16\nf 0\n")
    assert [name for name, *_ in rows] == ["malloc", "free", "realloc", "free"]


@pytest.mark.parametrize(
    ("text", "said", "dropped"),
    [
        (
            "0\n3\n6\n1\na 0 8\nf 0\n",
            ":7: the header announces 6 operations, the file has 2: it is cut off",
            {"missing_operations": 4},
        ),
        (
            "3\n1\na 0 8\nf 0\n",
            ":5: the header announces 1 operations, the file has 2",
            {"operations_that_the_header_does_not_announce": 1},
        ),
        (
            "0\n1\n2\n1\na 0 8\na 1 8\n",
            ":6: expected ids below 1, as the header announces, found 'a 1 8'",
            {"unreadable_line": 1},
        ),
        ("0\n1\n1\n1\na -1 8\n", ":5: expected ids below 1", {"unreadable_line": 1}),
        ("0\n1\n1\n1\nf 0\n", ":5: free of id 0, which was never", {"unknown_pointer": 1}),
    ],
)
def test_malloc_lab_that_does_not_keep_its_header(tmp_path, text, said, dropped):
    assert refusal(tmp_path, text).startswith(said)
    assert read(tmp_path, text, strict=False)[2] == dropped


# --- Android -------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", ["500", "500 600"])
def test_android_thread_done_has_one_time(tmp_path, times):
    text = f"1: malloc 0x10 8 100 110\n2: thread_done 0x0 {times}\n1: free 0x10 700 800\n"
    _, events, _ = read(tmp_path, text)
    assert events.op[1] == THREAD_END
    assert events.time.tolist() == [0, 400, 600]


def test_android_is_exported_with_one_time_of_a_thread_end(tmp_path, android):
    timed = "".join(f"{line} {i} {i}\n" for i, line in enumerate(ANDROID.splitlines())).replace(
        "thread_done 0x0 11 11", "thread_done 0x0 11"
    )
    android.write_text(timed)
    out = tmp_path / "out.txt"
    assert main(["convert", str(android), str(out)]) == 0
    assert "2: thread_done 0x0 11\n" in out.read_text()
    assert formats.load(out)[0].time.tolist() == list(range(13))


# --- mtrace --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
def test_mtrace_that_begins_in_the_middle(tmp_path, strict):
    text = (
        "= Start\n@ p:[0x1] - 0x20\n@ p:[0x1] < 0x30\n@ p:[0x1] > 0x50 0x1f4\n"
        "@ p:[0x1] < 0x50\n@ p:[0x1] > 0x60 0x1f5\n@ p:[0x1] + 0x20 0xa\n@ p:[0x1] - 0x60\n"
        "@ p:[0x1] ! 0x90 0x7\n= End\n"
    )
    rows, _, dropped = read(tmp_path, text, strict)
    assert rows == [("realloc", 0, 500), ("realloc", 0, 501), ("malloc", 1, 10), ("free", 0, 0)]
    assert dropped == {"free_of_an_object_not_seen_allocated": 1, "failed_request": 1}


def test_mtrace_that_is_cut_between_the_lines_of_a_realloc(tmp_path):
    rows, _, dropped = read(tmp_path, "@ p:[0x1] > 0x50 0x1f4\n@ p:[0x1] - 0x50\n")
    assert rows == [("realloc", 0, 500), ("free", 0, 0)]
    assert dropped == {}
    text = "@ p:[0x1] + 0x10 0x8\n@ p:[0x1] > 0x50 0x1f4\n"
    assert refusal(tmp_path, text).startswith(":2: '> POINTER SIZE' without '< OLD'")
    text = "@ p:[0x1] + 0x10 0x8\n@ p:[0x1] - 0x10\n@ p:[0x1] - 0x10\n"
    assert refusal(tmp_path, text).startswith(":3: double free of 0x10")


# --- ltrace --------------------------------------------------------------------------------------

LTRACE = """\
malloc(100)                                      = 0x100
realloc(0x100, 500)                              = 0x200
puts("x"x
)                                        = 2
printf("malloc(5) = 0x7")                        = 9
calloc(4, 25)                                    = 0x300
  realloc(nil, 8)                                = 0x400
prog->free@libc.so.6(0x200)                      = <void> <0.000123>
free(nil)                                        = <void>
free(0x999)                                      = <void>
memalign(64, 10)                                 = 0x500
malloc(18446744073709551615)                     = 0
_Znwm(4, 0x7ffe, 0, 1)                           = 0x600
--- SIGCHLD (Child exited) ---
+++ exited (status 0) +++
"""
EXPECTED = [
    ("malloc", 0, 100),
    ("realloc", 0, 500),
    ("calloc", 1, 100),
    ("realloc", 2, 8),
    ("free", 0, 0),
    ("free", -1, 0),
    ("aligned", 0, 10),
    ("malloc", 3, 4),
]


@pytest.mark.parametrize("piece", [1 << 20, 90])
def test_ltrace(tmp_path, monkeypatch, piece, capsys):
    monkeypatch.setattr(packing, "_PIECE", piece)
    rows, events, dropped = read(tmp_path, LTRACE)
    assert rows == EXPECTED
    assert column(events, "align").tolist() == [0, 0, 0, 0, 0, 0, 6, 0]
    assert dropped == {"free_of_an_object_not_seen_allocated": 1, "failed_request": 1}
    assert "note: ltrace shows the program's own calls" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stamp", "times"),
    [
        (lambda i: f"14:22:0{i} ", [0, 10**9, 2 * 10**9]),
        (lambda i: f"23:59:59.{9 * i}00000 " if i < 2 else "00:00:00.100000 ", [0, 9e8, 11e8]),
        (lambda i: f"170000000{i}.500000 ", [0, 10**9, 2 * 10**9]),
        (lambda i: f"  0.{i}00000 ", [0, 10**8, 3 * 10**8]),
    ],
)
@pytest.mark.parametrize("pid", ["", "28032 ", "[pid 28032] "])
def test_ltrace_with_times_and_pids(tmp_path, stamp, times, pid):
    calls = ["malloc(1) = 0x10", "malloc(2) = 0x20", "free(0x10) = <void>"]
    text = "".join(f"{pid}{stamp(i)}{call}\n" for i, call in enumerate(calls))
    rows, events, _ = read(tmp_path, text)
    assert rows == [("malloc", 0, 1), ("malloc", 1, 2), ("free", 0, 0)]
    assert events.time.tolist() == times


def test_ltrace_of_interrupted_calls(tmp_path):
    text = (
        "7 malloc(10 <unfinished ...>\n"
        "8 malloc(20)            = 0x20\n"
        "7 <... malloc resumed> )  = 0x10\n"
        "8 free(0x20 <unfinished ...>\n"
        "7 realloc(0x10, 30 <unfinished ...>\n"
        "8 <... free resumed> )   = <void>\n"
        "7 <... realloc resumed> )   = 0x20\n"
        "8 +++ exited (status 0) +++\n"
        "7 +++ exited (status 0) +++\n"
    )
    rows, events, _ = read(tmp_path, text)
    assert rows == [
        ("malloc", 0, 20),
        ("malloc", 1, 10),
        ("free", 0, 0),
        ("realloc", 1, 30),
        ("thread_end", -1, 0),
    ]
    assert events.thread.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("malloc(100", "expected 'malloc(SIZE) = RESULT', found 'malloc(100'"),
        ("free(x) = <void>", "expected 'free(POINTER) = RESULT'"),
        ("calloc(4) = 0x10", "expected 'calloc(N, SIZE) = RESULT'"),
        ("<... malloc resumed> ) = 0x10", "expected 'malloc(SIZE) = RESULT'"),
        ("memalign(24, 8) = 0x10", "expected 'memalign(ALIGN, SIZE) = RESULT'"),
        ("posix_memalign(0x7ffe, 64, 8) = 0", "expected 'posix_memalign(its result, which"),
        ("malloc(99999999999999999999999) = 0x10", "expected 'malloc(SIZE) = RESULT'"),
    ],
)
def test_lines_of_ltrace_that_are_malformed(tmp_path, line, said):
    text = f"malloc(1) = 0x80\n{line}\nfree(0x80) = <void>\n"
    assert refusal(tmp_path, text).startswith(f":2: {said}")
    assert read(tmp_path, text, strict=False)[2] == {"unreadable_line": 1}


# --- valgrind, heaptrack, aggregates -------------------------------------------------------------


@pytest.mark.parametrize("piece", [1 << 20, 60])
def test_valgrind_with_time_stamps(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(packing, "_PIECE", piece)
    text = (
        "==00:00:00:00.000 28032== Memcheck\n"
        "--00:00:00:00.753 28032-- malloc(100) = 0x4A42040\n"
        "the program prints\n"
        "--01:00:00:01.004 28032-- calloc(1,2)malloc(3) = 0x4A42140\n"
        "--01:00:00:01.005 28032--  = 0x4A42240\n"
        "--01:00:00:01.006 28032-- free(0x4A42040)\n"
    )
    rows, events, _ = read(tmp_path, text)
    assert rows == [("malloc", 0, 100), ("malloc", 1, 3), ("calloc", 2, 2), ("free", 0, 0)]
    day = 24 * 3600 * 1000
    expected = [753, day + 1004, day + 1005, day + 1006]
    assert events.time.tolist() == [ms * 10**6 for ms in expected]


HEAPTRACK = """\
v 10400 3
X ./hp
I 1000 5e298f
s 4 main
i 557a71d2a1be 1 1 1 3
t 1 0
a a 1
+ 0
+ 0
a 1ff 1
c a
+ 1
- 0
+ 0
- 1
- 0
"""


@pytest.mark.parametrize("piece", [1 << 20, 25])
def test_heaptracks_default_file(tmp_path, monkeypatch, piece, capsys):
    """Of several blocks of one size and call site, the newest is freed."""
    monkeypatch.setattr(packing, "_PIECE", piece)
    rows, events, dropped = read(tmp_path, HEAPTRACK)
    assert rows == [
        ("malloc", 0, 10),
        ("malloc", 1, 10),
        ("malloc", 2, 511),
        ("free", 1, 0),
        ("malloc", 1, 10),
        ("free", 2, 0),
        ("free", 1, 0),
    ]
    assert events.time.tolist() == [0, 0, *[10**7] * 5]
    assert events.site.tolist() == [1, 1, 1, 0, 1, 0, 0]
    assert dropped == {}
    assert "note: the file has no addresses" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("+ 2", ":17: expected '+ ALLOCATION', of an earlier 'a' line, found '+ 2'"),
        ("- 1", ":17: free of a block of allocation 1, which was never"),
        ("a 5", ":17: expected 'a SIZE BACKTRACE' in hexadecimal"),
        ("q", ":17: unknown line 'q'"),
    ],
)
def test_bad_lines_of_heaptracks_default_file(tmp_path, line, said):
    message = refusal(tmp_path, f"{HEAPTRACK}{line}\n")
    assert message.startswith(said) or "double free of a block of allocation 1" in message


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"desc: --time-unit=B\ncmd: ./prog\ntime_unit: B\n#-----------\nsnapshot=0\n", "massif"),
        (b'{"dhatFileVersion":2,"mode":"heap","verb":"Allocated"\n', "DHAT"),
        (b"heap profile:      1:      64 [     1:      64] @ heap/1048576\n", "tcmalloc or Go"),
        (b"heap_v2/524288\n  t*: 28106: 56637512 [0: 0]\n", "jemalloc"),
        (b"\x0a\x04\x08\x01\x10\x02\x0a\x04\x08\x03\x10\x04\x12\x1c", "pprof"),
    ],
)
def test_aggregates_are_refused_with_the_reason(tmp_path, head, what):
    for data in (head, gzip.compress(head)):
        said = refusal(tmp_path, data)
        assert what in said
        assert "no single requests, so that it cannot be replayed" in said


def test_a_compressed_memray_capture_that_is_cut(tmp_path):
    pytest.importorskip("memray")
    program, whole = tmp_path / "p.py", tmp_path / "whole"
    program.write_text("x = [bytes(2000 + i) for i in range(200)]\n")
    command = [sys.executable, "-m", "memray", "run", "-q", "-f", "-o", str(whole), str(program)]
    subprocess.run(command, check=True, capture_output=True)
    data = whole.read_bytes()
    for part in (len(data) // 2, 200):
        assert "it is compressed, so that no part can be read" in refusal(tmp_path, data[:part])

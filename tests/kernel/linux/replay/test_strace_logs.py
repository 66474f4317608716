"""Test the strace reader on all forms of lines, and replays of strace logs without maps."""

import gzip

import pytest

from kernel.linux.replay.log import NEVER, Call, Clone, Exec, SetLimit
from kernel.linux.replay.strace import read_strace
from tests.kernel.linux.replay.driver import AREAS, HEAP, PAGE, TOP, Replayed

#: End of the first mapping; the addresses above it are occupied.
END = 0x7FFFF7FC0000

BEGIN = f"""\
9 execve("/bin/program", ["program"], 0x7ffe /* 3 vars */) = 0
9 brk(NULL) = {HEAP:#x}
"""


def mmap(pages, place, *, prot="PROT_READ|PROT_WRITE", addr="NULL"):
    flags = "MAP_PRIVATE|MAP_ANONYMOUS"
    return f"mmap({addr}, {pages * PAGE}, {prot}, {flags}, -1, 0) = {place:#x}\n"


def events(tmp_path, text, kind=Call):
    path = tmp_path / "log"
    path.write_text(text)
    return [event for event in read_strace(path).events if isinstance(event, kind)]


# --- lines ---------------------------------------------------------------------------------------

CALL = ("munmap", 0x7F0000000000, 8192, 0)


@pytest.mark.parametrize(
    "line",
    [
        "munmap(0x7f0000000000, 8192) = 0",
        "9 munmap(0x7f0000000000, 8192)             = 0",
        "[pid     9] munmap(0x7f0000000000, 8192) = 0",
        "9<program> munmap(0x7f0000000000, 8192) = 0",
        "9 11:09:44 munmap(0x7f0000000000, 8192) = 0",
        "9 11:09:44.123456 munmap(0x7f0000000000, 8192) = 0 <0.000025>",
        "9 1795518584.176614 munmap(0x7f0000000000, 8192) = 0 <0.000025>",
        "     0.000260 munmap(0x7f0000000000, 8192) = 0",
        "9 (+     0.000260) munmap(0x7f0000000000, 8192) = 0",
        "9 [  11] [00007fbb5065ec47] munmap(0x7f0000000000, 8192) = 0",
        "9 munmap(0x7f0000000000, 2*4096) = 0",
        "9 munmap(0x7f0000000000, 8192 <unfinished ...>\n9 <... munmap resumed>) = 0",
        "9 munmap( <unfinished ...>\n9 <... munmap resumed>0x7f0000000000, 8192) = 0",
        "9 munmap(0x7f0000strace: Process 10 attached\n000000, 8192) = 0",
    ],
)
def test_forms_of_a_line(tmp_path, line):
    (call,) = events(tmp_path, line + "\n")
    assert (call.name, *call.args[:2], call.result) == CALL


@pytest.mark.parametrize(
    ("line", "args", "result"),
    [
        (
            'mmap(0x1000, 4096, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_FIXED, 3</a "b, (c)>, 0x2000)'
            " = 0x1000",
            (0x1000, 4096, 5, 0x12, 3, 0x2000),
            0x1000,
        ),
        (
            "mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE|0x800000, -1, 0)"
            " = -1 ENOMEM (Cannot allocate memory)",
            (0, 4096, 0, 0x804022, -1, 0),
            -12,
        ),
        (
            "mmap(NULL, 2097152, PROT_READ, MAP_SHARED|MAP_HUGETLB|21<<MAP_HUGE_SHIFT, 3, 0) = 0",
            (0, 2097152, 1, 0x40001 | 21 << 26, 3, 0),
            0,
        ),
        (
            "mremap(0x1000, 4096, 8192, MREMAP_MAYMOVE|MREMAP_FIXED, 0x9000) = 0x9000",
            (0x1000, 4096, 8192, 3, 0x9000, 0),
            0x9000,
        ),
        ("madvise(0x1000, 4096, MADV_DONTNEED) = 0", (0x1000, 4096, 4, 0, 0, 0), 0),
        (
            "madvise(0x1000, 4096, 0x4d2 /* MADV_??? */) = -1 EINVAL (Invalid argument)",
            (0x1000, 4096, 1234, 0, 0, 0),
            -22,
        ),
        (
            "munmap(0xffffffffffff0000, 4096) = -1 EINVAL (Invalid argument)",
            (-65536, 4096, 0, 0, 0, 0),
            -22,
        ),
        ("brk(NULL) = 0x55555557a000", (0, 0, 0, 0, 0, 0), HEAP),
        ("munmap(0x1000, 4096 <unfinished ...>) = ?", (0x1000, 4096, 0, 0, 0, 0), None),
    ],
)
def test_arguments_and_results(tmp_path, line, args, result):
    (call,) = events(tmp_path, line + "\n")
    assert (call.args, call.result) == (args, result)


def test_files(tmp_path):
    text = "mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3</memfd:a b (deleted)>, 0) = 0x1000\n"
    (call,) = events(tmp_path, text)
    assert (call.file.path, call.file.file_system) == ("/memfd:a b", "tmpfs")
    (call,) = events(tmp_path, text.replace("/memfd:a b (deleted)", "/dev/zero<char 1:5>"))
    assert (call.file.path, call.file.kind) == ("/dev/zero", "device")


def test_a_call_in_two_parts_lasts_from_first_to_second(tmp_path):
    text = """\
1 clone3({flags=CLONE_VM|CLONE_THREAD, child_tid=0x7f, exit_signal=0} => {parent_tid=[2]}, 88) = 2
1 munmap(0x1000, 4096 <unfinished ...>
2 munmap(0x2000, 4096) = 0
1 <... munmap resumed>) = 0
1 munmap(0x3000, 4096) = 0
2 munmap(0x4000, 4096 <unfinished ...>
1 exit_group(0) = ?
2 <... munmap resumed> <unfinished ...>) = ?
2 +++ exited with 0 +++
1 +++ exited with 0 +++
"""
    second, first, third, last = events(tmp_path, text)
    assert [c.args[0] >> 12 for c in (first, second, third, last)] == [1, 2, 3, 4]
    assert first.entry < second.entry < second.exit < first.exit < third.entry
    assert (last.exit, last.result) == (NEVER, None)


def test_restarted_calls_count_once(tmp_path):
    text = """\
1 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = ? ERESTARTSYS (To be restarted)
1 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED} ---
1 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x1000
"""
    assert len(events(tmp_path, text)) == 1


def test_clones_by_their_flags(tmp_path):
    text = """\
1 brk(NULL) = 0x1000
1 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD, child_tidptr=0x7f) = 2
1 vfork() = 3
1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_VFORK|SIGCHLD) = 4
1 clone3({flags=CLONE_VM|CLONE_THREAD, exit_signal=0} => {parent_tid=[0]}, 88) = 5
1 fork() = 6
1 fork() = -1 EAGAIN (Resource temporarily unavailable)
"""
    found = [(e.child, e.flags & 0x14100) for e in events(tmp_path, text, Clone)]
    assert found == [(2, 0), (3, 0x4100), (4, 0x4100), (5, 0x10100), (6, 0)]


def test_an_exec_by_a_thread_and_limits(tmp_path):
    text = """\
1 brk(NULL) = 0x1000
1 clone3({flags=CLONE_VM|CLONE_THREAD, exit_signal=0} => {parent_tid=[0]}, 88) = 2
2 execve("/bin/ls", ["ls"], 0x7f /* 9 vars */ <unfinished ...>
1 +++ superseded by execve in pid 2 +++
1 <... execve resumed>) = 0
1 prlimit64(0, RLIMIT_AS, {rlim_cur=1024*1024, rlim_max=RLIM64_INFINITY}, NULL) = 0
1 prlimit64(0, RLIMIT_DATA, NULL, {rlim_cur=RLIM64_INFINITY, rlim_max=RLIM64_INFINITY}) = 0
"""
    (exec_,) = events(tmp_path, text, Exec)
    assert (exec_.tid, exec_.former, exec_.image.path) == (1, 2, "/bin/ls")
    (limit,) = events(tmp_path, text, SetLimit)
    assert (limit.resource, limit.soft) == (9, 1 << 20)


# --- without the maps ----------------------------------------------------------------------------


def test_the_first_mapping_and_the_first_brk_are_taken_as_given(replayed):
    text = BEGIN + "9 " + mmap(2, END - 2 * PAGE) + "9 " + mmap(1, END - 3 * PAGE)
    text += f"9 mprotect({END - 3 * PAGE:#x}, {PAGE}, PROT_READ) = 0\n9 exit_group(0) = ?\n"
    result = replayed(text)
    assert (result.code, result.counts) == (0, (4, 2, 0, 0))
    assert result.out.splitlines()[-1].endswith(", 2 taken as given")
    assert "exit_group 1" in result.out
    wrong = replayed(text.replace(f"{END - 3 * PAGE:#x}", f"{END - 4 * PAGE:#x}"))
    assert (wrong.code, wrong.counts) == (1, (4, 2, 1, 0))


def test_with_maps_no_result_is_taken_as_given(replayed, tmp_path):
    maps = tmp_path / "maps"
    heap = f"{HEAP:x}-{HEAP + PAGE:x} rw-p 00000000 00:00 0 [heap]"
    maps.write_text("\n".join([*AREAS[:2], heap, *AREAS[2:]]) + "\n")
    text = BEGIN.replace(f"{HEAP:#x}", f"{HEAP + PAGE:#x}") + "9 " + mmap(1, TOP - PAGE)
    result = replayed(text, "--maps", maps)
    assert (result.code, result.counts) == (0, (2, 2, 0, 0))
    assert "taken as given" not in result.out
    wrong = replayed(text.replace(f"{TOP - PAGE:#x}", f"{TOP - 2 * PAGE:#x}"), "--maps", maps)
    assert wrong.counts == (2, 2, 1, 0)


def test_a_hint_into_the_program_may_be_refused(replayed):
    first = BEGIN + "9 " + mmap(1, END - PAGE)
    hint = f"{HEAP - 0x100000:#x}"
    for place in (HEAP - 0x100000, END - 2 * PAGE):
        assert replayed(first + "9 " + mmap(1, place, addr=hint)).counts == (3, 1, 0, 0)
    assert replayed(first + "9 " + mmap(1, END - 3 * PAGE, addr=hint)).counts[2] == 1
    # A hint far above the heap, where nothing is mapped, must be honoured.
    hint = f"{HEAP + (8 << 30):#x}"
    assert replayed(first + "9 " + mmap(1, END - 2 * PAGE, addr=hint)).counts[2] == 1


def test_memory_refused_by_a_limit_that_is_not_in_the_log(replayed):
    text = BEGIN + "9 " + mmap(1, END - PAGE)
    refused = "9 " + mmap(1, 0).replace("0x0", "-1 ENOMEM (Cannot allocate memory)")
    text += f"{refused}9 brk({HEAP + PAGE:#x}) = {HEAP:#x}\n9 " + mmap(1, END - 2 * PAGE)
    result = replayed(text)
    assert (result.code, result.counts) == (0, (5, 1, 0, 2))
    assert "2 not comparable: memory was refused by a limit that is not in the log" in result.out


def test_a_limit_is_not_checked_against_unknown_sizes(replayed):
    text = BEGIN + "9 " + mmap(1, END - PAGE)
    text += "9 prlimit64(0, RLIMIT_AS, {rlim_cur=260*1024, rlim_max=RLIM64_INFINITY}, NULL) = 0\n"
    assert replayed(text + "9 " + mmap(20, END - 21 * PAGE)).counts == (3, 1, 0, 0)


def test_a_log_of_memory_calls_only(replayed):
    text = BEGIN.splitlines(keepends=True)[1] + "9 " + mmap(1, END - PAGE)
    result = replayed(text + "9 " + mmap(1, END - 2 * PAGE))
    assert result.code == 0
    assert "note: no execve in the log; assumed to show one process" in result.out


def test_threads_forks_and_vforks(replayed):
    # The thread shares the space, the fork's child has a copy, the vfork's child a new one by exec.
    text = BEGIN + "9 " + mmap(1, END - PAGE)
    text += "9 clone3({flags=CLONE_VM|CLONE_THREAD, exit_signal=0} => {parent_tid=[10]}, 88) = 10\n"
    text += "10 " + mmap(1, END - 2 * PAGE)
    text += "9 clone(child_stack=NULL, flags=SIGCHLD, child_tidptr=0x7f) = 11\n"
    text += "11 " + mmap(1, END - 3 * PAGE) + "9 " + mmap(1, END - 3 * PAGE)
    text += "9 vfork( <unfinished ...>\n"
    text += '12 execve("/bin/ls", ["ls"], 0x7f /* 9 vars */) = 0\n9 <... vfork resumed>) = 12\n'
    text += f"12 brk(NULL) = {HEAP + PAGE:#x}\n12 " + mmap(1, END - 90 * PAGE)
    text += "12 " + mmap(1, END - 91 * PAGE) + "9 " + mmap(1, END - 4 * PAGE)
    result = replayed(text)
    assert (result.code, result.counts) == (0, (9, 5, 0, 0))
    assert "2 programs started, 1 copied by fork" in result.out


def test_overlapping_calls(replayed):
    # Thread 9's mmap returned after thread 10's, but took effect before it.
    text = BEGIN + "9 " + mmap(1, END - PAGE)
    text += "9 clone3({flags=CLONE_VM|CLONE_THREAD, exit_signal=0} => {parent_tid=[10]}, 88) = 10\n"
    call = mmap(2, END - 3 * PAGE)
    head, result = call.split(", -1, 0)")
    text += f"9 {head}, <unfinished ...>\n10 " + mmap(1, END - 4 * PAGE)
    text += f"9 <... mmap resumed>-1, 0){result}"
    assert replayed(text).counts == (4, 2, 0, 0)
    in_turn = BEGIN + "9 " + mmap(1, END - PAGE) + "9 " + mmap(1, END - 4 * PAGE) + "9 " + call
    assert replayed(in_turn).counts == (4, 2, 1, 0)


def test_a_log_that_is_compressed_or_cut_short(capsys, tmp_path):
    text = BEGIN + "9 " + mmap(1, END - PAGE) + "9 " + mmap(1, END - 2 * PAGE)[:40]
    path = tmp_path / "log.gz"
    with gzip.open(path, "wt") as file:
        file.write(text)
    result = Replayed(capsys, path)
    assert (result.code, result.counts) == (0, (2, 0, 0, 0))
    assert "note: line 4, the last, is incomplete and left out" in result.out


_START = """\
execve("./prog", ["./prog"], 0x7ffe3c1c5a28 /* 20 vars */) = 0
brk(NULL)                               = 0x555560000000
mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f4aeb400000
"""
_FOREIGN = "not comparable: the call acts on memory that the log did not create"


@pytest.mark.hardening(11)
@pytest.mark.parametrize(
    "call",
    [
        "mprotect(0x7ffe3c1c4000, 4096, PROT_READ|PROT_WRITE|PROT_GROWSDOWN) = 0",
        "mlock(0x7ffe3c1c5000, 4096)             = 0",
        "madvise(0x7ffe3c1c5000, 4096, MADV_DONTDUMP) = 0",
        "munmap(0x7f0000100000, 1048576)         = 0",
        "mremap(0x7f0000200000, 266240, 4096, MREMAP_MAYMOVE) = 0x7f0000200000",
    ],
)
def test_calls_on_memory_that_the_log_did_not_create(replayed, call):
    result = replayed(f"{_START}{call}\nmunmap(0x7f4aeb400000, 8192) = 0\n")
    assert result.code == 0
    assert f"1 {_FOREIGN}" in result.out
    assert "--maps FILE" in result.out
    assert "1 compared, 0 differ, 1 not comparable" in result.out


@pytest.mark.hardening(11)
def test_a_log_that_begins_in_the_middle(replayed):
    """The heap may shrink below the first break of the log."""
    result = replayed(
        "strace: Process 4242 attached\n"
        "mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000200000\n"
        "brk(0x55fefb6eb000)                     = 0x55fefb6eb000\n"
        "brk(0x55fefb6ba000)                     = 0x55fefb6ba000\n"
        "munmap(0x7f0000200000, 4096)            = 0\n"
    )
    assert result.code == 0
    assert f"1 {_FOREIGN}" in result.out
    assert "--maps FILE" in result.out


@pytest.mark.hardening(11)
@pytest.mark.parametrize(
    "output", ["hello (world) = 5\n", "hello\n", "a) = 3\n", "no newline", "one\ntwo\n", '"\n']
)
def test_the_programs_output_inside_a_line(replayed, output):
    result = replayed(
        f'{_START}write(1, "...", 18{output})     = 18\nmunmap(0x7f4aeb400000, 8192) = 0\n'
    )
    assert result.code == 0
    assert "1 compared, 0 differ" in result.out


@pytest.mark.hardening(11)
def test_output_inside_a_memory_call_is_named(replayed):
    result = replayed(f"{_START}munmap(0x7f4aeb400000, (8192\nbrk(NULL) = 0x555560000000\n")
    assert result.code == 2
    assert ": line 4: the call is not complete; strace -o FILE keeps" in result.err

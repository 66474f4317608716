"""The recorder records a program's allocations in order, however the program ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.events import parquet
from benchmarks.events.events import FREE, MALLOC, OP_NAMES, REALLOC, THREAD_END
from benchmarks.trace.__main__ import main
from benchmarks.trace.recorder import build, raw, run
from tests.conftest import ROOT

SUBJECT = Path(__file__).with_name("subject.c")
COMPILER = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
BEFORE_MAIN, START, STOP = 55555, 77777, 88888

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or COMPILER is None, reason="recording needs Linux and a C compiler"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a directory with the compiled subject, and a cache for the compiled recorder."""
    directory = tmp_path_factory.mktemp("recorder")
    command = [
        COMPILER,
        "-fno-builtin",
        "-w",
        "-pthread",
        "-o",
        str(directory / "subject"),
        str(SUBJECT),
    ]
    subprocess.run(command, check=True)
    return directory


@pytest.fixture
def subject(made, own_cache, monkeypatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cache"))
    return str(made / "subject")


def read(path):
    """Return the events of a trace, which must be consistent, and its provenance."""
    with parquet.Reader(path) as reader:
        assert list(parquet.audited(path, reader.groups()))
        return reader.read(), reader.provenance


def rows(events, begin=START, end=STOP):
    """Return (name, slot, size, align) of the events between the two marks."""
    first = np.flatnonzero(events.size == begin)[0] + 2
    last = np.flatnonzero(events.size == end)[0]
    names = [OP_NAMES[op] for op in events.op[first:last]]
    align = events.align if len(events.align) else np.zeros_like(events.size)
    columns = (events.slot, events.size, align)
    return list(zip(names, *(c[first:last].tolist() for c in columns), strict=True))


def recorded(tmp_path, *command):
    out = tmp_path / "t.parquet"
    recording = run.record([str(word) for word in command], out)
    assert not list(tmp_path.glob("*.raw"))
    return recording, *read(out)


def churned(events):
    """Count the pairs of the subject's churn(): sizes 16, 17, ... 115, 16, ..."""
    mallocs = (events.op == MALLOC) & (events.size >= 16) & (events.size < 116)
    for size, outside in ((START, slice(None, 1)), (STOP, slice(1, None))):
        for at in np.flatnonzero(events.size == size):
            mallocs[: at + 1 if outside.stop else 0] = False
            mallocs[at if outside.start else len(mallocs) :] = False
    return int(np.count_nonzero(mallocs))


def test_every_call(subject, tmp_path):
    recording, events, provenance = recorded(tmp_path, subject, "calls")
    assert recording.exit == 0
    assert np.count_nonzero(events.size == BEFORE_MAIN) == 1
    made = rows(events)
    a, b, c = made[0][1], made[1][1], made[4][1]
    assert len({a, b, c}) == 3
    again = iter([row[1] for row in made[8:] if row[0] == "aligned"])
    expected = [
        ("malloc", a, 100, 0),
        ("calloc", b, 100, 0),
        ("realloc", a, 300, 0),
        ("realloc", a, 2000, 0),
        ("realloc", c, 50, 0),
        ("free", b, 0, 0),
        ("free", -1, 0, 0),
        ("realloc", c, 0, 0),
    ]
    for size, align in ((640, 6), (256, 7), (10, 12), (20, 12), (30, 12)):
        slot = next(again)
        expected += [("aligned", slot, size, align), ("free", slot, 0, 0)]
    expected += [("free", -1, 0, 0), ("free", -1, 0, 0), ("free", a, 0, 0)]
    assert made == expected
    assert provenance["left_out"] == {"failed_request": 2}
    assert provenance["program"] == str(Path(subject).resolve())
    assert provenance["arguments"] == [subject, "calls"]
    assert provenance["events"] == len(events.op)
    assert provenance["exit"] == 0


def test_sizes_of_one_word_and_of_two(subject, tmp_path):
    _, events, _ = recorded(tmp_path, subject, "sizes", 4096)
    expected = []
    for size in (4094, 4095, 4096, 4097):
        expected += [("malloc", size), ("free", 0), ("calloc", size), ("free", 0)]
        expected += [("malloc", 1), ("realloc", size), ("free", 0)]
    assert [(name, size) for name, _, size, _ in rows(events)] == expected


def test_threads_share_memory_in_a_possible_order(subject, tmp_path, monkeypatch):
    # One arena and no tcache: a block freed by one thread goes to the next.
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0")
    _, events, provenance = recorded(tmp_path, subject, "threads")
    assert provenance["left_out"] == {}
    assert provenance["threads"] == 5
    assert len(np.unique(events.thread)) == 5
    assert np.count_nonzero(events.op == THREAD_END) == 4
    assert np.count_nonzero(events.op == REALLOC) > 1000
    assert np.count_nonzero(events.op < THREAD_END) > 4 * 150000
    assert (np.diff(events.time) >= 0).all()


def test_many_threads(subject, tmp_path):
    _, events, provenance = recorded(tmp_path, subject, "many", 300)
    assert provenance["threads"] == 301
    ends = np.flatnonzero(events.op == THREAD_END)
    assert len(ends) == 300
    for end in ends:
        mine = np.flatnonzero(events.thread == events.thread[end])
        assert events.size[mine[0]] == STOP
        # The C library frees its own per-thread memory after all destructors.
        assert [OP_NAMES[op] for op in events.op[mine[mine >= end]]] == ["thread_end", "free"]
    assert provenance["left_out"] == {}


def test_chunks_pass_from_thread_to_thread(subject, tmp_path):
    image = raw.images(raw_of(tmp_path, subject, "many", 300))[0][0]
    assert image.buffers.stat().st_size <= 4 * raw.CHUNK


@pytest.mark.parametrize(
    ("end", "code"),
    [("_exit", 7), ("pthread_exit", 0), (6, -6), (int(signal.SIGTERM), -15), (9, -9), (40, -40)],
)
def test_however_it_ends(subject, tmp_path, end, code):
    recording, events, _ = recorded(tmp_path, subject, "churn", 10000, end)
    assert recording.exit == code
    assert churned(events) == 10000
    assert np.count_nonzero(events.size == STOP) == 1


def test_every_end_has_words():
    assert run.describe_exit(3) == " (exit code 3)"
    assert run.describe_exit(-9) == " (killed by SIGKILL)"
    assert run.describe_exit(-40) == " (killed by signal 40)"


def test_fork(subject, tmp_path):
    recording, events, provenance = recorded(tmp_path, subject, "fork", 7000)
    parent, child = recording.traces
    assert child.path == tmp_path / "t.1.parquet"
    assert provenance["children"] == ["t.1.parquet"]
    assert churned(events) == 5
    assert events.size[-2] == STOP
    inner, about = read(child.path)
    assert len(inner.op) == 2 * 7000
    assert churned(inner) == 7000
    assert about["left_out"] == {"unknown_pointer": 1}
    assert about["parent"] == provenance["pid"]
    assert parent.events == len(events.op)


@pytest.mark.parametrize("how", ["exec", "vfork"])
def test_exec(subject, tmp_path, how):
    recording, events, _ = recorded(tmp_path, subject, how, 3000)
    assert len(recording.traces) == 2
    other, about = read(recording.traces[1].path)
    assert about["arguments"] == [subject, *(["churn"] if how == "vfork" else [how]), "3000"]
    # The main trace is that of the last program the command's process executed.
    assert churned(events) == (3000 if how == "exec" else 0)
    assert churned(other) == (0 if how == "exec" else 3000)
    assert np.count_nonzero(other.size == START) == 1


def test_what_outlives_the_program_is_waited_for(subject, tmp_path):
    recording, _, _ = recorded(tmp_path, subject, "orphan", 3000)
    assert churned(read(recording.traces[1].path)[0]) == 3000
    assert recording.running == []


def test_a_program_may_close_every_descriptor(subject, tmp_path):
    _, events, _ = recorded(tmp_path, subject, "close", 20000)
    assert churned(events) == 20000


def test_the_program_inherits_what_it_would(subject, tmp_path):
    reading, writing = os.pipe()
    try:
        os.set_inheritable(reading, True)
        recording, _, _ = recorded(tmp_path, "sh", "-c", f"test -e /proc/self/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)
    assert recording.exit == 0


@pytest.mark.hardening(15)
@pytest.mark.parametrize(
    "by",
    ["fsize", "nofile", "chroot", "prctl", "syscall", "strict", "strict_syscall", "no_clock"],
)
def test_limits_and_filters_lose_nothing_and_kill_nobody(subject, tmp_path, by):
    if by == "chroot" and os.geteuid():
        pytest.skip("only root may change the root directory")
    recording, events, provenance = recorded(tmp_path, subject, by, 60000)
    assert recording.exit == 0
    assert churned(events) == 60000
    assert provenance["left_out"] == {}
    assert (recording.unrecorded, provenance["unrecorded"]) == (0, 0)


@pytest.mark.hardening(15)
@pytest.mark.parametrize("by", ["fsize", "syscall"])
def test_what_is_lost_is_counted(subject, tmp_path, by):
    directory = raw_of(tmp_path, subject, by, 60000)  # and nobody drains
    (directory / run._ABOUT).write_text('{"command": ["x"], "ns_per_tick": 1.0, "pid": 0}')
    trace = run.recover(directory, tmp_path / "t.parquet").traces[0]
    read(trace.path)
    if by == "syscall":
        assert trace.left_out == {}  # more chunks were made before the filter
    else:
        assert trace.left_out["never_written"] > 10000
        assert trace.events + sum(trace.left_out.values()) >= 2 * 60000


@pytest.mark.hardening(15)
@pytest.mark.parametrize(
    "how",
    [
        *("posix_spawn", "posix_spawnp", "execve", "execve_nothing", "execvpe", "execle"),
        *("fexecve", "execl", "execlp", "execv", "execvp", "fork"),
    ],
)
def test_a_cleared_environment_ends_no_recording(subject, tmp_path, how):
    recording, _, _ = recorded(tmp_path, subject, "environment", 3000, how)
    assert recording.exit == 0
    assert len(recording.traces) == 2
    events = sorted(trace.events for trace in recording.traces)
    assert events[0] < 20
    assert events[1] >= 2 * 3000


@pytest.mark.hardening(15)
@pytest.mark.parametrize("how", ["fork", "execve"])
def test_what_a_filtered_program_starts_is_said_to_be_missing(subject, tmp_path, capfd, how):
    out = tmp_path / "t.parquet"
    assert main(["record", "-o", str(out), "--", subject, "children", "3000", how]) == 0
    said = capfd.readouterr().err
    assert "not recorded: 1 process after a fork or exec" in said
    assert "(exit code 0)" in said
    assert read(out)[1]["unrecorded"] == 1


@pytest.mark.hardening(15)
@pytest.mark.parametrize("how", ["system", "popen"])
def test_what_a_shell_runs_without_the_environment_is_said_to_be_missing(subject, tmp_path, how):
    recording, _, _ = recorded(tmp_path, subject, "environment", 3000, how)
    assert (recording.exit, recording.unrecorded) == (0, 1)


@pytest.mark.hardening(15)
def test_a_limit_from_the_start_kills_nobody(subject, tmp_path, capfd):
    out = tmp_path / "t.parquet"
    command = f"ulimit -f 0; {subject} churn 30000 _exit; exit $?"
    assert main(["record", "-o", str(out), "--", "bash", "-c", command]) == 0
    said = capfd.readouterr().err
    # The shell's child before the exec, and the program.
    assert "not recorded: 2 processes after a fork or exec, where no file could be created" in said
    assert "(exit code 7)" in said  # as the program asked, not that of a signal


@pytest.mark.hardening(15)
def test_calls_that_change_memory_otherwise_are_events(subject, tmp_path):
    _, events, provenance = recorded(tmp_path, subject, "others")
    others = np.flatnonzero(events.op > THREAD_END)
    found = [
        (OP_NAMES[op], size, offset)
        for op, size, offset in zip(
            events.op[others], events.size[others], events.offset[others], strict=True
        )
    ]
    assert found == [
        ("mallopt", 0, -3 << 32 | 1 << 20),
        ("mallopt", 0, -8 << 32 | 1),
        ("sbrk", 0, 8192),
        ("sbrk", 0, -4096),
        ("malloc_trim", 100, 0),
    ]
    assert (events.slot[others] == -1).all()
    assert provenance["left_out"] == {}


def test_time_passes_while_the_program_sleeps(subject, tmp_path):
    _, events, _ = recorded(tmp_path, subject, "sleep")
    assert (events.time % 1000 == 0).all()
    assert (np.diff(events.time) >= 0).all()
    assert events.time[-1] - events.time[0] >= 49_000_000


def test_windows_make_no_difference(subject, tmp_path, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0")
    directory = raw_of(tmp_path, subject, "threads")
    image = raw.images(directory)[0][0]
    monkeypatch.setattr(raw, "WINDOW", 1 << 24)
    whole = [records for records, _ in image.records()]
    assert len(whole) == 1
    monkeypatch.setattr(raw, "WINDOW", 10007)
    pieces = [records for records, _ in image.records()]
    assert len(pieces) > 50
    for name in ("op", "pointer", "old", "size", "thread", "time"):
        joined = np.concatenate([getattr(piece, name) for piece in pieces])
        assert np.array_equal(joined, getattr(whole[0], name))


def raw_of(tmp_path, *command):
    """Return the raw recording of a command."""
    directory = tmp_path / "raw"
    directory.mkdir()
    environment = os.environ | {
        "LD_PRELOAD": str(build.library()),
        run.VARIABLE: str(directory),
    }
    subprocess.run([str(word) for word in command], env=environment, check=True)
    return directory


@pytest.mark.parametrize("written", [raw.CHUNK, raw.CHUNK // 2 + 8, 4096])
def test_killed_while_a_chunk_is_written(subject, tmp_path, written):
    directory = raw_of(tmp_path, subject, "churn", 20000)
    image = raw.images(directory)[0][0]
    whole, _ = next(image.records())
    # State of the last chunk when it was written to its file, completely or in part.
    chunk = bytearray(image.buffers.read_bytes()[raw.CHUNK :][: raw.CHUNK])
    words = np.frombuffer(chunk, "<i8").copy()
    words[: raw.HEAD] = words[raw.HEAD + 1], image.numbers - 1
    with image.buffers.with_suffix(".chunks").open("ab") as file:
        file.write(words.tobytes()[:written])
    again = raw.images(directory)[0][0]
    assert len(again._places) == len(image._places)
    for one, other in zip(whole, next(again.records())[0], strict=True):
        assert np.array_equal(one, other)


def test_a_full_disk_loses_what_it_loses(subject, tmp_path):
    directory = raw_of(tmp_path, subject, "churn", 20000)
    image = raw.images(directory)[0][0]
    with image.buffers.with_suffix(".chunks").open("rb+") as file:
        file.truncate(raw.CHUNK + 9000)  # the second chunk in part, the others not at all
    (directory / run._ABOUT).write_text('{"command": ["x"], "ns_per_tick": 1.0, "pid": 0}')
    out = tmp_path / "t.parquet"
    recording = run.recover(directory, out)
    lost = recording.traces[0].left_out["never_written"]
    read(out)
    assert 1000 < lost < 2 * 20000
    assert recording.traces[0].events < 2 * 20000


def start(tmp_path, *command):
    """Start ``record`` as a user does, in a new session."""
    options = ["-o", str(tmp_path / "t.parquet"), "--", *(str(word) for word in command)]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.trace", "record", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(subject, tmp_path, number):
    process = start(tmp_path, subject, "forever", 1000)
    try:
        assert process.stdout.read(5) == b"xxxxx"
        # Ctrl-C reaches the whole process group; a SIGTERM reaches one process.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        seen = 5 + len(process.stdout.read())
        errors = process.stderr.read().decode()
        assert process.wait() == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert f"killed by {number.name}" in errors
    assert churned(read(tmp_path / "t.parquet")[0]) >= 1000 * seen


def test_recover_after_everything_was_killed(subject, tmp_path, capfd):
    process = start(tmp_path, subject, "forever", 1000)
    seen = len(process.stdout.read(30))
    directory, out = tmp_path / "t.parquet.raw", tmp_path / "t.parquet"
    process.kill()
    process.wait()
    relative = os.path.relpath(directory)
    assert main(["record", "-o", str(out), "--recover", relative]) == 1
    assert "is still recording into it; end that process" in capfd.readouterr().err
    os.killpg(process.pid, signal.SIGKILL)
    seen += len(process.stdout.read())
    assert not out.exists()
    assert main(["record", "-o", str(out), "--", subject, "calls"]) == 1
    assert "left by an earlier recording" in capfd.readouterr().err
    assert main(["record", "-o", str(out), "--recover", str(directory)]) == 0
    events, provenance = read(out)
    # Nothing is lost except the event in progress.
    assert churned(events) >= 1000 * seen
    assert provenance["left_out"].get("never_written", 0) <= 1
    assert not directory.exists()


def complains(capfd, tmp_path, *arguments):
    """Run a command that must fail with one line and leave no files; return the line."""
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "t.parquet"
    assert main(["record", "-o", str(out), *(str(a) for a in arguments)]) == 1
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    return errors


def test_no_compiler(subject, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C compiler (cc, gcc, clang)" in complains(capfd, tmp_path, "--", subject)
    monkeypatch.setenv("CC", "nonesuch")
    assert "no C compiler (nonesuch)" in complains(capfd, tmp_path, "--", subject)


def test_a_compiler_that_fails(subject, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "recorder").mkdir()
    monkeypatch.setenv("CC", "false")
    (tmp_path / "malloc-bench" / "recorder").mkdir(parents=True)
    said = complains(capfd, tmp_path, "--", subject)
    assert said.endswith("false cannot compile the recorder: exit code 1\n")


def test_statically_linked(made, subject, tmp_path, capfd):
    static = made / "static"
    command = [
        COMPILER,
        "-static",
        "-fno-builtin",
        "-w",
        "-pthread",
        "-o",
        str(static),
        str(SUBJECT),
    ]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be linked statically here")
    said = complains(capfd, tmp_path, "--", static, "calls")
    assert re.search(r"no allocation was recorded; .* statically linked.*\(exit code 0\)", said)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "takes a command after --"),
        (["--recover", "x", "--", "y"], "takes a command after --"),
        (["ls"], "takes a command after --"),
        (["--", "/nonesuch"], "/nonesuch: program not found"),
        (["--", "/etc/passwd"], "/etc/passwd: cannot be executed"),
        (["--recover", "/nonesuch"], "/nonesuch: not a raw recording"),
    ],
)
def test_bad_arguments(subject, tmp_path, capfd, arguments, complaint):
    assert complaint in complains(capfd, tmp_path, *arguments)


def test_options_of_a_command_without_dashes(tmp_path, capfd):
    with pytest.raises(SystemExit):
        main(["record", "-o", str(tmp_path / "t.parquet"), "ls", "-l"])
    assert "unknown arguments: -l (a command comes after --)" in capfd.readouterr().err


def test_interrupted_while_it_converts(subject, tmp_path, monkeypatch, capfd):
    def interrupt(*_):
        raise KeyboardInterrupt

    out = tmp_path / "t.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(run, "_convert", interrupt)
        assert main(["record", "-o", str(out), "--", subject, "calls"]) == 130
    said = capfd.readouterr().err
    assert said == f"interrupted: the recording is kept: --recover {out}.raw\n"
    assert main(["record", "-o", str(out), "--recover", f"{out}.raw"]) == 0


def test_no_directory(subject, tmp_path, capfd):
    assert main(["record", "-o", str(tmp_path / "no" / "t.parquet"), "--", subject]) == 1
    assert "does not exist" in capfd.readouterr().err


def test_another_preloaded_library_stays(subject, tmp_path, monkeypatch):
    other = tmp_path / "other.so"
    source = "#include <stdlib.h>\nvoid *valloc(size_t n) { return calloc(1, n + 1); }\n"
    (tmp_path / "other.c").write_text(source)
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", other, tmp_path / "other.c"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(other))
    _, events, provenance = recorded(tmp_path, subject, "calls")
    # One call of the program is one event, even if the allocator calls itself.
    assert [row[2] for row in rows(events) if row[0] == "aligned"] == [640, 256, 10, 20, 30]
    assert [row[0] for row in rows(events)].count("calloc") == 1
    assert provenance["left_out"] == {"failed_request": 2}


def window(*made):
    """Return ROWs of (op, thread, pointer, old); None: a sequence number without a record."""
    result = np.zeros(len(made), raw.ROW).view(np.recarray)
    for i, row in enumerate(made):
        if row:
            result[i].op, result[i].thread, result[i].pointer, result[i].old = row
    return result


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("made", "expected"),
    [
        # A realloc is placed at its second number,
        (
            [(raw.BEGIN, 1, 20, 10), (raw.FREE, 2, 20, 0), (raw.REALLOC, 1, 20, 10)],
            [(raw.FREE, 20), (raw.REALLOC, 20)],
        ),
        # unless another thread gets its old block before that;
        (
            [(raw.BEGIN, 1, 20, 10), (raw.MALLOC, 2, 10, 0), (raw.REALLOC, 1, 20, 10)],
            [(raw.REALLOC, 20), (raw.MALLOC, 10)],
        ),
        # also if that thread's call is a realloc whose old block a third thread gets.
        (
            [
                (raw.BEGIN, 1, 20, 10),
                (raw.BEGIN, 2, 10, 30),
                (raw.MALLOC, 3, 30, 0),
                (raw.REALLOC, 1, 20, 10),
                (raw.REALLOC, 2, 10, 30),
            ],
            [(raw.REALLOC, 20), (raw.REALLOC, 10), (raw.MALLOC, 30)],
        ),
        (
            [
                (raw.BEGIN, 1, 20, 10),
                (raw.BEGIN, 2, 10, 30),
                (raw.REALLOC, 2, 10, 30),
                None,
                (raw.REALLOC, 1, 20, 10),
            ],
            [(raw.REALLOC, 20), (raw.REALLOC, 10)],
        ),
        # A realloc without an end is no event.
        ([(raw.UNFINISHED, 1, 0, 0), (raw.MALLOC, 2, 10, 0)], [(raw.MALLOC, 10)]),
    ],
)
def test_the_place_of_a_realloc(made, expected, cut):
    pending, m, got = np.zeros(8, raw.ROW).view(np.recarray), 0, []
    for piece in (made[:cut], made[cut:]):
        out = np.zeros(16, raw.ROW).view(np.recarray)
        n, m = raw.build_once(raw.order)(window(*piece), pending, m, np.zeros(8, "i8"), out)
        got += [(row.op, row.pointer) for row in out[:n]]
    assert got == expected
    assert m == 0


def test_operations_have_the_recorder_s_numbers():
    text = build.SOURCE.read_text()
    names = re.search(r"enum \{ (MALLOC.*?) \};", text)[1].split(", ")
    number = 0
    for item in names:
        name, _, given = item.partition(" = ")
        number = int(given) if given else number + 1
        assert getattr(raw, name) == number
    assert f"#define CHUNK {raw.CHUNK}\n" in text
    assert f"#define HEADER {raw.HEADER}\n" in text
    assert f"#define MAGIC {raw.MAGIC:#x}L " in text
    assert FREE + 1 == raw.FREE

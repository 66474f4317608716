"""The host process executes operations, counts only the faults they cause, and cleans up."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kernel.linux.host import kernel_version, unavailable
from kernel.linux.host.code import (
    CHUNK,
    OP,
    OP_CALL,
    OP_JOIN,
    OP_NOP,
    OP_SETRLIMIT,
    OP_SWITCH,
    THREAD_STACK,
)
from kernel.linux.host.process import HostError, HostProcess
from tests.kernel.linux.host.driver import (
    ANONYMOUS,
    HUGE_PAGE,
    PAGE,
    PLACE,
    READ,
    load,
    madvise,
    mmap,
    munmap,
    one,
    op,
    store,
    syscall,
    touch,
    value,
)

SEGV_MAPERR, SEGV_ACCERR, BUS_ADRERR = 1, 2, 2
ESRCH, ENOMEM, EINVAL, ENOSYS = -3, -12, -22, -38
DONTNEED, NOHUGEPAGE, HUGEPAGE = 4, 15, 14


def test_the_host_serves_and_has_a_version():
    assert unavailable() == ""
    assert kernel_version() >= (3, 10)


def test_an_unsuitable_host_is_reported_in_one_line(monkeypatch):
    from kernel.linux.host import process

    def refuse(*, libc):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("platform.machine", lambda: "aarch64")
        assert unavailable.__wrapped__() == "the host is aarch64, not x86-64"
    with monkeypatch.context() as patch:
        patch.setattr("platform.system", lambda: "Darwin")
        assert unavailable.__wrapped__() == "the host is Darwin, not Linux"
        assert kernel_version() == (0, 0)
    monkeypatch.setattr(process, "harness_program", refuse)
    assert unavailable.__wrapped__() == "no executable memory file: Permission denied"


def test_an_empty_operation_never_faults(host):
    results = host.run(np.repeat(op(OP_NOP), 3 * CHUNK + 5))
    assert len(results) == 3 * CHUNK + 5
    assert not results.view("i8").any()


def test_no_operations(host):
    assert len(host.run(np.zeros(0, OP))) == 0


def test_faults_are_counted_exactly(host):
    start = value(host, mmap(64 * PAGE))
    cases = [
        (load(start), 1, 0),  # the zero page
        (store(start), 1, 0),
        (load(start), 0, 7),
        (store(start + PAGE, 9), 1, 0),
        (load(start + PAGE), 0, 9),
        (touch(start, 10 * PAGE), 8, 10),
        (touch(start, 64 * PAGE, write=0), 54, 64),
        (touch(start, 64 * PAGE), 54, 64),
        (madvise(start, 32 * PAGE, DONTNEED), 0, 0),
        (touch(start, 64 * PAGE), 32, 64),
        (syscall(39), 0, host.pid),
    ]
    for i, (operation, faults, expected) in enumerate(cases):
        result = one(host, operation)
        assert (int(result["minflt"]), int(result["value"]), int(result["majflt"])) == (
            faults,
            expected,
            0,
        ), f"case {i}"
        assert result["sig"] == 0
    # The same in one batch.
    again = value(host, mmap(64 * PAGE))
    batch = np.concatenate([touch(again, 64 * PAGE, 0), touch(again, 64 * PAGE), load(again)])
    assert host.run(batch)["minflt"].tolist() == [64, 64, 0]


def test_populate_and_mlock_count_one_fault_per_page(host):
    result = one(host, mmap(16 * PAGE, flags=ANONYMOUS | 0x8000))
    assert result["minflt"] == 16
    start = value(host, mmap(8 * PAGE))
    assert one(host, syscall(149, start, 8 * PAGE))["minflt"] == 8


def test_touch_rounds_its_range_up_to_whole_pages(host):
    start = value(host, mmap(4 * PAGE))
    assert one(host, touch(start, PAGE + 1))["value"] == 2
    assert one(host, touch(start, 0))["value"] == 0
    assert one(host, touch(start + 100, PAGE))["value"] == 2


def test_without_fault_counts(host):
    start = value(host, mmap(4 * PAGE))
    assert host.run(touch(start, 4 * PAGE), faults=False)["minflt"][0] == 0
    assert one(host, op(OP_NOP))["minflt"] == 0


def test_a_bad_access_is_reported_and_the_next_operation_runs(host):
    start = value(host, mmap(4 * PAGE, at=PLACE))
    readable = value(host, mmap(PAGE, prot=READ, at=PLACE + (1 << 30)))
    batch = np.concatenate(
        [
            load(start + 4 * PAGE),
            store(readable + 8),
            touch(start, 6 * PAGE),
            load(16),
            store(start, 3),
            load(1 << 60),
        ]
    )
    results = host.run(batch)
    assert results["sig"].tolist() == [11, 11, 11, 11, 0, 11]
    assert results["si_code"].tolist() == [1, SEGV_ACCERR, SEGV_MAPERR, 1, 0, 128]
    assert results["si_addr"].tolist() == [
        start + 4 * PAGE,
        readable + 8,
        start + 4 * PAGE,
        16,
        0,
        0,
    ]
    assert results["value"].tolist() == [0, 0, 4, 0, 0, 0]
    assert results["minflt"].tolist() == [0, 0, 4, 0, 0, 0]
    assert one(host, load(start))["value"] == 3


def test_files_are_inherited_and_access_past_their_end_is_a_bus_error(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.arange(1024, dtype="i8").tobytes())
    with (
        path.open("rb") as first,
        path.open("rb") as second,
        HostProcess(files=[second.fileno(), first.fileno()]) as host,
    ):
        names = sorted(os.listdir(f"/proc/{host.pid}/fd"), key=int)  # noqa: PTH208
        start = value(host, mmap(3 * PAGE, READ, 2, fd=11))
        results = host.run(np.concatenate([load(start + PAGE + 80), load(start + 2 * PAGE)]))
    assert names == ["10", "11"]
    assert results["value"][0] == 522
    assert (results["sig"][1], results["si_code"][1], results["si_addr"][1]) == (
        7,
        BUS_ADRERR,
        start + 2 * PAGE,
    )


def test_unknown_operations_are_refused(host):
    assert one(host, op(99))["value"] == ENOSYS
    assert one(host, op(-1))["value"] == ENOSYS


def test_limits_apply_to_root_too(host):
    hard = int(
        next(
            line
            for line in Path(f"/proc/{host.pid}/limits").read_text().splitlines()
            if line.startswith("Max data size")
        )
        .split()[4]
        .replace("unlimited", "-1")
    )
    start = value(host, mmap(64 * PAGE))
    assert value(host, op(OP_SETRLIMIT, resource.RLIMIT_MEMLOCK, 16 * PAGE)) == 0
    assert value(host, syscall(149, start, 16 * PAGE)) == 0
    assert value(host, syscall(149, start + 16 * PAGE, PAGE)) == ENOMEM
    assert value(host, op(OP_SETRLIMIT, resource.RLIMIT_DATA, 128 * PAGE)) == 0
    assert value(host, mmap(128 * PAGE)) == ENOMEM
    assert value(host, op(OP_SETRLIMIT, resource.RLIMIT_DATA, -1)) == (0 if hard < 0 else EINVAL)
    if hard < 0:
        assert value(host, mmap(128 * PAGE)) > 0
    assert value(host, op(OP_SETRLIMIT, 99, 0)) == EINVAL


def test_limits_from_the_start():
    with HostProcess(limits={resource.RLIMIT_AS: 16 << 20}) as host:
        assert value(host, mmap(16 << 20)) == ENOMEM
        assert value(host, mmap(8 << 20)) > 0


def test_limits_above_the_hard_limit_are_an_error():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with pytest.raises(HostError, match="hard limit"):
        HostProcess(limits={resource.RLIMIT_NOFILE: hard + 1})


def test_the_process_has_no_capabilities(host):
    status = Path(f"/proc/{host.pid}/status").read_text()
    for line in status.splitlines():
        if line.startswith(("CapInh", "CapPrm", "CapEff", "CapAmb")):
            assert int(line.split()[1], 16) == 0, line


def test_the_start_is_the_same_every_time(host):
    with HostProcess() as second:
        first_lines = [line.split()[:3] for line in host.maps.splitlines()]
        assert [line.split()[:3] for line in second.maps.splitlines()] == first_lines
        if host.randomized:
            pytest.skip("the system refuses to disable randomisation")
        assert value(host, mmap(PAGE)) == value(second, mmap(PAGE))
    assert host.data_bytes == 0
    assert value(host, syscall(12, 0)) == host.start_brk
    assert value(host, syscall(12, host.start_brk + PAGE)) == host.start_brk + PAGE


def test_randomised_processes_differ():
    places = set()
    for _ in range(4):
        with HostProcess(randomize=True) as host:
            places.add(value(host, mmap(PAGE)))
            assert host.randomized
    assert len(places) > 1


def test_the_legacy_layout_goes_up():
    with HostProcess(legacy_layout=True) as host:
        first, second = value(host, mmap(PAGE)), value(host, mmap(PAGE, prot=READ))
    assert second == first + PAGE


def test_an_unlimited_stack_moves_the_first_mapping(host):
    if resource.getrlimit(resource.RLIMIT_STACK)[1] != resource.RLIM_INFINITY:
        pytest.skip("the stack's hard limit is finite")
    with HostProcess(stack_unlimited=True) as unlimited:
        assert value(unlimited, mmap(PAGE)) < value(host, mmap(PAGE)) // 2


def test_an_exit_of_the_process_is_reported(host):
    start = time.monotonic()
    with pytest.raises(HostError, match="exited with status 3"):
        host.run(syscall(231, 3))
    assert time.monotonic() - start < 5
    with pytest.raises(HostError, match="exited with status 3"):
        host.run(op(OP_NOP))


def test_a_killed_process_is_reported(host):
    os.kill(host.pid, signal.SIGKILL)
    with pytest.raises(HostError, match="was killed by SIGKILL"):
        host.run(op(OP_NOP))


def test_unmapping_its_own_memory_kills_it(host):
    start, end = host.areas[0]
    with pytest.raises(HostError, match="was killed by SIGSEGV"):
        host.run(munmap(start, end - start))


def test_use_after_close_is_an_error():
    host = HostProcess()
    host.close()
    host.close()
    with pytest.raises(HostError):
        host.run(op(OP_NOP))


def _exists(pid):
    return Path(f"/proc/{pid}").exists()


def test_no_process_or_descriptor_is_leaked():
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with HostProcess() as host:
        pid = host.pid
    assert not _exists(pid)
    forgotten = HostProcess()
    pid = forgotten.pid
    del forgotten, host
    assert not _exists(pid)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_an_interrupted_wait_ends_the_process(host):
    """Raise an exception from a signal handler while the child sleeps for a minute."""

    class AlarmError(Exception):
        pass

    def ring(*_):
        raise AlarmError

    start = value(host, mmap(PAGE))
    host.run(np.concatenate([store(start, 60), store(start + 8, 0)]))
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(AlarmError):
            host.run(syscall(35, start, 0))  # nanosleep
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not _exists(host.pid)


def test_a_fork_of_the_parent_does_not_end_the_process(host):
    pid = os.fork()
    if not pid:
        host.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert one(host, op(OP_NOP))["value"] == 0


def test_the_process_dies_with_its_parent():
    script = (
        "import os, signal\n"
        "from kernel.linux.host.process import HostProcess\n"
        "host = HostProcess()\n"
        "print(host.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while _exists(pid) and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, "the host process outlived its parent"
        time.sleep(0.01)


def test_the_process_runs_for_an_unprivileged_user():
    """The files of /proc are readable without capabilities, and nothing needs root."""
    if os.getuid():
        pytest.skip("not root: all other tests cover this case")
    from kernel.linux.host.observe import Observer

    with HostProcess() as host, Observer(host.pid) as observer:
        observer.areas()  # load all code before dropping privileges
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with HostProcess() as host, Observer(host.pid) as observer:
                start = value(host, mmap(4 * PAGE))
                assert one(host, touch(start, 4 * PAGE))["minflt"] == 4
                assert (observer.areas()["vm_start"] == start).any()
                assert len(observer.residency(start, start + 4 * PAGE)) == 1
                observer.status()
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_huge_page_is_one_fault(host):
    from kernel.linux.host.observe import host_settings

    start = value(host, mmap(2 * HUGE_PAGE, at=PLACE))
    assert value(host, madvise(start, 2 * HUGE_PAGE, NOHUGEPAGE)) == 0
    assert one(host, touch(start, 2 * HUGE_PAGE))["minflt"] == 1024
    if host_settings()["thp_enabled"] in (None, "never"):
        pytest.skip("huge pages are disabled")
    start = value(host, mmap(2 * HUGE_PAGE, at=2 * PLACE))
    assert value(host, madvise(start, 2 * HUGE_PAGE, HUGEPAGE)) == 0
    assert one(host, touch(start, 2 * HUGE_PAGE))["minflt"] == 2


LOADER = Path("/lib64/ld-linux-x86-64.so.2")
needs_libc = pytest.mark.skipif(not LOADER.exists(), reason="glibc's loader is not installed")


@needs_libc
def test_functions_of_the_c_library_are_called():
    with HostProcess(libc={}) as host:
        malloc, free = host.function("malloc"), host.function("free")
        calls = np.concatenate([op(OP_CALL, malloc, 24), op(OP_CALL, malloc, 24), op(OP_NOP)])
        first, second, _ = host.run(calls)["value"].tolist()
        assert (first - host.start_brk, second - first) == (0x2A0, 32)
        assert one(host, op(OP_CALL, free, second))["sig"] == 0
        assert value(host, op(OP_CALL, malloc, 24)) == second
        bad = one(host, op(OP_CALL, free, 1 << 40))
        assert (bad["sig"], bad["si_addr"]) == (11, (1 << 40) - 8)
        assert value(host, op(OP_CALL, malloc, 24)) > second
        with pytest.raises(HostError, match="has no function mallocc"):
            host.function("mallocc")


@needs_libc
def test_the_c_library_reads_its_tunables():
    # The first block fits into the fresh heap; the second does not.
    for variables, is_mapped in (
        ({}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}, True),
    ):
        with HostProcess(libc=variables) as host:
            call = op(OP_CALL, host.function("malloc"), 70_000)
            block = host.run(np.concatenate([call, call]))["value"][1]
            assert (int(block) - host.start_brk > 1 << 30) == is_mapped


def test_without_a_c_library_there_are_no_functions(host):
    with pytest.raises(HostError, match="without a C library"):
        host.function("malloc")


@pytest.fixture
def threaded():
    """Yield a process that may have threads, with the addresses of pthread_create and _join."""
    with HostProcess(libc={}) as host:
        host.expect_threads()
        yield host, host.function("pthread_create"), host.function("pthread_join")


GETTID, GETPID = 186, 39


@needs_libc
def test_threads_take_turns(threaded):
    host, create, join = threaded
    start = value(host, mmap(8 * PAGE))
    batch = [op(OP_CALL, create, *host.create(number)) for number in (1, 2)]
    for number in (1, 2, 0, 2, 1, 1):
        batch += [op(OP_SWITCH, number), syscall(GETTID), touch(start + number * PAGE, 2 * PAGE)]
    results = host.run(np.concatenate(batch))
    assert results["value"][:2].tolist() == [0, 0]
    first, second, main, *again = results["value"][3::3].tolist()
    assert again == [second, first, first]
    assert main == host.pid
    assert len({main, first, second}) == 3
    # A thread faults only on pages that no other thread has touched.
    assert results["minflt"][4::3].tolist() == [2, 1, 1, 0, 0, 0]
    # The same thread continues in the next batch, even after a bad access.
    results = host.run(np.concatenate([load(16), syscall(GETTID), op(OP_SWITCH, 0)]))
    assert (results["sig"][0], results["value"][1]) == (11, first)
    results = host.run(np.concatenate([op(OP_JOIN, join, 1), op(OP_JOIN, join, 2)]))
    assert results["value"].tolist() == [0, 0]
    assert os.listdir(f"/proc/{host.pid}/task") == [str(host.pid)]  # noqa: PTH208


@needs_libc
def test_a_thread_number_can_be_reused(threaded):
    host, create, join = threaded
    for _ in range(3):
        batch = [op(OP_CALL, create, *host.create(63)), op(OP_SWITCH, 63), syscall(GETPID)]
        results = host.run(np.concatenate([*batch, op(OP_SWITCH, 0), op(OP_JOIN, join, 63)]))
        assert results["value"].tolist() == [0, 0, host.pid, 0, 0]
    assert one(host, op(OP_SWITCH, 63))["value"] == ESRCH
    assert one(host, op(OP_JOIN, join, 63))["value"] == ESRCH
    with pytest.raises(HostError, match="number 64"):
        host.create(64)


@needs_libc
def test_faults_of_a_thread_before_its_first_operation_are_counted(threaded):
    host, create, join = threaded
    faults = []
    for number in (1, 2):  # the first also touches pages of the C library
        batch = [op(OP_CALL, create, *host.create(number)), op(OP_SWITCH, number)]
        faults.append(int(host.run(np.concatenate([*batch, op(OP_SWITCH, 0)]))["minflt"].sum()))
    # Two pages besides THREAD_STACK: the thread's descriptor, and its initial stack pointer.
    assert faults[0] > faults[1] == 2 + THREAD_STACK // PAGE
    host.run(np.concatenate([op(OP_JOIN, join, 1), op(OP_JOIN, join, 2)]))

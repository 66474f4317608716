"""Tiny real process that executes prepared operations on the real kernel.

::

    with HostProcess() as host:
        ops = np.zeros(2, OP)
        ops[0] = (OP_SYSCALL, 9, (0, 8192, 3, 0x22, -1, 0))  # mmap
        address = host.run(ops[:1])["value"][0]
        ops[1] = (OP_STORE, 0, (address, 42, 0, 0, 0, 0))
        assert host.run(ops[1:])["minflt"][0] == 1

The process starts with no heap, an empty environment and very few mappings
(:mod:`kernel.linux.host.code`).  It runs without capabilities, because root is exempt from some
limits, and dies with the thread that created it.  It changes no setting of the host.
"""

import contextlib
import ctypes
import functools
import mmap
import os
import resource
import signal
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from kernel.linux.host import code as harness
from kernel.linux.host.code import harness_program
from kernel.linux.host.elf import PAGE_SIZE, STT_GNU_IFUNC, ElfFile

#: First file descriptor of ``files`` in the child.
FIRST_FILE = 10

#: Default stack size limit, bytes; the address of the first mapping depends on it.
_STACK_LIMIT = 8 << 20

#: Iterations that each side spins, waiting for the other, before it sleeps in the kernel.  The
#: scheduler puts both sides on one processor, where spinning only delays the other.
SPINS = 0

#: Longest wait inside one call of machine code, ns.  It bounds the delay until a dead child or
#: Ctrl-C is noticed.
_WAIT_NS = 20_000_000

#: Value of the ``done`` word before the child's first answer.
_NOT_READY = 0xFFFFFFFF

_ADDR_NO_RANDOMIZE = 0x0040000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 1, 24, 28
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
#: SECBIT_NOROOT and SECBIT_NO_SETUID_FIXUP, both locked: exec as root regains no capability.
_SECUREBITS = 0x0F
_NR_CAPSET, _NR_CLOSE_RANGE, _CLOSE_RANGE_CLOEXEC = 126, 436, 4


class HostError(Exception):
    """Failure to start the host process, or its death; one line says why."""


class HostProcess:
    """Real process that executes prepared operations.

    ``randomize``: keep address space randomisation.  Otherwise it is disabled for this process; if
    the system refuses that, ``.randomized`` is True.  ``stack_unlimited``: start as under
    ``ulimit -s unlimited``.  ``legacy_layout``: place mappings bottom-up, by personality; on
    Linux 6.18 an unlimited stack alone leaves them top-down, from a sixth of the address space.
    ``limits``: soft limits in bytes by RLIMIT number; hard limits are unchanged, and the soft limit
    of the stack is 8 MiB by default.  ``files``: open descriptors, which the child gets as 10, 11….
    ``libc``: also load the system's C library, with these environment variables (``{}`` for none);
    LD_PRELOAD may list paths of libraries whose functions take precedence over the C library's.

    ``.pid``; ``.areas``: (start, end) of the mappings that operations must not change;
    ``.maps``: text of /proc/PID/maps at the start; ``.start_brk``.

    Raises HostError if the process cannot be started.
    """

    def __init__(
        self,
        *,
        randomize: bool = False,
        stack_unlimited: bool = False,
        legacy_layout: bool = False,
        limits: dict[int, int] | None = None,
        libc: Mapping[str, str] | None = None,
        files: Sequence[int] = (),
    ) -> None:
        self._environment = None if libc is None else dict(libc)
        self._limits = dict(limits or {})
        if stack_unlimited:
            self._limits[resource.RLIMIT_STACK] = resource.RLIM_INFINITY
        self._persona = 0 if randomize else _ADDR_NO_RANDOMIZE
        if legacy_layout:
            self._persona |= 0x0200000  # ADDR_COMPAT_LAYOUT
        self._status = -1
        self._sequence = 0
        try:
            self._program = harness_program(libc=libc is not None)
            shared = os.memfd_create("shared", os.MFD_CLOEXEC)
        except OSError as error:
            raise HostError(f"no executable memory file: {error.strerror}") from error
        try:
            os.ftruncate(shared, harness.HARNESS_SIZE)
            self._memory = mmap.mmap(shared, harness.HARNESS_SIZE)
            self._control = np.frombuffer(self._memory, harness.CONTROL, 1)[0]
            self._control["done"] = _NOT_READY
            self._control["usage_of"] = harness.USAGE_OF_THREAD
            self.pid = self._start(shared, list(files))
        finally:
            os.close(shared)
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _reap, self.pid, self._owner)
        # Bytes instead of records, which NumPy copies field by field.
        self._ops = np.frombuffer(
            self._memory, "u1", harness.CHUNK * harness.OP.itemsize, harness.OPS
        )
        self._results = np.frombuffer(
            self._memory, "u1", harness.CHUNK * harness.RESULT.itemsize, harness.RESULTS
        )
        self._address = self._ops.ctypes.data - harness.OPS
        self._count = ctypes.c_int64.from_buffer(self._memory, harness.CONTROL.fields["count"][1])
        self._options = ctypes.c_int64.from_buffer(
            self._memory, harness.CONTROL.fields["options"][1]
        )
        self._timeout = (ctypes.c_int64 * 2)(0, _WAIT_NS)
        self._timeout_address = ctypes.addressof(self._timeout)
        self.spins = SPINS
        try:
            self._wait_until_ready()
            self._read_initial_state()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "HostProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def spins(self) -> int:
        """Iterations that each side spins before it sleeps."""
        return self._spins

    @spins.setter
    def spins(self, count: int) -> None:
        self._spins = count
        self._control["spin"] = count

    def run(
        self,
        ops: np.ndarray,
        *,
        faults: bool = True,
        waiting: Callable[[], None] | None = None,
    ) -> np.ndarray:
        """Execute ``ops`` (dtype OP, any number) in order; return an array of RESULT.

        Without ``faults`` the fault counts stay 0 and an operation costs one system call less.
        ``waiting`` is called periodically until the results arrive; if it raises, the process is
        killed.  Raises HostError if the process dies; the results of this call are then lost.
        """
        if self._status >= 0:
            raise HostError(f"the host process {_exit_reason(self._status)}")
        self._options.value = 0 if faults else harness.OPTION_NO_FAULTS
        total = len(ops)
        if total <= harness.CHUNK:
            return self._batch(ops, total, waiting)
        results = np.empty(total, harness.RESULT)
        for first in range(0, total, harness.CHUNK):
            part = ops[first : first + harness.CHUNK]
            results[first : first + harness.CHUNK] = self._batch(part, len(part), waiting)
        return results

    def expect_threads(self) -> None:
        """Allow calls of pthread_create, with the arguments that :meth:`create` returns.

        Page faults are then counted for the whole process.  They are those of the thread that
        executes operations, because all others sleep.
        """
        self._control["usage_of"] = harness.USAGE_OF_PROCESS

    def create(self, thread: int) -> tuple[int, int, int, int]:
        """Return the arguments of pthread_create for thread ``thread``, 1 to MAX_THREADS - 1.

        OP_SWITCH and OP_JOIN refer to the thread by that number.  The thread first touches the part
        of its stack that it needs, then waits.  The faults of that start are counted for whichever
        operations run meanwhile.
        """
        if not 0 < thread < harness.MAX_THREADS:
            raise HostError(f"thread number {thread}: must be 1 to {harness.MAX_THREADS - 1}")
        return harness.HARNESS + harness.HANDLES + 8 * thread, 0, self._program.thread, thread

    def function(self, name: str) -> int:
        """Return the address of a function, for OP_CALL: a preloaded library's, else libc's.

        Raises HostError if the process has no C library, if a library was not preloaded, or if no
        library defines the function.
        """
        return self.provider(name)[1]

    def provider(self, name: str) -> tuple[str, int]:
        """Return the path of the library that provides function ``name``, and its address.

        Libraries are searched in the loader's order: the preloaded ones, then the C library.
        Raises HostError as :meth:`function` does.
        """
        if self._environment is None:
            raise HostError("the host process was started without a C library")
        loaded: dict[str, int] = {}
        for line in self.maps.splitlines():
            span, _rights, offset, _device, _inode, *path = line.split(maxsplit=5)
            if path and not int(offset, 16):
                loaded.setdefault(path[0], int(span.split("-")[0], 16))
        preloaded = self._environment.get("LD_PRELOAD", "").split(":")
        order = [os.path.realpath(path) for path in preloaded if path]
        if absent := [path for path in order if path not in loaded]:
            raise HostError(f"{absent[0]} was not preloaded: the loader refused it")
        order += [path for path in loaded if path.endswith("/libc.so.6")]
        for path in order:
            value, kind = _library(path).get(name, (0, 0))
            if kind == STT_GNU_IFUNC:
                raise HostError(f"{path}: {name} is resolved at load time, so its address varies")
            if value:
                return path, loaded[path] + value
        raise HostError(f"{order[-1] if order else 'the host process'} has no function {name}")

    def close(self) -> None:
        """Kill the process.  Further calls do nothing."""
        if self._finalizer.detach():
            self._status = max(_reap(self.pid, self._owner), 0)

    def _batch(self, ops: np.ndarray, count: int, waiting: Callable[[], None] | None) -> np.ndarray:
        self._ops[: count * harness.OP.itemsize] = np.ascontiguousarray(ops, harness.OP).view("u1")
        self._count.value = count
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        call = self._program.parent
        try:
            while call(self._address, self._sequence, self._spins, self._timeout_address):
                self._check_alive()
                if waiting:
                    waiting()
        except BaseException:  # e.g. Ctrl-C: the child may still be reading these operations
            self.close()
            raise
        return self._results[: count * harness.RESULT.itemsize].copy().view(harness.RESULT)

    def _check_alive(self) -> None:
        """Raise HostError if the child has ended."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError as error:  # other code has already waited for the child
            raise HostError("the host process has ended, its exit status is unknown") from error
        if pid:
            self._finalizer.detach()
            self._status = status
            raise HostError(f"the host process {_exit_reason(status)}")

    def _wait_until_ready(self) -> None:
        """Wait until the child sets ``done`` to command 0, the initial value."""
        deadline = time.monotonic() + 30
        while self._control["done"] == _NOT_READY:
            self._check_alive()
            if time.monotonic() > deadline:
                raise HostError("the host process does not respond")
            time.sleep(0.0002)

    def _read_initial_state(self) -> None:
        """Read the child's state at the start, and check that it has no capabilities."""
        folder = Path(f"/proc/{self.pid}")
        try:
            self.maps = (folder / "maps").read_text()
            status = (folder / "status").read_text()
            persona = int((folder / "personality").read_text(), 16)
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError as error:
            raise HostError(f"{error.filename} cannot be read: {error.strerror}") from error
        self.randomized = not persona & _ADDR_NO_RANDOMIZE and _randomization() > 0
        #: end_data - start_data, which counts against RLIMIT_DATA.
        self.data_bytes = int(fields[43]) - int(fields[42])
        self.start_brk = int(fields[44])
        self.areas = (
            (harness.HARNESS, harness.HARNESS + harness.HARNESS_SIZE),
            (harness.CODE, harness.CODE + PAGE_SIZE),
        )
        # Pin the child to one processor.  Each processor keeps lists of pages (MADV_FREE adds to
        # one of them), so that the effect of MADV_PAGEOUT would depend on migrations.
        allowed = sorted(os.sched_getaffinity(self.pid))
        os.sched_setaffinity(self.pid, {allowed[os.getpid() % len(allowed)]})
        effective = status.split("CapEff:", 1)[1].split()[0]
        if int(effective, 16):
            raise HostError(f"capabilities cannot be dropped ({effective} remain)")

    # --- the start ----------------------------------------------------------------------------

    def _start(self, shared: int, files: list[int]) -> int:
        """Fork and exec; return the child's pid.  Raises HostError, which names the failed step."""
        _libc()  # load it before the fork
        reader, writer = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            self._become(parent, shared, files, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            refused = pipe.read().decode()
        if refused:
            os.waitpid(pid, 0)
            raise HostError(refused)
        return pid

    def _become(self, parent: int, shared: int, files: list[int], writer: int) -> NoReturn:
        """Exec the program in the forked child; success closes the pipe."""
        step = "the fork"
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            step = "passing files"
            program, writer = _pass_files([shared, *files], self._program.fd, writer)
            with contextlib.suppress(OSError):  # make it the first victim of the OOM killer
                Path("/proc/self/oom_score_adj").write_text("1000")
            step = "dropping capabilities"
            _drop_capabilities()
            libc = _libc()
            libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
            libc.personality(self._persona)
            step = "setting limits"
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if resource.RLIMIT_STACK not in self._limits:
                _set_limit(resource.RLIMIT_STACK, _STACK_LIMIT, strict=False)
            for number, soft in self._limits.items():
                _set_limit(number, soft, strict=True)
            step = "executing a memory file"
            os.execve(program, [b"host"], self._environment or {})
        except BaseException as error:
            reason = error.strerror if isinstance(error, OSError) else None
            os.write(writer, f"{step}: {reason or error}".encode())
        os._exit(1)


@functools.cache
def _library(path: str) -> dict[str, tuple[int, int]]:
    """Return the symbols of a shared library."""
    return ElfFile(Path(path).read_bytes()).symbols(".dynsym")


@functools.cache
def _libc() -> ctypes.CDLL:
    """Return the C library of this Python, for calls that Python does not wrap."""
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def _pass_files(files: list[int], program: int, writer: int) -> tuple[int, int]:
    """Pass only ``files`` (the shared memory first) to the child.

    Return the new descriptors of the program and of the pipe, which close when the program starts.
    """
    import fcntl

    # Move all descriptors above the numbers that the child's files get.
    above = FIRST_FILE + len(files)
    program, writer, *files = (
        fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in (program, writer, *files)
    )
    numbers = ctypes.c_ulong(0), ctypes.c_ulong(2**32 - 1), ctypes.c_ulong(_CLOSE_RANGE_CLOEXEC)
    if _libc().syscall(ctypes.c_long(_NR_CLOSE_RANGE), *numbers):  # before Linux 5.11
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)
    os.dup2(files[0], harness.SHARED_FD)
    for place, fd in enumerate(files[1:], FIRST_FILE):
        os.dup2(fd, place)
    return program, writer


def _drop_capabilities() -> None:
    """Drop every capability permanently, so that the limits apply to root as to any user.

    Failures of calls that only root may make are ignored: other users have nothing to drop.
    """
    libc = _libc()
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_SET_SECUREBITS, _SECUREBITS, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    none = (ctypes.c_uint32 * 6)()
    if libc.syscall(ctypes.c_long(_NR_CAPSET), header, none):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _set_limit(number: int, soft: int, *, strict: bool) -> None:
    """Set a soft limit; lower a value above the hard limit, or refuse it if ``strict``."""
    hard = resource.getrlimit(number)[1]
    if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
        if strict:
            raise ValueError(f"soft limit {number} cannot be {soft}: the hard limit is {hard}")
        soft = hard
    resource.setrlimit(number, (soft, hard))


def _randomization() -> int:
    """Return kernel.randomize_va_space."""
    try:
        return int(Path("/proc/sys/kernel/randomize_va_space").read_text())
    except OSError:
        return 2


def _reap(pid: int, parent: int) -> int:
    """Kill a child of ``parent`` and wait for it.

    Return its wait status, or -1 if this process is not ``parent`` or the child has already ended.
    """
    if os.getpid() != parent:  # a fork of the parent must not kill the original's child
        return -1
    try:
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]
    except (ProcessLookupError, ChildProcessError):
        return -1


def _exit_reason(status: int) -> str:
    """Return a wait status as text."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    code = os.waitstatus_to_exitcode(status)
    if code == harness.EXIT_SET_UP:
        return "could not map its memory or set its signal handlers"
    return f"exited with status {code}"

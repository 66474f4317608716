"""Run a program under ptrace and record its memory calls.

Each thread stops at the entry and at the exit of a memory call; the recorder sees these stops in an
order that is consistent with what happened.  A child stays stopped until the recorder has seen its
parent's clone, so that no event of a process precedes the event that created it.
"""

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernel.linux.replay import procfs, table
from kernel.linux.replay import ptrace as pt
from kernel.linux.replay.log import NEVER, Call, Clone, Event, Exec, Exit, SetLimit, Snapshot
from kernel.linux.replay.recording import Writer
from kernel.uapi import MAP_ANONYMOUS

#: Exit codes of a shell for a command that cannot be run.
NOT_EXECUTABLE, NOT_FOUND = 126, 127
#: Exit code if recording is impossible (automake's "skipped").
IMPOSSIBLE = 77

_FORWARDED = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
#: si_code of signals from a terminal, which sends them to the traced program as well.
_SI_KERNEL = 0x80
#: This many Ctrl-C within this many seconds kill a program that ignores SIGINT.
_KILL_INTERRUPTS, _KILL_SECONDS = 3, 2.0
#: Largest number of words read of a set of NUMA nodes, and of bytes read of a name.
_MAX_NODE_WORDS, _MAX_NAME = 16, 80
_STOPS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


class CannotRecordError(Exception):
    """Recording is impossible or the command cannot be run; ``code`` is the exit code."""

    def __init__(self, message: str, code: int = IMPOSSIBLE) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class _Thread:
    """Traced thread: the threads that share its memory, and the call that it is making."""

    tid: int
    sharers: set[int]  # tids that use the same memory and have not begun to exit
    pending: Event | None = None
    clone_entry: int = 0
    before_exec: Snapshot | None = None
    in_call: bool = False


@dataclass
class Recorder:
    """Tracer of one run of one command."""

    writer: Writer
    filtered: bool = True  # stops at watched calls only; False: at every call
    root: int = 0  # tid of the command's first process
    status: int = 0  # its exit code
    started: bool = False  # the command's program has been started by exec
    clock: int = 0
    threads: dict[int, _Thread] = field(default_factory=dict)
    early: set[int] = field(default_factory=set)  # stopped before their parent's clone was seen
    interrupts: list[float] = field(default_factory=list)

    def tick(self) -> int:
        """Advance the clock and return the new time."""
        self.clock += 1
        return self.clock

    def run(self, root: int) -> int:
        """Trace ``root``, already seized, and all its children until they end; the exit code."""
        self.root = root
        self.threads[root] = _Thread(root, {root})
        while True:
            try:
                tid, status = os.waitpid(-1, pt.WALL | os.WNOHANG)
            except ChildProcessError:
                self.writer.end(self.status)
                return self.status
            if tid:
                with contextlib.suppress(pt.Gone):
                    self._handle(tid, status)
            else:
                self._signal(signal.sigwaitinfo(_FORWARDED | {signal.SIGCHLD}))

    # --- signals to the recorder -----------------------------------------------------------------

    def _signal(self, info: signal.struct_siginfo) -> None:
        number = signal.Signals(info.si_signo)
        if number == signal.SIGCHLD:
            return
        if number == signal.SIGINT:
            now = time.monotonic()
            recent = [t for t in self.interrupts if now - t < _KILL_SECONDS]
            self.interrupts = [*recent, now]
            if len(self.interrupts) >= _KILL_INTERRUPTS:
                number = signal.SIGKILL
        if number != signal.SIGKILL and info.si_code == _SI_KERNEL:
            return
        targets = [self.root] if self.root in self.threads else []
        if not targets or number == signal.SIGKILL:
            targets = list(self.threads)
        for pid in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    # --- stops -----------------------------------------------------------------------------------

    def _resume(self, thread: _Thread, sig: int = 0) -> None:
        stop_at_exit = thread.in_call or not self.filtered
        pt.ptrace(pt.PTRACE_SYSCALL if stop_at_exit else pt.PTRACE_CONT, thread.tid, 0, sig)

    def _handle(self, tid: int, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self._end(tid, status)
            return
        thread = self.threads.get(tid)
        if thread is None:
            self.early.add(tid)
            return
        sig, event = os.WSTOPSIG(status), status >> 16
        deliver = 0
        if event == 0 and sig == pt.SYSCALL_STOP:
            self._syscall_stop(thread)
        elif event == 0:
            deliver = sig
        elif event == pt.EVENT_STOP and sig in _STOPS:
            pt.ptrace(pt.PTRACE_LISTEN, tid)
            return
        elif event in (pt.EVENT_FORK, pt.EVENT_VFORK, pt.EVENT_CLONE):
            self._clone(thread)
        elif event == pt.EVENT_EXEC:
            self._exec(thread)
        elif event == pt.EVENT_EXIT:
            self._exit(thread)
        elif event == pt.EVENT_SECCOMP:
            self._entry(thread, pt.syscall_info(tid))
        self._resume(thread, deliver)

    def _end(self, tid: int, status: int) -> None:
        self.early.discard(tid)
        if self.threads.pop(tid, None) is not None and tid == self.root:
            code = os.waitstatus_to_exitcode(status)
            self.status = code if code >= 0 else 128 - code

    def _syscall_stop(self, thread: _Thread) -> None:
        stop = pt.syscall_info(thread.tid)
        if stop.op == pt.STOP_ENTRY:
            if not self.filtered:
                self._entry(thread, stop)
        elif stop.op == pt.STOP_EXIT:
            self._return(thread, stop.result)

    def _clone(self, thread: _Thread) -> None:
        child = pt.event_message(thread.tid)
        number, args = pt.call_in_progress(thread.tid)
        if number == table.FORK:
            flags = 0
        elif number == table.VFORK:
            flags = table.CLONE_VM | table.CLONE_VFORK
        elif number == table.CLONE3:
            words = procfs.read_words(thread.tid, args[0], 1)
            flags = words[0] if words else 0
        else:
            flags = args[0]
        sharers = thread.sharers if flags & table.CLONE_VM else set()
        sharers.add(child)
        self.threads[child] = _Thread(child, sharers)
        now = self.tick()
        entry = thread.clone_entry or now
        thread.clone_entry = 0
        self._write(Clone(line=0, tid=thread.tid, entry=entry, exit=now, flags=flags, child=child))
        if child in self.early:
            self.early.discard(child)
            self._resume(self.threads[child])

    def _exec(self, thread: _Thread) -> None:
        former = pt.event_message(thread.tid)
        caller = self.threads.get(former, thread)
        self._abandon(caller)
        before = caller.before_exec
        if former != thread.tid:
            self.threads.pop(former, None)
        thread.sharers.discard(thread.tid)
        caller.sharers.discard(former)
        self.threads[thread.tid] = thread
        thread.sharers, thread.in_call, thread.before_exec = {thread.tid}, False, None
        self.started = True
        now = self.tick()
        try:
            image, snapshot = procfs.image(thread.tid), procfs.snapshot(thread.tid)
        except OSError:  # the process has been killed
            image, snapshot = None, None
        self._write(
            Exec(
                line=0,
                tid=thread.tid,
                entry=now,
                exit=now,
                former=former,
                image=image,
                snapshot=snapshot,
                before=before,
            )
        )

    def _exit(self, thread: _Thread) -> None:
        self._abandon(thread)
        thread.sharers.discard(thread.tid)
        snapshot = None if thread.sharers else procfs.snapshot(thread.tid)
        now = self.tick()
        self._write(Exit(line=0, tid=thread.tid, entry=now, exit=now, snapshot=snapshot))

    def _abandon(self, thread: _Thread) -> None:
        """Record the thread's pending call as one that never returned."""
        if isinstance(thread.pending, Call):
            self._write(thread.pending)
        thread.pending, thread.in_call = None, False

    # --- calls -----------------------------------------------------------------------------------

    def _entry(self, thread: _Thread, stop: pt.Stop) -> None:
        """Handle the entry of a watched call (or, without a filter, of any call)."""
        tid = thread.tid
        thread.pending, thread.in_call, thread.clone_entry = None, False, 0
        if not self.started:
            return
        foreign = stop.arch != pt.ARCH_X86_64 or bool(stop.number & pt.X32)
        number, args = stop.number, stop.args
        if foreign:
            if stop.arch == pt.ARCH_X86_64 or number in table.WATCHED_I386:
                kind = "x32" if stop.arch == pt.ARCH_X86_64 else "32-bit"
                self._call(thread, f"{kind} call {number & ~pt.X32}", args)
        elif number in table.CALLS:
            self._call(thread, table.CALLS[number], args)
        elif number in (table.CLONE, table.FORK, table.VFORK, table.CLONE3):
            thread.clone_entry = self.tick()
        elif number in (table.EXECVE, table.EXECVEAT):
            thread.before_exec = None
            if thread.sharers == {tid}:
                thread.before_exec = procfs.snapshot(tid)
        elif number in (table.SETRLIMIT, table.PRLIMIT64):
            self._limit_entry(thread, number, args)
        elif number == table.IOCTL and args[1] & 0xFFFFFFFF in (
            table.UFFDIO_REGISTER,
            table.UFFDIO_UNREGISTER,
        ):
            self._call(thread, "userfaultfd", args)
        elif number == table.PRCTL and args[0] in (table.PR_SET_MM, table.PR_SET_VMA):
            self._call(thread, "prctl", args)

    def _call(self, thread: _Thread, name: str, args: tuple[int, ...]) -> None:
        file = None
        extra = self._pointed_data(thread.tid, name, args)
        if name == "mmap" and not args[3] & MAP_ANONYMOUS:
            file = procfs.open_file(thread.tid, args[4] & 0xFFFFFFFF)
        thread.pending = Call(
            line=0,
            tid=thread.tid,
            entry=self.tick(),
            exit=NEVER,
            name=name,
            args=args,
            result=None,
            file=file,
            extra=extra,
        )
        thread.in_call = True

    def _pointed_data(self, tid: int, name: str, args: tuple[int, ...]) -> dict[str, Any]:
        """Read the data behind a call's pointers that its effect depends on."""
        if name == "mbind" and args[3]:
            words = min(-(-args[4] // 64), _MAX_NODE_WORDS)
            return {"nodes": procfs.read_words(tid, args[3], words)}
        if name == "prctl" and args[1] == table.PR_SET_VMA_ANON_NAME:
            return {"text": procfs.read_text(tid, args[4], _MAX_NAME) if args[4] else None}
        if name == "userfaultfd":
            return {"range": procfs.read_words(tid, args[2], 2)}
        return {}

    def _limit_entry(self, thread: _Thread, number: int, args: tuple[int, ...]) -> None:
        target, resource, address = args[:3] if number == table.PRLIMIT64 else (0, *args[:2])
        words = procfs.read_words(thread.tid, address, 1) if address else None
        if words:
            soft = None if words[0] == 2**64 - 1 else words[0]
            thread.pending = SetLimit(
                line=0,
                tid=thread.tid,
                entry=self.tick(),
                exit=NEVER,
                target=target,
                resource=resource,
                soft=soft,
            )
            thread.in_call = True

    def _return(self, thread: _Thread, result: int) -> None:
        event = thread.pending
        thread.pending, thread.in_call = None, False
        if event is None:
            return
        event.exit = self.tick()
        if isinstance(event, SetLimit):
            if result == 0:
                self._write(event)
            return
        assert isinstance(event, Call)
        event.result = result
        if event.name == "shmat" and result > 0:
            event.extra["size"] = self._area_size(thread.tid, result)
        if event.name == "io_setup" and result == 0:
            words = procfs.read_words(thread.tid, event.args[1], 1)
            if words:
                event.extra = {"context": words[0], "size": self._area_size(thread.tid, words[0])}
        self._write(event)

    def _area_size(self, tid: int, address: int) -> int:
        """Return the bytes of the area that begins at ``address``, or 0 if there is none."""
        snapshot = procfs.snapshot(tid)
        areas = snapshot.areas if snapshot else []
        return next((area.end - area.start for area in areas if area.start == address), 0)

    def _write(self, event: Event) -> None:
        self.writer.event(event)


def _probe(aslr: bool) -> bool:
    """Return True if a filter can be installed; try it in a separate process.

    Raises CannotRecordError if ``aslr`` is False and randomisation cannot be disabled.
    """
    pid = os.fork()
    if pid == 0:
        refused = not aslr and not pt.no_address_randomisation()
        filtered = pt.install_filter(pt.filter_program([], []))
        os._exit(2 * refused + filtered)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code & 2:
        raise CannotRecordError(
            "personality(2) is refused, cannot disable address randomisation; omit --no-aslr"
        )
    return code == 1


def _child(command: list[str], aslr: bool, filtered: bool, go: int, error_pipe: int) -> None:
    """Wait for a byte on ``go``, then exec the command; write a failure to ``error_pipe``.

    A failure is one byte with the exit code, then the message.
    """
    try:
        if not os.read(go, 1):
            return
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python had set both to be ignored
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        if not aslr:
            pt.no_address_randomisation()
        if filtered:
            pt.install_filter(pt.filter_program(table.WATCHED, table.WATCHED_I386))
        os.execvp(command[0], command)
    except OSError as error:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        os.write(error_pipe, bytes([code]) + (error.strerror or str(error)).encode())


def _start(command: list[str], aslr: bool, filtered: bool) -> tuple[int, int]:
    """Fork a process, seize it with ptrace and let it exec the command.

    Return its id and the read end of a pipe that carries the reason if exec fails.  Raises
    CannotRecordError if ptrace is not permitted.
    """
    go_read, go_write = os.pipe()
    error_read, error_write = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go_write)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask - _FORWARDED - {signal.SIGCHLD})
            _child(command, aslr, filtered, go_read, error_write)
        finally:
            os._exit(NOT_FOUND)
    os.close(go_read)
    os.close(error_write)
    try:
        pt.ptrace(pt.PTRACE_SEIZE, pid, 0, pt.OPTIONS)
    except (OSError, pt.Gone) as error:
        os.close(go_write)
        os.waitpid(pid, 0)
        os.close(error_read)
        reason = getattr(error, "strerror", None) or "the process has ended"
        raise CannotRecordError(f"ptrace is not permitted here: {reason}") from None
    os.write(go_write, b"g")
    os.close(go_write)
    return pid, error_read


def record(command: list[str], path: Path, *, aslr: bool = True) -> tuple[int, int]:
    """Run ``command``, record it into ``path``, return its exit code and the number of calls.

    The exit code is 128 + the signal's number if a signal ended the program.  Raises
    CannotRecordError if ptrace is not permitted or the command cannot be run, OSError if the file
    cannot be written.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise CannotRecordError("recording needs Linux on x86-64")
    filtered = _probe(aslr)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED | {signal.SIGCHLD})
    try:
        with Writer(path, command, procfs.machine()) as writer:
            return _record(command, writer, aslr, filtered), writer.calls
    except CannotRecordError:
        if path.is_file():
            path.unlink()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _record(command: list[str], writer: Writer, aslr: bool, filtered: bool) -> int:
    root, error_pipe = _start(command, aslr, filtered)
    recorder = Recorder(writer, filtered)
    status = recorder.run(root)
    with os.fdopen(error_pipe, "rb") as file:
        reason = file.read() if not recorder.started else b""
    if reason:
        raise CannotRecordError(f"{command[0]}: {reason[1:].decode()}", reason[0])
    return status

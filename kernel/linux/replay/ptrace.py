"""ptrace(2) and seccomp(2) for the recorder, called through ctypes; Linux on x86-64 only.

A seccomp filter in the traced program stops it only at the watched calls; all other calls run at
full speed.
"""

import ctypes
import errno
import os
import signal
import struct
from dataclasses import dataclass

PTRACE_CONT, PTRACE_GETREGS, PTRACE_SYSCALL = 7, 12, 24
PTRACE_GETEVENTMSG = 0x4201
PTRACE_SEIZE, PTRACE_LISTEN, PTRACE_GET_SYSCALL_INFO = 0x4206, 0x4208, 0x420E

EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC = 1, 2, 3, 4
EVENT_EXIT, EVENT_SECCOMP, EVENT_STOP = 6, 7, 128
#: TRACESYSGOOD, the events above except EVENT_STOP, and EXITKILL: if the recorder is killed, the
#: kernel kills the traced program too.
OPTIONS = 1 | sum(1 << event for event in (1, 2, 3, 4, 6, 7)) | 1 << 20

#: Signal number of a stop at the entry or exit of a system call.
SYSCALL_STOP = signal.SIGTRAP | 0x80
#: Option __WALL of waitpid: wait for threads as well as processes.
WALL = 0x40000000

#: Types of stops, as reported by PTRACE_GET_SYSCALL_INFO.
STOP_ENTRY, STOP_EXIT, STOP_SECCOMP = 1, 2, 3
ARCH_X86_64 = 0xC000003E
#: Bit in the number of a call of the x32 ABI.
X32 = 0x40000000

_SECCOMP_RET_ALLOW, _SECCOMP_RET_TRACE = 0x7FFF0000, 0x7FF00000
_ADDR_NO_RANDOMIZE = 0x40000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Gone(Exception):
    """The traced thread has died; waitpid will report its end."""


def ptrace(request: int, tid: int, addr: int = 0, data: int = 0) -> int:
    """Make one ptrace request.  Raises Gone if the thread does not exist, else OSError."""
    result = _libc.ptrace(request, tid, addr, data)
    if result == -1:
        code = ctypes.get_errno()
        if code == errno.ESRCH:
            raise Gone
        if code:
            raise OSError(code, os.strerror(code))
    return result


def event_message(tid: int) -> int:
    """Return the value of an event stop: child id (clone), former id (exec) or exit status."""
    message = ctypes.c_ulong()
    ptrace(PTRACE_GETEVENTMSG, tid, 0, ctypes.addressof(message))
    return message.value


@dataclass(frozen=True)
class Stop:
    """Stop at a system call: number and arguments at its entry, result at its exit."""

    op: int
    arch: int
    number: int
    args: tuple[int, ...]
    result: int


_INFO = ctypes.create_string_buffer(88)


def syscall_info(tid: int) -> Stop:
    """Return the current stop of ``tid``.  Arguments and results are signed."""
    ptrace(PTRACE_GET_SYSCALL_INFO, tid, len(_INFO), ctypes.addressof(_INFO))
    op, arch = struct.unpack_from("=B3xI", _INFO)
    if op in (STOP_ENTRY, STOP_SECCOMP):
        number, *args = struct.unpack_from("=Q6q", _INFO, 24)
        return Stop(op, arch, number, tuple(args), 0)
    result = struct.unpack_from("=q", _INFO, 24)[0] if op == STOP_EXIT else 0
    return Stop(op, arch, -1, (), result)


_REGISTERS = ctypes.create_string_buffer(27 * 8)


def call_in_progress(tid: int) -> tuple[int, tuple[int, ...]]:
    """Return number and arguments of the call during which an event stopped the thread."""
    ptrace(PTRACE_GETREGS, tid, 0, ctypes.addressof(_REGISTERS))
    r = struct.unpack("=27q", _REGISTERS)
    return r[15], (r[14], r[13], r[12], r[7], r[9], r[8])


@dataclass(frozen=True)
class Watch:
    """System call to stop at: always, or only if the low half of an argument is in ``values``."""

    number: int
    argument: int = 0
    values: tuple[int, ...] = ()


def filter_program(watched: list[Watch], watched_i386: list[int]) -> bytes:
    """Return a seccomp filter (classic BPF) that stops at the watched calls and allows the rest."""
    load, equal, at_least, leave = 0x20, 0x15, 0x35, 0x06
    trace = (leave, 0, 0, _SECCOMP_RET_TRACE)
    allow = (leave, 0, 0, _SECCOMP_RET_ALLOW)
    # Each test is followed by its verdict and skips it unless it matches: no jump is long.
    foreign = [(load, 0, 0, 0)]
    for number in watched_i386:
        foreign += [(equal, 0, 1, number), trace]
    foreign.append(allow)
    code = [(load, 0, 0, 4), (equal, len(foreign), 0, ARCH_X86_64), *foreign]
    code += [(load, 0, 0, 0), (at_least, 0, 1, X32), trace]
    for watch in watched:
        if watch.values:
            tests = [(load, 0, 0, 16 + 8 * watch.argument)]
            for value in watch.values:
                tests += [(equal, 0, 1, value & 0xFFFFFFFF), trace]
            code += [(equal, 0, len(tests) + 1, watch.number), *tests, allow]
        else:
            code += [(equal, 0, 1, watch.number), trace]
    code.append(allow)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def install_filter(program: bytes) -> bool:
    """Install the filter on the calling thread and its future children; False if refused."""
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(
        struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(code)), 16
    )
    # An unprivileged thread must set no_new_privs first.  This changes nothing for the program: a
    # traced program gains no privileges by exec anyway.
    for attempt in (False, True):
        if attempt and _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0) == 0:
            return True
    return False


def no_address_randomisation() -> bool:
    """Disable address randomisation for the next exec of this process; False if refused."""
    current = _libc.personality(0xFFFFFFFF)
    return current != -1 and _libc.personality(current | _ADDR_NO_RANDOMIZE) != -1

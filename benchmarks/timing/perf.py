"""Instructions and cycles of this process by perf_event_open(2), where the machine counts them.

Only user mode is counted, as perf_event_paranoid=2 allows to everyone.  Many virtual machines have
no hardware counters; then :func:`unavailable` says why.
"""

import ctypes
import errno
import os
import struct
from types import TracebackType

#: Type and number of the events (linux/perf_event.h).
_HARDWARE = 0
EVENTS = {"instructions": (_HARDWARE, 1), "cycles": (_HARDWARE, 0)}
_NR_PERF_EVENT_OPEN = 298  # x86-64
_ATTR_SIZE = 128
#: Offset and bits of the flags: disabled, inherit (threads made later), exclude_kernel, exclude_hv.
_FLAGS_AT, _FLAGS = 40, 1 << 0 | 1 << 1 | 1 << 5 | 1 << 6
_ENABLE, _DISABLE, _RESET = 0x2400, 0x2401, 0x2403
_FD_CLOEXEC = 1 << 3


def _open(kind: int, number: int) -> int:
    """Open a counter of this process on any processor.  Raises OSError."""
    attributes = (ctypes.c_char * _ATTR_SIZE)()
    struct.pack_into("IIQ", attributes, 0, kind, _ATTR_SIZE, number)
    struct.pack_into("Q", attributes, _FLAGS_AT, _FLAGS)
    library = ctypes.CDLL(None, use_errno=True)
    fd = library.syscall(_NR_PERF_EVENT_OPEN, attributes, 0, -1, -1, _FD_CLOEXEC)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


def unavailable() -> str:
    """Return the reason why the machine does not count instructions here, or ''."""
    try:
        os.close(_open(*EVENTS["instructions"]))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "this processor or virtual machine has no hardware counters"
        return f"perf_event_open: {error.strerror}"
    return ""


class Counters:
    """Context manager that counts EVENTS of this process and of threads that it starts within.

    ``events``: name -> type and number.  Raises OSError where the machine does not count them.
    """

    def __init__(self, events: dict[str, tuple[int, int]] | None = None) -> None:
        self._fds: dict[str, int] = {}
        try:
            for name, event in (EVENTS if events is None else events).items():
                self._fds[name] = _open(*event)
        except OSError:
            self._close()
            raise
        self.counts: dict[str, int] = {}

    def __enter__(self) -> "Counters":
        self._control(_RESET)
        self._control(_ENABLE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._control(_DISABLE)
        self.counts = {
            name: int.from_bytes(os.read(fd, 8), "little") for name, fd in self._fds.items()
        }
        self._close()

    def _control(self, request: int) -> None:
        import fcntl

        for fd in self._fds.values():
            fcntl.ioctl(fd, request, 0)

    def _close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

"""``python -m kernel.linux.host.speed``: measure what observing the real kernel costs here."""

import time
from collections.abc import Callable

import numpy as np

from kernel.linux.host import unavailable
from kernel.linux.host.code import OP, OP_NOP, OP_SYSCALL, OP_TOUCH
from kernel.linux.host.observe import Observer
from kernel.linux.host.process import HostProcess

_MMAP, _PRIVATE_ANONYMOUS, _READ_WRITE = 9, 0x22, 3
#: Where the mappings that are looked at lie, and how far apart.
_PLACE, _STRIDE = 0x2000_0000_0000, 1 << 24


def _median_us(action: Callable[[], object], repeats: int = 2000) -> float:
    """Return the median duration of ``action`` in µs."""
    action()
    taken = np.empty(repeats)
    for i in range(repeats):
        start = time.perf_counter()
        action()
        taken[i] = time.perf_counter() - start
    return float(np.median(taken)) * 1e6


def measure(areas: int = 14, pages: int = 64) -> dict[str, float]:
    """Measure with ``areas`` mappings of ``pages`` touched pages each beside the host's own.

    Return operations and handshakes per second, and medians in µs.  Raises HostError.
    """
    with HostProcess() as host, Observer(host.pid) as observer:
        size = pages * 4096
        for place in range(_PLACE, _PLACE + areas * _STRIDE, _STRIDE):
            mapping = (place, size, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
            touch = (place, size, 1, 1, 0, 0)
            host.run(np.array([(OP_SYSCALL, _MMAP, mapping), (OP_TOUCH, 0, touch)], OP))
        one = np.array([(OP_NOP, 0, (0,) * 6)], OP)
        many = np.repeat(one, 50_000)

        def everything() -> None:
            host.run(one)
            observer.areas()
            observer.status()
            observer.residency()

        return {
            "start of a process, µs": _median_us(lambda: HostProcess().close(), 20),
            "prepared operations/s": 1e6 * len(many) / _median_us(lambda: host.run(many), 5),
            "the same without fault counts": 1e6
            * len(many)
            / _median_us(lambda: host.run(many, faults=False), 5),
            "handshakes/s": 1e6 / _median_us(lambda: host.run(one)),
            "areas, µs": _median_us(observer.areas),
            "status, µs": _median_us(observer.status),
            "residency, µs": _median_us(observer.residency),
            "operation and all of these, µs": _median_us(everything),
        }


def main() -> None:
    """Print the table."""
    if reason := unavailable():
        raise SystemExit(f"kernel.linux.host.speed: {reason}")
    for name, value in measure().items():
        print(f"{name:32} {value:12,.1f}")


if __name__ == "__main__":
    main()

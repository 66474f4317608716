"""The real kernel as the truth that the model is held against.

:mod:`kernel.linux.host.process` is a tiny process of our own that executes prepared operations,
:mod:`kernel.linux.host.observe` looks at it from outside, :mod:`kernel.linux.host.code` is its
machine code.

Imports no part of the model; the rest of kernel.linux and the real libraries import it.
"""

import functools
import os
import platform
import re

__all__ = ["kernel_version", "unavailable"]


def kernel_version() -> tuple[int, int]:
    """Return the running kernel's version, such as (6, 18); (0, 0) if this is not Linux."""
    if platform.system() != "Linux":
        return 0, 0
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


@functools.cache
def unavailable() -> str:
    """Return '' where the host can serve as truth, else the reason in one line.

    It tries: a process is started and answers.  The answer is remembered.
    """
    if platform.system() != "Linux":
        return f"the host is {platform.system() or 'unknown'}, not Linux"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the host is {platform.machine()}, not x86-64"
    import numpy as np

    from kernel.linux.host.code import OP, OP_NOP
    from kernel.linux.host.process import HostError, HostProcess

    try:
        with HostProcess() as host:
            op = np.zeros(1, OP)
            op["kind"] = OP_NOP
            if host.run(op)["minflt"][0]:
                return "the host process sees page faults that are not its own"
    except HostError as error:
        return str(error)
    except (OSError, ImportError) as error:
        return f"the host process cannot be made: {error}"
    return ""

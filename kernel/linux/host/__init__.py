"""Access to the real kernel, the reference against which the model is validated.

:mod:`kernel.linux.host.process` runs a tiny process that executes prepared operations,
:mod:`kernel.linux.host.code` is the machine code of that process,
:mod:`kernel.linux.host.observe` observes a process from outside,
:mod:`kernel.linux.host.elf` reads object files and writes the executable, and
:mod:`kernel.linux.host.files` identifies file systems.

This package imports no part of the model; the rest of kernel.linux and the runs with real
libraries import it.
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
    """Return, in one line, why the host cannot serve as the reference; '' if it can.

    The test starts a process and runs one operation in it.  The result is cached.
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
                return "the host process counts page faults that it does not cause"
    except HostError as error:
        return str(error)
    except (OSError, ImportError) as error:
        return f"the host process cannot be created: {error}"
    return ""

"""A real process of this Linux that takes the same calls as the model's (tests.kernel.driver).

A child makes them, without capabilities that would exempt it from limits, in a corner of its
address space where nothing else is.  The break is left alone: moving it behind the C library's
back breaks the child.
"""

import json
import mmap
import subprocess
import sys

from kernel.uapi import NR_MADVISE, NR_MMAP, NR_MUNMAP
from tests.kernel.driver import NUMBERS

_CHILD = r"""
import ctypes, json, re, sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def syscall(*args):
    result = libc.syscall(*map(ctypes.c_long, args))
    return -ctypes.get_errno() if result == -1 else result

def drop_capabilities():
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    libc.syscall(126, header, (ctypes.c_uint32 * 6)())

def touch(address, length, write):
    for page in range(address, address + length, 4096):
        if write:
            ctypes.memset(page, 1, 1)
        else:
            ctypes.string_at(page, 1)
    return 0

def smaps(*_):
    found = []
    with open("/proc/self/smaps") as file:
        for line in file:
            area = re.match("([0-9a-f]+)-([0-9a-f]+) (....) ", line)
            if area:
                found.append([int(area[1], 16), int(area[2], 16), area[3], {}])
            else:
                name, value = line.split(":", 1)
                found[-1][3][name] = value.split()
    return found

drop_capabilities()
calls = {"syscall": syscall, "touch": touch, "smaps": smaps}
for line in sys.stdin:
    name, *args = json.loads(line)
    print(json.dumps(calls[name](*args)), flush=True)
"""

_NUMBERS = NUMBERS | {"mmap": NR_MMAP, "munmap": NR_MUNMAP, "madvise": NR_MADVISE}
_WORDS = ("gd", "lo", "lf", "nr", "hg", "nh")


class RealProcess:
    """``process.mmap(...)`` and the like, as Process has them; to be closed."""

    page = mmap.PAGESIZE

    def __init__(self):
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()

    def _call(self, *call):
        self._child.stdin.write(json.dumps(call) + "\n")
        self._child.stdin.flush()
        return json.loads(self._child.stdout.readline())

    def __getattr__(self, name):
        if name not in _NUMBERS:
            raise AttributeError(name)
        return lambda *args: self._call(
            "syscall", _NUMBERS[name], *args, *((-1, 0) if name == "mmap" else ())
        )

    def touch(self, addr, length, write):
        """Use every page of a range; dies of what is not allowed."""
        return self._call("touch", addr, length, write)

    def smaps(self):
        """[start, end, rights, {name: words}] of every area."""
        return self._call("smaps")

    def kinds(self):
        """(start, end, kind) of every area, as Process tells them."""
        found = []
        for start, end, rights, details in self.smaps():
            flags = details["VmFlags"]
            words = [rights, *(word for word in _WORDS if word in flags)]
            if "ac" in flags and rights[1] != "w":
                words.append("ac")
            found.append((start, end, " ".join(words)))
        return found

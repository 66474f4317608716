"""A real process of the host with the same methods as the model's process (tests.kernel.driver)."""

import re
from pathlib import Path

import numpy as np

from kernel.linux.host.code import OP, OP_LOAD, OP_STORE, OP_SYSCALL
from kernel.linux.host.process import HostProcess
from kernel.uapi import NR_MADVISE, NR_MMAP, NR_MUNMAP
from tests.kernel.driver import NUMBERS

_NUMBERS = NUMBERS | {"mmap": NR_MMAP, "munmap": NR_MUNMAP, "madvise": NR_MADVISE}
_WORDS = ("gd", "lo", "lf", "nr", "hg", "nh")


class RealProcess:
    """A real process with the methods of Process (``process.mmap(...)``); close it after use."""

    page = 4096

    def __init__(self):
        self._host = HostProcess()
        self._proc = Path(f"/proc/{self._host.pid}")
        self._faults = 0
        self._base = self._sizes()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._host.close()

    def _sizes(self):
        text = (self._proc / "status").read_text()
        return [
            int(re.search(rf"{name}:\s+(\d+)", text)[1]) // 4
            for name in ("RssAnon", "VmPTE", "VmLck")
        ]

    def __getattr__(self, name):
        if name not in _NUMBERS:
            raise AttributeError(name)

        def method(*args):
            if name == "mmap":
                args += (-1, 0)
            ops = np.zeros(1, OP)
            ops[0] = (OP_SYSCALL, _NUMBERS[name], args + (0,) * (6 - len(args)))
            return int(self._run(ops)["value"][0])

        return method

    def _run(self, ops):
        results = self._host.run(ops)
        self._faults += int(results["minflt"].sum())
        return results

    def touch(self, addr, length, write):
        """Access every page of a range, whose rights allow it."""
        pages = range(addr, addr + length, self.page)
        ops = np.zeros(len(pages), OP)
        ops["kind"] = OP_STORE if write else OP_LOAD
        ops["args"][:, 0] = pages
        ops["args"][:, 1] = 0x5A5A
        assert not self._run(ops)["sig"].any()
        return 0

    def kinds(self):
        """Return (start, end, kind) of every area, as Process.kinds does."""
        found = []
        for line in (self._proc / "smaps").read_text().splitlines():
            area = re.match("([0-9a-f]+)-([0-9a-f]+) (....) ", line)
            if area:
                start, end, words = int(area[1], 16), int(area[2], 16), [area[3]]
            elif line.startswith("VmFlags:"):
                flags = line.split()
                words += [word for word in _WORDS if word in flags]
                if "ac" in flags and words[0][1] != "w":
                    words.append("ac")
                found.append((start, end, " ".join(words)))
        return found

    def levels(self):
        """Return minor faults, RssAnon, page-table pages and locked pages, minus those at start."""
        sizes = [now - then for now, then in zip(self._sizes(), self._base, strict=True)]
        return (self._faults, *sizes)

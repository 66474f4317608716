"""Builders of recordings, call by call, and helpers to replay recordings and strace logs."""

import json
import os
import platform
import re
import subprocess
import sys

import pytest

from kernel.linux.replay.__main__ import main
from kernel.linux.replay.log import parse_area
from tests.conftest import ROOT

NUMBERED = re.compile(r"[0-9]+")

#: Areas of a small program after its exec, without address randomisation.
AREAS = """
555555554000-555555558000 r-xp 00000000 fe:00 1 /bin/program
555555558000-555555559000 rw-p 00004000 fe:00 1 /bin/program
7ffff7ffb000-7ffff7ffd000 r--p 00000000 00:00 0 [vvar]
7ffff7ffd000-7ffff7fff000 r-xp 00000000 00:00 0 [vdso]
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
""".strip().splitlines()
HEAP = 0x55555557A000
#: Address below which mappings are placed, top-down.
TOP = 0x7FFFF7FFB000
PAGE = 4096
PRIVATE = 0x22
READ, WRITE = 1, 3

needs_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="recording needs Linux on x86-64",
)


def area(start, pages, rights="rw-p", name=""):
    """Return one line of /proc/PID/maps."""
    inode = 0 if not name or name.startswith("[") else 1
    return f"{start:x}-{start + pages * PAGE:x} {rights} 00000000 00:00 {inode} {name}".rstrip()


class Recording:
    """Recording built event by event; ``at``: times of entry and exit (default: the next two)."""

    def __init__(self):
        machine = {"overcommit": 1, "max_map_count": 65530, "mmap_min_addr": 65536}
        header = {"format": "memory-calls", "version": 1, "command": ["program"]}
        self.lines = [header | {"machine": machine}]
        self.clock = 0

    def _time(self, at):
        self.clock = max([self.clock + 2, *(time for time in at or () if time)])
        begin, end = at or (self.clock - 1, self.clock)
        return {"in": begin, "out": end}

    def exec(self, areas=AREAS, tid=1, former=None, before=None):
        image = {
            "path": "/bin/program",
            "personality": 0x40000,
            "start_data": 0x555555558000,
            "end_data": 0x555555559000,
            "start_brk": HEAP,
            "start_stack": 0x7FFFFFFFE000,
            "limits": {"address_space": None, "data": None, "memlock": None, "may_lock": True},
        }
        line = {"t": "exec", "tid": tid, **self._time(None), "former": former or tid}
        if before is not None:
            line["before"] = snapshot(before)
        self.lines.append(line | {"image": image, "maps": snapshot(areas)})
        return self

    def call(self, name, *args, ret, tid=1, at=None, **more):
        args = [*args, 0, 0, 0, 0, 0, 0][:6]
        line = {"t": "call", "tid": tid, **self._time(at), "name": name, "args": args, "ret": ret}
        self.lines.append(line | more)
        return self

    def mmap(self, pages, *, ret, prot=WRITE, flags=PRIVATE, addr=0, **more):
        args = (addr, pages * PAGE, prot, flags, -1, 0)
        return self.call("mmap", *args, ret=ret, **more)

    def clone(self, child, flags, tid=1, at=None):
        line = {"t": "clone", "tid": tid, **self._time(at), "flags": flags, "child": child}
        self.lines.append(line)
        return self

    def exit(self, areas=None, tid=1, **sizes):
        line = {"t": "exit", "tid": tid, **self._time(None)}
        if areas is not None:
            line["maps"] = snapshot(areas, **sizes)
        self.lines.append(line)
        return self

    def write(self, path, *, end=True):
        calls = sum(line.get("t") == "call" for line in self.lines)
        last = [{"t": "end", "calls": calls, "status": 0}] if end else []
        path.write_text("".join(json.dumps(line) + "\n" for line in [*self.lines, *last]))
        return path


def snapshot(areas, **sizes):
    """Return the JSON snapshot of ``areas``: maps lines or (line, resident kB, smaps flags)."""
    rows = [[row, None, None] if isinstance(row, str) else list(row) for row in areas]
    parsed = [parse_area(row[0]) for row in rows]
    size = sum(a.end - a.start for a in parsed) >> 10
    return {"sizes": {"VmSize": size} | sizes, "areas": rows}


def with_areas(*added, without=()):
    """Return AREAS plus the lines ``added``, minus the lines ``without``, sorted by address."""
    lines = [line for line in (*AREAS, *added) if line not in without]
    return sorted(lines, key=lambda line: int(line.split("-")[0], 16))


class Replayed:
    """Exit code and output of ``python -m kernel.linux.replay`` for a file."""

    def __init__(self, capsys, path, *options):
        capsys.readouterr()
        self.code = main([str(path), *map(str, options)])
        self.out, self.err = capsys.readouterr()

    @property
    def counts(self):
        """Numbers of calls, compared, differ and not comparable in the last line."""
        words = self.out.splitlines()[-1].replace(":", "").replace(",", "").split()
        numbers = [int(word) for word in words if NUMBERED.fullmatch(word)]
        return tuple(numbers[:4])


@pytest.fixture
def replayed(capsys, tmp_path):
    """Return a function that replays a Recording or the text of an strace log with options."""

    def replay(log, *options):
        path = tmp_path / "log"
        if isinstance(log, Recording):
            log.write(path)
        else:
            path.write_text(log)
        return Replayed(capsys, path, *options)

    return replay


def run(*arguments, **more):
    """Run ``python -m kernel.linux.replay`` in a separate process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "kernel.linux.replay", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False, **more
    )

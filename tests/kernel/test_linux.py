"""The model against the Linux that runs this test: random calls in a real process.

A child makes the calls in a corner of its address space where nothing else is, and tells what came
back, which areas /proc/self/maps shows there and which pages are resident.  The break is left out:
moving it behind the C library's back breaks the child.
"""

import json
import mmap
import platform
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.types import SimulatedSignal
from kernel.uapi import MADV_DONTNEED, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_NORESERVE, MAP_POPULATE
from tests.kernel.driver import PRIVATE, Process, configured


def version():
    """(major, minor) of the running Linux; (0, 0) elsewhere."""
    found = re.match(r"(\d+)\.(\d+)", platform.release()) if sys.platform == "linux" else None
    return tuple(map(int, found.groups())) if found else (0, 0)


pytestmark = pytest.mark.skipif(version() < (6, 7), reason="the model is of Linux 6.7 and later")

ORIGIN = 0x600000000000
PAGES = 24

CHILD = r"""
import ctypes, json, re, sys

program = json.load(sys.stdin)
page, start, end = program["page"], program["start"], program["end"]
libc = ctypes.CDLL(None, use_errno=True)
long = ctypes.c_long
libc.mmap.restype = long
libc.mmap.argtypes = [long, long, ctypes.c_int, ctypes.c_int, ctypes.c_int, long]
libc.munmap.argtypes = [long, long]
libc.madvise.argtypes = [long, long, ctypes.c_int]
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE

def areas():
    with open("/proc/self/maps") as maps:
        found = re.findall("(?m)^([0-9a-f]+)-([0-9a-f]+) (...)", maps.read())
    found = [(int(low, 16), int(high, 16), rights) for low, high, rights in found]
    return [area for area in found if area[0] < end and area[1] > start]

def resident():
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(start // page * 8)
        entries = memoryview(pagemap.read((end - start) // page * 8)).cast("Q")
    return "".join("#" if entry >> 63 else "." for entry in entries)

answers = []
for name, *args in program["steps"]:
    if name == "touch":
        address, write = args
        if write:
            ctypes.memset(address, 1, 1)
        else:
            ctypes.string_at(address, 1)
        result = 0
    else:
        extra = (-1, 0) if name == "mmap" else ()
        result = getattr(libc, name)(*args, *extra)
        if result == -1:
            result = -ctypes.get_errno()
    answers.append([result, areas(), resident()])
json.dump(answers, sys.stdout)
"""


def overcommit():
    return int(Path("/proc/sys/vm/overcommit_memory").read_text())


def random_step(rng, page):
    """A call or a touch in the corner, its arguments ready for both sides."""
    addr = ORIGIN + rng.randrange(PAGES) * page
    length = rng.randint(1, 6) * page
    prot = rng.choice((3, 3, 3, 1, 0, 7))
    flags = PRIVATE | rng.choice((0, 0, 0, 0, MAP_NORESERVE, MAP_POPULATE))
    wrong = rng.randrange(12) == 0
    kind = rng.choice(
        ("map", "map", "map", "touch", "touch", "touch", "munmap", "dontneed", "hint")
    )
    if kind == "touch":
        return "touch", addr + rng.randrange(page), rng.randrange(2)
    if kind == "munmap":
        return "munmap", addr + wrong, rng.choice((length, length, length + 1, 0))
    if kind == "dontneed":
        return "madvise", addr + wrong, length, MADV_DONTNEED
    if kind == "hint":
        return "mmap", addr + wrong, length, prot, flags | MAP_FIXED_NOREPLACE * rng.randrange(2)
    return (
        "mmap",
        addr + wrong,
        rng.choice((length, length, length - 5, 0)),
        prot,
        flags | MAP_FIXED,
    )


def on_the_model(process, step):
    """Do a step; its result, or None for one that must not be done for real."""
    name, *args = step
    page = process.page
    if name == "touch":
        try:
            process.touch(args[0], 1, args[1])
        except SimulatedSignal:
            return None
        return 0
    if name == "mmap" and not args[3] & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        start, length = args[0] // page * page, -(-args[1] // page) * page
        if any(a[0] < start + length and a[1] > start for a in process.areas()):
            return None  # would go to wherever the real process has room
    if name == "madvise" and args[1] == 0:
        return None
    return getattr(process, name)(*args)


def corner(process):
    """What the child reports, of the model."""
    end = ORIGIN + (PAGES + 6) * process.page
    areas = [
        [low, high, "".join(c if prot & b else "-" for c, b in zip("rwx", (1, 2, 4), strict=True))]
        for low, high, prot, *_ in process.areas()
        if low < end and high > ORIGIN
    ]
    states = [process.page_state(addr) for addr in range(ORIGIN, end, process.page)]
    return [areas, "".join("#" if s else "." for s in states)]


@pytest.mark.parametrize("seed", range(3))
def test_random_calls_agree_with_this_linux(seed):
    page = mmap.PAGESIZE
    process = Process(configured(page_size=page, overcommit=overcommit()))
    rng = random.Random(seed)
    steps, expected = [], []
    while len(steps) < 500:
        step = random_step(rng, page)
        result = on_the_model(process, step)
        if result is not None:
            steps.append(step)
            expected.append([result, *corner(process)])
    program = {
        "page": page,
        "start": ORIGIN,
        "end": ORIGIN + (PAGES + 6) * page,
        "steps": steps,
    }
    child = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHILD],
        input=json.dumps(program),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode >= 0, f"the real process died of signal {-child.returncode}"
    if child.returncode:
        pytest.skip(f"the real process could not run: {child.stderr.strip()[-200:]}")
    for n, (step, mine, real) in enumerate(
        zip(steps, expected, json.loads(child.stdout), strict=True)
    ):
        assert mine == real, f"call {n}: {step}"

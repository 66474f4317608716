"""Tests of ``debug=true``, which runs in one process and finds the line that broke the heap."""

import re
from pathlib import Path

import pytest

from tests.benchmarks.run.conftest import ROOT

BUDDY = (ROOT / "allocators" / "buddy.py").read_text()
SMALL = ("workload.operations=3000", "workload.live=100")
TAKE = "    block = take_block(k, a, order_for(size))\n"


@pytest.fixture
def debug(bench, tmp_path):
    """Run bench.py debug=true on buddy with one piece of its source replaced."""

    def run(old: str, new: str, *arguments: str, **options: str):
        assert BUDDY.count(old) == 1
        path = tmp_path / "mine.py"
        path.write_text(BUDDY.replace(old, new))
        chosen = ("allocator=buddy", f"allocator.name={path}", "debug=true")
        return bench(*chosen, *(arguments or SMALL), **options)

    return run


def line_in(path: Path, text: str) -> int:
    return next(i for i, s in enumerate(path.read_text().splitlines(), 1) if text in s)


def test_the_event_that_broke_the_heap_is_found(debug, tmp_path):
    bug = "if load(k, buddy + 8) & USED:"
    done = debug("if load(k, buddy + 8) != make_tag(HEADER, order, 0):", bug)
    assert done.returncode == 1
    path = tmp_path / "mine.py"
    first = next(s for s in done.stderr.splitlines() if s.startswith("bench.py: "))
    assert f"{path}:{line_in(path, 'def free') - 1}: event " in first
    assert first.endswith("a block on a free list is not tagged free with the order of that list")
    ran = [line.partition("  #")[0].strip() for line in done.stderr.splitlines()]
    assert f"{line_in(path, bug)} {bug}" in ran
    assert " before the event" in done.stderr
    assert " after the event" in done.stderr
    assert " -> 0x" in done.stderr
    assert not list(tmp_path.glob("results/*"))


def test_a_correct_allocator_exits_with_0(debug):
    done = debug(TAKE, TAKE)
    assert (done.returncode, done.stderr.count("no invariant was broken")) == (0, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.heads[-1] = 0", "IndexError: index -1 is out of bounds"),
        ("a.heads[size + 99] = 0", "IndexError: index"),
        ("size //= a.mapped", "divide by zero"),
        ("load(k, 64)", "SIGSEGV: read of 0x40"),
    ],
)
def test_a_mistake_is_reported_with_its_line(debug, tmp_path, line, message):
    done = debug(TAKE, f"    {line}\n{TAKE}")
    assert done.returncode == 1
    path = tmp_path / "mine.py"
    assert f"bench.py: {path}:{line_in(path, line)}: event 0, malloc(): " in done.stderr
    assert message in done.stderr


def test_print_and_breakpoint_work(debug):
    stop = "    if k.task.now == 40:\n        breakpoint()\n"
    done = debug(
        TAKE, f'    print(f"take {{size}} bytes")\n{stop}{TAKE}', input="p size * 0 + 77\nc\n"
    )
    assert done.returncode == 0
    assert done.stdout.count("take ") > 1000
    assert "(Pdb) 77" in done.stdout.replace("np.int64(77)", "77")
    quit_ = debug(TAKE, f"{stop}{TAKE}", input="q\n")
    assert quit_.returncode == 130
    assert "Traceback" not in quit_.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("debug=perhaps",), "debug=perhaps: expected true or false"),
        (("debug=true", "allocator=native/glibc"), "is a real library"),
        (("-m", "debug=true", "seed=1,2"), "not a sweep"),
        (("allocator.check_every=-1",), "allocator.check_every=-1"),
        (("allocator=native/glibc", "allocator.check_every=5"), "has no check"),
    ],
)
def test_settings_that_debug_does_not_allow_are_refused(bench, arguments, message):
    done = bench(*arguments, "workload.operations=25000")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_plugin_prints_in_a_normal_run_reaches_the_terminal(bench, tmp_path):
    path = tmp_path / "mine.py"
    late = '    if 700 < k.task.now < 720:\n        print("take", size, "at event", k.task.now)\n'
    path.write_text(BUDDY.replace(TAKE, late + TAKE))
    done = bench("allocator=buddy", f"allocator.name={path}", *SMALL)
    assert done.returncode == 0
    assert re.search(r"^take \d+ at event 7\d\d$", done.stdout, re.M)

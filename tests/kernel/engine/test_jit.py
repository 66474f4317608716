"""build(): functions that it compiles, functions that it refuses, and a cache never stale."""

import os
import shutil
import subprocess
import sys
import textwrap
import traceback
from enum import IntEnum
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

import kernel.engine.jit
from kernel import types
from kernel.boot import Machine
from kernel.brk import brk as kernel_brk
from kernel.config import KernelConfig
from kernel.engine.jit import WalkError, build, disabled, is_jit, jit, source_hash
from kernel.engine.record import record
from tests.conftest import ROOT

pytestmark = pytest.mark.once


compiled_only = pytest.mark.skipif(disabled(), reason="nothing is compiled with the JIT off")


# --- Names that a compiled function may use ------------------------------------------------------

FACTOR = 2
FLAG = True
NAMES = ("a", "b")
TABLE = np.arange(4)
TABLE.flags.writeable = False
STEPS = np.arange(4)
WEIGHTS = [1, 2]


class Colour(IntEnum):
    RED = 5


COLOUR = Colour.RED


@jit
def scale(n):
    return n * FACTOR


@jit(cold=True)
def slow(n):
    return n * 3 + FACTOR


@jit(inline=True)
def quick(n):
    return n + 1


@jit
def outer(n, offset=100):
    return scale(n) + quick(n) + slow(n) + offset + COLOUR + len(NAMES) + TABLE[1] * FLAG


def unmarked(n):
    return n


@jit
def calls_unmarked(n):
    return unmarked(n)  # here


@jit
def reaches_unmarked(n):
    return calls_unmarked(n)


@jit
def mentions_module(n):
    return kernel.engine.jit.build(n)  # here


@jit
def uses_numpy(n):
    return np.sqrt(n) + sqrt(n)


@jit
def recursive(n):
    return recursive(n - 1) if n else 0


@jit
def ping(n):
    return pong(n)


@jit
def pong(n):
    return ping(n)


@jit
def reads_a_header(n):
    return n & types.VM_WRITE


@jit
def calls_through_a_header(n):
    return types.kernel_dtype(n)  # here


@jit
def misspells(n):
    return (
        n * FACTR  # noqa: F821  # here
    )


@jit
def misspells_a_constant(n):
    return n & types.VM_RAED  # here


@jit
def misspells_a_function(n):
    return np.sqroot(n)  # here


@jit
def reads_a_list(n):
    return WEIGHTS[n]  # here


@jit
def reads_an_array(n):
    return STEPS[n]  # here


@jit
def assigns_a_global(n):
    global FACTOR
    FACTOR = n  # here


@jit
def makes_a_list(n):
    return len([n, n])  # here


@jit
def makes_a_string(n):
    return len(f"{n}")  # here


@jit
def takes_too_few():
    return 0


@jit
def takes_too_many(n, m):
    return n


@jit
def has_a_default(n, m=0):
    return n


@jit
def shifts(n):
    return 1 << n


def test_marks():
    assert is_jit(scale)
    assert not is_jit(unmarked)
    assert not is_jit(3)
    assert scale(4) == 8  # the module works without a build


def test_build():
    assert build(outer)(10) == 20 + 11 + 32 + 100 + 5 + 2 + 1
    assert build(outer)(10, 0) == 71
    assert build(uses_numpy)(16.0) == 8


def test_bindings_replace_globals_everywhere_and_nowhere_else():
    @jit
    def other(n):
        return 0

    assert build(outer, FACTOR=10)(1, 0) == 10 + 2 + 13 + 8
    assert build(outer, scale=other, FLAG=False)(1, 0) == 0 + 2 + 5 + 7
    assert build(outer)(1, 0) == outer(1, 0) == 2 + 2 + 5 + 8
    assert build(outer, NOBODY_MENTIONS=3)(1, 0) == 17


@jit
def twice(n):
    return scale(n) + scale(n + 1)


@jit
def thrice(n):
    return scale(n) + scale(n + 1) + slow(n)


@compiled_only
def test_loops_share_what_reaches_the_same_code_with_the_same_bindings():
    def callee(built):
        return built.py_func.__globals__["scale"]

    first = callee(build(twice, cache=False))
    assert callee(build(thrice, cache=False)) is first
    assert callee(build(thrice, cache=False, FACTOR=7)) is not first
    assert build(thrice, cache=False, FACTOR=7)(1) == 7 + 14 + 3 + 7
    assert build(twice, cache=False)(1) == 2 + 4
    # Built as an entry it is compiled again: inner functions have no separate machine code.
    assert build(scale, cache=False)(3) == 6


FEW = np.dtype([("first", "i8"), ("second", "i8")])
MORE = np.dtype([*FEW.descr, ("third", "i8")])


@jit
def second_of(record):
    return record.second


@jit
def enter_record(record):
    return second_of(record)


@compiled_only
def test_a_record_is_never_taken_for_another():
    built = build(enter_record, cache=False)
    for dtype in (FEW, MORE):
        record = np.ones(1, dtype).view(np.recarray)[0]
        assert built(record) == 1
    assert len(built.signatures) == 2
    assert len(built.py_func.__globals__["second_of"].signatures) == 2


def test_plain_build_has_the_same_bindings(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    built = build(outer, FACTOR=10)
    assert built(1, 0) == 33
    assert type(built) is type(outer)
    assert type(build(outer)(1, 0)) in (int, np.int64)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (calls_unmarked, "calls_unmarked() calls unmarked(), which is not marked @jit"),
        (reaches_unmarked, "calls_unmarked() calls unmarked(), which is not marked @jit"),
        (mentions_module, "uses kernel.engine: import the name itself"),
        (calls_through_a_header, "uses types.kernel_dtype: import the name itself"),
        (misspells, "misspells() uses FACTR, which does not exist"),
        (misspells_a_constant, "uses types.VM_RAED, which does not exist"),
        (misspells_a_function, "uses np.sqroot, which does not exist"),
        (reads_a_list, "reads the list WEIGHTS, which can change"),
        (reads_an_array, "reads the array STEPS, which can change"),
        (makes_a_list, "makes a list: compiled code makes no objects"),
        (makes_a_string, "makes a string: compiled code makes no objects"),
        (assigns_a_global, "assigns the global FACTOR: it belongs in STATE"),
        (recursive, "recursive() calls itself: compiled functions cannot recurse"),
        (ping, "ping() calls itself: compiled functions cannot recurse"),
    ],
)
def test_refusals_name_the_line(function, message):
    with pytest.raises(WalkError) as refusal:
        build(function)
    place, _, rest = str(refusal.value).partition(": ")
    assert message in rest
    file, _, line = place.rpartition(":")
    assert file == __file__
    text = Path(file).read_text().splitlines()[int(line) - 1]
    assert "# here" in text or text.startswith("@jit"), text


@pytest.mark.parametrize("bound", [takes_too_few, takes_too_many])
def test_a_bound_function_has_the_parameters_of_the_one_that_it_replaces(bound):
    with pytest.raises(WalkError, match=r":\d+: takes_too_\w+\(\) has the parameters"):
        build(outer, scale=bound)
    assert build(outer, scale=has_a_default)(10) == 10 + 11 + 32 + 100 + 5 + 2 + 1


def test_constants_of_a_header_are_compiled_in_and_hashed_if_they_are_read(monkeypatch):
    before = source_hash(reads_a_header)
    assert build(reads_a_header)(types.VM_WRITE | 64) == types.VM_WRITE
    monkeypatch.setattr(types, "VM_READ", 3)
    assert source_hash(reads_a_header) == before
    monkeypatch.setattr(types, "VM_WRITE", 64)
    assert source_hash(reads_a_header) != before
    assert build(reads_a_header)(types.VM_WRITE | 2) == 64


def test_a_header_s_constant_cannot_be_bound():
    with pytest.raises(WalkError, match=r"uses types\.VM_WRITE: import the name itself"):
        build(reads_a_header, VM_WRITE=4)


def test_closures_are_refused():
    step = 3

    @jit
    def inner(n):
        return n + step

    with pytest.raises(TypeError, match=r"inner\(\) uses step of the function around it"):
        build(inner)


def named_alike(factor):
    """Return a function called ``same``, as another module might define it."""

    def same(n):
        return n * 7 if FACTOR else n

    @jit(cold=True)
    def cold_same(n):
        return n * 11 if FACTOR else n

    chosen = jit(same) if factor == 7 else cold_same
    chosen.__name__ = chosen.__qualname__ = "same"
    return chosen


seven, eleven = named_alike(7), named_alike(11)


@jit
def same(n):
    return seven(n) + eleven(n)


@jit
def brk(k, addr):
    return kernel_brk(k, addr)


def test_functions_of_one_name_stay_apart():
    """Functions of one name stay distinct, including a wrapper and its wrapped function."""
    assert build(same)(1) == 18
    k = Machine(KernelConfig(window_bits=32)).k
    assert build(brk, WINDOW_BITS=32)(k, 0) == k.mm.start_brk


# --- The key of the cache ------------------------------------------------------------------------


def test_hash_is_repeatable():
    assert source_hash(outer) == source_hash(outer)
    assert source_hash(outer, NOBODY_MENTIONS=1) == source_hash(outer)


@pytest.mark.parametrize(
    "changes",
    [
        {"FACTOR": 3},
        {"FLAG": False},
        {"NAMES": ("a", "c")},
        {"TABLE": np.frombuffer(bytes(range(32)), "i8")},
        {"TABLE": np.frombuffer(bytes(range(16)), "i4")},
        {"COLOUR": 6},
        {"scale": quick},
    ],
)
def test_hash_follows_what_is_mentioned(changes):
    assert source_hash(outer, **changes) != source_hash(outer)


def test_hash_follows_types_and_builtins():
    assert source_hash(uses_numpy, sqrt=abs) != source_hash(uses_numpy)
    assert source_hash(uses_numpy, sqrt=np.int64) != source_hash(uses_numpy, sqrt=np.int32)


def test_hash_follows_how_a_function_is_marked():
    before = source_hash(outer)
    slow.__cold__ = False
    try:
        assert source_hash(outer) != before
    finally:
        slow.__cold__ = True
    assert source_hash(outer) == before


def test_hash_follows_the_environment(monkeypatch):
    before = source_hash(outer)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/somewhere/else")
    assert source_hash(outer) == before
    monkeypatch.setenv("NUMBA_OPT", "1")
    assert source_hash(outer) != before


# --- No stale code, in separate processes --------------------------------------------------------

OUTER = """
from callee import SWITCH, step
from kernel.engine.jit import jit


@jit
def outer(table, n):
    total = 0
    for i in range(n):
        total += step(table, i)
    return total * SWITCH
"""
CALLEE = """
from kernel.engine.jit import jit

SWITCH = 1


@jit
def step(table, i):
    return table[0, i] + 10
"""
SCRIPT = """
import numpy as np
from kernel.engine.jit import build
from outer import outer

built = build(outer)
try:
    print(built(np.ones((2, 4), "i8"), 6))
except IndexError:
    print("IndexError")
print(sum(built.stats.cache_hits.values()), sum(built.stats.cache_misses.values()))
"""


class Project:
    """A copy of the kernel package with two additional modules and a separate cache."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copytree(
            ROOT / "kernel", folder / "kernel", ignore=shutil.ignore_patterns("__pycache__")
        )
        (folder / "outer.py").write_text(OUTER)
        (folder / "callee.py").write_text(CALLEE)

    def edit(self, name, old, new):
        """Replace text in one of the project's files."""
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def run(self, **environment):
        """Run a new process and return (result, hits, misses)."""
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SCRIPT)],
            cwd=self.folder,
            env=os.environ
            | {"PYTHONPATH": str(self.folder), "NUMBA_CACHE_DIR": str(self.folder / "cache")}
            | {"PYTHONDONTWRITEBYTECODE": "1", "NUMBA_BOUNDSCHECK": "0"}
            | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result, hits, misses = done.stdout.split()
        return (int(result) if result.isdigit() else result), int(hits), int(misses)

    def files(self):
        """Return all files in the cache."""
        return sorted(p for p in (self.folder / "cache").rglob("*") if p.is_file())


@compiled_only
def test_stale_code_is_never_served(tmp_path):
    project = Project(tmp_path)
    # The loop reads two words beyond the row: the next row's, unless indices are checked.
    assert project.run() == (66, 0, 1)
    files = project.files()
    assert project.run() == (66, 1, 0)
    assert project.files() == files
    # The same source with bounds checks is different code, and is cached too.
    assert project.run(NUMBA_BOUNDSCHECK="1") == ("IndexError", 0, 1)
    assert project.run() == (66, 1, 0)
    # Edit a callee in another file, then a switch there, then link.py, which compiles.
    project.edit("callee.py", "+ 10", "+ 20")
    assert project.run() == (126, 0, 1)
    project.edit("callee.py", "SWITCH = 1", "SWITCH = 2")
    assert project.run() == (252, 0, 1)
    project.edit("kernel/engine/link.py", '"""Linking of a whole', '"""Now linking of a whole')
    assert project.run() == (252, 0, 1)
    # Undo all edits except that of link.py.
    project.edit("callee.py", "SWITCH = 2", "SWITCH = 1")
    project.edit("callee.py", "+ 20", "+ 10")
    project.edit("kernel/engine/link.py", '"""Now linking of a whole', '"""Linking of a whole')
    assert project.run() == (66, 1, 0)


@compiled_only
def test_comments_cost_no_compilation(tmp_path):
    project = Project(tmp_path)
    assert project.run()[1:] == (0, 1)
    project.edit("callee.py", "SWITCH = 1", "# A comment.\nSWITCH = 1")
    assert project.run()[1:] == (1, 0)


# --- Hooks ---------------------------------------------------------------------------------------


@jit(cold=True, when="FRAMES")
def take_frame(k, n):
    """Run as a hook; the body needs fields that only machines with frames have."""
    return k.phys.nr_frames + n


@jit
def with_hook(k, n):
    return take_frame(k, n) + n


def test_a_hook_does_nothing_where_its_switch_is_off():
    k = Machine(KernelConfig(window_bits=32)).k
    assert build(with_hook, cache=False)(k, 3) == 3
    assert build(with_hook, cache=False, FRAMES=False)(k, 3) == 3
    assert take_frame(k, 3) == 0
    assert with_hook(k, 3) == 3


def test_a_hook_is_its_body_where_its_switch_is_on():
    machine = Machine(KernelConfig(window_bits=32, frames=True, memory=1 << 20))
    assert build(with_hook, cache=False, FRAMES=True)(machine.k, 3) == 256 + 3 + 3
    assert build(take_frame, cache=False, FRAMES=True)(machine.k, 3) == 256 + 3
    assert source_hash(with_hook, FRAMES=True) != source_hash(with_hook)


def test_a_hook_can_be_bound_to_what_takes_its_parameters():
    k = Machine(KernelConfig(window_bits=32)).k
    one = jit(lambda k, n: 1)
    assert build(with_hook, cache=False, take_frame=one)(k, 3) == 4
    with pytest.raises(WalkError, match=r"must have \(k, n\)"):
        build(with_hook, take_frame=jit(lambda k: 1))


def test_a_hook_of_no_switch_is_refused():
    with pytest.raises(ValueError, match="FRAME is not a switch; choose one of PAGE_SHIFT"):
        jit(cold=True, when="FRAME")(take_frame)


@pytest.mark.hardening(7)
def test_a_shift_by_too_many_bits_raises_where_guarded():
    built = build(shifts, cache=False, guard=(__name__,))
    assert built(3) == 8
    with pytest.raises(ValueError, match=r"shift by less than 0|negative shift"):
        built(-1)
    if not disabled():  # Python's own integers have no limit above
        with pytest.raises(ValueError, match="shift by less than 0 or more than 63 bits"):
            built(64)


# --- The machine code ----------------------------------------------------------------------------


def llvm(built):
    """Return the optimised LLVM module of the only compiled signature."""
    (text,) = built.inspect_llvm().values()
    return text


@compiled_only
def test_cold_functions_stay_out_of_line():
    built = build(outer, cache=False)
    built(1)
    text = llvm(built)
    assert " @_ZN" in text
    calls = [line for line in text.splitlines() if " call " in line]
    defined = [line for line in text.splitlines() if line.startswith("define")]
    assert any("slow_" in line for line in defined)
    assert any("slow_" in line for line in calls)
    for name in ("quick_", "scale_"):
        assert not any(name in line for line in defined + calls)
    # Internal, so that it was optimised for its callers.
    assert all("internal" in line for line in defined if "slow_" in line)


@compiled_only
def test_replay_loop_counts_no_references_and_clears_no_slots():
    """Atomic reference counting in the loop makes it ten times slower."""
    from allocators.base.registry import load
    from benchmarks.events.events import make_events
    from benchmarks.replay.loop import RUN, replay_events
    from kernel.engine.record import record

    plugin = load("bump")
    machine = Machine(KernelConfig(window_bits=32))
    bindings = plugin.bindings() | machine.config.switches()
    built = build(replay_events, cache=False, **bindings)
    events = make_events(np.array([0, 1]), np.array([0, 0]), np.array([24, 0]))
    run = record(RUN)
    run.stride = 1
    built(machine.k, plugin.state(), run, np.zeros((4, 2), "i8"), events, 0, 0)
    text = llvm(built)
    assert "replay_events" in text
    for name in ("NRT_incref", "NRT_decref", "NRT_Allocate"):
        assert name not in text
    # A tenth of all instructions used to clear exception slots without any exception.
    assert "ptr %excinfo" in text
    assert "store ptr null, ptr %excinfo" not in text
    # Code that only faults and system calls need is not in the loop itself.
    defined = [line for line in text.splitlines() if line.startswith("define")]
    for name in ("handle_mm_fault_", "kill_"):
        assert any(name in line for line in defined)


# --- Guarded functions ----------------------------------------------------------------------------


@jit
def indexed(a, i):
    a.table[i] = 7
    return 10 // (i - 3)


@jit
def calls_indexed(a, i):
    return indexed(a, i) + 1


@compiled_only
@pytest.mark.parametrize(
    ("index", "kind", "text"),
    [(3, ZeroDivisionError, "10 // "), (8, IndexError, "= 7"), (-1, IndexError, "= 7")],
)
def test_a_guarded_function_raises_at_its_line(index, kind, text):
    state = record(np.dtype([("table", "i8", (8,)), ("behind", "i8")]))
    assert build(calls_indexed, cache=False, guard=(__name__,))(state, 2) == -9
    with pytest.raises(kind) as caught:
        build(calls_indexed, cache=False, guard=(__name__,))(state, index)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.name) == (__file__, "indexed")
    assert text in last.line


def test_what_is_guarded_is_other_code():
    assert source_hash(indexed) != source_hash(indexed, guard=(__name__,))
    assert source_hash(indexed) == source_hash(indexed, guard=("elsewhere",))

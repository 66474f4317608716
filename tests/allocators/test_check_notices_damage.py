"""check() detects damaged metadata: every other test relies on it."""

import signal
from itertools import chain, zip_longest

import numpy as np
import pytest

from allocators.base import registry
from allocators.base.contract import BLOCK_FREE, BLOCK_HEADER
from allocators.base.registry import load
from allocators.verify.plan import Writer
from allocators.verify.process import Build, Process
from kernel.access import peek, poke
from kernel.config import KernelConfig
from kernel.engine.jit import build
from kernel.types import SimulatedSignal

pytestmark = pytest.mark.usefixtures("plain")

#: Blocks of each kind to damage, spread over the heap.
TRIED = 12
#: Settings under which a small heap has lists of several entries, in an order.
SETTINGS = {
    "arena": {"region_size": 4096, "mmap_threshold": 2048},
    "first_fit": {"fit": "next", "order": "address"},
    "ptmalloc": {"tcache_count": 0, "mxfast": 0, "trim_threshold": 1 << 17},
    "segregated": {"run_size": 4096, "chunk_size": 262144, "mmap_threshold": 512},
    "tlsf": {"sli": 1},
}
#: Checks that one damaged word cannot fail: the order of a doubly linked free list.
NEEDS_TWO = {"first_fit": {7}}


class Loop(Exception):
    """Signal that check() does not end: it follows a ring made by the damage."""


def _too_long(number, frame):
    raise Loop


class Patient:
    """Allocator whose heap has blocks of every kind, whose words can be damaged and restored."""

    def __init__(self, name, settings):
        plugin = load(name, settings)
        w = Writer(3)
        w.churn(300)
        w.mixed(60)
        w.end_phase("life")
        built = Build(plugin)
        self.process = Process(built, built.compile(), w.plan())
        self.process.run(0, len(self.process.events), inspect=False)
        bindings = plugin.bindings()
        self.check = build(bindings["check"], **bindings, **built.config.switches())
        self.walk = build(bindings["walk"], **bindings, **built.config.switches())
        self.checks = plugin.module.CHECKS
        self.k, self.a = self.process.k, self.process.state

    def words(self):
        """Yield the addresses of metadata words: of headers, and of the links in free blocks."""
        rows = np.zeros((4000, 3), "i8")
        n = self.walk(self.k, self.a, rows)
        kinds = [rows[:n][rows[:n, 2] == kind].tolist() for kind in (BLOCK_HEADER, BLOCK_FREE)]
        spread = [pieces[:: len(pieces) // TRIED + 1] for pieces in kinds]
        for address, size, _ in filter(None, chain.from_iterable(zip_longest(*spread))):
            ends = (*range(0, min(size, 64), 8), *range(max(size - 16, 64), size, 8))
            yield from (address + offset for offset in ends)

    def examine(self):
        """Return the code of check(), or "died" or "loops" if it cannot finish."""
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            return int(self.check(self.k, self.a))
        except (SimulatedSignal, IndexError):  # compiled code would read beyond STATE
            self.k.task.sig = 0
            return "died"
        except Loop:
            return "loops"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def damaged(self):
        """Damage one word at a time, in several ways, and yield the answer of check()."""
        fields = [(self.a[n], ()) for n in self.a.dtype.names if self.a[n].ndim]
        fields = [(array, i) for array, _ in fields for i in np.flatnonzero(array)[:3]]
        names = [n for n in self.a.dtype.names if not self.a[n].ndim]
        for n in names:
            old = int(self.a[n])
            for new in _others(old):
                self.a[n] = new
                yield self.examine()
            self.a[n] = old
        for array, i in fields:
            old = int(array[i])
            for new in _others(old):
                array[i] = new
                yield self.examine()
            array[i] = old
        for address in self.words():
            old = peek(self.k, address)
            for new in _others(old):
                poke(self.k, address, new)
                yield self.examine()
            poke(self.k, address, old)


def _others(old):
    return {0, old + 16, old - 16, old ^ 1, old ^ 2, old ^ 1 << 33} - {old}


@pytest.fixture(autouse=True)
def _timer():
    before = signal.signal(signal.SIGALRM, _too_long)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", registry.names())
def test_damage_is_noticed(name):
    patient = Patient(name, SETTINGS.get(name, {}))
    assert patient.examine() == 0
    missing = set(patient.checks) - NEEDS_TWO.get(name, set())
    for said in patient.damaged():
        assert said in {0, "died", "loops", *patient.checks}, "a code without a meaning"
        missing.discard(said)
        if not missing:
            break
    assert not missing, [patient.checks[code] for code in missing]


def test_a_list_in_another_order_is_noticed():
    patient = Patient("first_fit", {"order": "lifo"})
    bindings = load("first_fit", {"order": "address"}).bindings()
    assert patient.examine() == 0
    check = build(bindings["check"], **bindings, **KernelConfig().switches())
    assert patient.checks[check(patient.k, patient.a)] == "the free list is not in address order"

"""Is physical memory, and are the TLBs, compiled away where they are off?"""

import pytest

from kernel.access import load, touch
from kernel.boot import KernelConfig, Machine
from kernel.jit import build, disabled, jit
from kernel.madvise import madvise
from kernel.mmap import munmap

pytestmark = pytest.mark.skipif(disabled(), reason="nothing is compiled with the JIT off")

#: Modules by the way LLVM spells them in the symbols of their functions.
FRAMES = ("6kernel6frames", "6kernel4swap", "6kernel6vmscan")
TLB = ("6kernel3tlb",)


@jit
def use(k, addr):
    """A little of everything."""
    touch(k, addr, 8, 1)
    madvise(k, addr, 4096, 8)
    munmap(k, addr, 4096)
    return load(k, addr)


def symbols(**settings):
    """The optimised module of ``use``."""
    machine = Machine(KernelConfig(window_bits=32, **settings))
    built = build(use, cache=False, **machine.config.switches())
    built(machine.k, 0x555555558000)
    (text,) = built.inspect_llvm().values()
    assert "6kernel5fault" in text
    return text


def test_off_is_away():
    text = symbols()
    assert not [name for name in FRAMES + TLB if name in text]


def test_on_is_there():
    """Else the test above would say nothing."""
    text = symbols(frames=True, memory=1 << 24, tlb=True)
    assert [name for name in FRAMES + TLB if name in text] == [*FRAMES, *TLB]

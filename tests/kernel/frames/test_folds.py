"""Physical memory and TLBs are compiled away if their switches are off."""

import pytest

from kernel.access import touch
from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.jit import build, disabled, jit
from kernel.madvise import madvise
from kernel.mmap import munmap
from kernel.mremap import mremap
from kernel.uapi import MADV_PAGEOUT, MREMAP_MAYMOVE

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(disabled(), reason="nothing is compiled with the JIT off"),
]

#: Modules as they are spelled in the LLVM symbols of their functions.
FRAMES = ("N6kernel6frames", "N6kernel4swap", "N6kernel6vmscan")
TLB = ("N6kernel3tlb",)


@jit
def use(k, addr):
    """Use all parts of the kernel once."""
    touch(k, addr, 8, 1)
    madvise(k, addr, 4096, MADV_PAGEOUT)
    mremap(k, addr, 4096, 8192, MREMAP_MAYMOVE, 0)
    munmap(k, addr, 4096)


def symbols(function, **settings):
    """Return the optimised LLVM module of ``function``; symbols contain Python module names."""
    machine = Machine(KernelConfig(window_bits=32, **settings))
    built = build(function, cache=False, **machine.config.switches())
    built(machine.k, 0x555555558000, *MORE[function])
    (text,) = built.inspect_llvm().values()
    assert "N6kernel5fault" in text
    return text


#: Arguments after the address.
MORE = {use: (), touch: (8, 1)}


def test_disabled_frames_are_not_compiled():
    text = symbols(use)
    assert not [name for name in FRAMES + TLB if name in text]


def test_enabled_frames_are_compiled():
    """The symbols exist if the switches are on, so their absence above is meaningful."""
    text = symbols(touch, frames=True, memory=1 << 24, tlb=True)
    assert [name for name in FRAMES + TLB if name in text] == [*FRAMES, *TLB]

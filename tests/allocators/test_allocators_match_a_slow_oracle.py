"""Every allocator agrees with an oracle in plain Python on random programs from Hypothesis.

The oracle shares no code with the verifier: it compares every pair of blocks, reads the mappings
from the text of /proc/PID/maps, and keeps the words that the program wrote in a dictionary.
"""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from allocators.base import registry
from allocators.base.contract import BLOCK_USED, CONTRACT
from allocators.base.registry import load
from kernel.access import peek, poke
from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.jit import build

SLOTS = 6
#: Words at each end of a block that the program writes and reads.
EDGE = 6
pytestmark = [pytest.mark.once, pytest.mark.usefixtures("plain")]

#: All phases except explain, which takes minutes here.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)

sizes = st.one_of(
    st.integers(0, 80),
    st.sampled_from([15, 16, 17, 1008, 4080, 4096, 4097, 16384, 65536, 131072, 131073, 1048560]),
    st.integers(0, 9000),
)
operations = st.lists(
    st.tuples(
        st.sampled_from(
            ["malloc", "malloc", "calloc", "aligned_alloc", "realloc", "realloc", "free"]
        ),
        st.integers(0, SLOTS - 1),
        sizes,
        st.sampled_from([16, 32, 256, 4096, 65536]),
    ),
    max_size=24,
)


class Block:
    """Allocated block: its address, requested and usable bytes, and the words at both ends."""

    def __init__(self, address: int, size: int, usable: int) -> None:
        self.address, self.size, self.usable = address, size, usable
        words = usable // 8
        self.places = sorted({*range(min(EDGE, words)), *range(max(words - EDGE, 0), words)})
        self.words: dict[int, int] = {}

    @property
    def end(self) -> int:
        return self.address + max(self.usable, 1)


class Program:
    """Program on one allocator: calls it, uses its memory, and checks every answer."""

    def __init__(self, name: str) -> None:
        plugin = load(name)
        config = KernelConfig(window_bits=32)  # Hypothesis keeps many machines alive as it shrinks
        self.machine = Machine(config)
        self.k = self.machine.k
        self.a = plugin.state()
        switches = config.switches() | {"PAYLOAD": True, "CHECKED": True}
        bindings = plugin.bindings()
        self.call = {n: build(bindings[n], **bindings, **switches) for n in CONTRACT}
        self.peek, self.poke = build(peek, **switches), build(poke, **switches)
        self.blocks: dict[int, Block] = {}
        self.written = 0
        self.call["init"](self.k, self.a)

    def request(self, what: str, slot: int, size: int, alignment: int) -> None:
        """Perform one operation as a program would, and check all blocks."""
        old = self.blocks.get(slot)
        if what == "free" or (old and what != "realloc"):
            if old:
                del self.blocks[slot]
                self.call["free"](self.k, self.a, old.address)
        elif old:
            size = max(size, 1)
            p = self.call["realloc"](self.k, self.a, old.address, size)
            new = self.add_block(slot, p, size, 16)
            for i, word in old.words.items():
                kept = min(old.size, size) - 8 * i
                if kept > 0:
                    mask = (1 << 8 * min(kept, 8)) - 1
                    assert self.peek(self.k, p + 8 * i) & mask == word & mask, (what, i)
            self.write(new)
        else:
            arguments = (alignment, size) if what == "aligned_alloc" else (size,)
            what = "malloc" if what == "realloc" else what
            p = self.call[what](self.k, self.a, *arguments)
            new = self.add_block(slot, p, size, alignment if what == "aligned_alloc" else 16)
            if what == "calloc":
                zeroed = [i for i in new.places if 8 * i + 8 <= size]
                assert not any(self.peek(self.k, p + 8 * i) for i in zeroed)
            self.write(new)
        self.check_blocks()

    def add_block(self, slot: int, p: int, size: int, alignment: int) -> Block:
        assert p > 0
        assert p % alignment == 0
        usable = self.call["usable_size"](self.k, self.a, p)
        assert usable >= size
        self.blocks[slot] = Block(int(p), size, int(usable))
        return self.blocks[slot]

    def write(self, block: Block) -> None:
        for i in block.places:
            self.written += 1
            block.words[i] = self.written * 0x1_0000_0001 & (2**62 - 1)
            self.poke(self.k, block.address + 8 * i, block.words[i])

    def check_blocks(self) -> None:
        blocks = list(self.blocks.values())
        for i, one in enumerate(blocks):
            for other in blocks[:i]:
                assert one.end <= other.address or other.end <= one.address
            assert any(low <= one.address and one.end <= high for low, high in self.writable())
            for place, word in one.words.items():
                assert self.peek(self.k, one.address + 8 * place) == word
        assert self.call["check"](self.k, self.a) == 0

    def writable(self) -> list[tuple[int, int]]:
        """Return the ranges of writable memory, adjacent ones joined."""
        found: list[tuple[int, int]] = []
        for line in self.machine.maps().splitlines():
            bounds, permissions = line.split()[:2]
            low, high = (int(bound, 16) for bound in bounds.split("-"))
            if permissions.startswith("rw"):
                if found and found[-1][1] == low:
                    low = found.pop()[0]
                found.append((low, high))
        return found

    def walked(self) -> set[tuple[int, int]]:
        """Return the used blocks that walk lists."""
        rows = np.zeros((4000, 3), "i8")
        n = self.call["walk"](self.k, self.a, rows)
        assert n <= len(rows)
        return {(int(p), int(size)) for p, size, kind in rows[:n] if kind == BLOCK_USED}


@pytest.mark.parametrize("name", registry.names())
def test_every_result_matches_the_oracle(name):
    forgets = name != "bump"  # bump's walk still lists freed blocks

    @settings(max_examples=12, phases=PHASES)
    @given(operations)
    def run(todo):
        program = Program(name)
        for operation in todo:
            program.request(*operation)
        live = {(block.address, block.usable) for block in program.blocks.values()}
        assert program.walked() >= live
        assert program.walked() == live or not forgets

    run()


@pytest.mark.parametrize("name", registry.names())
def test_a_long_lived_block_survives(name):
    """A long-lived block survives among short-lived ones of all sizes."""

    @settings(max_examples=6, phases=PHASES)
    @given(st.lists(st.tuples(sizes, st.booleans()), min_size=4, max_size=30))
    def run(todo):
        program = Program(name)
        program.request("malloc", 0, 100, 16)
        keeper = program.blocks[0]
        for i, (size, longer) in enumerate(todo):
            slot = 1 + i % (SLOTS - 1)
            program.request("malloc", slot, size, 16)
            if not longer:
                program.request("free", slot, 0, 16)
        assert program.blocks[0] is keeper

    run()

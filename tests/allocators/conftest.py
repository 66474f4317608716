"""Fixtures: plugin files written by a test, and mutants of allocators."""

from pathlib import Path

import pytest

import allocators
from allocators.base.registry import Plugin, load
from allocators.verify import suite

FOLDER = Path(allocators.__file__).parent

#: A plugin with only the required parts of the contract.
TINY = '''
import numpy as np

from allocators.base.contract import MAX_REQUEST, align_up
from kernel.access import load, store
from kernel.brk import sbrk
from kernel.engine.jit import jit

STATE = np.dtype([("top", "i8"), ("spare", "i8")])


@jit
def init(k, a):
    """Start at the break."""
    a.top = align_up(sbrk(k, 0), 16)
    sbrk(k, a.top - sbrk(k, 0))


@jit
def malloc(k, a, size):
    """Move the break for every block."""
    need = 16 + align_up(max(size, 1), 16)
    if size > MAX_REQUEST or sbrk(k, need) < 0:
        return 0
    p = a.top + 16
    a.top += need
    store(k, p - 8, need - 16)
    return p


@jit
def free(k, a, p):
    """Forget the block."""


@jit
def usable_size(k, a, p):
    """Read the size word."""
    return load(k, p - 8)
'''


class PluginFiles:
    """Writer of plugin files in the test's folder."""

    tiny = TINY

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, text: str) -> str:
        """Write ``text`` as NAME.py; return its path."""
        path = self.folder / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def mutant(self, name: str, base: str, *changes: tuple[str, str]) -> Plugin:
        """Load a copy of ``base`` (or of TINY) with each ``old`` replaced; it must occur once."""
        text = TINY if base == "tiny" else (FOLDER / f"{base}.py").read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {base}.py"
            text = text.replace(old, new)
        return load(self.write(name, text))


@pytest.fixture
def files(tmp_path: Path) -> PluginFiles:
    return PluginFiles(tmp_path)


@pytest.fixture
def few_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use only two of the tight limits: all of them take too long without the JIT."""
    monkeypatch.setattr(suite, "LIMITS", (("rlim_as", 5 << 18), ("max_map_count", 3)))

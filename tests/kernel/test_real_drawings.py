"""The drawings of the model's tests, run on the host's Linux and compared."""

from pathlib import Path

import pytest

from kernel.linux import host
from tests.kernel import test_advice, test_areas, test_protection, test_remap
from tests.kernel.drawing import ORIGIN, play, watch

unavailable = host.unavailable()
pytestmark = [
    pytest.mark.skipif(bool(unavailable), reason=unavailable or "usable"),
    pytest.mark.skipif(host.kernel_version() < (6, 17), reason="the rules are those of Linux 6.17"),
]
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def real_process():
    from tests.kernel.real import RealProcess

    return RealProcess()


@pytest.mark.parametrize("module", [test_areas, test_protection, test_remap, test_advice])
def test_drawn(module):
    with real_process() as process:
        for case, (*lines, expected) in module.CASES.items():
            assert (case, play(process, lines)) == (case, expected)
            process.munmap(ORIGIN, 1 << 20)


@pytest.mark.parametrize("module", [test_remap, test_advice])
def test_tables(module):
    if not THP.exists() or "[madvise]" not in THP.read_text():
        pytest.skip("the tables assume transparent huge pages in mode madvise; the host differs")
    for case, steps in module.TABLES.items():
        with real_process() as process:
            assert (case, watch(process, steps, 128)) == (case, steps)

"""The drawings that the model's tests are made of, held against the Linux that runs them."""

import pytest

from kernel import host
from tests.kernel import test_advice, test_areas, test_protection, test_remap
from tests.kernel.drawing import play, watch

unavailable = host.unavailable()
pytestmark = [
    pytest.mark.skipif(bool(unavailable), reason=unavailable or "usable"),
    pytest.mark.skipif(host.kernel_version() < (6, 17), reason="the rules are those of Linux 6.17"),
]


@pytest.fixture
def real():
    from tests.kernel.real import RealProcess

    with RealProcess() as process:
        yield process


@pytest.mark.parametrize("module", [test_areas, test_protection, test_remap, test_advice])
def test_drawn(real, module):
    for case, (*lines, expected) in module.CASES.items():
        assert (case, play(real, lines)) == (case, expected)
        real.munmap(0x600000000000, 1 << 20)


@pytest.mark.parametrize("module", [test_remap, test_advice])
def test_tables(module):
    from tests.kernel.real import RealProcess

    for case, steps in module.TABLES.items():
        with RealProcess() as process:
            assert (case, watch(process, steps, 128)) == (case, steps)

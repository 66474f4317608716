"""Random programs on the running Linux and on the model, as ``kernel.linux.verify`` runs them.

In every lane: compiled, with bounds checked, and as plain Python (where it is the measure of what
the programs cover).
"""

import pytest

from kernel.differential.run import Runner
from kernel.engine.jit import disabled
from kernel.linux.verify.compare import ProcessSetting
from kernel.linux.verify.operation import OP_STORE, Op, syscall
from kernel.linux.verify.subject import Linux
from kernel.uapi import NR_MMAP, NR_MUNMAP
from tests.kernel.linux.verify.conftest import needs_host

pytestmark = needs_host

#: Programs of 500 operations; plain Python is slow.
PROGRAMS = 2 if disabled() else 6


@pytest.fixture(scope="module")
def sides():
    with Linux(count_branches=False).sides() as found:
        yield found


@pytest.mark.parametrize("number", range(PROGRAMS))
def test_random_programs_agree(sides, number):
    # As the command does: khugepaged may collapse pages in the middle of a program, and only a
    # difference that is found again counts.
    subject = Linux(500 * PROGRAMS)
    report = Runner(subject, sides, shrink_seconds=0).check(subject.program(number))
    assert report.finding is None, "\n".join(report.finding.lines)
    assert report.tally.operations == 500


def test_a_given_program_agrees_to_the_word(sides):
    ops = [
        syscall("mmap", NR_MMAP, 0x600000000000, 8192, 3, 0x32, -1, 0),
        Op("store", OP_STORE, 0, (0x600000000008, 7)),
        syscall("munmap", NR_MUNMAP, 0x600000001000, 4096),
        syscall("munmap", NR_MUNMAP, 0x600000001008, 4096),
    ]
    outcome = sides.repeat(ProcessSetting("x"), ops)
    lines = outcome.lines
    assert (outcome.ops, outcome.what) == (ops, "")
    flags = "MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS"
    call = f"mmap(0x600000000000, 8192, PROT_READ|PROT_WRITE, {flags}, -1, 0x0)"
    assert lines[0] == f"{call} = 0x600000000000"
    assert lines[1:] == [
        "store(0x600000000008, 7) = 0",
        "munmap(0x600000001000, 4096) = 0",
        "munmap(0x600000001008, 4096) = -1 EINVAL",
    ]

"""mprotect and mlock: areas (tests.kernel.drawing), counters, errors.

All drawings were also observed on Linux; test_real_drawings repeats them on the host.
"""

import pytest

from kernel.uapi import (
    MADV_DONTNEED_LOCKED,
    MAP_LOCKED,
    MAP_NORESERVE,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    RLIMIT_AS,
    RLIMIT_DATA,
    RLIMIT_MEMLOCK,
)
from tests.kernel.drawing import ORIGIN, apply, check_accounts, draw, play
from tests.kernel.driver import FIXED, PRIVATE, Process, configured

EPERM, EAGAIN, ENOMEM, EACCES, EINVAL = -1, -11, -12, -13, -22
P = 4096
END = 0x7FFFFFFFF000

PROTECTED = {
    "the middle": ("WWWW", " rr ", "WRRW"),
    "all": ("WWWW", "rrrr", "RRRR"),
    "the start, like what is below": ("RRWW", "  r ", "RRRW"),
    "the end, like what is above": ("WWRR", " r  ", "WRRR"),
    "whole area, like what is below": ("RRWW", "  rr", "RRRR"),
    "whole area, like what is above": ("WWRR", "rr  ", "RRRR"),
    "both neighbours": ("RRWWRR", "  rr  ", "RRRRRR"),
    "nothing to change, nothing merged": ("WWRR", "  rr", "WWRR"),
    "part of it need not change": ("WWRR", " rr ", "WRRR"),
    "several areas": ("WWRRXX", "wwwwww", "WWWWWW"),
    "several areas, one written": ("WWRRXX", "!     ", "wwwwww", "WWWWWW"),
    "several areas, two written": ("WWRRXX", "!   ! ", "wwwwww", "WWWWww"),
    "between two written areas": ("WWRRWW", "!   ! ", "  ww  ", "WWWWww"),
    "between a written and a fresh area": ("WWRRWW", "!     ", "  ww  ", "WWWWWW"),
    "there and back": ("WWWW", " rr ", " ww ", "WWWW"),
    "up to a hole": ("WW RR", "xxxxx", ENOMEM, "XX RR"),
    # Written areas stay accounted after they become read-only.
    "written, then read-only": ("WWWW", "!   ", "rrrr", "QQQQ"),
    "written, then read-only in part": ("WWWW", "!   ", " rr ", "WQQW"),
    "unwritten, then none": ("WWNN", "nn  ", "NNNN"),
    "written, then none": ("WWNN", "!   ", "nn  ", "AANN"),
    "written, none, and back": ("WWWW", "!   ", "nnnn", "wwww", "WWWW"),
    "writable for a while": ("RRRR", "wwww", "rrrr", "RRRR"),
    "writable for a while, and written": ("RRRR", "wwww", "!   ", "rrrr", "QQQQ"),
    "no reserve": ("VVVV", " rr ", "VUUV"),
    "no reserve, there and back": ("VVVV", " rr ", " ww ", "VVVV"),
    "shared": ("SSSS", " rr ", "STTS"),
    "shared, there and back": ("SSSS", " rr ", " ww ", "SSSS"),
    "shared, the other way": ("TTTT", " ww ", "TSST"),
    "locked": ("LLLL", " nn ", "LJJL"),
    "locked, there and back": ("LLLL", " rr ", " ww ", "LLLL"),
    "locked while read-only": ("RRRR", "llll", " ww ", "KLLK"),
}

LOCKED = {
    "lock the middle": ("WWWW", " ll ", "WLLW"),
    "lock and unlock": ("WWWW", " ll ", " uu ", "WWWW"),
    "like what is above": ("WWLL", "ll  ", "LLLL"),
    "unlock the middle": ("LLLL", " uu ", "LWWL"),
    "on fault": ("WWWW", " oo ", "WOOW"),
    "on fault, then all": ("WWWW", " oo ", " ll ", "WLLW"),
    "read-only": ("RRRR", " ll ", "RKKR"),
    "several areas": ("WWRR", "llll", "LLKK"),
    "several areas, and back": ("WWRR", "llll", "uuuu", "WWRR"),
    "none: locked, but nothing to fault in": ("NNNN", " ll ", ENOMEM, "NPPN"),
    "up to a hole": ("WW WW", "lllll", ENOMEM, "LL WW"),
    "unlocking up to a hole": ("LL LL", "uuuuu", ENOMEM, "WW LL"),
    "a new locked area": ("WW  LL", "  LL  ", "WWLLLL"),
    "locked areas have been written": ("LL  LL", "  WW  ", "  ll  ", "LLLLll"),
    "a locked area cannot be freed": ("LLLL", " dd ", EINVAL, "LLLL"),
    "nor lazily": ("LLLL", " ff ", EINVAL, "LLLL"),
    "but unmapped": ("LLLL", " ~~ ", "L  L"),
    "and replaced": ("LLLL", " WW ", "LWWL"),
}

CASES = PROTECTED | {f"lock: {name}": case for name, case in LOCKED.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("page", [4096, 65536])
def test_drawn(page, case):
    *lines, expected = CASES[case]
    process = Process(configured(page_size=page, overcommit=0))
    assert play(process, lines) == expected
    check_accounts(process)


# --- mprotect ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addr", "length", "prot", "error"),
    [
        (ORIGIN + 1, P, 1, EINVAL),
        (ORIGIN + 1, 0, 1, EINVAL),
        (ORIGIN, 0, 1, 0),
        (ORIGIN + 99 * P, 0, 1, 0),
        (ORIGIN, 0, 0x10, 0),  # a length of 0 returns before the rights are checked
        (ORIGIN, -1, 1, ENOMEM),
        (ORIGIN, -P, 1, ENOMEM),
        (-P, P, 1, ENOMEM),
        (END, P, 1, ENOMEM),
        (ORIGIN + 4 * P, P, 1, ENOMEM),
        (ORIGIN - P, 2 * P, 1, ENOMEM),
        (ORIGIN, P, 0x10, EINVAL),
        (ORIGIN, P, 0x10000, EINVAL),
        (ORIGIN, P, 8, 0),  # PROT_SEM
        (ORIGIN, 1, 1, 0),
        (ORIGIN, P, 1 | PROT_GROWSDOWN, EINVAL),  # not a stack
        (ORIGIN, P, 1 | PROT_GROWSUP, EINVAL),
        (ORIGIN, 0, 1 | PROT_GROWSDOWN | PROT_GROWSUP, EINVAL),
    ],
)
def test_mprotect_refuses(process, addr, length, prot, error):
    apply(process, "WWWW")
    assert process.mprotect(addr, length, prot) == error
    assert draw(process, 4) == ("WWWW" if error or length == 0 else "RWWW" if prot == 1 else "NWWW")
    assert (process.mm.nr_mprotect, process.mm.nr_failed) == (1, error != 0)


def test_mprotect_beyond_the_end_serves_what_is_there(process):
    apply(process, "WWWW")
    assert process.mprotect(ORIGIN, 1 << 62, 1) == ENOMEM
    assert draw(process, 4) == "RRRR"


def test_rights_are_those_of_the_last_mprotect(process):
    process.map(flags=FIXED, addr=ORIGIN)
    process.store(ORIGIN, 7)
    process.mprotect(ORIGIN, P, 0)
    forbidden = f"SIGSEGV: read of {ORIGIN:#x}, which its mapping does not permit"
    assert process.death("load", ORIGIN) == forbidden
    process.mprotect(ORIGIN, P, 1)
    assert process.load(ORIGIN) == 7
    assert "write to" in process.death("store", ORIGIN, 8)
    process.mprotect(ORIGIN, P, 3)
    process.store(ORIGIN, 8)
    # The page kept its frame: none of these accesses counted a fault.
    assert (process.load(ORIGIN), process.mm.minflt, process.mm.rss) == (8, 1, 1)


def test_the_zero_page_is_still_copied_on_a_write(process):
    process.map(prot=1, flags=FIXED, addr=ORIGIN)
    process.touch(ORIGIN, 1, 0)
    process.mprotect(ORIGIN, P, 3)
    process.touch(ORIGIN, 1, 0)
    assert (process.mm.minflt, process.mm.rss) == (1, 0)
    process.touch(ORIGIN, 1, 1)
    assert (process.mm.minflt, process.mm.flt_cow, process.mm.rss) == (2, 1, 1)


def test_pages_that_become_writable_are_data(process):
    process.setrlimit(RLIMIT_DATA, (int(process.mm.data_vm) + 2) * P)
    apply(process, "RRRR")
    assert process.mprotect(ORIGIN, 3 * P, 3) == ENOMEM
    assert draw(process, 4) == "RRRR"
    assert process.mprotect(ORIGIN, 2 * P, 3) == 0
    assert process.mprotect(ORIGIN, 2 * P, 7) == 0  # the rights that they have already
    check_accounts(process)


def test_becoming_writable_is_charged_once():
    process = Process(configured(memory=1000 * P, overcommit=2))
    assert process.mm.commit_limit == 1000 - 1000 // 32
    process.map(prot=1, pages=2000, flags=FIXED, addr=ORIGIN)
    assert process.mprotect(ORIGIN, 1000 * P, 3) == ENOMEM
    before = int(process.mm.committed)
    assert process.mprotect(ORIGIN, 100 * P, 3) == 0
    assert process.mm.committed == before + 100
    process.touch(ORIGIN, 1, 1)
    process.mprotect(ORIGIN, 100 * P, 1)
    assert process.mm.committed == before + 100
    process.mprotect(ORIGIN, 100 * P, 3)
    assert process.mm.committed == before + 100
    check_accounts(process)


def test_no_reserve_is_never_charged():
    process = Process(configured(memory=1000 * P, overcommit=0))
    process.map(prot=1, pages=2000, flags=FIXED | MAP_NORESERVE, addr=ORIGIN)
    assert process.mprotect(ORIGIN, 2000 * P, 3) == 0
    process.map(prot=1, pages=2000, flags=FIXED, addr=ORIGIN)
    assert process.mprotect(ORIGIN, 2000 * P, 3) == ENOMEM


def test_mprotect_at_the_map_count_limit(process):
    """The first of two splits may succeed before the second is refused."""
    apply(process, "WWWWRR")
    process.mm.max_map_count = process.mm.map_count
    assert process.mprotect(ORIGIN + P, P, 1) == ENOMEM
    assert draw(process, 6) == "WWWWRR"
    assert process.mprotect(ORIGIN + 3 * P, P, 1) == 0  # only the boundary moves
    assert draw(process, 6) == "WWWRRR"
    process.mm.max_map_count += 1
    assert process.mprotect(ORIGIN + P, P, 0) == ENOMEM
    assert draw(process, 6) == "WwwRRR"


def test_mprotect_down_to_the_start_of_a_stack(process):
    start, end, *_ = process.areas()[-1]
    assert process.mprotect(end - P, P, 1 | PROT_GROWSDOWN) == 0
    assert process.areas()[-1][:3] == (start, end, 1)
    assert process.mprotect(end - P, P, 3 | PROT_GROWSUP) == EINVAL


# --- mlock ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "args", "error"),
    [
        ("mlock", (ORIGIN, 0), 0),
        ("mlock", (ORIGIN + 99 * P, 0), 0),
        ("mlock", (ORIGIN + 1, 1), 0),
        ("mlock", (ORIGIN + 4 * P, 1), ENOMEM),
        ("mlock", (ORIGIN - P, 2 * P), ENOMEM),
        ("mlock", (ORIGIN, -P), ENOMEM),
        ("mlock", (END, P), ENOMEM),
        ("mlock2", (ORIGIN, P, 2), EINVAL),
        ("mlock2", (ORIGIN, P, 3), EINVAL),
        ("munlock", (ORIGIN, 0), 0),
        ("munlock", (ORIGIN + 1, 1), 0),
        ("munlock", (ORIGIN, -P), EINVAL),
        ("munlock", (ORIGIN + 4 * P, 1), ENOMEM),
    ],
)
def test_mlock_refuses(process, call, args, error):
    apply(process, "WWWW")
    assert getattr(process, call)(*args) == error
    assert draw(process, 4) == (
        "LWWW" if call == "mlock" and args[1] == 1 and not error else "WWWW"
    )


def test_mlock_faults_pages_in(process):
    """mlock faults pages in: by a write if writable, else the zero page."""
    apply(process, "WWWRR")
    process.touch(ORIGIN, 1, 1)
    process.touch(ORIGIN + P, 1, 0)
    assert process.mlock(ORIGIN + 1, 5 * P - 1) == 0  # locks every page that the range overlaps
    assert process.levels() == (2 + 4, 3, 3, 5)
    assert process.mm.flt_populate == 4
    states = [process.page_state(ORIGIN + n * P) for n in range(5)]
    assert states == ["frame"] * 3 + ["zero"] * 2
    assert process.munlock(ORIGIN, 2 * P) == 0
    assert process.levels() == (6, 3, 3, 3)
    check_accounts(process)


def test_mlock_on_fault_waits_for_the_program(process):
    apply(process, "WWWW")
    assert process.mlock2(ORIGIN, 4 * P, 1) == 0
    assert process.levels() == (0, 0, 0, 4)
    assert process.mlock(ORIGIN, 2 * P) == 0
    assert process.levels() == (2, 2, 3, 4)


def test_locked_pages_become_writable_with_a_fault(process):
    apply(process, "RRRR")
    process.mlock(ORIGIN, 4 * P)
    assert process.levels() == (4, 0, 3, 4)
    process.mprotect(ORIGIN, 2 * P, 3)
    assert process.levels() == (6, 2, 3, 4)


def test_new_areas_can_be_locked(process):
    addr = process.map(pages=3, flags=PRIVATE | MAP_LOCKED)
    assert process.levels() == (3, 3, 3, 3)
    process.map(pages=3, prot=0, flags=PRIVATE | MAP_LOCKED)  # nothing to fault in, no error
    assert process.levels() == (3, 3, 3, 6)
    assert process.dontneed(addr, P) == EINVAL
    assert process.madvise(addr, P, MADV_DONTNEED_LOCKED) == 0
    assert process.mm.rss == 2
    process.munmap(addr, 3 * P)
    assert process.mm.locked_vm == 3


def test_rlimit_memlock():
    process = Process(configured(rlimit_memlock=4 * P + 5))
    apply(process, "WWWWWWWW")
    assert process.mlock(ORIGIN, 5 * P) == ENOMEM
    assert process.mlock(ORIGIN, 3 * P) == 0
    assert process.mlock(ORIGIN + 3 * P, 2 * P) == ENOMEM
    assert process.mlock(ORIGIN + P, 3 * P) == 0  # two of the pages are already locked
    assert process.map(flags=PRIVATE | MAP_LOCKED) == EAGAIN
    assert process.map(flags=FIXED | MAP_LOCKED, addr=ORIGIN) == EAGAIN  # despite replacing one
    assert process.mm.locked_vm == 4
    assert draw(process, 8) == "LLLLWWWW"
    process.munlock(ORIGIN, P)
    assert process.map(flags=PRIVATE | MAP_LOCKED) > 0
    check_accounts(process)


def test_without_a_right_to_lock():
    process = Process()
    process.setrlimit(RLIMIT_MEMLOCK, 0)
    apply(process, "WWWW")
    assert process.mlock(ORIGIN, P) == EPERM
    assert process.mlock(ORIGIN, 0) == EPERM
    assert process.map(flags=PRIVATE | MAP_LOCKED) == EPERM
    assert process.munlock(ORIGIN, P) == 0


def test_mlock_at_the_map_count_limit(process):
    apply(process, "WWWW")
    process.mm.max_map_count = process.mm.map_count
    assert process.mlock(ORIGIN, P) == ENOMEM
    assert process.mm.locked_vm == 0


def test_mappings_of_the_kernel_are_not_locked(process):
    """mlock succeeds on the vdso but has no effect."""
    before = process.kinds()
    vdso = process.areas()[-2]
    assert process.mlock(vdso[0], vdso[1] - vdso[0]) == 0
    assert process.kinds() == before
    assert process.mm.locked_vm == 0


# --- setrlimit -----------------------------------------------------------------------------------


def test_limits_can_be_set_while_it_runs(process):
    assert process.setrlimit(RLIMIT_AS, (int(process.mm.total_vm) + 1) * P) == 0
    assert process.map(pages=2) == ENOMEM
    assert process.setrlimit(RLIMIT_AS, 2**63 - 1) == 0
    assert process.map(pages=2) > 0
    assert process.setrlimit(7, 100) == EINVAL
    # Linux ignores an RLIMIT_DATA of 0 in mmap, for Valgrind, but not in brk.
    assert process.setrlimit(RLIMIT_DATA, 0) == 0
    assert process.map() > 0
    assert process.sbrk(P) == ENOMEM


def test_an_unmodelled_system_call_returns_ENOSYS(process):
    assert process.syscall(0, 0, 0, 0) == -38

"""Placement of mappings with flags, growing stacks, files, and booting from a maps text.

The addresses are those of a process with the same maps on Linux 6.18.
"""

import pytest

from kernel.maps import FRESH_PROCESS
from kernel.types import VM_MAYEXEC, VM_MAYREAD, VM_MAYWRITE
from kernel.uapi import (
    MADV_DONTNEED,
    MAP_32BIT,
    MAP_ABOVE4G,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    RLIMIT_AS,
    RLIMIT_MEMLOCK,
    RLIMIT_STACK,
)
from tests.kernel.drawing import ORIGIN, apply, check_accounts, draw
from tests.kernel.driver import FIXED, PRIVATE, Process, configured

EPERM, EBADF, ENOMEM, EACCES, EINVAL, EOPNOTSUPP = -1, -9, -12, -13, -22, -95
P, MIB = 4096, 1 << 20
SHARED = MAP_SHARED | 0x20
TOP = 0x7FFFF7FF7000  # below [vvar]


def place(process, requests):
    """Map all requests (hint, length, prot, flags) in order and return their addresses."""
    return [process.mmap(*request) for request in requests]


# --- MAP_32BIT, MAP_ABOVE4G ----------------------------------------------------------------------


def test_32_bit_mappings_are_in_the_second_gigabyte_from_the_bottom_up(process):
    low = PRIVATE | MAP_32BIT
    assert place(
        process,
        [
            (0, P, 3, low),
            (0, P, 3, low),
            (0, 2 * MIB, 3, low),  # aligned, with 2 MiB to spare
            (0, 2 * MIB, 1, low),
            (0, 3 * MIB, 3, low),
            (0, 1 << 30, 3, low),
        ],
    ) == [0x40000000, 0x40001000, 0x40200000, 0x40600000, 0x40800000, ENOMEM]


def test_hints_of_32_bit_mappings_are_taken_below_two_gigabytes(process):
    low = PRIVATE | MAP_32BIT
    assert place(
        process,
        [
            (0x10000, P, 3, low),
            (0x20000000, P, 3, low),
            (0x3FFFFFFF, P, 3, low),  # rounded down
            (0x90000000, P, 3, low),
            (0x7FFFF000, 2 * P, 3, low),
            (0x20000000, P, 3, low),  # taken
        ],
    ) == [0x10000, 0x20000000, 0x3FFFF000, 0x40000000, 0x40001000, 0x40003000]


def test_above_4_gib():
    """Top-down search reaches low addresses only if all others are taken."""
    maps = """
    000000400000-000000401000 rw-p 00000000 00:01 1 program
    000100001000-7ffff7fff000 ---p 00000000 00:00 0
    7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
    """
    process = Process(configured(maps=maps, layout_only=True))
    assert process.mmap(0, P, 3, PRIVATE | MAP_ABOVE4G) == 0x100000000
    assert process.mmap(0, P, 3, PRIVATE | MAP_ABOVE4G) == 0x7FFFF7FFF000  # bottom-up instead
    assert process.mmap(0, P, 3, PRIVATE) == 0xFFFFF000
    assert process.mmap(0x1000000, P, 3, PRIVATE | MAP_ABOVE4G) == 0x1000000


# --- The legacy layout ---------------------------------------------------------------------------


def test_legacy_layout_goes_from_a_third_of_the_space_upwards():
    process = Process(configured(legacy_layout=True))
    base = 0x2AAAAAAAB000
    assert process.mm.mmap_legacy_base == base
    assert place(
        process,
        [
            (0, P, 3, PRIVATE),
            (0, P, 1, PRIVATE),
            (0, 2 * MIB, 3, PRIVATE),
            (0, 2 * MIB, 1, PRIVATE),
            (0, 3 * MIB, 3, PRIVATE),
            (ORIGIN, P, 3, PRIVATE),
            (ORIGIN + 5, P, 3, PRIVATE),  # taken
            (0, P, 3, PRIVATE | MAP_32BIT),
        ],
    ) == [
        base,
        base + P,
        0x2AAAAAC00000,
        0x2AAAAAE00000,
        0x2AAAAB000000,
        ORIGIN,
        base + 2 * P,
        0x40000000,
    ]
    process.munmap(base, P)
    assert process.mmap(0, P, 3, PRIVATE) == base


def test_legacy_layout_keeps_the_guard_of_stacks():
    process = Process(configured(legacy_layout=True))
    base = 0x2AAAAAAAB000
    process.map(flags=FIXED | MAP_GROWSDOWN, addr=base + 300 * P)
    assert process.map(pages=44) == base
    assert process.map() == base + 301 * P


# --- Areas that grow down ------------------------------------------------------------------------


def test_a_touch_below_makes_a_stack_larger(process):
    process.map(pages=2, flags=FIXED | MAP_GROWSDOWN, addr=ORIGIN)
    assert process.kinds()[2] == (ORIGIN, ORIGIN + 2 * P, "rw-p gd")
    process.touch(ORIGIN - P, 1, 1)
    assert process.kinds()[2] == (ORIGIN - P, ORIGIN + 2 * P, "rw-p gd")
    process.touch(ORIGIN - 10 * P, 1, 0)
    assert process.kinds()[2] == (ORIGIN - 10 * P, ORIGIN + 2 * P, "rw-p gd")
    assert (process.mm.minflt, process.mm.rss) == (2, 1)
    check_accounts(process)
    # Still one area: the written and the unwritten part have equal attributes.
    process.mprotect(ORIGIN - 10 * P, 12 * P, 1)
    assert process.mm.map_count == 7


def test_the_stack_of_the_process_grows(process):
    start = process.areas()[-1][0]
    process.touch(start - 100 * P, 1, 1)
    assert process.areas()[-1][0] == start - 100 * P
    assert process.mm.stack_vm == 33 + 100


@pytest.mark.parametrize(
    ("below", "reached"),
    [
        ("W", 256),  # 256 pages stay free above an accessible area
        ("R", 256),
        ("N", 0),
        (" ", -50),
    ],
)
def test_a_stack_keeps_its_guard(process, below, reached):
    """``below`` is drawn from ORIGIN on; the stack starts 300 pages above."""
    if below != " ":
        apply(process, below)
    process.map(flags=FIXED | MAP_GROWSDOWN, addr=ORIGIN + 301 * P)
    lowest = ORIGIN + P + reached * P
    process.touch(lowest, 1, 1)
    assert (lowest, ORIGIN + 302 * P, "rw-p gd") in process.kinds()
    if below != " ":
        assert "nothing is mapped" in process.death("touch", lowest - P, 1, 1) or below == "N"


def test_stacks_keep_no_guard_from_each_other(process):
    process.map(flags=FIXED | MAP_GROWSDOWN, addr=ORIGIN)
    process.map(flags=FIXED | MAP_GROWSDOWN, addr=ORIGIN + 9 * P)
    process.touch(ORIGIN + P, 1, 1)
    assert (ORIGIN + P, ORIGIN + 10 * P, "rw-p gd") in process.kinds()


@pytest.mark.parametrize(
    ("resource", "pages"),
    [(RLIMIT_STACK, 6), (RLIMIT_AS, 46 + 6), (RLIMIT_MEMLOCK, 6)],
)
def test_stacks_grow_up_to_limits(process, resource, pages):
    flags = FIXED | MAP_GROWSDOWN | MAP_LOCKED * (resource == RLIMIT_MEMLOCK)
    process.map(pages=2, flags=flags, addr=ORIGIN)
    process.setrlimit(resource, pages * P)
    process.touch(ORIGIN - 4 * P, 1, 1)
    assert process.death("touch", ORIGIN - 5 * P, 1, 1).endswith("where nothing is mapped")
    assert process.areas()[2][0] == ORIGIN - 4 * P
    check_accounts(process)


def test_stacks_grow_as_far_as_memory_is_committed():
    process = Process(configured(memory=1000 * P, overcommit=2))
    room = int(process.mm.commit_limit - process.mm.committed)
    process.map(pages=room - 50, flags=FIXED | MAP_GROWSDOWN, addr=ORIGIN)
    assert "nothing is mapped" in process.death("touch", ORIGIN - 50 * P, 1, 1)


def test_a_stack_does_not_grow_below_what_may_be_mapped(process):
    process.map(pages=2, flags=FIXED | MAP_GROWSDOWN, addr=0x11000)
    process.touch(0x10000, 1, 1)
    assert "nothing is mapped" in process.death("touch", 0xFFFF, 1, 1)


def test_a_locked_stack_grows_locked(process):
    process.map(pages=2, flags=FIXED | MAP_GROWSDOWN | MAP_LOCKED, addr=ORIGIN)
    process.touch(ORIGIN - 3 * P, 1, 1)
    assert process.mm.locked_vm == 5
    assert process.mm.rss == 3  # the pages in between are not faulted in


def test_mappings_keep_away_from_the_guard(process):
    flags = PRIVATE | MAP_GROWSDOWN
    assert process.mmap(0, P, 3, flags) == TOP - P
    assert process.mmap(0, P, 3, PRIVATE) == TOP - P - 257 * P
    process.map(flags=FIXED | MAP_GROWSDOWN, addr=ORIGIN)
    for pages in (1, 256):
        assert process.mmap(ORIGIN - pages * P, P, 3, PRIVATE) != ORIGIN - pages * P
    assert process.mmap(ORIGIN - 257 * P, P, 3, PRIVATE) == ORIGIN - 257 * P
    # A fixed address can be inside the guard gap.
    assert process.mmap(ORIGIN - P, P, 3, PRIVATE | MAP_FIXED_NOREPLACE) == ORIGIN - P


# --- Shared memory without a file ----------------------------------------------------------------


def test_shared_areas_never_merge(process):
    """Each mmap creates a separate object; parts of one object can merge again."""
    apply(process, "SS  ")
    apply(process, "  SS")
    assert draw(process, 4) == "SSss"
    apply(process, "~~~~")
    apply(process, "SSSS")
    apply(process, " rr ")
    apply(process, " ww ")
    assert draw(process, 4) == "SSSS"
    apply(process, " S  ")
    assert [a[:2] for a in process.areas()[2:5]] == [
        (ORIGIN, ORIGIN + P),
        (ORIGIN + P, ORIGIN + 2 * P),
        (ORIGIN + 2 * P, ORIGIN + 4 * P),
    ]


def test_shared_memory_is_neither_data_nor_committed(process):
    before = process.counters()
    apply(process, "SSSS")
    after = process.counters()
    assert after["total_vm"] == before["total_vm"] + 4
    assert (after["data_vm"], after["committed"]) == (before["data_vm"], before["committed"])


def test_shared_pages_stay_when_they_are_unmapped(process):
    apply(process, "SS")
    process.touch(ORIGIN, 2 * P, 1)
    assert (process.mm.rss, process.mm.rss_file, process.mm.flt_file) == (0, 2, 2)
    assert process.page_state(ORIGIN) == "file"
    process.dontneed(ORIGIN, 2 * P)
    assert process.mm.rss_file == 0
    process.touch(ORIGIN, 1, 0)
    process.touch(ORIGIN, 1, 1)
    assert (process.mm.rss_file, process.mm.minflt) == (1, 3)
    process.munmap(ORIGIN, 2 * P)
    assert process.mm.rss_file == 0


def test_shared_lengths_are_not_aligned_to_huge_pages(process):
    assert process.mmap(0, 2 * MIB, 3, SHARED) == TOP - 2 * MIB


# --- Files ---------------------------------------------------------------------------------------

EXT4, READONLY, MEMFD, WRITEONLY, NOEXEC = range(3, 8)


def with_files(**settings):
    """Return a process with open files: EXT4 … NOEXEC."""
    process = Process(configured(**settings))
    rwx = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    for fd, may, align in (
        (EXT4, rwx, 1),
        (READONLY, rwx & ~VM_MAYWRITE, 1),
        (MEMFD, rwx, 0),
        (WRITEONLY, rwx & ~VM_MAYREAD, 1),
        (NOEXEC, rwx & ~VM_MAYEXEC, 0),
    ):
        process.k.file[fd].id = 100 + fd
        process.k.file[fd].may = may
        process.k.file[fd].thp_align = align
    return process


@pytest.fixture
def filed():
    return with_files()


def test_large_mappings_of_files_are_aligned_with_their_offset(filed):
    """On ext4, address and offset are congruent modulo 2 MiB if 2 MiB of it can be huge."""
    requests = [
        (P, EXT4, 0),
        (2 * MIB, EXT4, 0),
        (2 * MIB, EXT4, P),  # contains no aligned 2 MiB
        (4 * MIB, EXT4, P),
        (4 * MIB, EXT4, 2 * MIB - P),
        (3 * MIB, READONLY, P),
        (4 * MIB - P, EXT4, P),
        (4 * MIB - 2 * P, EXT4, P),
        (2 * MIB, MEMFD, 0),
        (4 * MIB, MEMFD, P),
    ]
    found = [
        filed.mmap_file(0, length, 1, MAP_PRIVATE, fd, offset) for length, fd, offset in requests
    ]
    assert found == [
        TOP - P,
        0x7FFFF7C00000,
        0x7FFFF7A00000,
        0x7FFFF7401000,
        0x7FFFF6FFF000,
        0x7FFFF6CFF000,
        0x7FFFF6801000,
        0x7FFFF6403000,
        0x7FFFF6203000,
        0x7FFFF5E03000,
    ]


def test_files_in_the_legacy_layout_are_aligned_too():
    process = with_files(legacy_layout=True)
    assert process.mmap_file(0, 4 * MIB, 1, MAP_PRIVATE, EXT4, P) == 0x2AAAAAC01000
    assert process.mmap_file(0, 4 * MIB, 1, MAP_PRIVATE | MAP_32BIT, EXT4, P) == 0x40001000


def test_hints_come_before_alignment(filed):
    for addr in (ORIGIN + P, ORIGIN + 4 * MIB + P):
        assert filed.mmap_file(addr, 4 * MIB, 1, MAP_PRIVATE, EXT4, 0) == addr


@pytest.mark.parametrize(
    ("prot", "flags", "fd", "offset", "error"),
    [
        (3, MAP_SHARED, EXT4, 0, 0),
        (3, MAP_SHARED, READONLY, 0, EACCES),
        (3, MAP_PRIVATE, READONLY, 0, 0),
        (1, MAP_SHARED, READONLY, 0, 0),
        (1, MAP_PRIVATE, WRITEONLY, 0, EACCES),
        (2, MAP_SHARED, WRITEONLY, 0, EACCES),
        (4, MAP_PRIVATE, NOEXEC, 0, EPERM),
        (3, MAP_PRIVATE, NOEXEC, 0, 0),
        (3, 0, EXT4, 0, EINVAL),
        (3, MAP_PRIVATE, EXT4, 1, EINVAL),
        (3, MAP_PRIVATE | MAP_GROWSDOWN, EXT4, 0, EINVAL),
        (3, MAP_SHARED | MAP_GROWSDOWN, EXT4, 0, EINVAL),
        (3, MAP_SHARED_VALIDATE, EXT4, 0, 0),
        (3, MAP_SHARED_VALIDATE | 1 << 25, EXT4, 0, EOPNOTSUPP),
        (3, MAP_SHARED | 1 << 25, EXT4, 0, 0),
        (3, MAP_PRIVATE | 0x40000, EXT4, 0, EINVAL),  # MAP_HUGETLB
        (3, MAP_PRIVATE, 99, 0, EBADF),
        (3, MAP_PRIVATE, 5000, 0, EBADF),
        (3, MAP_PRIVATE, -1, 0, EBADF),
        (3, MAP_PRIVATE, -1, 1, EINVAL),
    ],
)
def test_mapping_a_file_depends_on_how_it_was_opened(filed, prot, flags, fd, offset, error):
    result = filed.mmap_file(ORIGIN, P, prot, flags, fd, offset)
    assert result == (error if error else ORIGIN)


def test_mprotect_asks_how_the_file_was_opened(filed):
    filed.mmap_file(ORIGIN, P, 1, MAP_SHARED | MAP_FIXED, READONLY, 0)
    filed.mmap_file(ORIGIN + P, P, 1, MAP_PRIVATE | MAP_FIXED, READONLY, 0)
    filed.mmap_file(ORIGIN + 2 * P, P, 1, MAP_SHARED | MAP_FIXED, NOEXEC, 0)
    assert filed.mprotect(ORIGIN, P, 3) == EACCES
    assert filed.mprotect(ORIGIN, P, 5) == 0
    assert filed.mprotect(ORIGIN + P, P, 7) == 0
    assert filed.mprotect(ORIGIN + 2 * P, P, 5) == EACCES
    assert filed.mprotect(ORIGIN + 2 * P, P, 3) == 0


def test_areas_of_files_merge_where_their_offsets_go_on(filed):
    def areas(*maps):
        filed.munmap(ORIGIN, 64 * P)
        before = int(filed.mm.map_count)
        for page, fd, offset, flags in maps:
            filed.mmap_file(ORIGIN + page * P, P, 1, flags | MAP_FIXED, fd, offset * P)
        return int(filed.mm.map_count) - before

    assert areas((0, EXT4, 7, MAP_PRIVATE), (1, EXT4, 8, MAP_PRIVATE)) == 1
    assert areas((0, EXT4, 7, MAP_PRIVATE), (1, EXT4, 7, MAP_PRIVATE)) == 2
    assert areas((0, EXT4, 7, MAP_PRIVATE), (1, MEMFD, 8, MAP_PRIVATE)) == 2
    assert areas((0, EXT4, 7, MAP_PRIVATE), (1, EXT4, 8, MAP_SHARED)) == 2
    assert areas((0, MEMFD, 7, MAP_SHARED), (1, MEMFD, 8, MAP_SHARED)) == 1
    assert areas((1, EXT4, 8, MAP_PRIVATE), (0, EXT4, 7, MAP_PRIVATE)) == 1
    assert areas(*((page, EXT4, page, MAP_PRIVATE) for page in (0, 2, 1))) == 1


def test_areas_of_files_do_not_merge_with_anonymous_ones(filed):
    """They do not merge even if the page offset in the file equals the page number."""
    filed.mmap_file(ORIGIN, P, 3, MAP_PRIVATE | MAP_FIXED, EXT4, ORIGIN)
    filed.map(flags=FIXED, addr=ORIGIN + P)
    assert filed.mm.map_count == 6 + 2


def test_private_pages_of_files_are_copied_when_written(filed):
    filed.mmap_file(ORIGIN, 4 * P, 3, MAP_PRIVATE | MAP_FIXED, EXT4, 0)
    filed.touch(ORIGIN, 1, 0)
    filed.touch(ORIGIN + P, 1, 1)
    mm = filed.mm
    assert (mm.rss, mm.rss_file, mm.flt_file, mm.flt_cow) == (1, 1, 1, 1)
    filed.touch(ORIGIN, 1, 1)
    assert (mm.rss, mm.rss_file, mm.flt_file, mm.flt_cow) == (2, 0, 1, 2)
    filed.mprotect(ORIGIN, P, 1)
    assert "does not permit" in filed.death("touch", ORIGIN, 1, 1)
    filed.dontneed(ORIGIN, 4 * P)
    assert (mm.rss, mm.rss_file) == (0, 0)


def test_files_populate_and_lock(filed):
    filed.mmap_file(0, 4 * P, 1, MAP_PRIVATE | MAP_POPULATE, EXT4, 0)
    filed.mmap_file(0, 4 * P, 3, MAP_PRIVATE | MAP_LOCKED, EXT4, 0)
    assert (filed.mm.rss_file, filed.mm.rss, filed.mm.locked_vm) == (4, 4, 4)
    assert filed.mm.flt_populate == filed.mm.minflt == 8


def test_files_move_with_their_offset(filed):
    """Several areas keep their offsets too; a move without MREMAP_FIXED is aligned anew."""
    filed.mmap_file(ORIGIN, 8 * P, 1, MAP_PRIVATE | MAP_FIXED, EXT4, 3 * P)
    filed.mprotect(ORIGIN, P, 3)
    there = ORIGIN + 64 * P
    assert filed.mremap(ORIGIN, 8 * P, 8 * P, 3, there) == there
    assert [int(v.vm_pgoff) for v in filed.k.vma[2:4]] == [3, 4]
    big = filed.mmap_file(0, 4 * MIB, 1, MAP_PRIVATE, EXT4, P)
    moved = filed.mremap(big, 4 * MIB, 6 * MIB, 1, 0)
    assert moved % (2 * MIB) == P
    assert int(filed.k.vma[4].vm_pgoff) == 1


def test_files_are_data_only_where_private_and_writable(filed):
    before = filed.counters()
    filed.mmap_file(0, 4 * P, 1, MAP_PRIVATE, EXT4, 0)
    filed.mmap_file(0, 4 * P, 3, MAP_SHARED, EXT4, 0)
    assert filed.mm.data_vm == before["data_vm"]
    filed.mmap_file(0, 4 * P, 3, MAP_PRIVATE, EXT4, 0)
    filed.mmap_file(0, 4 * P, 3, MAP_PRIVATE | MAP_NORESERVE, EXT4, 0)
    assert filed.mm.data_vm == before["data_vm"] + 8
    assert filed.mm.committed == before["committed"] + (8 if filed.mm.overcommit == 2 else 4)


# --- Flags that do not matter --------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0x800, 0x1000, 0x10000, 1 << 25, 1 << 40])
def test_unknown_flags_are_ignored(process, bit):
    assert process.mmap(0, P, 3, PRIVATE | bit) == TOP - P
    assert process.mmap(0, P, 3, SHARED | bit) == TOP - 2 * P


def test_map_nonblock_cancels_populate(process):
    process.mmap(0, 4 * P, 3, PRIVATE | MAP_POPULATE | 0x10000)  # MAP_NONBLOCK
    assert process.mm.minflt == 0


# --- Booting from maps ---------------------------------------------------------------------------


def test_a_process_boots_from_the_maps_of_another():
    """A kernel booted from the maps of another has the same areas at the same addresses."""
    one = with_files()
    one.sbrk(5 * P)
    one.map(pages=3)
    one.map(prot=0, pages=3, flags=FIXED, addr=ORIGIN)
    one.mmap_file(0, 4 * MIB, 3, MAP_SHARED, EXT4, P)
    one.mmap(0, P, 3, SHARED)
    lines = []
    for line, v in zip(one.machine.maps().splitlines(), one.k.vma, strict=False):
        span, rights, *name = line.split()
        file = int(v.vm_file)
        offset = int(v.vm_pgoff) * P if file else 0
        lines.append(f"{span} {rights} {offset:08x} 00:01 {file} {' '.join(name)}")
    text = "\n".join(lines)
    for special in ("[vvar]", "[vvar_vclock]", "[vdso]"):
        found = next(line for line in FRESH_PROCESS.splitlines() if line.endswith(special))
        text = "\n".join(
            found if line.startswith(found.split()[0]) else line for line in text.splitlines()
        )
    two = Process(configured(maps=text))
    assert two.kinds() == one.kinds()
    for name in ("brk", "start_brk", "mmap_base", "total_vm", "data_vm", "stack_vm", "reserved_vm"):
        assert two.mm[name] == one.mm[name], name
    for process in (one, two):
        process.touch(process.map(pages=2), 2 * P, 1)
    assert two.areas() == one.areas()
    assert two.map(pages=512) == one.map(pages=512)
    assert two.sbrk(P) == one.sbrk(P)


def test_the_rights_of_a_shared_file_are_shown_as_shared(filed):
    """Shared mappings of a file opened read-only, which cannot be written, are shown so too."""
    filed.mmap_file(ORIGIN, P, 1, MAP_SHARED | MAP_FIXED, READONLY, 0)
    shown = [line for line in filed.machine.maps().splitlines() if line.startswith("6000")]
    assert [line.split()[1] for line in shown] == ["r--s"]


def test_kernel_mappings_are_not_unmapped(process):
    """[vvar] refuses; the code of [vdso] can be dropped and is mapped again on access."""
    vvar, _, vdso, _ = process.areas()[-4:]
    assert process.madvise(vvar[0], P, MADV_DONTNEED) == EINVAL
    process.touch(vdso[0], P, 0)
    assert process.madvise(vdso[0], P, MADV_DONTNEED) == 0
    process.touch(vdso[0], P, 0)
    assert process.mm.flt_file == 2


def test_layout_only_maps_no_page_and_knows_no_window():
    process = Process(configured(layout_only=True))
    assert process.map(pages=4, flags=FIXED | MAP_POPULATE, addr=ORIGIN) == ORIGIN
    assert process.map(pages=4, flags=FIXED | MAP_LOCKED, addr=ORIGIN + (1 << 40)) > 0
    assert process.mlock(ORIGIN, 4 * P) == 0
    assert process.levels() == (0, 0, 0, 8)

"""Booting a kernel: settings, initial areas, parsing of maps texts."""

import gc
import weakref

import numpy as np
import pytest

from kernel import boot
from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.memory import windows
from kernel.engine.record import record
from kernel.maps import FRESH_PROCESS, parse_maps
from kernel.types import VM_ACCOUNT, VM_GROWSDOWN, VM_SHARED
from kernel.uapi import MAP_FIXED, MAP_GROWSDOWN
from tests.kernel.driver import FIXED, PRIVATE, Process, configured

LIBRARY = """
00400000-00401000 r--p 00000000 00:01 7 /bin/tool
00401000-00402000 r-xp 00001000 00:01 7 /bin/tool
00402000-00404000 rw-p 00002000 00:01 7 /bin/tool
00404000-00406000 rw-p 00000000 00:00 0
01000000-01021000 rw-p 00000000 00:00 0 [heap]
7ffff7c00000-7ffff7c10000 r-xp 00000000 00:01 8 /lib/libc.so.6
7ffff7c10000-7ffff7c11000 ---p 00010000 00:01 8 /lib/libc.so.6
7ffff7c11000-7ffff7c13000 rw-p 00010000 00:01 8 /lib/libc.so.6
7ffff7c13000-7ffff7c14000 rw-s 00000000 00:05 9
7ffff7ffd000-7ffff7fff000 r-xp 00000000 00:00 0 [vdso]
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
"""


# --- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"page_size": 0}, "page_size must be 4096, 16384 or 65536, not 0"),
        ({"page_size": 5000}, "page_size must be 4096, 16384 or 65536, not 5000"),
        ({"page_size": 8192}, "page_size must be 4096, 16384 or 65536, not 8192"),
        ({"memory": -1}, "memory must be 0 (no limit) or positive, not -1"),
        ({"rlimit_as": -4096}, "rlimit_as must be 0 (no limit) or positive, not -4096"),
        ({"rlimit_data": -1}, "rlimit_data must be 0 (no limit) or positive, not -1"),
        ({"memory": 4095}, "memory (4095) is less than one page (4096)"),
        ({"memory": 5000, "page_size": 65536}, "memory (5000) is less than one page (65536)"),
        ({"overcommit": 3}, "overcommit must be 0, 1 or 2, not 3"),
        ({"overcommit_ratio": -1}, "overcommit_ratio must be 0 to 1000 %, not -1"),
        ({"thp": "sometimes"}, "thp must be never, madvise, always, not sometimes"),
        ({"max_map_count": 7}, "max_map_count must be 8 to 65530, not 7"),
        ({"max_map_count": 65531}, "max_map_count must be 8 to 65530, not 65531"),
        ({"window_bits": 31}, "window_bits must be 32 to 41, not 31"),
        ({"window_bits": 42}, "window_bits must be 32 to 41, not 42"),
        ({"maps": LIBRARY, "max_map_count": 10}, "maps has 11 areas, max_map_count is 10"),
        (
            {"maps": "1000-2000 rw-p 0 0 0\n008000001000-008000002000 rw-p 0 0 0"},
            "maps: two areas overlap in the simulated-memory window of 2**39 bytes; set a larger",
        ),
        (
            # The last wraps around the end of the window and overlaps the first.
            {"maps": "0-1000 rw-p 0 0 0\n7ffffff000-8000001000 rw-p 0 0 0", "window_bits": 39},
            "maps: two areas overlap",
        ),
        ({"maps": "0-10000000000 rw-p 0 0 0"}, "maps: two areas overlap"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=r".") as error:
        KernelConfig(**settings)
    assert message in str(error.value)


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_switches_follow_the_settings(page_size):
    config = KernelConfig(page_size=page_size, window_bits=40)
    assert 1 << config.page_shift == page_size
    assert config.switches() == {"PAGE_SHIFT": config.page_shift, "WINDOW_BITS": 40}


def test_limits_reach_the_mm():
    mm = Machine(KernelConfig(memory=1 << 20, rlimit_as=1 << 30, overcommit=1)).k.mm
    assert (mm.memory, mm.rlim_as, mm.rlim_data) == (256, 1 << 30, 2**63 - 1)
    assert (mm.overcommit, mm.max_map_count) == (1, 65530)


@pytest.mark.parametrize("window_bits", [32, 41])
def test_small_and_large_windows_boot(window_bits):
    machine = Machine(KernelConfig(window_bits=window_bits, max_map_count=8))
    assert machine.k.mm.map_count == 6
    assert len(machine.k.vma) == 16


def test_no_address_space_is_a_clear_message(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(boot.mmap, "mmap", refuse)
    with pytest.raises(MemoryError, match=r"set kernel\.window_bits lower"):
        Machine()


def test_hosts_without_noreserve_are_served(monkeypatch):
    monkeypatch.setattr(boot, "_MAP_NORESERVE", 0)
    assert Machine(KernelConfig(window_bits=32)).k.mm.map_count == 6


def test_machines_release_their_window():
    """Hundreds of windows only fit one after the other into the host's 2**47 bytes."""
    machine = Machine()
    base, gone = int(machine.k.window), weakref.ref(machine)
    assert base in windows
    del machine
    gc.collect()
    assert gone() is None
    assert base not in windows


def test_a_kernel_outlives_its_machine():
    """The window is part of the same reservation and lives as long as ``k``."""
    k = Machine(KernelConfig(window_bits=32)).k
    gc.collect()
    assert (int(k.mm.map_count), int(k.mm.rss)) == (6, 0)


def test_machines_share_no_state():
    one, two = Process(), Process()
    addr = one.map()
    assert two.map() == addr
    one.store(addr, 1)
    two.store(addr, 2)
    assert (one.load(addr), two.load(addr)) == (1, 2)


# --- After exec ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "start_brk", "mmap_base", "first", "counts"),
    [
        (4096, 0x555555559000, 0x7FFFF7FFF000, 0x7FFFF7FF6000, (6, 46, 1, 33, 34)),
        (16384, 0x55555555C000, 0x7FFFF7FFC000, 0x7FFFF7FF0000, (5, 13, 1, 8, 9)),
        # Text and data share a page: there is no data area, but the heap still starts after it.
        (65536, 0x555555560000, 0x7FFFF7FF0000, 0x7FFFF7FE0000, (3, 4, 0, 2, 2)),
    ],
)
def test_fresh_process(page, start_brk, mmap_base, first, counts):
    process = Process(configured(page_size=page))
    mm = process.mm
    assert (mm.start_brk, mm.brk, mm.mmap_base) == (start_brk, start_brk, mmap_base)
    assert mm.task_size == 0x7FFFFFFFF000 // page * page
    assert mm.mmap_min_addr == 0x10000
    assert (mm.map_count, mm.total_vm, mm.data_vm, mm.stack_vm, mm.committed) == counts
    assert mm.start_vm == mm.hiwater_vm == mm.total_vm
    assert (mm.rss, mm.minflt, mm.nr_ptes) == (0, 0, 0)
    for start, end, *_ in process.areas():
        assert start % page == end % page == 0
        assert end <= mm.task_size or page > 4096
    assert process.map() == first


def test_maps_text_at_4k():
    process = Process()
    process.sbrk(5000)
    process.map(prot=0, flags=FIXED, addr=0x600000000000)
    assert process.machine.maps().splitlines() == [
        "555555554000-555555558000 r-xp",
        "555555558000-555555559000 rw-p",
        "555555559000-55555555b000 rw-p [heap]",
        "600000000000-600000001000 ---p",
        "7ffff7ff7000-7ffff7ffb000 r--p",
        "7ffff7ffb000-7ffff7ffd000 r--p",
        "7ffff7ffd000-7ffff7fff000 r-xp",
        "7ffffffde000-7ffffffff000 rw-p [stack]",
    ]


def test_the_error_names_the_mapping_that_overlaps_the_heap():
    process = Process()
    start = process.sbrk(4 * 4096)
    process.map(prot=1, flags=FIXED, addr=start + 4096)
    heap = [line for line in process.machine.maps().splitlines() if line.endswith("[heap]")]
    assert [line.split()[1] for line in heap] == ["rw-p", "r--p", "rw-p"]


# --- Maps of a real process ----------------------------------------------------------------------


def test_parse_maps():
    found = parse_maps(LIBRARY)
    areas = found.areas
    assert len(areas) == 11  # without the vsyscall page
    assert (found.start_data, found.end_data) == (0x402000, 0x404000)  # of the program, not libc
    assert (found.start_brk, found.brk) == (0x1000000, 0x1021000)
    assert [int(f) for f in areas["vm_file"]] == [1, 1, 1, 0, 0, 2, 2, 2, 3, 4, 0]
    assert [int(p) for p in areas["vm_pgoff"][:4]] == [0, 1, 2, 0x404]
    data = [bool(f & VM_ACCOUNT) for f in areas["vm_flags"]]
    assert data == [False, False, True, True, True, False, False, True, False, False, True]
    assert areas["vm_flags"][8] & VM_SHARED
    assert areas["vm_flags"][10] & VM_GROWSDOWN


def test_heap_begins_behind_the_bss():
    without_heap = "\n".join(line for line in LIBRARY.splitlines() if "[heap]" not in line)
    found = parse_maps(without_heap)
    assert (found.start_brk, found.brk) == (0x406000, 0x406000)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", (0x10000, 0x10000, 0x10000)),
        ("1000-2000 rw-p 0 0 0", (0x10000, 0x10000, 0x10000)),  # no file: no program
        ("400000-402000 r-xp 0 1:1 5 a", (0x400000, 0x402000, 0x402000)),  # no data
    ],
)
def test_the_break_of_a_minimal_maps_file(text, place):
    found = parse_maps(text)
    assert (found.start_data, found.end_data, found.start_brk) == place


def test_boot_from_a_real_process():
    process = Process(configured(maps=LIBRARY))
    mm = process.mm
    assert (mm.total_vm, mm.stack_vm) == (1 + 1 + 2 + 2 + 33 + 16 + 1 + 2 + 1 + 2 + 33, 33)
    assert mm.data_vm == 2 + 2 + 33 + 2
    assert mm.reserved_vm == 1  # libc's hole
    assert mm.start_vm == mm.hiwater_vm == mm.total_vm - 1
    assert mm.committed == 2 + 2 + 33 + 2 + 33
    assert process.sbrk(4096) == 0x1021000
    assert process.areas()[4][:2] == (0x1000000, 0x1022000)
    for start, end, *_ in process.areas():
        process.munmap(start, end - start)
    assert (mm.total_vm, mm.data_vm, mm.stack_vm, mm.reserved_vm, mm.committed) == (0,) * 5


@pytest.mark.parametrize("moved", [0, 0x800000])
def test_the_stack_keeps_its_offset_from_where_exec_made_it(moved):
    # Space up to the end of user space exists only if the stack was moved down.
    end = 0x7FFFFFFFF000 - moved
    process = Process(configured(maps=f"{end - 0x21000:x}-{end:x} rw-p 0 0:0 0 [stack]"))
    addr = end - 0x22000 if not moved else end
    grows = PRIVATE | MAP_FIXED | MAP_GROWSDOWN
    assert process.mmap(addr, 4096, 3, grows) == addr
    assert len(process.areas()) == (2 if moved else 1)


def test_the_stack_has_been_written():
    low, end = 0x7FFFFFFDE000, 0x7FFFFFFFF000
    process = Process(configured(maps=f"{low:x}-{end:x} rw-p 0 0:0 0 [stack]"))
    grows = PRIVATE | MAP_FIXED | MAP_GROWSDOWN
    assert process.mmap(low - 8192, 4096, 3, grows) == low - 8192
    process.touch(low - 8192, 8, True)
    assert process.mmap(low - 4096, 4096, 3, grows) == low - 4096
    assert len(process.areas()) == 2


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("nonsense", 1, "expected 'start-end perms offset dev inode name': nonsense"),
        ("1000-2000 rw-p 0 0 0\n3000-4000 rwxq 0 0 0", 2, "expected 'start-end"),
        ("1000-1000 rw-p 0 0 0", 1, "not above the area before it"),
        ("2000-1000 rw-p 0 0 0", 1, "not above the area before it"),
        ("1000-3000 rw-p 0 0 0\n2000-4000 rw-p 0 0 0", 2, "not above the area before it"),
    ],
)
def test_damaged_maps_name_the_line(text, line, message):
    with pytest.raises(ValueError, match=f"maps line {line}: {message}"):
        parse_maps(text)
    with pytest.raises(ValueError, match=f"maps line {line}: "):
        KernelConfig(maps=text)


@pytest.mark.parametrize("page", [16384, 65536])
def test_larger_pages_round_outwards(page):
    """If two areas share a page, the lower keeps it; no areas overlap and no page is lost."""
    small = parse_maps(FRESH_PROCESS).areas
    large = parse_maps(FRESH_PROCESS, page).areas
    assert (large["vm_start"] % page == 0).all()
    assert (large["vm_end"] % page == 0).all()
    assert (large["vm_start"] < large["vm_end"]).all()
    assert (large["vm_end"][:-1] <= large["vm_start"][1:]).all()
    end = 0x7FFFFFFFF000 // page * page
    for v in small:
        assert any(w["vm_start"] <= v["vm_start"] < w["vm_end"] for w in large)
        last = min(int(v["vm_end"]) - 1, end - 1)
        assert any(w["vm_start"] <= last < w["vm_end"] for w in large)


# --- Records -------------------------------------------------------------------------------------


def test_record_refuses_names_that_numpy_uses():
    with pytest.raises(ValueError, match="a record field cannot be called 'size'"):
        record(np.dtype([("size", "i8")]))
    r = record(np.dtype([("length", "i8")]))
    r.length = 3
    assert r["length"] == 3


@pytest.mark.parametrize("plain", ["0", "1"])
def test_attributes_of_a_record_are_its_fields_and_nothing_else(monkeypatch, plain):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", plain)
    inner = np.dtype([("word", "i4")], align=True)
    r = record(np.dtype([("one", inner), ("many", inner, (2,)), ("row", "u1", (3,))], align=True))
    r.one.word = -7
    r.many[1].word = 8
    r.row[2] = 9
    assert (r["one"]["word"], r["many"]["word"].tolist(), bytes(r.row)) == (-7, [0, 8], b"\0\0\t")
    assert bytes(r) == np.array([-7, 0, 8], "i4").tobytes() + b"\0\0\t\0"
    for wrong in (lambda: r.two, lambda: setattr(r, "two", 1), lambda: r.one.words):
        with pytest.raises(AttributeError):
            wrong()
    with pytest.raises(OverflowError):
        r.one.word = 1 << 40

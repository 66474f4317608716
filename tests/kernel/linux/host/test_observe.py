"""Reports of the observer agree with the mappings, pages and counters of a real process."""

import numpy as np
import pytest

from kernel.linux.host import kernel_version
from kernel.linux.host.observe import (
    FILE,
    HUGE,
    KIND_ANONYMOUS,
    KIND_FILE,
    KIND_HEAP,
    KIND_SPECIAL,
    KIND_STACK,
    PRESENT,
    USER_END,
    ZERO,
    Observer,
    host_settings,
    thp_counters,
)
from kernel.linux.host.process import HostProcess
from tests.kernel.linux.host.driver import (
    HUGE_PAGE,
    PAGE,
    PLACE,
    READ,
    WRITE,
    load,
    madvise,
    mmap,
    munmap,
    store,
    syscall,
    touch,
    value,
)

SHARED_ANONYMOUS = 0x21
DONTNEED, HUGEPAGE = 4, 14

NAMES = {"[heap]": KIND_HEAP, "[stack]": KIND_STACK}


def slow_areas(text):
    """Return the expected result of areas(), in plain Python."""
    rows = []
    for line in text.splitlines():
        span, rights, offset, _device, inode, *name = line.split(maxsplit=5)
        start, end = (int(x, 16) for x in span.split("-"))
        name = name[0].strip() if name else ""
        if name in NAMES:
            kind = NAMES[name]
        elif name.startswith("[") and not name.startswith("[anon"):
            kind = KIND_SPECIAL
        elif name and not name.startswith("[") and name != "/dev/zero (deleted)":
            kind = KIND_FILE
        else:
            kind = KIND_ANONYMOUS
        prot = sum(bit for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if letter in rights[:3])
        signed = [x - (1 << 64) if x >> 63 else x for x in (start, end)]
        rows.append((*signed, prot, int(rights[3] == "s"), int(offset, 16), int(inode), kind))
    return rows


def test_areas_are_the_lines_of_maps(tmp_path):
    path = tmp_path / "file with a space"
    path.write_bytes(bytes(4 * PAGE))
    with (
        path.open("r+b") as file,
        HostProcess(files=[file.fileno()]) as host,
        Observer(host.pid) as observer,
    ):
        value(host, syscall(12, host.start_brk + 8 * PAGE))
        value(host, mmap(PAGE, prot=0))
        value(host, mmap(PAGE, prot=READ | 4, at=PLACE))
        value(host, mmap(PAGE, flags=SHARED_ANONYMOUS))
        value(host, mmap(2 * PAGE, READ, 2, fd=10, offset=PAGE))
        value(host, mmap(2 * PAGE, READ | WRITE, 1, fd=10))
        areas = observer.areas()
        text = observer.maps_text()
    assert areas.tolist() == slow_areas(text)
    assert set(areas["kind"]) == {
        KIND_ANONYMOUS,
        KIND_FILE,
        KIND_HEAP,
        KIND_SPECIAL,
        KIND_STACK,
    }
    assert (areas["shared"] & (areas["kind"] == KIND_ANONYMOUS)).sum() == 1


def test_thousands_of_areas(host, observer):
    count = 3000
    ops = np.concatenate([mmap(PAGE, at=PLACE + 2 * PAGE * i) for i in range(count)])
    before = len(observer.areas())
    host.run(ops)
    areas = observer.areas()
    assert len(areas) == before + count
    assert areas.tolist() == slow_areas(observer.maps_text())


def prepare(host):
    """Create pages in every state in 16 MiB at PLACE; return the range."""
    size = 16 << 20
    ops = [
        mmap(size, at=PLACE),
        madvise(PLACE, size, HUGEPAGE),
        load(PLACE),  # the huge zero page
        touch(PLACE + HUGE_PAGE, 3 * HUGE_PAGE),
        madvise(PLACE + 2 * HUGE_PAGE, 3 * PAGE, DONTNEED),  # splits a huge page
        madvise(PLACE + 4 * HUGE_PAGE, 4 * HUGE_PAGE, HUGEPAGE + 1),
        touch(PLACE + 4 * HUGE_PAGE, 10 * PAGE),
        touch(PLACE + 5 * HUGE_PAGE, 10 * PAGE, write=0),
        store(PLACE + 5 * HUGE_PAGE + 4 * PAGE),
        mmap(HUGE_PAGE, flags=SHARED_ANONYMOUS | 0x10, at=PLACE + 6 * HUGE_PAGE),
        touch(PLACE + 6 * HUGE_PAGE + PAGE, 2 * PAGE),
    ]
    host.run(np.concatenate(ops))
    return PLACE, PLACE + size


def test_residency_distinguishes_all_states(host, observer):
    start, end = prepare(host)
    if not observer.sees_huge:
        pytest.skip("this kernel does not report which pages are huge")
    if host_settings()["thp_enabled"] == "never" or not host_settings()["thp_use_zero_page"]:
        pytest.skip("huge pages or the huge zero page are disabled")
    in_pages = [
        ((int(r["start"]) - start) // PAGE, (int(r["end"]) - start) // PAGE, int(r["state"]))
        for r in observer.residency(start, end)
    ]
    assert in_pages == [
        (0, 512, PRESENT | ZERO | HUGE),
        (512, 1024, PRESENT | HUGE),
        (1027, 1536, PRESENT),
        (1536, 2048, PRESENT | HUGE),
        (2048, 2058, PRESENT),
        (2560, 2564, PRESENT | ZERO),
        (2564, 2565, PRESENT),
        (2565, 2570, PRESENT | ZERO),
        (3073, 3075, PRESENT | FILE),
    ]


def test_pagemap_and_the_ioctl_agree(host, observer):
    if not observer.scans:
        pytest.skip("this kernel has no PAGEMAP_SCAN")
    prepare(host)
    with Observer(host.pid, scan=False) as plain:
        mask = -1 if plain.sees_huge else ~HUGE
        for start, end in ((0, USER_END), (PLACE + 3 * PAGE, PLACE + 5 * HUGE_PAGE + 2 * PAGE)):
            expected = observer.residency(start, end)
            got = plain.residency(start, end)
            if mask == -1:
                assert got.tolist() == expected.tolist()
            pages = [
                {
                    at: int(r["state"]) & mask
                    for r in regions
                    for at in range(int(r["start"]), int(r["end"]), PAGE)
                }
                for regions in (got, expected)
            ]
            assert pages[0] == pages[1]


def test_more_regions_than_one_call_returns(host, observer):
    value(host, mmap(64 << 20, at=PLACE))
    value(host, madvise(PLACE, 64 << 20, HUGEPAGE + 1))
    pages = 6000
    host.run(np.concatenate([store(PLACE + 2 * PAGE * i) for i in range(pages)]))
    regions = observer.residency(PLACE, PLACE + (64 << 20))
    assert regions["start"].tolist() == [PLACE + 2 * PAGE * i for i in range(pages)]
    host.run(touch(PLACE, 64 << 20))
    assert observer.residency(PLACE, PLACE + (64 << 20)).tolist() == [
        (PLACE, PLACE + (64 << 20), PRESENT)
    ]


def test_counters_are_exact_after_every_operation(host, observer):
    """Change a few pages at a time, so that a lagging counter is detected."""
    size = 8 << 20
    value(host, mmap(size, at=PLACE))
    value(host, madvise(PLACE, size, HUGEPAGE + 1))
    start = observer.status()
    random = np.random.default_rng(1)
    resident = set()
    for step in range(600):
        page, pages = int(random.integers(2048)), int(random.integers(1, 20))
        pages = min(pages, 2048 - page)
        if step % 3:
            host.run(touch(PLACE + page * PAGE, pages * PAGE))
            resident |= set(range(page, page + pages))
        else:
            host.run(madvise(PLACE + page * PAGE, pages * PAGE, DONTNEED))
            resident -= set(range(page, page + pages))
        assert observer.status()["rss_anon"] - start["rss_anon"] == len(resident) * PAGE
    with_it = observer.status()
    assert with_it["vm_size"] == start["vm_size"]
    value(host, munmap(PLACE, size))
    after = observer.status()
    assert after["rss_anon"] == start["rss_anon"]
    assert start["vm_size"] - after["vm_size"] == size == start["vm_data"] - after["vm_data"]
    assert with_it["vm_pte"] > after["vm_pte"]


def test_locked_memory_is_counted(host, observer):
    start = value(host, mmap(4 * PAGE))
    before = observer.status()["vm_lck"]
    value(host, syscall(149, start, 3 * PAGE))
    assert observer.status()["vm_lck"] - before == 3 * PAGE


def test_observation_causes_no_faults(host, observer):
    start = value(host, mmap(64 * PAGE))
    for i in range(20):
        observer.areas(), observer.status(), observer.residency()
        assert host.run(touch(start, (i + 1) * PAGE))["minflt"][0] == 1


def test_the_end_of_a_process_is_an_error(host, observer):
    host.close()
    with pytest.raises(ProcessLookupError):
        observer.status()


def test_settings_and_counters_of_the_host():
    settings = host_settings()
    assert settings["kernel"] == kernel_version()
    assert settings["overcommit_memory"] in (0, 1, 2)
    assert settings["thp_enabled"] in (None, "always", "madvise", "never")
    assert settings["memory"] > 0
    assert settings["max_map_count"] > 0
    assert all(name.startswith("thp_") for name in thp_counters())
    if settings["thp_enabled"]:
        assert "thp_collapse_alloc" in thp_counters()

"""Test that a replay reports every planted difference and allows for facts not in the log."""

import json

import pytest

from tests.kernel.linux.replay.driver import (
    AREAS,
    HEAP,
    PAGE,
    PRIVATE,
    READ,
    TOP,
    WRITE,
    Recording,
    area,
    with_areas,
)

STACK = AREAS[-1]
ENOMEM, EINVAL = -12, -22


def one_page():
    return Recording().exec().mmap(1, ret=TOP - PAGE)


def three_pages_with_a_hole():
    log = Recording().exec().mmap(3, ret=TOP - 3 * PAGE)
    return log.call("munmap", TOP - 2 * PAGE, PAGE, ret=0)


# --- results -------------------------------------------------------------------------------------


def test_all_kinds_of_calls_are_compared(replayed):
    low = TOP - 4 * PAGE
    log = Recording().exec().call("brk", 0, ret=HEAP).call("brk", HEAP + PAGE, ret=HEAP + PAGE)
    log.mmap(4, ret=low).call("mprotect", low, PAGE, READ, ret=0)
    log.call("madvise", low, PAGE, 4, ret=0).call("madvise", low, PAGE, 5, ret=EINVAL)
    log.call("mlock", low, PAGE, ret=0).call("munlock", low, PAGE, ret=0)
    log.call("mremap", low, PAGE, 2 * PAGE, 1, ret=low - 2 * PAGE)
    log.call("munmap", low + PAGE, PAGE, ret=0).call("munmap", low + 1, PAGE, ret=EINVAL)
    log.call("msync", low + PAGE, PAGE, 4, ret=ENOMEM).call("mincore", low + 1, 1, ret=EINVAL)
    end = [
        area(HEAP, 1, name="[heap]"),
        area(low - 2 * PAGE, 2, "r--p"),
        area(low + 2 * PAGE, 2),
    ]
    result = replayed(log.exit(with_areas(*end)))
    assert (result.code, result.counts) == (0, (13, 13, 0, 0))
    assert "maps at the end: 1 compared (8 areas, VmSize, VmData, VmLck), 0 differ" in result.out


@pytest.mark.parametrize(
    ("log", "explained"),
    [
        (
            Recording().exec().mmap(1, ret=TOP - 2 * PAGE),
            ["line 3, process 1, /bin/program:", "Linux returned 0x7ffff7ff9000, the model 0x7fff"],
        ),
        (
            Recording().exec().mmap(1, ret=ENOMEM),
            ["PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS", "Linux returned -1 ENOMEM"],
        ),
        (one_page().call("munmap", 1, PAGE, ret=0), ["line 4", "the model -1 EINVAL"]),
        (one_page().call("madvise", TOP, PAGE, 4, ret=ENOMEM), ["MADV_DONTNEED", "line 4"]),
    ],
)
def test_a_planted_result_is_reported(replayed, log, explained):
    result = replayed(log)
    assert result.code == 1
    assert result.counts[2] == 1
    for part in [*explained, "first difference:", "areas of the model before:"]:
        assert part in result.out


def test_the_replay_continues_after_a_difference(replayed):
    # The later calls are replayed on the state that Linux's result implies.
    log = Recording().exec().mmap(1, ret=TOP - 2 * PAGE).mmap(1, ret=TOP - PAGE)
    log.mmap(1, ret=TOP - 3 * PAGE)
    assert replayed(log).counts == (3, 3, 1, 0)


def test_json(replayed):
    log = Recording().exec().mmap(1, ret=TOP - 2 * PAGE).call("mseal", TOP, PAGE, ret=ENOMEM)
    result = replayed(log, "--json")
    found = json.loads(result.out)
    assert result.code == 1
    names = ("calls", "compared", "differ", "not_comparable", "not_comparable_percent")
    assert [found[name] for name in names] == [2, 1, 1, 1, 50.0]
    (difference,) = found["spaces"][0]["differences"]
    assert (difference["line"], difference["expected"]) == (3, TOP - 2 * PAGE)
    assert difference["got"] == TOP - PAGE
    assert found["not_comparable_lines"][0]["reason"] == "sealed areas are not modelled"
    assert found["not_comparable_lines"][0]["line"] == 4


def test_unmodelled_calls_are_listed_with_their_reason(replayed):
    log = one_page().call("mseal", TOP - PAGE, PAGE, ret=0)
    log.call("move_pages", 0, 0, ret=0).call("madvise", TOP - PAGE, PAGE, 25, ret=0)
    result = replayed(log, "--verbose")
    assert (result.code, result.counts) == (0, (4, 1, 0, 3))
    for part in ("line 4: mseal(", "sealed areas are not", "1 not comparable: advice 25", "75.0 %"):
        assert part in result.out


# --- snapshots -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "sizes", "explained"),
    [
        (with_areas(), {}, f"the areas differ from {TOP - PAGE:#x} on"),
        (with_areas(area(TOP - PAGE, 1, "r--p")), {}, "r--p 00000000"),
        (with_areas(area(TOP - 2 * PAGE, 2)), {}, f"the areas differ from {TOP - 2 * PAGE:#x} on"),
        (with_areas(area(TOP - PAGE, 1, "rw-s", "/file")), {}, "/file"),
        (with_areas(area(TOP - PAGE, 1)), {"VmSize": 1000}, "VmSize is 1000 kB, the model's 172"),
        (with_areas(area(TOP - PAGE, 1)), {"VmData": 4}, "VmData is 4 kB, the model's 8 kB"),
        (with_areas(area(TOP - PAGE, 1)), {"VmLck": 4}, "VmLck is 4 kB, the model's 0 kB"),
        (with_areas(area(TOP - PAGE, 1)), {"VmPTE": 400}, "VmPTE is 400 kB, not between 0 and"),
    ],
)
def test_a_planted_state_at_the_end_is_reported(replayed, end, sizes, explained):
    assert replayed(one_page().exit(with_areas(area(TOP - PAGE, 1)))).code == 0
    result = replayed(one_page().exit(end, **sizes))
    assert (result.code, result.counts) == (1, (1, 1, 0, 0))
    assert explained in result.out
    assert "VmLck), 1 differ" in result.out
    assert "line 4, end of process 1" in result.out


def test_the_state_before_an_exec_is_compared(replayed):
    good = one_page().exec(before=with_areas(area(TOP - PAGE, 1)))
    assert replayed(good).code == 0
    assert replayed(one_page().exec(before=with_areas())).code == 1


def test_the_state_of_a_copy_is_compared(replayed):
    log = one_page().clone(2, 0).call("munmap", TOP - PAGE, PAGE, ret=0, tid=2)
    both = log.exit(with_areas(), tid=2).exit(with_areas(area(TOP - PAGE, 1)))
    result = replayed(both)
    assert result.code == 0
    assert "1 program started, 1 copied by fork" in result.out
    assert "maps at the end: 2 compared" in result.out


def test_the_stack_grows_without_a_call(replayed):
    grown = area(0x7FFFFFFDE000 - 64 * PAGE, 33 + 64, name="[stack]")
    log = one_page().exit(with_areas(area(TOP - PAGE, 1), grown, without=[STACK]), VmData=8)
    assert replayed(log).code == 0
    shrunk = area(0x7FFFFFFDE000 + PAGE, 32, name="[stack]")
    log = one_page().exit(with_areas(area(TOP - PAGE, 1), shrunk, without=[STACK]))
    assert replayed(log).code == 1


def test_areas_with_separate_anon_vmas_may_stay_unmerged(replayed):
    # The model merges equal neighbours; Linux does not if each half has its own anon_vma.
    def halves(rights, prot, flags):
        log = Recording().exec().mmap(1, ret=TOP - PAGE, prot=prot)
        log.mmap(1, ret=TOP - 2 * PAGE, prot=prot)
        two = [[area(TOP - n * PAGE, 1, rights), 4, flags] for n in (2, 1)]
        return log.exit([*AREAS[:2], *two, *AREAS[2:]])

    result = replayed(halves("rw-p", WRITE, "rd wr mr mw me ac"))
    assert result.code == 0
    assert "1 boundary between equal areas ignored" in result.out
    # An area that was never writable has no anon_vma: the boundary is a difference.
    assert replayed(halves("r--p", READ, "rd mr mw me")).code == 1


def test_only_an_extra_boundary_of_linux_is_ignored(replayed):
    # Areas are not joined across a hole of the model.
    log = three_pages_with_a_hole().exit(with_areas(area(TOP - 3 * PAGE, 3)))
    assert replayed(log).code == 1
    two = [area(TOP - 3 * PAGE, 1), area(TOP - PAGE, 1)]
    assert replayed(three_pages_with_a_hole().exit(with_areas(*two))).code == 0


def test_the_flags_of_smaps_are_compared(replayed):
    def advised(flags):
        log = one_page().call("madvise", TOP - PAGE, PAGE, 16, ret=0)
        return log.exit([*AREAS[:2], [area(TOP - PAGE, 1), 4, flags], *AREAS[2:]])

    assert replayed(advised("rd wr mr mw me dd ac")).code == 0
    result = replayed(advised("rd wr mr mw me ac"))
    assert result.code == 1
    assert "(ac dd)" in result.out


def test_page_tables_are_compared_with_a_range(replayed):
    pages = 4 * 512
    place = (TOP >> 21 << 21) - pages * PAGE
    end = [*AREAS[:2], [area(place, pages), 8192, None], *AREAS[2:]]
    log = Recording().exec().mmap(pages, ret=place)
    result = replayed(log.exit(end, VmPTE=40))
    assert result.code == 0
    # Least: two of the area's four tables (the two at its ends may be shared with neighbours) and
    # one table at each of the two levels above.  Most: one table for each slot that an area uses.
    assert "page tables: 40 kB, possible 16 to 44 kB (by touched pages)" in result.out
    found = json.loads(replayed(log, "--json").out)["spaces"][0]["maps"]["page_tables"]
    assert found == {"linux": 40, "least": 16, "most": 44}


def test_sizes_are_compared_after_an_unmodelled_call(replayed):
    log = one_page().call("remap_file_pages", TOP - PAGE, PAGE, ret=0)
    result = replayed(log.exit(with_areas(area(TOP - PAGE, 1, "rw-s"))))
    assert (result.code, result.counts) == (0, (2, 1, 0, 1))
    assert "areas at the end are not compared: remap_file_pages is not modelled" in result.out


def test_the_lowest_address_is_mmap_min_addr(replayed):
    # mmap_min_addr forbids lower addresses to MAP_FIXED without a capability, and raises hints.
    log = Recording().exec()
    log.lines[0]["machine"]["mmap_min_addr"] = 0x20000
    log.mmap(1, addr=0x1F000, flags=PRIVATE | 0x10, ret=-1)
    log.mmap(1, addr=0x20000, flags=PRIVATE | 0x10, ret=0x20000).mmap(1, addr=0x1000, ret=0x21000)
    wrong = replayed(log)
    assert (wrong.code, wrong.counts) == (1, (3, 3, 1, 0))  # the raised hint is not free
    log.lines[-1]["ret"] = TOP - PAGE
    assert replayed(log).counts == (3, 3, 0, 0)
    log.lines[1]["image"]["limits"]["may_map_low"] = True
    log.lines[2]["ret"] = 0x1F000
    assert replayed(log).counts == (3, 3, 0, 0)


def test_recorded_limits_apply(replayed):
    log = Recording().exec()
    log.lines.append(
        {"t": "limit", "tid": 1, "in": 5, "out": 6, "target": 0, "resource": 9, "soft": 200 << 10}
    )
    log.clock = 6
    log.mmap(8, ret=TOP - 8 * PAGE).mmap(1, ret=ENOMEM).mmap(1, ret=TOP - 9 * PAGE)
    assert PRIVATE == 0x22
    assert replayed(log).counts == (3, 3, 1, 0)

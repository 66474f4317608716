"""The verifier catches each planted bug, by the right check."""

import threading
import time
from dataclasses import dataclass

import pytest

from allocators.verify import SCENARIOS, Suite
from kernel.engine.jit import disabled

OPERATIONS = 480


@dataclass(frozen=True)
class Bug:
    """Mutation: ``changes`` to the allocator ``base``, caught by ``check`` in ``scenario``."""

    name: str
    base: str
    changes: tuple[tuple[str, str], ...]
    scenario: str
    check: str
    what: str = ""


def bump(name, scenario, check, *changes, what=""):
    return Bug(name, "bump", changes, scenario, check, what)


def tiny(name, scenario, check, *changes, what=""):
    return Bug(name, "tiny", changes, scenario, check, what)


def buddy(name, scenario, check, *changes, what=""):
    return Bug(name, "buddy", changes, scenario, check, what)


#: Source of the end of bump's malloc, of its free and usable_size, and of buddy's give_block.
BUMP_TAIL = "    store(k, p - 8, need - HEADER)\n    return p\n"
BUMP_FREE = '    """Forget the block."""\n'
BUDDY_GIVE = "    list_push(k, a, block, order)\n    if order == MAX_ORDER:\n"
RETURN_LOAD = "    return load(k, p - 8)\n"


def moving(length, indent=8):
    """Return changes that write out buddy's move and copy ``length`` bytes.

    An ``indent`` of 4 also frees the old block when the new allocation failed.
    """
    body = f"""    q = malloc(k, a, size)
    if q:
        copy(k, q, p, {length})
{indent * " "}free(k, a, p)
    return q
"""
    return (
        ("    return move(k, a, p, old, size)\n", body),
        (
            "from kernel.access import load, store\n",
            "from kernel.access import copy, load, store\n",
        ),
    )


BUGS = [
    # --- Blocks -----------------------------------------------------------------------------------
    tiny(
        "overlap",
        "life",
        "overlap",
        ("    a.top += need\n", "    a.top += need - 32 * (size > 400)\n"),
    ),
    bump(
        "same_address_for_every_size_zero",
        "life",
        "overlap",
        (BUMP_TAIL, BUMP_TAIL.replace("return p", "return p if size else a.start + HEADER")),
    ),
    bump(
        "misaligned",
        "life",
        "alignment",
        ("    p = a.top + HEADER\n", "    p = a.top + HEADER + (8 if size > 400 else 0)\n"),
    ),
    buddy(
        "misaligned_aligned_alloc",
        "life",
        "alignment",
        ("p = align_up(block + HEADER, alignment)", "p = align_up(block + HEADER, alignment >> 1)"),
    ),
    bump(
        "outside_its_mapping",
        "life",
        "mapping",
        ("size_setting(128 << 10,", "size_setting(4096,"),
        ("(a.top + need > a.end and", "(a.top + HEADER > a.end and"),
    ),
    bump(
        "heap_in_the_program's_data",
        "life",
        "mapping",
        ("    a.start = align_up(sbrk(k, 0), ALIGNMENT)\n", "    a.start = sbrk(k, 0) - 4096\n"),
        what="is not the allocator's",
    ),
    bump(
        "usable_size_too_large",
        "life",
        "usable_size",
        (RETURN_LOAD, "    return 16 + load(k, p - 8)\n"),
    ),
    bump(
        "usable_size_too_small",
        "life",
        "usable_size",
        (RETURN_LOAD, "    return load(k, p - 8) - 16\n"),
    ),
    bump(
        "usable_size_changes",
        "life",
        "usable_size",
        (RETURN_LOAD, "    return load(k, p - 8) - (16 if a.top - p > 9000 else 0)\n"),
    ),
    bump(
        "null_for_no_reason",
        "life",
        "null",
        ("    if size > MAX_REQUEST or", "    if size == 0 or size > MAX_REQUEST or"),
    ),
    # --- Contents ---------------------------------------------------------------------------------
    buddy(
        "lost_copy_on_realloc",
        "life",
        "realloc",
        *moving("min(old, size) // 16 * 8"),
    ),
    buddy(
        "lost_tail_on_realloc",
        "life",
        "realloc",
        *moving("min(old, size) & -8"),
    ),
    buddy(
        "calloc_does_not_clear",
        "life",
        "calloc",
        (
            "@jit\ndef used_tag",
            "@jit\ndef calloc(k, a, size):\n    return malloc(k, a, size)\n\n\n@jit\ndef used_tag",
        ),
    ),
    buddy(
        "writes_into_its_neighbour",
        "life",
        "contents",
        (BUDDY_GIVE, "    if order == 6:\n        store(k, block + 96, 0)\n" + BUDDY_GIVE),
    ),
    # --- Metadata ---------------------------------------------------------------------------------
    buddy(
        "broken_list",
        "life",
        "check",
        ("    if after:\n        store(k, after + LINK_PREV, 0)\n    else:", "    if after == 0:"),
        what="backward link",
    ),
    buddy(
        "unnamed_check",
        "life",
        "check",
        ("            return 5\n    return 0\n", "            return 5\n    return 77\n"),
        what="check() returned 77",
    ),
    bump(
        "metadata_outside_its_mappings",
        "life",
        "signal",
        (BUMP_TAIL, "    store(k, p - 8 + (1 << 30), 0)\n" + BUMP_TAIL),
        what="SIGSEGV",
    ),
    bump(
        "misaligned_metadata",
        "life",
        "signal",
        (BUMP_TAIL, "    store(k, p - 4, 0)\n" + BUMP_TAIL),
        what="SIGBUS",
    ),
    buddy(
        "aborts_without_cause",
        "life",
        "signal",
        ("    if not tag & USED:\n", "    if not tag & USED or tag_order(tag) == 12:\n"),
        what="SIGABRT: double free",
    ),
    # --- walk -------------------------------------------------------------------------------------
    bump(
        "walk_omits_a_block",
        "life",
        "walk",
        ("BLOCK_FREE if word & GAP else", "BLOCK_FREE if word == 64 else"),
        what="does not list",
    ),
    buddy(
        "walk_shows_a_dead_block",
        "life",
        "walk",
        ("BLOCK_USED if tag & USED else BLOCK_FREE", "BLOCK_USED"),
        what="not live",
    ),
    bump(
        "walk_shows_overlapping_pieces",
        "life",
        "walk",
        ("emit(rows, n, p, HEADER, BLOCK_HEADER)", "emit(rows, n, p, HEADER + 8, BLOCK_HEADER)"),
        what="overlaps",
    ),
    bump(
        "walk_shows_what_is_not_mapped",
        "life",
        "walk",
        ("    return n\n", "    return emit(rows, n, 1 << 20, 16, BLOCK_FREE)\n"),
        what="not entirely in writable",
    ),
    bump(
        "walk_knows_another_kind",
        "life",
        "walk",
        ("    return n\n", "    return emit(rows, n, a.start, 16, 9)\n"),
        what="kind 9",
    ),
    bump(
        "walk_counts_wildly", "life", "walk", ("    return n\n", "    return -1\n"), what="-1 rows"
    ),
    # --- Time and chance --------------------------------------------------------------------------
    bump(
        "depends_on_counting",
        "as timed",
        "determinism",
        ("    need = HEADER", "    need = (k.mm.stores & 1) * 16 + HEADER"),
    ),
    bump(
        "depends_on_the_machine",
        "again",
        "determinism",
        ("    need = HEADER", "    need = k.window // 4096 % 97 * 16 + HEADER"),
    ),
    bump(
        "works_more_on_one_machine",
        "again",
        "determinism",
        (
            BUMP_FREE,
            # Change the counter only: real loads could agree by chance.
            BUMP_FREE + "    k.mm.loads += k.window // 4096\n",
        ),
        what="loads is",
    ),
    buddy(
        "loops_for_ever",
        "life",
        "lockup",
        ("            break\n        list_remove", "            continue\n        list_remove"),
        what="free has not ended",
    ),
    buddy(
        "check_loops_for_ever",
        "life",
        "lockup",
        (
            "        before = 0\n",
            "        before = 0\n        while a.chunks:\n            load(k, a.origin)\n",
        ),
        what="check has not ended",
    ),
    # --- Memory -----------------------------------------------------------------------------------
    buddy(
        "returns_nothing",
        "life",
        "retention",
        ("    while a.free_chunks > KEEP:\n", "    while False:\n"),
        ("number(20, low=12", "number(12, low=12"),
        ("KEEP = number(1,", "KEEP = number(0,"),
    ),
    tiny(
        "leaks_but_for_one_size",
        "rounds",
        "leak",
        (
            "    need = ",
            "    if 96 < size <= 112 and a.spare:\n        p = a.spare\n"
            "        a.spare = 0\n        return p\n    need = ",
        ),
        ('    """Forget the block."""\n', "    if load(k, p - 8) == 112:\n        a.spare = p\n"),
    ),
    bump(
        "negative_on_exhaustion",
        "scarcity",
        "null",
        (
            "not grow(k, a, need)):\n        return 0\n",
            "not grow(k, a, need)):\n        return -12\n",
        ),
    ),
    bump(
        "ignores_exhaustion",
        "scarcity",
        "mapping",
        ("    if sbrk(k, increment) < 0:\n        return False\n", "    sbrk(k, increment)\n"),
    ),
    tiny(
        "crashes_on_exhaustion",
        "scarcity",
        "signal",
        (
            "    if size > MAX_REQUEST or sbrk(k, need) < 0:\n",
            "    if sbrk(k, need) < 0:\n        store(k, 8, 0)\n",
        ),
        what="SIGSEGV",
    ),
    buddy(
        "gives_up_after_exhaustion",
        "scarcity",
        "exhaustion",
        ('("mapped", "i8"),', '("mapped", "i8"), ("sulks", "i8"),'),
        (
            "    block = take_block(k, a, order_for(size))\n",
            "    if a.sulks:\n        return 0\n"
            "    block = take_block(k, a, order_for(size))\n    a.sulks = block == 0\n",
        ),
    ),
    buddy(
        "gives_up_after_a_huge_request",
        "huge",
        "huge request",
        ('("mapped", "i8"),', '("mapped", "i8"), ("sulks", "i8"),'),
        (
            "    if size > (1 << MAX_ORDER) - HEADER:\n",
            "    a.sulks |= size > 1 << 46\n"
            "    if a.sulks:\n        return 0\n    if size > (1 << MAX_ORDER) - HEADER:\n",
        ),
    ),
    buddy(
        "frees_what_it_cannot_move",
        "scarcity",
        "signal",
        *moving("min(old, size)", indent=4),
        what="SIGABRT: double free",
    ),
    bump(
        "grants_less_than_asked",
        "huge",
        "usable_size",
        (
            "    if size > MAX_REQUEST or",
            "    size &= 0xFFFF\n    need = HEADER + align_up(size + 1, 16)\n    if",
        ),
    ),
    # --- Promises ---------------------------------------------------------------------------------
    buddy(
        "double_free_unnoticed",
        "double free",
        "double free",
        ("        abort(k, ABORT_DOUBLE_FREE, p)\n", "        return tag\n"),
    ),
    buddy(
        "double_free_crashes",
        "double free",
        "double free",
        ("        abort(k, ABORT_DOUBLE_FREE, p)\n", "        load(k, 8)\n"),
        what="SIGSEGV",
    ),
    buddy(
        "wild_free_unnoticed",
        "wild free",
        "wild free",
        ("    if tag & MAGIC_MASK != MAGIC:\n        abort(k, ABORT_BAD_POINTER, p)\n", ""),
        ("    if not tag & USED:\n", "    if tag & 3 == 2:\n"),
        (
            "    if order == MAPPED:\n        mapped_free(k, a, p)\n        return\n    block",
            "    block",
        ),
        (
            "    give_block(k, a, block, order)\n\n\n@jit\ndef usable_size",
            "\n\n@jit\ndef usable_size",
        ),
    ),
    buddy(
        "reset_does_nothing",
        "reset",
        "walk",
        ("@jit\ndef check(", '@jit\ndef reset(k, a):\n    """Forget to."""\n\n\n@jit\ndef check('),
    ),
    # --- Code -------------------------------------------------------------------------------------
    bump(
        "raises",
        "life",
        "exception",
        (BUMP_FREE, BUMP_FREE + "    raise ValueError\n"),
        what=".py:82: ValueError",
    ),
    bump(
        "cannot_be_compiled",
        "preparing",
        "compile",
        ("    a.top += need\n", "    a.top += min(need, helper(need))\n"),
        (
            "@jit(cold=True)\ndef grow",
            "def helper(n):\n    return n\n\n\n@jit(cold=True)\ndef grow",
        ),
        what="helper(), which is not marked @jit",
    ),
]


pytestmark = [pytest.mark.once, pytest.mark.usefixtures("few_limits")]


def find(plugin, bug, patience=20.0):
    suite = Suite(plugin, operations=OPERATIONS, patience=patience)
    suite.run(
        only={"life", bug.scenario} if bug.scenario in ("again", "as timed") else {bug.scenario}
    )
    return suite.failures


def assert_caught(bug, failures):
    found = [failure for failure in failures if failure.scenario.startswith(bug.scenario)]
    assert found, f"not caught, but: {failures}"
    assert found[0].check == bug.check, str(found[0])
    assert bug.what in found[0].what, str(found[0])
    assert bug.name in str(found[0])


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug, files):
    patience = 1.0 if bug.check == "lockup" else 20.0
    assert_caught(bug, find(files.mutant(bug.name, bug.base, *bug.changes), bug, patience))


@pytest.mark.skipif(disabled(), reason="the same as above without the JIT")
@pytest.mark.parametrize(
    "bug",
    [bug for bug in BUGS if bug.name in ("overlap", "loops_for_ever", "misaligned_metadata")],
    ids=lambda bug: bug.name,
)
def test_a_planted_bug_is_caught_in_compiled_code(bug, files):
    assert_caught(bug, find(files.mutant(bug.name, bug.base, *bug.changes), bug, patience=2.0))


def test_a_loop_is_stopped_and_ends_the_suite(files):
    bug = next(bug for bug in BUGS if bug.name == "loops_for_ever")
    before = set(threading.enumerate())
    suite = Suite(
        files.mutant(bug.name, bug.base, *bug.changes), operations=OPERATIONS, patience=2.0
    )
    heard = []
    suite.run(progress=heard.append)
    assert [failure.check for failure in suite.failures] == ["lockup"]
    assert heard[-1] == "life"
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(threading.enumerate()) - before, "the loop still runs"


def test_every_check_and_scenario_has_its_bug():
    assert len(BUGS) >= 10
    assert {bug.scenario for bug in BUGS} >= set(SCENARIOS)

"""Test the search: some order of overlapping calls must produce every logged result."""

import itertools

import pytest

from tests.kernel.linux.replay.driver import PAGE, PRIVATE, TOP, Recording

THREAD, FORK = 0x10100, 0


def threads(number=2):
    log = Recording().exec()
    for tid in range(2, number + 1):
        log.clone(tid, THREAD)
    return log


def below(pages):
    """Return the address ``pages`` pages below the top of the mapping area."""
    return TOP - pages * PAGE


def test_the_printed_order_fails_and_another_fits(replayed):
    # Thread 2's call returned first, but its mapping lies below thread 1's.
    log = threads().mmap(2, ret=below(2), at=(20, 23)).mmap(1, ret=below(3), tid=2, at=(21, 22))
    result = replayed(log)
    assert (result.code, result.counts) == (0, (2, 2, 0, 0))
    assert "1 call not in the order of return" in result.out


def test_the_same_calls_one_after_the_other_differ(replayed):
    log = threads().mmap(1, ret=below(3), tid=2, at=(21, 22)).mmap(2, ret=below(2), at=(23, 24))
    result = replayed(log)
    assert (result.code, result.counts) == (1, (2, 2, 1, 0))


def test_no_order_fits(replayed):
    log = threads().mmap(2, ret=below(2), at=(20, 23)).mmap(1, ret=below(9), tid=2, at=(21, 22))
    result = replayed(log)
    assert result.code == 1
    assert result.counts[2] == 1
    assert "no order of the overlapping calls gives Linux's result" in result.out


def test_each_order_of_three_calls_is_found(replayed):
    for order in itertools.permutations(range(3)):
        log = threads(3)
        place = dict.fromkeys(order, 0)
        pages = 0
        for thread in order:
            pages += thread + 1
            place[thread] = below(pages)
        for thread in range(3):
            at = (20 + thread, 40 - thread)
            log.mmap(thread + 1, ret=place[thread], tid=thread + 1, at=at)
        result = replayed(log)
        assert (result.code, result.counts) == (0, (3, 3, 0, 0)), order


def test_a_later_result_decides_between_two_orders(replayed):
    # munmap and mmap overlap.  mmap returned an address below the hole that munmap leaves, so it
    # must have come first.
    log = threads(3)
    log.mmap(1, ret=below(1)).mmap(1, ret=below(2), prot=1)
    log.call("munmap", below(1), PAGE, ret=0, tid=2, at=(30, 33))
    log.mmap(1, ret=below(3), tid=3, at=(31, 32))  # after munmap it would fill the hole
    log.call("munmap", below(3), PAGE, ret=0).mmap(1, ret=below(1))
    result = replayed(log)
    assert (result.code, result.counts) == (0, (6, 6, 0, 0))


def test_a_thread_ended_inside_its_call(replayed):
    log = threads().mmap(1, ret=None, tid=2, at=(20, None)).mmap(1, ret=below(1))
    result = replayed(log, "--verbose")
    assert (result.code, result.counts) == (0, (2, 1, 0, 1))
    assert "line 4: mmap(0x0, 4096, " in result.out
    assert "the thread was ended inside the call" in result.out


def test_a_fork_copies_and_a_thread_shares(replayed):
    copy = Recording().exec().clone(2, FORK).mmap(1, ret=below(1)).mmap(1, ret=below(1), tid=2)
    share = Recording().exec().clone(2, THREAD).mmap(1, ret=below(1)).mmap(1, ret=below(2), tid=2)
    vfork = Recording().exec().clone(2, 0x4100).mmap(1, ret=below(1)).mmap(1, ret=below(2), tid=2)
    for log in (copy, share, vfork):
        assert replayed(log).counts == (2, 2, 0, 0)
    swapped = Recording().exec().clone(2, FORK).mmap(1, ret=below(1)).mmap(1, ret=below(2), tid=2)
    assert replayed(swapped).counts == (2, 2, 1, 0)


def test_a_fork_copies_the_state_at_its_time(replayed):
    # The clone overlaps with another thread's mmap; the child's first result shows which was first:
    # below(2) if the child has a copy of the mapping, below(1) if not.
    log = threads().mmap(1, ret=below(1), tid=2, at=(20, 40)).clone(3, FORK, at=(21, 41))
    log.mmap(1, ret=below(2), tid=3, at=(50, 51)).mmap(1, ret=below(2), at=(52, 53))
    assert replayed(log).counts == (3, 3, 0, 0)
    log = threads().mmap(1, ret=below(1), tid=2, at=(20, 40)).clone(3, FORK, at=(21, 41))
    log.mmap(1, ret=below(1), tid=3, at=(50, 51)).mmap(1, ret=below(2), at=(52, 53))
    assert replayed(log).counts == (3, 3, 0, 0)


def test_a_fork_comes_before_its_childs_first_call(replayed):
    log = threads().clone(3, FORK, at=(20, 60)).mmap(1, ret=below(2), tid=3, at=(30, 31))
    assert replayed(log.mmap(1, ret=below(1), tid=2, at=(40, 41))).counts == (2, 2, 1, 0)


def test_an_exec_starts_a_new_image(replayed):
    log = Recording().exec().mmap(1, ret=below(1)).exec().mmap(1, ret=below(1))
    assert replayed(log).counts == (2, 2, 0, 0)
    # An exec by another thread ends all others; the caller takes over the first thread's id.
    log = threads().mmap(1, ret=below(1), tid=2).exec(former=2).mmap(1, ret=below(1))
    assert replayed(log).counts == (2, 2, 0, 0)


@pytest.mark.parametrize("system", ["unheard-of", "f2fs", "bcachefs", "erofs"])
def test_a_call_with_two_possible_results(replayed, system):
    # Depending on their version, some file systems align a mapping of 2 MiB: both addresses agree.
    pages = (2 << 20) // PAGE
    file = {"path": "/mnt/file", "file_system": system, "inode": 7}
    aligned = TOP // (2 << 20) * (2 << 20) - (2 << 20)
    for place in (aligned, below(pages)):
        log = Recording().exec().mmap(pages, ret=place, flags=2, file=file)
        assert replayed(log).counts == (1, 1, 0, 0)
    assert PRIVATE & 0x20
    elsewhere = Recording().exec().mmap(pages, ret=below(pages + 1), flags=2, file=file)
    assert replayed(elsewhere).counts == (1, 1, 1, 0)

"""Timing.schedule reduces the timing of slow jobs and leaves that of fast ones unchanged."""

import pytest

from benchmarks.run.job import Timing

MEASURE = Timing(
    timing=True, duet=False, rounds=10, samples=3, warmups=2, min_events=4_000_000, seconds=50
)


@pytest.mark.parametrize(
    ("events", "seconds", "expected"),
    [
        (1_000_000, 0.02, (3, 2, 4)),  # nothing is reduced
        (100, 0.0, (3, 2, 40_000)),
        (1_000_000, 0.5, (3, 2, 2)),  # fewer replays in a sample
        (1_000_000, 1.2, (3, 1, 1)),  # one warm-up, which the memory needs
        (1_000_000, 2.0, (1, 1, 1)),  # fewer samples
        (1_000_000, 1000.0, (1, 1, 1)),  # the rounds stay
    ],
)
def test_the_order_in_which_timing_is_reduced(events, seconds, expected):
    assert MEASURE.schedule(events, seconds) == expected

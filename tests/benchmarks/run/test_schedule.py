"""Timing.schedule reduces the timing of slow jobs and leaves that of fast ones unchanged."""

import pytest

from benchmarks.run.job import Timing

MEASURE = Timing(timing=True, processes=8, samples=3, warmups=1, min_events=4_000_000, seconds=40)


@pytest.mark.parametrize(
    ("events", "seconds", "expected"),
    [
        (1_000_000, 0.02, (8, 3, 1, 4)),  # nothing is reduced
        (100, 0.0, (8, 3, 1, 40_000)),
        (1_000_000, 0.5, (8, 3, 1, 2)),  # fewer replays in a sample
        (1_000_000, 1.5, (8, 3, 0, 1)),  # no warm-up
        (1_000_000, 3.0, (8, 1, 0, 1)),  # fewer samples
        (1_000_000, 10.0, (4, 1, 0, 1)),  # fewer processes
        (1_000_000, 1000.0, (2, 1, 0, 1)),  # at least two: one shows no spread
    ],
)
def test_the_order_in_which_timing_is_reduced(events, seconds, expected):
    assert MEASURE.schedule(events, seconds) == expected

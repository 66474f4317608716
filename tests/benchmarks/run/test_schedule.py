"""Does a slow policy get less timing, and a fast one all that was asked for?"""

import pytest

from benchmarks.run.job import Timing

MEASURE = Timing(timing=True, processes=8, samples=3, warmups=1, min_events=4_000_000, seconds=40)


@pytest.mark.parametrize(
    ("events", "seconds", "expected"),
    [
        (1_000_000, 0.02, (8, 3, 1, 4)),  # all of it
        (100, 0.0, (8, 3, 1, 40_000)),
        (1_000_000, 0.5, (8, 3, 1, 2)),  # fewer replays in a sample
        (1_000_000, 1.5, (8, 3, 0, 1)),  # no warm-up
        (1_000_000, 3.0, (8, 1, 0, 1)),  # fewer samples
        (1_000_000, 10.0, (4, 1, 0, 1)),  # fewer processes
        (1_000_000, 1000.0, (2, 1, 0, 1)),  # but two: one says nothing of spread
    ],
)
def test_what_is_given_up_first(events, seconds, expected):
    assert MEASURE.schedule(events, seconds) == expected

"""A fleet's events reproduce its profile, and errors in a profile are reported with their line."""

import numpy as np
import pytest

from benchmarks import workloads
from benchmarks.events.events import FREE, MALLOC
from benchmarks.events.ledger import Ledger
from benchmarks.events.parquet import audited
from benchmarks.workloads import WorkloadError, fleet

PROFILES = range(10)
LARGE, SMALL = 8192, 1024
LIVE, LARGEST = 64 << 20, 128 << 10


def expected_shares(profile):
    """Return mean size, share of small allocations, share of live bytes in large objects."""
    size, rate, live = profile
    bytes_ = size * live
    return (
        (size * rate).sum() / rate.sum(),
        rate[size <= SMALL].sum() / rate.sum(),
        bytes_[size > LARGE].sum() / bytes_.sum(),
    )


def live_bytes(events):
    """Return total bytes, and bytes in large objects, after each event, (n,) each."""
    followed = Ledger().follow(events)
    change = np.maximum(followed.after, 0) - np.maximum(followed.before, 0)
    large = np.maximum(followed.after, followed.before) > LARGE
    return np.cumsum(change), np.cumsum(np.where(large, change, 0))


def births(events, first):
    """Return the sizes of allocations from event ``first`` on."""
    return events.size[first:][events.op[first:] == MALLOC]


def scaled_profile(path):
    """Return bytes, live objects and lifetimes in seconds of the workload's scaled profile."""
    size, rate, live = fleet.scaled(fleet.read_profile(path), LIVE, LARGEST)
    return size, live, live / rate


@pytest.mark.parametrize("number", PROFILES)
def test_the_steady_state_matches_the_profile(traces, number):
    path = traces / "fleetbench" / f"TCMALLOC_{number}.csv"
    events = workloads.load({"name": "fleet", "path": str(path)}).events
    for _ in audited("fleet", iter([events])):
        pass
    mean, small, large = expected_shares(fleet.read_profile(path))
    first = int(np.argmax(events.op == FREE))  # the live objects come first
    assert births(events, first).mean() == pytest.approx(mean, rel=0.02)
    assert (births(events, first) <= SMALL).mean() == pytest.approx(small, rel=0.02)
    total, in_large = live_bytes(events)
    assert in_large[first:].sum() / total[first:].sum() == pytest.approx(large, rel=0.02)
    assert total[first:].mean() == pytest.approx(LIVE, rel=0.02)


@pytest.mark.parametrize("number", PROFILES)
def test_the_start_up_matches_the_profile(traces, number):
    path = traces / "fleetbench" / f"TCMALLOC_{number}.csv"
    settings = {"name": "fleet", "path": str(path), "phase": "startup"}
    events = workloads.load(settings).events
    mean, small, _ = expected_shares(fleet.read_profile(path))
    assert births(events, 0).mean() == pytest.approx(mean, rel=0.02)
    assert (births(events, 0) <= SMALL).mean() == pytest.approx(small, rel=0.02)
    # After t seconds live · (1 - exp(-t / lifetime)) objects of a size are live, plus or minus the
    # square root of that: fifteen large objects may determine a profile's startup.
    size, live, lifetime = scaled_profile(path)
    seconds = 0.95 * len(births(events, 0)) / (live / lifetime).sum()
    alive = live * -np.expm1(-seconds / lifetime)
    for seen, chosen in zip(live_bytes(events), (size > 0, size > LARGE), strict=True):
        expected = (size * alive)[chosen].sum()
        noise = np.sqrt((size**2 * alive)[chosen].sum())
        assert abs(seen[-len(seen) // 10 :].mean() - expected) < 2 * noise + 0.02 * expected


def test_the_heap_of_a_server_matches_the_profile(traces):
    """Use the second profile, because the others' heaps are larger."""
    path = traces / "fleetbench" / "TCMALLOC_1.csv"
    settings = {"name": "fleet", "path": str(path), "live": 0, "operations": 1_500_000}
    events = workloads.load(settings).events
    first = int(np.argmax(events.op == FREE))
    total, in_large = live_bytes(events)
    assert total[first:].mean() == pytest.approx(93 << 20, rel=0.02)
    large = expected_shares(fleet.read_profile(path))[2]
    assert in_large[first:].sum() / total[first:].sum() == pytest.approx(large, rel=0.02)


@pytest.fixture
def profile(tmp_path):
    """Return a profile of two sizes with lifetimes of 2 s and 500 s."""
    file = tmp_path / "profile.csv"
    file.write_text("16, 1000, 2000\n256, 2, 1000\n")
    return str(file)


def test_deaths_are_memoryless_with_littles_lifetime(profile):
    settings = {"name": "fleet", "path": profile, "live": 0, "operations": 50_000}
    events = workloads.load(settings).events
    first = int(np.argmax(events.op == FREE))
    # Births are 1/1002 s apart.  Ages at death of objects born and freed well within the run:
    clock = np.cumsum(events.op == MALLOC) / 1002
    birth, lives = {}, []
    for i in range(len(events.op)):
        slot = int(events.slot[i])
        if events.op[i] == MALLOC:
            birth[slot] = (i, events.size[i])
        else:
            at, size = birth[slot]
            if size == 16 and first <= at < len(events.op) // 4:
                lives.append(clock[i] - clock[at])
    lives = np.array(lives)
    assert lives.mean() == pytest.approx(2, rel=0.03)
    for age in (0.5, 2, 4):
        assert (lives > age).mean() == pytest.approx(np.exp(-age / 2), abs=0.02)


def test_phase_both_goes_straight_to_the_steady_state(profile):
    settings = {"name": "fleet", "path": profile, "live": 0, "phase": "both"}
    events = workloads.load(settings | {"operations": 40_000}).events
    live = np.cumsum(np.where(events.op == MALLOC, 1, -1))
    assert 0.97 * 3000 <= live[-15_000:].min() <= live[-15_000:].max() <= 1.03 * 3000
    longest = np.flatnonzero(np.diff(np.flatnonzero(events.op == FREE)) > 500)
    assert len(longest) == 1  # the long-lived objects that the startup did not reach


def test_larger_objects_come_in_pieces(tmp_path):
    file = tmp_path / "profile.csv"
    file.write_text("64, 1000, 1000\n1048576, 0.5, 1\n")
    settings = {"name": "fleet", "path": str(file), "live": 0, "operations": 9000}
    whole = workloads.load(settings | {"largest": 1 << 20}).events
    pieces = workloads.load(settings | {"largest": 1 << 17}).events
    assert (whole.size.max(), pieces.size.max()) == (1 << 20, 1 << 17)
    first = 1000
    for events in (whole, pieces):
        assert live_bytes(events)[0][first + 20] == pytest.approx(64_000 + (1 << 20), rel=0.01)


def test_heap_sizes_are_read_from_beside_the_profile(profile, tmp_path):
    sizes = tmp_path / "heap_size.csv"
    settings = {"name": "fleet", "path": profile, "operations": 40_000, "live": 0}
    rows = 16 * 2000 + 256 * 1000
    for text, live in (("7,5\n", rows), ("7,5\nprofile, 1\n", 1 << 20)):
        sizes.write_text(text)
        total, _ = live_bytes(workloads.load(settings).events)
        assert total[-5000:].mean() == pytest.approx(live, rel=0.02)
    for text in ("profile\n", "profile,0\n", "profile,x\n", "profile,1,2\n"):
        sizes.write_text("1,1\n" + text)
        with pytest.raises(WorkloadError, match=r"heap_size.csv: line 2: expected profile, MiB"):
            workloads.validate(settings)
        workloads.validate(settings | {"live": 1 << 20})
    sizes.write_bytes(b"\xff")
    with pytest.raises(WorkloadError, match=r"heap_size.csv: not a text file"):
        workloads.validate(settings)


WRONG = [
    ("8, 1, 1\n8, 1\n", "line 2: expected size, rate, live; found 2 fields"),
    ("8, 1, 1\n\nx, 1, 1\n", "line 3: size is 'x', not a number"),
    ("8, 1, many\n", "line 1: live is 'many', not a number"),
    ("8, nan, 1\n", "line 1: rate=nan: must be 0 or more"),
    ("8, 1, -1\n", "line 1: live=-1: must be 0 or more"),
    ("8.5, 1, 1\n", "line 1: size=8.5: must be a whole number"),
    ("0, 1, 1\n", "line 1: size=0: must be a whole number"),
    ("8, 0, 1\n", "line 1: rate=0: must be above 0, since live=1"),
    ("", "all rates or all live counts are 0"),
    ("8, 1, 0\n", "all rates or all live counts are 0"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[m for _, m in WRONG])
def test_a_broken_profile_is_named_with_its_line(tmp_path, text, message):
    file = tmp_path / "profile.csv"
    file.write_text(text)
    for check in (workloads.validate, workloads.load):
        with pytest.raises(WorkloadError) as caught:
            check({"name": "fleet", "path": str(file)})
        assert f"{file}: {message}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "profile.csv"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkloadError, match="not a text file"):
        workloads.validate({"name": "fleet", "path": str(file)})


def test_too_few_operations_for_the_live_objects_are_refused(profile):
    for phase, least in (("steady", 3001), ("both", 6002)):
        settings = {"name": "fleet", "path": profile, "live": 0, "phase": phase}
        with pytest.raises(WorkloadError, match=f"must be at least {least} for 3000 live"):
            workloads.validate(settings | {"operations": least - 1})
        workloads.load(settings | {"operations": least})

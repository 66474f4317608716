"""A new allocator needs one Python file and one YAML file, and no change to existing files."""

import hashlib
import json

from tests.benchmarks.run.conftest import ROOT, SMALL, result_directory

BUMP = (ROOT / "allocators" / "bump.py").read_text()
#: The README's recipe: bump, copied and changed.
PLUGIN = BUMP.replace("GROWTH = size_setting(128 << 10", "GROWTH = size_setting(256 << 10")
YAML = """# A bump of one's own
name: mine.py
growth: 65536
"""


def test_a_new_allocator_runs_everywhere(bench, python, tmp_path):
    assert PLUGIN != BUMP
    home = tmp_path / "mine"
    (home / "allocator").mkdir(parents=True)
    plugin = home / "allocator" / "mine.py"
    plugin.write_text(PLUGIN)
    (home / "allocator" / "mine.yaml").write_text(YAML)

    done = bench(
        *("--config-dir", str(home), "-m", "allocator=mine,bump", "measure=quick"),
        "measure.rounds=1",
        *("workload.sizes.kind=uniform", *SMALL),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    directory = result_directory(done)
    labels = {json.loads(p.read_text())["label"] for p in directory.glob("*/run.json")}
    digest = hashlib.sha256(PLUGIN.encode()).hexdigest()[:6]
    assert labels == {f"mine@{digest}(growth=65536)", "bump"}

    help_text = bench("--config-dir", str(home), "--help").stdout
    assert "mine" in help_text

    speed = python("-m", "benchmarks.speed", "--json", "--events=60000", "--rounds=1", plugin)
    assert speed.returncode == 0, speed.stderr
    rows = json.loads(speed.stdout)
    assert [row["name"].split("@")[0] for row in rows] == ["libc", "harness", "mine"]
    assert all(set(row) == {"name", "ns_per_event", "ratio_to_libc"} for row in rows)

    # The compiled form has been tested above.
    verify = python(
        *("-m", "allocators.verify", plugin, "--operations=2000", "--settings", "growth=65536"),
        NUMBA_DISABLE_JIT="1",
    )
    assert verify.returncode == 0, verify.stdout + verify.stderr

    figures = python("-m", "analysis", directory, "-o", tmp_path / "figures")
    assert figures.returncode == 0, figures.stderr
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {
        f"{n}.{e}" for n in ("time", "memory", "pareto", "faults") for e in ("png", "svg")
    } <= made

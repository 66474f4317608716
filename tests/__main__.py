"""Run the suite in its lanes: ``python -m tests``.

    user     bench.py and figures: as a user has them
    plain    kernel and allocators as plain Python, with branch coverage
    bounds   kernel and allocators' contracts, compiled, with every array index checked
    traces   traces and workloads
    core     what holds the model against the real kernel, the twin against glibc, golden counters,
             and tests that choose their own build
    wheel    the project as pip installs it, beside somebody else's allocator; only when named

Lanes that compile alike share a directory of compiled code.  As many lanes run at a time as there
are cores.
What a lane printed is shown when it ends; exit code 1 when any failed.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What holds the model against the real kernel, but for the comparison itself.
LINUX = [f"tests/kernel/linux/{name}" for name in ("host", "replay", "calibrate")]
#: The model, in each way of running it.
MODEL = ["tests/kernel", *(f"--ignore={folder}" for folder in LINUX)]
CONTRACT = "tests/allocators/test_allocators_keep_their_contract.py"
#: Tests of what runs before the compiler is asked for: the walk that build() makes over what it
#: compiles, the frame of commands, and the files that they write.
EARLY = [
    f"tests/kernel/engine/test_{name}.py"
    for name in ("jit", "syntax", "switches", "command", "output")
]
#: Plain Python in every lane, so that one is enough, with coverage.
ALWAYS_PLAIN = [
    "tests/allocators/test_check_notices_damage.py",
    "tests/allocators/verify/test_verify_command.py",
]
TRACES = [f"tests/benchmarks/{name}" for name in ("events", "trace", "workloads", "speed")]
CORE = [*LINUX, "tests/allocators", "tests/benchmarks/twin", "tests/benchmarks/replay"]
PYTEST = [sys.executable, "-m", "pytest", "--durations=5"]
COVERAGE = [sys.executable, "-m", "coverage"]

#: By name: the environment's changes, and commands to run one after the other.  In this order, two
#: at a time, they end together.
LANES = {
    "user": (
        {},
        [[*PYTEST, *(f"--ignore={folder}" for folder in ["tests/kernel", *TRACES, *CORE])]],
    ),
    "core": (
        {},
        [
            [*PYTEST, "-m", "once", *MODEL, CONTRACT],
            [*PYTEST, *CORE, *(f"--ignore={file}" for file in [CONTRACT, *ALWAYS_PLAIN])],
        ],
    ),
    "traces": ({}, [[*PYTEST, *TRACES]]),
    "bounds": ({"NUMBA_BOUNDSCHECK": "1"}, [[*PYTEST, "-m", "not once", *MODEL, CONTRACT]]),
    "plain": (
        {"NUMBA_DISABLE_JIT": "1"},
        [
            [*COVERAGE, "run", *PYTEST[1:], "-m", "not once", *MODEL, "tests/allocators"],
            [*COVERAGE, "run", "--append", *PYTEST[1:], "-m", "once", *EARLY],
            [*COVERAGE, "report"],
        ],
    ),
    "wheel": ({}, [[*PYTEST, "-m", "wheel", "tests/test_wheel.py"]]),
}
#: What runs only when it is named: it needs the package index.
NAMED = {"wheel"}


def run_lane(name: str) -> tuple[str, int, str, float]:
    """Run one lane; returns its name, exit code, output and seconds."""
    changes, commands = LANES[name]
    cache = ROOT / "build" / "lanes" / ("-".join(changes) or "compiled")
    environment = os.environ | changes | {"NUMBA_CACHE_DIR": str(cache), "COLUMNS": "100"}
    begin = time.monotonic()
    output = ""
    code = 0
    for command in commands:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output += done.stdout
        code = code or done.returncode
    return name, code, output, time.monotonic() - begin


def main() -> int:
    """Run the lanes named on the command line, or all that need not be named."""
    names = sys.argv[1:] or [name for name in LANES if name not in NAMED]
    unknown = [name for name in names if name not in LANES]
    if unknown:
        print(f"no lane {unknown[0]!r}; choose of {', '.join(LANES)}", file=sys.stderr)
        return 2
    failed = []
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, len(names))) as pool:
        for lane in as_completed([pool.submit(run_lane, name) for name in names]):
            name, code, output, seconds = lane.result()
            print(f"=== lane {name}: {seconds:.0f} s, exit code {code} ===\n{output}", flush=True)
            if code:
                failed.append(name)
    print(
        f"failed lanes: {', '.join(failed)}" if failed else f"all lanes passed: {', '.join(names)}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

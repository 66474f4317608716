"""``python -m benchmarks.real.loop``: compare the compiled loop with the same loop in C.

Both loops call this process's malloc for the same stored events, alternately.  The ratio of their
medians shows the overhead that the loop of benchmarks.real.timed adds to its measurements.  The C
program is generated here and compiled by ``cc -O2``; LD_PRELOAD replaces the C library's malloc.
The exit code is 77 if there is no compiler.
"""

import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from allocators.base import operation as ops
from benchmarks import workloads
from benchmarks.real import libc
from benchmarks.workloads import Workload, WorkloadError
from kernel.engine.command import OneLineParser, positive, run, whole

#: The workload of benchmarks.speed: about 25,000 live objects, mean ≈ 140 bytes.
CHURN = {"name": "churn", "live": 25_000, "seed": 1}
IMPOSSIBLE = 77

_C = """
#include <stdint.h>
#include <stdlib.h>

typedef struct { int64_t block, size; } object;
typedef struct { int64_t now, checksum, failed, skipped, first_failure; } run;

static __attribute__((noinline)) void fail(run *r, object *o) {
    if (r->failed == 0) r->first_failure = r->now;
    r->failed++;
    o->block = 0;
    o->size = -1;
}

static inline void born(run *r, object *o, void *p, int64_t size) {
    o->block = (int64_t)p;
    o->size = size;
    if (o->block <= 0) { fail(r, o); return; }
    r->checksum += o->block;
}

static __attribute__((noinline)) void rare(run *r, object *o, int op, int64_t size, int align) {
    if (op == CALLOC) { born(r, o, calloc(1, size), size); return; }
    if (op == ALIGNED) {
        size_t alignment = (size_t)1 << align;
        born(r, o, aligned_alloc(alignment < 16 ? 16 : alignment, size), size);
        return;
    }
    if (op != REALLOC) return;
    if (o->block == 0) {
        if (o->size < 0) { r->skipped++; return; }
        born(r, o, malloc(size), size);
        return;
    }
    if (size == 0) {
        void *p = (void *)o->block;
        o->block = 0;
        free(p);
        return;
    }
    void *q = realloc((void *)o->block, size);
    if (q == NULL) { r->failed++; return; }
    r->checksum += (int64_t)q;
    o->block = (int64_t)q;
    o->size = size;
}

void replay(run *r, object *objects, const uint8_t *op, const int32_t *slot, const int64_t *size,
            const uint8_t *align, int64_t events) {
    for (int64_t i = 0; i < events; i++) {
        object *o = &objects[slot[i]];
        *(volatile int64_t *)&r->now = i;
        if (op[i] == MALLOC) {
            born(r, o, malloc(size[i]), size[i]);
        } else if (op[i] == FREE) {
            if (slot[i] < 0) continue;
            void *p = (void *)o->block;
            if (p == NULL) { r->skipped++; o->size = 0; continue; }
            o->block = 0;
            free(p);
        } else {
            rare(r, o, op[i], size[i], align ? align[i] : 0);
        }
    }
}
"""


class LoopError(RuntimeError):
    """The C program cannot be built; the message gives the reason on one line."""


class CLoop:
    """C loop for stored events, compiled and loaded into this process.  Raises LoopError."""

    def __init__(self, workload: Workload) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise LoopError("no C compiler (cc) found; install one")
        names = {"MALLOC": ops.MALLOC, "FREE": ops.FREE, "REALLOC": ops.REALLOC}
        names |= {"CALLOC": ops.CALLOC, "ALIGNED": ops.ALIGNED}
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "loop.c"), Path(folder, "loop.so")
            source.write_text(_C)
            # Without builtins: the compiler must not optimise a malloc and its free away.
            options = ["-O2", "-fno-builtin", "-shared", "-fPIC"]
            options += [f"-D{name}={value}" for name, value in names.items()]
            command = [compiler, *options, "-o", str(target), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
                raise LoopError(f"{compiler} failed: {reason}")
            self._replay = ctypes.CDLL(str(target)).replay
        self._replay.argtypes = [*[ctypes.c_void_p] * 6, ctypes.c_int64]
        self._replay.restype = None

        self._events = workload.events
        self._objects = np.zeros((max(workload.slots, 1), 2), "i8")

    def replay(self) -> tuple[float, int]:
        """Replay once.  Returns the seconds and the sum of all addresses.

        Blocks still live at the end are freed afterwards, outside the timed part.
        """
        e, objects = self._events, self._objects
        run = np.zeros(5, "i8")
        columns = [e.op, e.slot, e.size, e.align]
        places = [column.ctypes.data if len(column) else None for column in columns]
        begin = perf_counter()
        self._replay(run.ctypes.data, objects.ctypes.data, *places, len(e.op))
        seconds = perf_counter() - begin
        libc.release(objects[:, 0])
        objects.fill(0)
        return seconds, int(run[1])


def compare(workload: Workload, rounds: int) -> dict[str, Any]:
    """Replay with both loops alternately.

    Returns the medians in ns per event and the ratio compiled ÷ C of these medians.  ``quarter``
    and ``three_quarters`` are the quartiles of the ratios of single rounds: the noise of the
    machine.  Raises LoopError if there is no C compiler.
    """
    from benchmarks.replay.simulation import TIMED, Simulation
    from kernel.config import KernelConfig

    c = CLoop(workload)
    bindings = TIMED | libc.bindings(touches=False)
    compiled = Simulation(libc.plugin(), workload, KernelConfig(), bindings)

    def replay_compiled() -> float:
        seconds = compiled.replay(watch=False)
        libc.release(compiled.objects[:, 0])
        compiled.objects.fill(0)
        return seconds

    ours, theirs = [], []
    for number in range(rounds + 1):
        # Alternate which loop goes first, so that neither always inherits the other's heap.
        for is_ours in (True, False) if number % 2 else (False, True):
            if is_ours:
                ours.append(replay_compiled())
            else:
                theirs.append(c.replay()[0])
    events = compiled.length
    pairs = sorted(mine / its for mine, its in zip(ours[1:], theirs[1:], strict=True))
    first, second = median(ours[1:]), median(theirs[1:])  # the first round is the warm-up
    return {
        "events": events,
        "rounds": rounds,
        "compiled_ns": first / events * 1e9,
        "c_ns": second / events * 1e9,
        "ratio": first / second,
        "quarter": pairs[len(pairs) // 4],
        "three_quarters": pairs[len(pairs) * 3 // 4],
    }


def main() -> int:
    """Measure and print.  Returns the exit code."""
    parser = OneLineParser(
        prog="python -m benchmarks.real.loop", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--events",
        type=whole(CHURN["live"]),
        default=2_000_000,
        metavar="N",
        help="events of the churn",
    )
    parser.add_argument(
        "--rounds", type=positive, default=21, metavar="N", help="replays of each loop"
    )
    parser.add_argument("--trace", metavar="FILE", help="replay a trace instead of the churn")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    trace = {"name": "trace", "path": args.trace, "stream": "never"}
    try:
        workload = workloads.load(trace if args.trace else CHURN | {"operations": args.events})
        found = compare(workload, args.rounds)
    except WorkloadError as error:
        print(f"loop: {error}", file=sys.stderr)
        return 1
    except LoopError as error:
        print(f"loop: {error}", file=sys.stderr)
        return IMPOSSIBLE
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['events']} events, medians of {found['rounds']} alternating rounds")
    print(f"compiled loop {found['compiled_ns']:8.2f} ns per event")
    print(f"loop in C     {found['c_ns']:8.2f} ns per event")
    print(
        f"ratio         {found['ratio']:8.3f}   (quartiles of the rounds: {found['quarter']:.3f} "
        f"to {found['three_quarters']:.3f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run("benchmarks.real.loop", main))

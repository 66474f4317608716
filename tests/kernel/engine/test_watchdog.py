"""The watchdog: the caller gets the function's result or exception, or SoftLockup."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.jit import disabled
from kernel.engine.watchdog import SoftLockup, watched
from tests.conftest import ROOT


@pytest.fixture
def k():
    return Machine(KernelConfig(window_bits=32)).k


def run_script(body):
    """Run a script in a separate process, which may hang; return (exit code, output)."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_result_comes_back(k):
    assert watched(k, lambda a, b: a + b, 2, 3) == 5


def test_exceptions_come_back(k):
    def fail():
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        watched(k, fail)


def test_progress_is_told_the_event(k):
    def work():
        for n in range(1, 60):
            k.task.now = n
            time.sleep(0.005)

    seen = []
    watched(k, work, progress=seen.append)
    assert seen == sorted(seen)
    assert 2 <= len(seen) <= 50
    assert 0 < seen[-1] < 60


def test_slow_work_that_advances_is_no_lockup(k):
    def work():
        for n in range(15):
            k.task.now = n
            time.sleep(0.1)

    watched(k, work, patience=1.2)


def test_silence_is_a_lockup(k):
    done = threading.Event()

    def hang():
        k.task.now = 17
        done.wait(30)

    begin = time.monotonic()
    with pytest.raises(SoftLockup, match=r"event 17 has not ended after 0\.3 s") as error:
        watched(k, hang, patience=0.3)
    done.set()
    assert error.value.event == 17
    assert time.monotonic() - begin < 5


@pytest.mark.skipif(disabled(), reason="a plain loop can be interrupted")
def test_compiled_endless_loop_is_a_lockup():
    """Compiled code cannot be stopped: SoftLockup is raised meanwhile, then the script exits."""
    code, output = run_script("""
        import os
        from kernel.boot import Machine
        from kernel.config import KernelConfig
        from kernel.engine.jit import build, jit
        from kernel.engine.watchdog import SoftLockup, watched

        @jit
        def spin(k, n):
            for event in range(n):
                k.task.now = event
                while event == 41 and k.mm.brk:
                    k.mm.loads += 1

        k = Machine(KernelConfig(window_bits=32)).k
        loop = build(spin, cache=False)
        loop(k, 0)
        try:
            watched(k, loop, k, 100, patience=0.5)
        except SoftLockup as error:
            print(error, flush=True)
            os._exit(7)
    """)
    assert (code, output.strip()) == (
        7,
        "event 41 has not ended after 0.5 s: it loops for ever",
    )


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_keyboard_interrupt_gets_through():
    code, output = run_script(f"""
        import os, signal, sys, threading, time
        from kernel.boot import Machine
        from kernel.config import KernelConfig
        from kernel.engine.watchdog import watched

        k = Machine(KernelConfig(window_bits=32)).k
        threading.Timer(0.5, os.kill, (os.getpid(), {int(signal.SIGINT)})).start()
        begin = time.monotonic()
        try:
            watched(k, time.sleep, 60)
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - begin < 5, flush=True)
        os._exit(0)
    """)
    assert (code, output.strip()) == (0, "interrupted True")


@pytest.mark.hardening(6)
@pytest.mark.skipif(disabled(), reason="nothing is compiled with the JIT off")
def test_a_loop_that_is_compiled_in_the_watched_thread_may_print():
    code, output = run_script("""
        from kernel.boot import Machine
        from kernel.config import KernelConfig
        from kernel.engine.jit import build, jit
        from kernel.engine.watchdog import watched

        @jit
        def tell(k, n):
            print("event", n)

        @jit
        def loop(k, n):
            for i in range(n):
                k.task.now = i
                tell(k, i)

        k = Machine(KernelConfig(window_bits=32)).k
        watched(k, build(loop, cache=False), k, 1000, patience=60)
    """)
    assert code == 0, output
    assert output.splitlines() == [f"event {n}" for n in range(1000)]

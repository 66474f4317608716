"""Is the wait for the compiler told, and only that?"""

import io
import multiprocessing
import sys
import time

import pytest

from kernel.engine.jit import build, disabled, jit
from kernel.engine.progress import compiler_runs, shown_progress, with_compiler

pytestmark = pytest.mark.once


@jit
def below(n):
    return n + 1


@jit
def above(n):
    return 2 * below(n)


def heard(what, done):
    """What is told of progress while something is ``done``."""
    told = []
    with with_compiler(lambda fraction, text: told.append((fraction, text))) as progress:
        progress(0.5, what)
        done()
    return told


@pytest.mark.skipif(disabled(), reason="nothing is compiled")
def test_what_is_compiled_is_told_once_and_what_is_cached_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    first = heard("preparing it", lambda: build(above)(3))
    assert first == [(0.5, "preparing it"), (0.5, "compiling it"), (0.5, "preparing it")]
    assert heard("preparing it", lambda: build(above)(3)) == [(0.5, "preparing it")]


@pytest.mark.parametrize(
    ("what", "compiled"),
    [
        ("preparing", "compiling"),
        ("preparing buddy", "compiling buddy"),
        ("reading", "reading, compiling"),
    ],
)
def test_the_words_for_it(what, compiled):
    assert heard(what, lambda: compiler_runs(True))[-1] == (0.5, compiled)


def test_a_forked_worker_does_not_speak_for_its_parent():
    def work():
        compiler_runs(True)
        raise SystemExit(len(told))

    told = []
    with with_compiler(lambda fraction, what: told.append(what)):
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
    assert process.exitcode == 0


def shown(monkeypatch, terminal, work):
    """What stands on standard error when ``work`` has been given a progress of 0.1 s."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with shown_progress("it", after=0.1) as progress:
        work(progress)
    return stream.getvalue()


def test_a_file_gets_a_line_though_nothing_more_is_told(monkeypatch):
    def work(progress):
        progress(0.0, "preparing buddy")
        compiler_runs(True)
        time.sleep(0.4)

    assert shown(monkeypatch, False, work) == "it: compiling buddy\n"


def test_what_is_over_soon_is_not_shown(monkeypatch):
    for terminal in (False, True):
        assert not shown(monkeypatch, terminal, lambda progress: progress(0.5, "preparing buddy"))


def test_the_clock_of_a_terminal_runs_on(monkeypatch):
    def work(progress):
        progress(1.0, "replaying")  # the end of one part
        progress(0.0, "preparing buddy")
        compiler_runs(True)
        time.sleep(1.5)

    monkeypatch.setenv("TERM", "xterm")
    text = shown(monkeypatch, True, work)
    assert "it: compiling buddy" in text
    assert "0:00:00" in text
    assert "0:00:01" in text

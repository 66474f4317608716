"""Progress of long work, shown on standard error, and reports of running compilations.

The longest wait is often for the compiler, at the first use of an allocator.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

#: Callback that takes the fraction done and the name of the current step.
Progress = Callable[[float, str], None]


def no_progress(fraction: float, step: str) -> None:
    """Report nothing: a Progress for callers that show none."""


#: Callbacks for the start (True) and the end (False) of a compilation.
_listeners: list[Callable[[bool], None]] = []
# The parent's display does not show the compilations of a forked worker.
os.register_at_fork(after_in_child=_listeners.clear)


def compiler_runs(running: bool) -> None:
    """Report that a compilation starts or ends (called by kernel.engine.link)."""
    for listener in _listeners:
        listener(running)


@contextmanager
def with_compiler(progress: Progress) -> Iterator[Progress]:
    """Yield a Progress that calls ``progress`` and also reports compilations in this process.

    During a compilation the step "preparing X" becomes "compiling X", and any other step X becomes
    "X, compiling".  Code that is loaded from the cache is not reported.
    """
    fraction, step = 0.0, ""

    def report(*now: float | str) -> None:
        nonlocal fraction, step
        fraction, step = now
        progress(fraction, step)

    def on_compiler(running: bool) -> None:
        prepared = step.removeprefix("preparing")
        compiling = f"compiling{prepared}" if prepared != step else f"{step}, compiling"
        progress(fraction, compiling if running else step)

    _listeners.append(on_compiler)
    try:
        yield report
    finally:
        _listeners.remove(on_compiler)


@contextmanager
def shown_progress(title: str, after: float = 2.0) -> Iterator[Progress]:
    """Yield a Progress that is shown on standard error after ``after`` seconds.

    A terminal gets a bar with a clock.  A file or pipe gets a line for the current step every
    ``after`` seconds, unless it already has a line for that step.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    # Output to a file must not be redirected to the terminal.
    bar = Bar(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    task = bar.add_task(title, total=1.0)
    ended, text = Event(), ""

    def progress(fraction: float, step: str) -> None:
        nonlocal text
        text = f"{title}: {step}"
        # Never full: the clock of a full bar stops, although another step may follow.
        bar.update(task, completed=min(fraction, 0.999), description=text)

    def show() -> None:
        printed = {""}  # text before the first step
        while not ended.wait(after):
            if console.is_terminal:
                bar.start()
            elif text not in printed:
                printed.add(text)
                console.print(text, highlight=False, markup=False, soft_wrap=True)

    thread = Thread(target=show, daemon=True)
    thread.start()
    try:
        with with_compiler(progress) as report:
            yield report
    finally:
        ended.set()
        thread.join()
        if bar.live.is_started:
            bar.stop()

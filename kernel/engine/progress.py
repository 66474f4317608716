"""Progress of long work, shown on standard error, and what it says of the compiler.

The longest wait of all is often that for the compiler, the first time that something is used.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

#: Called with a fraction done and what is being done.
Progress = Callable[[float, str], None]

#: Who hears that the compiler begins (True) and ends.
_hearers: list[Callable[[bool], None]] = []
# What a forked worker compiles is not what its parent shows.
os.register_at_fork(after_in_child=_hearers.clear)


def compiler_runs(begins: bool) -> None:
    """Tell that the compiler begins, or ends: kernel.engine.link does."""
    for hear in _hearers:
        hear(begins)


@contextmanager
def with_compiler(progress: Progress) -> Iterator[Progress]:
    """Yield ``progress``, which now also hears when something in this process is compiled.

    Of "preparing X" it is then told "compiling X", of anything else "X, compiling".  What comes
    from the cache is not compiled.
    """
    fraction, what = 0.0, ""

    def report(*now: float | str) -> None:
        nonlocal fraction, what
        fraction, what = now
        progress(fraction, what)

    def hear(begins: bool) -> None:
        prepared = what.removeprefix("preparing")
        compiled = f"compiling{prepared}" if prepared != what else f"{what}, compiling"
        progress(fraction, compiled if begins else what)

    _hearers.append(hear)
    try:
        yield report
    finally:
        _hearers.remove(hear)


@contextmanager
def shown_progress(title: str, after: float = 2.0) -> Iterator[Progress]:
    """Yield a Progress that shows itself on standard error once ``after`` seconds have passed.

    A terminal gets a bar with a clock; a file or pipe gets, every ``after`` seconds, a line for
    what is being done if it has none yet.
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
    # What is printed to a file meanwhile must not go to the terminal.
    bar = Bar(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    task = bar.add_task(title, total=1.0)
    ended, text = Event(), ""

    def progress(fraction: float, what: str) -> None:
        nonlocal text
        text = f"{title}: {what}"
        # Of a full bar the clock would stop, though another part may begin.
        bar.update(task, completed=min(fraction, 0.999), description=text)

    def show() -> None:
        said = {""}  # nothing was told yet
        while not ended.wait(after):
            if console.is_terminal:
                bar.start()
            elif text not in said:
                said.add(text)
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

"""Progress of long work, shown on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

#: Called with a fraction done and what is being done.
Progress = Callable[[float, str], None]


@contextmanager
def shown_progress(title: str, after: float = 2.0) -> Iterator[Progress]:
    """Yield a Progress that shows itself on standard error once ``after`` seconds have passed.

    A terminal gets a bar; a file or pipe gets a line for each new thing that is done.
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
    bar = Bar(*columns, console=console, transient=True)
    task = bar.add_task(title, total=1.0)
    begin = monotonic()
    said = ""

    def progress(fraction: float, what: str) -> None:
        nonlocal said
        late = monotonic() - begin > after
        if not console.is_terminal:
            if late and what != said:
                console.print(f"{title}: {what}", highlight=False)
                said = what
            return
        bar.update(task, completed=fraction, description=f"{title}: {what}")
        if late and not bar.live.is_started:
            bar.start()

    try:
        yield progress
    finally:
        if bar.live.is_started:
            bar.stop()

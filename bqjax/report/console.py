"""What a command shows while it works: lines as they are, and a progress bar."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from bqjax.core.progress import Progress

__all__ = ["progress_bar", "say"]


def say(console: Console, text: str) -> None:
    """Prints a line as it is: brackets and colons in names are not rich's markup."""
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextmanager
def progress_bar(console: Console, what: str) -> Iterator[Progress]:
    """A live bar on a terminal; elsewhere a line every few seconds, so that a log shows that work goes on."""
    if not console.is_terminal:
        start = last = time.monotonic()

        def line(done: int, total: int, message: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 5 or done == total:
                last = now
                say(console, f"{what} {done}/{total} {message} ({now - start:.0f} s)")

        yield line
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}", markup=False),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, message="")
        yield lambda done, total, message: bar.update(task, completed=done, total=total, message=message)

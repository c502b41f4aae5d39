"""Progress bars, one style everywhere."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


def bars(console: Console) -> Progress:
    """A progress display; plain lines where the console is no terminal."""
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), console=console,
    )  # fmt: skip


def reporter(progress: Progress) -> Callable[[int, int, str], None]:
    """A function (done, total, text) with one bar per text."""
    tasks: dict[str, TaskID] = {}

    def report(done: int, total: int, text: str) -> None:
        if text not in tasks:
            tasks[text] = progress.add_task(text, total=total)
        progress.update(tasks[text], completed=done, total=total)

    return report

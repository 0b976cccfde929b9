"""Progress of long work, as a seam: the library reports, a display that somebody switched on shows it.

Nothing is shown by default. The commands switch on :class:`RichProgress`; a notebook or a service may bring its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class ProgressDisplay(Protocol):
    """What a display offers to the code that works."""

    def start(self, label: str, total: int | None) -> int:
        """Open a line called `label` for `total` units and return its handle."""

    def advance(self, line: int, note: str = "") -> None:
        """One more unit of `line` is done; `note` says something about it."""

    def finish(self, line: int) -> None:
        """`line` is complete."""


class Silent:
    """The display that shows nothing."""

    def start(self, label: str, total: int | None) -> int:
        return 0

    def advance(self, line: int, note: str = "") -> None:
        pass

    def finish(self, line: int) -> None:
        pass


class RichProgress:
    """One bar a line on a rich console."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
        )

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def start(self, label: str, total: int | None) -> int:
        return self._bars.add_task(label, total=total, note="")

    def advance(self, line: int, note: str = "") -> None:
        self._bars.update(line, advance=1, note=note)  # type: ignore[arg-type]

    def finish(self, line: int) -> None:
        # Work that may end early (a fit that converges) shows what was done, not what was allowed.
        task = self._bars.tasks[line]
        self._bars.update(line, total=task.completed, completed=task.completed)  # type: ignore[arg-type]


_current: ContextVar[ProgressDisplay] = ContextVar("daskmeans-progress", default=Silent())  # noqa: B039


@contextlib.contextmanager
def shown_on(display: ProgressDisplay) -> Iterator[None]:
    """Send the progress of everything inside the ``with`` block to `display`."""
    token = _current.set(display)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def line(label: str, total: int | None = None) -> Iterator[Line]:
    """A line of the current display, open for the length of the ``with`` block."""
    display = _current.get()
    handle = display.start(label, total)
    try:
        yield Line(display, handle)
    finally:
        display.finish(handle)


class Line:
    """An open line; `advance` it once per finished unit."""

    def __init__(self, display: ProgressDisplay, handle: int) -> None:
        self._display, self._handle = display, handle

    def advance(self, note: str = "") -> None:
        self._display.advance(self._handle, note)

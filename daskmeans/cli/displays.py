"""Progress displays: bars in a terminal, lines of text in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from daskmeans.runtime.progress import format_left


class RichProgress:
    """One progress bar for each task on a rich console; further lines of a note appear below its bar."""

    def __init__(self, console: Console) -> None:
        self._bars = _Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", table_column=Column(min_width=13)),
            BarColumn(bar_width=16),
            MofNCompleteColumn(table_column=Column(min_width=7)),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[head]}"),
            console=console,
        )

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def start(self, label: str, total: int | None) -> int:
        return self._bars.add_task(label, total=total, head="", below="")

    def advance(self, line: int, note: str = "") -> None:
        head, _, below = note.partition("\n")
        self._bars.update(line, advance=1, head=head, below=below)  # type: ignore[arg-type]

    def finish(self, line: int) -> None:
        # Work that may end early (a fit that converges) shows how much was done, not the maximum.
        task = self._bars.tasks[line]
        self._bars.update(line, total=task.completed, completed=task.completed)  # type: ignore[arg-type]


class _Bars(Progress):
    """Bars with the same columns, each with its notes below; in one table, notes could not span the columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if task.fields["below"]:
                yield Padding(Text(task.fields["below"], "dim"), (0, 0, 0, 2))


class PlainProgress:
    """Plain text for a log: a row when a task finishes, and one now and then while it takes long.

    Parameters
    ----------
    console : Console
    every : float, default 10.0
        Seconds between the rows of one task.
    """

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self._console, self._every = console, every
        self._lines: list[_PlainLine] = []

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def start(self, label: str, total: int | None) -> int:
        self._lines.append(_PlainLine(label, total))
        return len(self._lines) - 1

    def advance(self, line: int, note: str = "") -> None:
        shown = self._lines[line]
        shown.done, shown.note = shown.done + 1, note.replace("\n", " · ")
        if time.perf_counter() - shown.printed >= self._every:
            shown.printed = time.perf_counter()
            left = format_left(shown.done, shown.total or 0, shown.printed - shown.started)
            estimate = f", {left}" if left and " left" not in shown.note else ""  # some notes have one of their own
            self._print(shown, f"{shown.done:,}" + (f" of {shown.total:,}" if shown.total else "") + estimate)

    def finish(self, line: int) -> None:
        shown = self._lines[line]
        self._print(shown, f"{shown.done:,} in {time.perf_counter() - shown.started:.1f} s")

    def _print(self, line: _PlainLine, state: str) -> None:
        text = f"{line.label}: {state}" + (f" · {line.note}" if line.note else "")
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass
class _PlainLine:
    label: str
    total: int | None
    done: int = 0
    note: str = ""
    started: float = field(default_factory=time.perf_counter)
    printed: float = field(default_factory=time.perf_counter)


def display_on(console: Console) -> RichProgress | PlainProgress:
    """Return bars if `console` is a terminal, else text that reads well in a file."""
    return RichProgress(console) if console.is_terminal else PlainProgress(console)

"""Progress displays: bars in a terminal, lines of text in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from daskmeans.runtime.progress import format_left

# What a line says that is about to compile kernels, until it has done its first unit.
COMPILING = "compiling kernels, once on this machine, about 20 s"


class RichProgress:
    """One progress bar for each task on a rich console; further lines of a note appear below its bar.

    Parameters
    ----------
    console : Console
    compiling : set of str, default empty
        Labels of the lines that will compile kernels.
    """

    def __init__(self, console: Console, compiling: AbstractSet[str] = frozenset()) -> None:
        self._compiling = compiling
        self._bars = _Bars(
            _Mark(finished_text="[green]✓"),
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
        head = COMPILING if label in self._compiling else ""
        self._compiling -= {label}
        return self._bars.add_task(label, total=total, head=head, below="", given_up=False)

    def advance(self, line: int, note: str = "") -> None:
        head, _, below = note.partition("\n")
        task = self._bars.tasks[line]
        head = head or format_left(int(task.completed) + 1, int(task.total or 0), task.elapsed or 0.0)
        self._bars.update(line, advance=1, head=head, below=below)  # type: ignore[arg-type]

    def finish(self, line: int, complete: bool = True) -> None:
        # Work that may end early (a fit that converges) shows how much was done, not the maximum.
        task = self._bars.tasks[line]
        if complete:
            head = "" if task.fields["head"].endswith(" left") else task.fields["head"]
            self._bars.update(line, total=task.completed, completed=task.completed, head=head)  # type: ignore[arg-type]
        else:
            self._bars.update(line, head="", given_up=True)  # type: ignore[arg-type]
            self._bars.stop_task(line)  # type: ignore[arg-type]


class _Mark(SpinnerColumn):
    """A spinner that turns while work is done, and no longer."""

    def render(self, task: Task) -> RenderableType:
        return Text("✗", "red") if task.fields["given_up"] else super().render(task)


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
    compiling : set of str, default empty
        Labels of the lines that will compile kernels.
    """

    def __init__(self, console: Console, every: float = 10.0, compiling: AbstractSet[str] = frozenset()) -> None:
        self._console, self._every, self._compiling = console, every, compiling
        self._lines: list[_PlainLine] = []

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def start(self, label: str, total: int | None) -> int:
        self._lines.append(_PlainLine(label, total))
        if label in self._compiling:
            self._compiling -= {label}
            self._print(self._lines[-1], COMPILING)
        return len(self._lines) - 1

    def advance(self, line: int, note: str = "") -> None:
        shown = self._lines[line]
        shown.done += 1
        shown.note = note.replace("\n", " · ")
        if time.perf_counter() - shown.printed >= self._every:
            shown.printed = time.perf_counter()
            state = f"{shown.done:,}" + (f" of {shown.total:,}" if shown.total else "")
            left = format_left(shown.done, shown.total or 0, shown.printed - shown.started)
            self._print(shown, f"{state}, {left}" if left and not note else state)  # a note has an estimate of its own

    def finish(self, line: int, complete: bool = True) -> None:
        shown = self._lines[line]
        if complete:
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


def display_on(console: Console, compiling: AbstractSet[str] = frozenset()) -> RichProgress | PlainProgress:
    """Return bars if `console` is a terminal, else text that reads well in a file."""
    if console.is_terminal:
        return RichProgress(console, compiling)
    return PlainProgress(console, compiling=compiling)

"""Progress of long work: the library reports it, and a display shows it if one is switched on.

Nothing is shown by default. The commands switch on a display of their own; a notebook or a service may provide one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol


class ProgressDisplay(Protocol):
    """The interface of a display."""

    def start(self, label: str, total: int | None) -> int:
        """Open a line called `label` for `total` units and return its handle."""

    def advance(self, line: int, note: str = "") -> None:
        """Count one more unit of `line` as done; `note` describes the state, and may have several lines."""

    def finish(self, line: int, complete: bool = True) -> None:
        """Close `line`, which is complete, or was given up."""


class SilentDisplay:
    """The display that shows nothing."""

    def start(self, label: str, total: int | None) -> int:
        return 0

    def advance(self, line: int, note: str = "") -> None:
        pass

    def finish(self, line: int, complete: bool = True) -> None:
        pass


_current: ContextVar[ProgressDisplay] = ContextVar("daskmeans-progress", default=SilentDisplay())  # noqa: B039


@contextlib.contextmanager
def show_on(display: ProgressDisplay) -> Iterator[None]:
    """Send the progress of everything inside the ``with`` block to `display`."""
    token = _current.set(display)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def open_line(label: str, total: int | None = None) -> Iterator[ProgressLine]:
    """Open a line of the current display for the ``with`` block."""
    display = _current.get()
    handle = display.start(label, total)
    try:
        yield ProgressLine(display, handle)
    except BaseException:
        display.finish(handle, complete=False)
        raise
    display.finish(handle)


class ProgressLine:
    """An open line; call `advance` once per finished unit."""

    def __init__(self, display: ProgressDisplay, handle: int) -> None:
        self._display, self._handle = display, handle

    def advance(self, note: str = "") -> None:
        self._display.advance(self._handle, note)


class ProgressEstimate:
    """An estimate of progress and remaining time, for work whose parts differ in size.

    Parameters
    ----------
    sizes : mapping
        Size of each part, by its key.
    unit : str
        What is counted.

    Examples
    --------
    >>> pace = ProgressEstimate({"a": 3_000, "b": 2_000}, "pairs")
    >>> pace.done("a").startswith("3k of 5k pairs, about ")
    True
    """

    def __init__(self, sizes: Mapping[Any, int], unit: str) -> None:
        self._sizes, self._unit = sizes, unit
        self._done, self._total, self._start = 0, sum(sizes.values()), time.perf_counter()

    def done(self, key: Any) -> str:
        """Count the part `key` as done, and return a note on the progress."""
        self._done += self._sizes[key]
        said = f"{format_number(self._done)} of {format_number(self._total)} {self._unit}"
        left = format_left(self._done, self._total, time.perf_counter() - self._start)
        return f"{said}, {left}" if left else said


def format_left(done: int, total: int, seconds: float) -> str:
    """Format the time that is left if the rest goes on as the part that is done; empty where this is not known.

    Examples
    --------
    >>> format_left(2, 5, 10.0), format_left(5, 5, 10.0)
    ('about 15 s left', '')
    """
    return f"about {format_duration(seconds * (total / done - 1))} left" if 0 < done < total else ""


def format_duration(seconds: float) -> str:
    """Format a duration for people.

    Examples
    --------
    >>> [format_duration(s) for s in (0.04, 2.31, 48.2, 200, 10_000, 1e6)]
    ['0.04 s', '2.3 s', '48 s', '3 min 20 s', '2 h 46 min', '278 h']
    """
    if seconds < 59.5:
        return f"{seconds:.2g} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 100 * 60 else f"{round(minutes / 60)} h"


def format_note(iterations: Sequence[Mapping[str, Any]]) -> str:
    """Format the last of some updates of a fit: its phase and, on a second line, its figures.

    Parameters
    ----------
    iterations : sequence of mapping
        Updates in order, as the engine logs them; missing figures are left out.

    Examples
    --------
    >>> updates = [
    ...     {"phase": 1, "phases": 5, "rows": 64_000, "iteration": 11, "inertia": 36_200.0},
    ...     {"phase": 1, "phases": 5, "rows": 64_000, "iteration": 12, "inertia": 36_156.56, "relabelled": 820,
    ...      "seconds": 0.05},
    ... ]
    >>> print(format_note([updates[0] | {"relabelled": 63_900}]))
    sample 2 of 4, 64,000 rows
    update 11 · inertia 36,200 · 100 % relabelled
    >>> print(format_note(updates))
    sample 2 of 4, 64,000 rows
    update 12 · inertia 36,156.6 (−0.12 %) · 1.3 % relabelled · 1.28M rows/s
    """
    now = iterations[-1]
    before = iterations[-2] if len(iterations) > 1 else {}
    rows, phase = now.get("rows"), now.get("phase")
    figures = [f"update {now['iteration']:,}"] if "iteration" in now else []
    if "inertia" in now:
        comparable = before.get("phase") == phase and before.get("inertia")
        change = f" ({_format_percent(now['inertia'] / before['inertia'] - 1, '+.2g')})" if comparable else ""
        figures.append(f"inertia {now['inertia']:,.6g}{change}")
    if rows and "relabelled" in now:
        figures.append(f"{_format_percent(now['relabelled'] / rows, '.2g')} relabelled")
    if phase == "seed":
        figures.append(f"{now['seconds']:.2g} s")
    elif rows and now.get("seconds"):
        figures.append(f"{format_number(rows / now['seconds'])} rows/s")
    return "\n".join(part for part in (_format_phase(now), " · ".join(figures)) if part)


def _format_phase(now: Mapping[str, Any]) -> str:
    if "rows" not in now:
        return ""
    if now.get("phase") == "seed":
        return f"seed from {now['rows']:,} rows"
    phase, phases = now.get("phase", 0), now.get("phases", 1)
    if phase == phases - 1:
        return f"all {now['rows']:,} rows"
    return f"sample {phase + 1} of {phases - 1}, {now['rows']:,} rows"


def _format_percent(share: float, form: str) -> str:
    return f"{100 * share:{form if abs(share) < 0.995 else form.replace('.2g', '.0f')}} %".replace("-", "−")


def format_number(number: float) -> str:
    """Format a number with three digits and a unit: 950, 64k, 1.28M.

    Examples
    --------
    >>> [format_number(x) for x in (7.0, 950.4, 64_000, 1_283_000, 25e9)]
    ['7', '950', '64k', '1.28M', '25G']
    """
    for unit in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"

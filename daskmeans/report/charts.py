"""Small charts as SVG text, without a plotting library; their colours are classes of ``report.css``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 320, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 14, 22

Label = Callable[[float], str]
Scale = Callable[[float], float]


def draw_histogram(
    counts: Sequence[int] | np.ndarray, edges: np.ndarray, label: Label, unit: str, mark: float | None = None
) -> str:
    """Draw `counts` between `edges` as bars.

    Parameters
    ----------
    counts : sequence of int, length n
    edges : ndarray, shape (n + 1,)
    label : callable
        Function that formats a value on the horizontal axis.
    unit : str
        Name of what is counted.
    mark : float, optional
        Value at which a line is drawn; bars from this value on have another colour.

    Examples
    --------
    >>> draw_histogram([1, 2], np.array([0, 1, 2]), str, "rows").count("<rect")
    2
    """
    x, y = _make_scales(edges[0], edges[-1], max(max(counts), 1))
    shapes = list(_draw_axes(edges[0], edges[-1], max(max(counts), 1), label))
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        kind = "bar beyond" if mark is not None and low >= mark - 1e-9 else "bar"
        tip = f"{label(low)} to {label(high)}: {count:,} {unit}"
        left, width, top = x(low) + 0.5, max(x(high) - x(low) - 1, 0.5), y(count)
        bar = f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{y(0) - top:.1f}">'
        shapes.append(f"{bar}<title>{escape(tip)}</title></rect>")
    if mark is not None:
        shapes.append(f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" y2="{y(0):.1f}"/>')
        anchor = "end" if x(mark) > WIDTH / 2 else "start"
        place = f'x="{x(mark):.1f}" y="{TOP - 4}" text-anchor="{anchor}"'
        shapes.append(f'<text class="mark" {place}>{escape(label(mark))}</text>')
    return _to_svg(shapes)


def draw_curve(
    values: Sequence[float], label: Label, places: Sequence[float] | None = None, name: str = "iteration"
) -> str:
    """Draw a line through `values`; the vertical axis begins at the smallest.

    Parameters
    ----------
    values : sequence of float
    label : callable
        Function that formats a value.
    places : sequence of float, optional
        Positions of the values on the horizontal axis, ascending. Default: 1, 2 and so on.
    name : str, default "iteration"
        Name of a position.

    Examples
    --------
    >>> "polyline" in draw_curve([3.0, 2.0, 1.5], str)
    True
    """
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    across = list(range(1, len(values) + 1)) if places is None else list(places)
    last = max(across[-1], 2) if places is None else across[-1]
    x, y = _make_scales(across[0], last, span)
    points = [(x(place), y(value - low)) for place, value in zip(across, values, strict=True)]
    shapes = list(_draw_axes(across[0], last, span, lambda v: f"{v:.3g}", lambda v: label(v + low)))
    shapes.append(f'<polyline class="curve" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
    for (a, b), place, value in zip(points, across, values, strict=True):
        tip = f"{name} {place:.4g}: {label(value)}"
        shapes.append(f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="2.5"><title>{escape(tip)}</title></circle>')
    return _to_svg(shapes)


def draw_shares(parts: Sequence[tuple[str, int]]) -> str:
    """Draw one bar divided in proportion to `parts`, pairs of a CSS class and a number.

    Examples
    --------
    >>> draw_shares([("kept", 3), ("exact", 1)]).count("<rect")
    2
    """
    total, left, shapes = sum(number for _, number in parts) or 1, 0.0, []
    for kind, number in parts:
        width = 100 * number / total
        shapes.append(f'<rect class="{kind}" x="{left:.3f}" y="0" width="{width:.3f}" height="3"/>')
        left += width
    stretched = 'viewBox="0 0 100 3" preserveAspectRatio="none" aria-hidden="true"'
    return f'<svg class="shares" {stretched}>{"".join(shapes)}</svg>'


def format_short(value: float) -> str:
    """Format `value` in about four characters.

    Examples
    --------
    >>> format_short(950), format_short(1234), format_short(51_955), format_short(2_500_000)
    ('950', '1.2k', '52k', '2.5M')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            digits = 1 if abs(value) < 10 * size else 0
            return f"{value / size:.{digits}f}".removesuffix(".0") + unit
    return f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2g}"


def _make_scales(low: float, high: float, top: float) -> tuple[Scale, Scale]:
    """Return the scales from values to positions in the chart, horizontal and vertical."""
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    span = (high - low) or 1.0
    return (lambda v: LEFT + across * (v - low) / span), (lambda v: TOP + down * (1 - v / top))


def _draw_axes(low: float, high: float, top: float, across: Label, up: Label = format_short) -> Iterator[str]:
    """Draw the labels and lines of the axes."""
    x, y = _make_scales(low, high, top)
    for value, anchor in ((low, "start"), ((low + high) / 2, "middle"), (high, "end")):
        yield f'<text x="{x(value):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{escape(across(value))}</text>'
    for value in (0, top / 2, top):
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
    for value in (0, top):
        yield f'<text x="{LEFT - 6}" y="{y(value) + 3.5:.1f}" text-anchor="end">{escape(up(value))}</text>'


def _to_svg(shapes: Sequence[str]) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(shapes)}</svg>'

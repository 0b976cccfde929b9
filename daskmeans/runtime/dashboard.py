"""The page ``/kmeans`` of the Dask dashboard: it shows running fits, from the events that the engine logs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from distributed import Client, Scheduler

from daskmeans.runtime import progress
from daskmeans.runtime.client import logger

PAGE = "kmeans"
TOPIC = "daskmeans-kmeans"
# Colours of the phases, in turn: the palette of Okabe and Ito, which colour-blind readers can tell apart.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
# Values of a point besides its number, phase and colour.
VALUES = ("spread", "gain", "relabelled", "speed")
INTERVAL = 500

Update = Mapping[str, Any]


def add_page(client: Client) -> bool:
    """Add the page to the dashboard of the scheduler of `client`; return whether the dashboard has it now.

    It has none if the scheduler's environment lacks daskmeans or bokeh, or if the scheduler has no dashboard.

    Parameters
    ----------
    client : distributed.Client

    Examples
    --------
    >>> add_page(client)  # doctest: +SKIP
    True
    """

    def register_there(dask_scheduler: Any) -> str:  # a closure, pickled by value: the module may be missing there
        try:
            from daskmeans.runtime.dashboard import register_page

            return register_page(dask_scheduler)
        except Exception as error:  # a page must never fail a fit, and other versions of Dask build theirs differently
            return repr(error)

    if reason := client.run_on_scheduler(register_there):
        logger.debug("the dashboard has no page /%s: %s", PAGE, reason)
    return not reason


def register_page(scheduler: Scheduler) -> str:
    """Add the page to the dashboard of `scheduler`, once; return why that failed, or an empty string.

    Runs in the scheduler's process.
    """
    if find_spec("bokeh") is None:
        return "bokeh is not installed where the scheduler runs"
    from distributed.dashboard.core import BokehApplication
    from distributed.dashboard.scheduler import template_variables
    from tornado.ioloop import IOLoop

    served = {path: app for app in scheduler.http_application.applications for path in getattr(app, "app_paths", ())}
    if f"/{PAGE}" in served:
        return ""
    if "/status" not in served:
        return "the scheduler shows no dashboard"
    variables = template_variables(scheduler)
    variables["pages"].append(PAGE)  # every page makes its navigation bar from this list
    app = BokehApplication({f"/{PAGE}": fill_document}, scheduler, served["/status"].prefix, variables)
    scheduler.http_application.add_application(app)
    app.initialize(IOLoop.current())
    app.start()
    return ""


def fill_document(scheduler: Scheduler, variables: Mapping[str, Any], doc: Any) -> None:
    """Fill `doc`, a new Bokeh document, with the page."""
    from distributed.dashboard.components import add_periodic_callback
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    page = FitPage(scheduler)
    page.update()
    add_periodic_callback(doc, page, INTERVAL)
    doc.title = "Dask: k-means"
    doc.add_root(page.root)
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(variables)
    doc.theme = BOKEH_THEME


class FitPage:
    """Plots of the latest fit logged on a scheduler.

    Attributes
    ----------
    root : bokeh.models.LayoutDOM
    """

    def __init__(self, scheduler: Scheduler) -> None:
        from bokeh.layouts import column, gridplot
        from bokeh.models import ColumnDataSource, DataRange1d
        from bokeh.models.widgets import Div

        self._scheduler = scheduler
        self._last: object = None
        self._heading = Div(
            name="words", styles={"font-size": "110%", "margin": "8px 16px"}, sizing_mode="stretch_width"
        )
        self._points = ColumnDataSource(point_columns([]), name="points")
        self._lines = ColumnDataSource(line_columns(point_columns([])), name="lines")
        span = DataRange1d(range_padding=0.02)
        plots = [
            self._plot("spread", "Inertia per row: mean squared distance to the nearest centroid", span),
            self._plot("gain", "Gain: share of the inertia that an update removes", span, "0.[0000] %", "log"),
            self._plot("relabelled", "Rows that changed cluster", span, "0.[0000] %", "log"),
            self._plot("speed", "Rows per second", span, "0,0"),
        ]
        plots[-1].y_range.start = 0
        grid = gridplot(plots, ncols=2, sizing_mode="stretch_both", toolbar_options={"logo": None})
        self.root = column(self._heading, grid, sizing_mode="stretch_both")

    def _plot(self, value: str, title: str, span: Any, numbers: str = "", scale: Any = "linear") -> Any:
        from bokeh.models import HoverTool, NumeralTickFormatter
        from bokeh.plotting import figure

        plot = figure(
            title=title, name=value, x_range=span, y_axis_type=scale, tools="pan,wheel_zoom,box_zoom,reset",
            x_axis_label="update", min_height=220, sizing_mode="stretch_both",
        )  # fmt: skip
        if numbers:
            plot.yaxis.formatter = NumeralTickFormatter(format=numbers)
        plot.multi_line("update", value, source=self._lines, color="color", line_width=2)
        dots = plot.scatter("update", value, source=self._points, color="color", size=5)
        shown = f"@{value}{{{numbers}}}" if numbers else f"@{value}"
        info = [("update", "@update"), ("phase", "@phase"), (value, shown), ("", "@note")]
        plot.add_tools(HoverTool(renderers=[dots], tooltips=info))
        return plot

    def update(self) -> None:
        """Add everything logged since the last call."""
        events = self._scheduler.get_events(TOPIC)
        if self._heading.text and (events[-1] if events else None) is self._last:
            return
        self._last = events[-1] if events else None
        fit = latest_fit(message for _, message in events)
        found = point_columns(fit)
        phases = line_columns(found)
        self._heading.text = format_heading(fit) + "<br>" + format_legend(phases)
        self._points.data, self._lines.data = found, phases


def latest_fit(messages: Iterable[Update]) -> list[Update]:
    """Return the messages of the last fit among all that the engine has logged: its seeding and updates.

    Examples
    --------
    >>> latest_fit([{"iteration": 1}, {"iteration": 2}, {"phase": "seed"}, {"phase": 0, "iteration": 1}])
    [{'phase': 'seed'}, {'phase': 0, 'iteration': 1}]
    """
    fit: list[Update] = []
    for message in messages:
        if fit and _order_key(message) <= _order_key(fit[-1]):
            fit = []
        fit.append(message)
    return fit


def _order_key(message: Update) -> tuple[int, int, int]:
    """Return the position of an update within a fit; it increases over updates, phases and runs."""
    phase = message.get("phase", 0)
    return message.get("run", 0), -1 if phase == "seed" else phase, message.get("iteration", 0)


def format_heading(fit: Sequence[Update]) -> str:
    """Return the page's heading: what is being fitted, and how far the fit is."""
    if not fit:
        return "No fit has been logged since this scheduler started."
    now = fit[-1]
    head = [f"k = {now['n_clusters']:,}"] if "n_clusters" in now else []
    head += [f"run {now['run'] + 1:,}"] if now.get("run") else []
    note = progress.format_note([message for message in fit if message.get("run") == now.get("run")])
    return " · ".join([*head, *note.splitlines()])


def format_legend(phases: Mapping[str, list[Any]]) -> str:
    """Return the phases and their colours as HTML; inside a plot the legend would cover the lines."""
    pairs = zip(phases["color"], phases["phase"], strict=True)
    return " &emsp; ".join(f'<span style="color: {color}">⬤</span> {phase}' for color, phase in pairs)


def point_columns(fit: Sequence[Update]) -> dict[str, list[Any]]:
    """Return a point for each update: columns ``update``, ``phase``, ``color``, ``note`` and those of `VALUES`.

    A value that an update does not have, or that a logarithmic axis cannot show, is NaN.
    """
    found: dict[str, list[Any]] = {name: [] for name in ("update", "phase", "color", "note", *VALUES)}
    before: Update = {}
    for now in fit:
        if "inertia" not in now:
            before = {}
            continue
        rows, seconds = now.get("rows", math.nan), now.get("seconds") or math.nan
        phase, run = now.get("phase", 0), now.get("run", 0)
        follows = before and _order_key(before)[:2] == _order_key(now)[:2]
        values = {
            "spread": now["inertia"] / rows,
            "gain": _positive_or_nan(1 - now["inertia"] / before["inertia"])
            if follows and before["inertia"]
            else math.nan,
            "relabelled": _positive_or_nan(now.get("relabelled", 0) / rows),
            "speed": rows / seconds,
        }
        head = progress.format_note([now]).splitlines()
        label = (f"run {run + 1}, " if run else "") + (head[0] if len(head) > 1 else "updates")
        info = {"phase": label, "color": COLORS[phase % len(COLORS)], "note": head[-1]}
        for name, value in {"update": len(found["update"]) + 1, **info, **values}.items():
            found[name].append(value)
        before = now
    return found


def _positive_or_nan(value: float) -> float:
    return value if value > 0 else math.nan


def line_columns(found: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return a line for each phase of `found`: the same columns, with lists for ``update`` and `VALUES`."""
    pieces = list(_phase_bounds(found["phase"]))
    whole = {name: [found[name][a:b] for a, b in pieces] for name in ("update", *VALUES)}
    return whole | {name: [found[name][a] for a, _ in pieces] for name in ("phase", "color")}


def _phase_bounds(phases: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each run of equal `phases`."""
    cuts = [i for i in range(1, len(phases)) if phases[i] != phases[i - 1]]
    yield from zip([0, *cuts], [*cuts, len(phases)], strict=True) if phases else ()

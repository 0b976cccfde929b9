"""Flags, generated from the dataclasses of options that they fill."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_origin

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from daskmeans.duplicates.settings import Deciding
from daskmeans.errors import UsageError
from daskmeans.kmeans.estimator import KMeans
from daskmeans.options import Need, flag_of, kind_of, option, options
from daskmeans.runtime.cluster import GPU, ClusterSettings
from daskmeans.steps.settings import Storing
from daskmeans.vectors.options import ReadOptions

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


class Json(click.ParamType):
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, dict):
            return value
        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as error:
            self.fail(f"not valid JSON: {error}", param, ctx)  # without the value, which may hold secrets
        if not isinstance(found, dict):
            self.fail("expected a JSON object such as '{\"anon\": true}'", param, ctx)
        return found


class Place(click.ParamType):
    """A path or a URL, which shells complete."""

    name = "path"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


PLACE = Place()


class Count(click.ParamType):
    """A whole number, or the word "auto"."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else click.INT.convert(value, param, ctx)


class Flag(click.Option):
    """A flag that may take effect only with certain values of other flags."""

    def __init__(self, *names: Any, need: Need | None = None, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.need = need

    def is_idle(self, values: dict[str, Any]) -> bool:
        """Whether it has no effect with these `values` of the flags."""
        return self.need is not None and any(values[name] not in these for name, these in self.need.values.items())


class StrictCommand(click.Command):
    """A command that refuses a flag that would have no effect."""

    def invoke(self, ctx: click.Context) -> Any:
        refuse_idle(ctx)
        return super().invoke(ctx)


def refuse_idle(ctx: click.Context) -> None:
    """Raise UsageError for a given flag that would have no effect with the values of the others."""
    for each in find_given(ctx):
        if isinstance(each, Flag) and each.need and each.is_idle(ctx.params):
            remedy = "leave it out, or give the expected flag too"
            raise UsageError("it has no effect here", where=each.opts[0], expected=each.need.says, remedy=remedy)


def find_given(ctx: click.Context) -> list[click.Parameter]:
    """Return the flags that the command line or a settings file gives."""
    is_given = {name: ctx.get_parameter_source(name) is not ParameterSource.DEFAULT for name in ctx.params}
    return [each for each in ctx.command.params if is_given.get(str(each.name))]


@dataclass(frozen=True)
class Output:
    """What a command shows."""

    json: bool = option(False, "Print one JSON object on stdout.")
    quiet: bool = option(False, "Print errors only.")
    verbose: bool = option(False, "Log what is done.")


def make_flag(settings: type, name: str, **changed: Any) -> Decorator:
    """Return the flag for the option `name` of the dataclass `settings`, with some of its attributes `changed`."""
    each, facts = next(found for found in options(settings) if found[0].name == name)
    kind, written = kind_of(settings, name), facts.flag or flag_of(name)
    default = each.default if facts.flag_default is None else facts.flag_default
    attributes: dict[str, Any] = {"help": facts.help, "need": facts.need, "hidden": facts.group == GPU}
    attributes |= {"default": default, "show_default": default not in (None, False)}
    if kind is bool:
        defaults: dict[Any, str] = {False: "", True: f"/--no-{name}", None: f"/{written.replace('enable', 'disable')}"}
        written, attributes["is_flag"] = written + defaults[each.default], True
    elif get_origin(kind) is Mapping:
        attributes["type"] = Json()
    elif get_origin(kind) in (tuple, Sequence):
        attributes |= {"multiple": True, "show_default": bool(each.default)}
    elif facts.choices:
        attributes["type"] = click.Choice(facts.choices)
    elif facts.is_path:
        attributes["type"] = PLACE
    elif kind == int | str:
        attributes["type"] = Count()
    else:
        attributes["type"] = kind if facts.least is None else click.IntRange(facts.least)
    return click.option(written, name, cls=Flag, **attributes | changed)


def fill_argument(
    argument: str, settings: type, names: Sequence[str] | None = None, *, flags: bool = True
) -> Decorator:
    """Add flags for the dataclass `settings`, all or those in `names`; the command gets it as one `argument`."""
    mine = [each.name for each in fields(settings)] if names is None else names

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def called(**values: Any) -> Any:
            before = values.pop(argument, None)  # filled by earlier flags of the same argument
            taken = {name: values.pop(name) for name in mine}
            return command(**values, **{argument: replace(before, **taken) if before else settings(**taken)})

        decorated: Command = called
        for name in reversed(mine if flags else ()):
            decorated = make_flag(settings, name)(decorated)
        return decorated

    return decorate


def reading(*without: str) -> Decorator:
    """Add the flags of :class:`ReadOptions`, `without` some of its fields."""
    return fill_argument(
        "reading", ReadOptions, [each.name for each in fields(ReadOptions) if each.name not in without]
    )


kmeans = fill_argument("model", KMeans)
deciding = fill_argument("deciding", Deciding, [each.name for each in fields(Deciding) if each.name != "random_state"])
storing = fill_argument("storing", Storing)


def _show_gpu_help(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    """Print the flags for workers with GPUs, which the help of a command leaves out, and end the command."""
    if asked and not ctx.resilient_parsing:
        formatter = ctx.make_formatter()
        with formatter.section("Flags for workers with GPUs, as in dask-cuda"):
            flags = [each for each in ctx.command.params if isinstance(each, click.Option) and each.hidden]
            formatter.write_dl([(", ".join([*each.opts, *each.secondary_opts]), each.help or "") for each in flags])
        click.echo(formatter.getvalue().rstrip("\n"))
        ctx.exit()


help_gpu = click.option(
    "--help-gpu", is_flag=True, is_eager=True, expose_value=False, callback=_show_gpu_help,
    help="Show the flags for workers with GPUs and exit.",
)  # fmt: skip


def cluster(command: Command) -> Command:
    """Add the flags of :class:`ClusterSettings`."""
    return fill_argument("cluster", ClusterSettings)(help_gpu(command))


output = fill_argument("output", Output)
overwrite = click.option(
    "--overwrite", is_flag=True, help="Replace a finished output, or an unfinished one with other settings."
)

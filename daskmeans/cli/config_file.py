"""Settings of ``daskmeans run`` in a YAML file."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Mapping
from typing import Any

import click
import yaml
from upath import UPath

from daskmeans.cli.options import Json
from daskmeans.errors import NotFoundError, UsageError
from daskmeans.vectors.files import open_path

SETTINGS = "lines such as `n_clusters: 1000`"
# Types of values that can be written as one word on a command line.
WORDS = str | int | float | datetime.date


def from_yaml(ctx: click.Context, param: click.Parameter, inputs: tuple[str, ...]) -> tuple[str, ...]:
    """If the only input is a YAML file, take the flags that the command line does not give from it; return its inputs.

    Raises
    ------
    NotFoundError, UsageError
        There is no such file, or it holds anything but flags of the command with valid values.
    """
    if len(inputs) != 1 or not inputs[0].endswith((".yaml", ".yml")):
        return inputs
    file = open_path(inputs[0])
    options = {str(p.name): p for p in ctx.command.params if isinstance(p, click.Option) and p.expose_value}
    names = {word.lstrip("-").replace("-", "_"): name for name, p in options.items() for word in (name, *p.opts)}
    values: dict[str, Any] = {}
    for key, value in _read_settings(file, names).items():
        name = _parameter_name(key, names)
        if name not in {*options, "input"}:
            known = sorted({*options, "input"})
            near = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"unknown key {key!r}",
                where=str(file),
                expected=f"one of {', '.join(known)}",
                remedy=f"did you mean {near[0]!r}?" if near else "",
            )
        if value is not None:  # a key without a value
            values[name] = _parse_value(value, options.get(name), f"{file}, key {key!r}", ctx)
    if not values.get("input"):
        raise UsageError("the key 'input' is missing", where=str(file), expected="`input:` a path or a list of paths")
    found: list[str] = values.pop("input")
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return tuple(found)


def _read_settings(file: UPath, names: Mapping[str, str]) -> dict[Any, Any]:
    if not file.is_file():
        raise NotFoundError("no such file", where=str(file), expected="a YAML file of settings")
    try:
        text = file.read_text(encoding="utf-8")
        found, node = yaml.safe_load(text) or {}, yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:  # without the lines, which may hold secrets
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"not valid YAML ({error.problem})", where=f"{file}{line}", expected=SETTINGS) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: such as the 30th of February
        raise UsageError(f"not valid YAML ({error})", where=str(file), expected=SETTINGS) from None
    if not isinstance(found, dict):
        raise UsageError("the file holds no settings", where=str(file), expected=SETTINGS)
    keys = [_parameter_name(key.value, names) for key, _ in (node.value if found else ())]  # including duplicates
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UsageError(f"the key {twice[0]!r} appears twice", where=str(file), expected="each setting once")
    return found


def _parameter_name(key: Any, names: Mapping[str, str]) -> str:
    """Return the parameter name of the flag that `key` names; `names` maps the spellings of the flags to these."""
    name = str(key).replace("-", "_")
    return names.get(name, name)


def _parse_value(value: Any, option: click.Option | None, where: str, ctx: click.Context) -> Any:
    """Return `value` as the words of a command line, which `option` then parses; for the input, `option` is None."""
    if option is not None and option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{_show_value(value)} is not a yes or no", where=where, expected="true or false")
        return value
    if option is not None and isinstance(option.type, Json) and isinstance(value, dict):
        return value
    several = option is None or option.multiple
    words = [_to_word(each, where) for each in (value if several and isinstance(value, list) else [value])]
    try:
        for word in words:
            if option is not None:
                option.type.convert(word, option, ctx)
    except click.BadParameter as error:
        raise UsageError(error.message, where=where) from None
    return words if several else words[0]


def _to_word(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, WORDS):
        raise UsageError(f"{_show_value(value)} is not a valid value", where=where, expected="a number or a string")
    return str(value)


def _show_value(value: Any) -> str:
    """Return `value` for a message, without the contents of a list or mapping, which may be secret or endless."""
    return repr(value) if isinstance(value, WORDS) else f"a {type(value).__name__}"

"""Settings of commands in a YAML file."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import click
import yaml
from upath import UPath

from daskmeans.cli.options import Json
from daskmeans.errors import NotFoundError, UsageError
from daskmeans.vectors.files import open_path

# The key of a job whose file lists stages.
STAGES = "stages"
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
    if len(inputs) != 1 or not is_yaml(inputs[0]):
        return inputs
    file = open_path(inputs[0])
    values = parse_settings(read_settings(file), ctx, str(file))
    if not values.get("input"):
        raise UsageError("the key 'input' is missing", where=str(file), expected="`input:` a path or a list of paths")
    found: list[str] = values.pop("input")
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return tuple(found)


def is_yaml(word: str) -> bool:
    """Whether `word` names a YAML file.

    Examples
    --------
    >>> is_yaml("job.yaml"), is_yaml("rows.parquet")
    (True, False)
    """
    return word.endswith((".yaml", ".yml"))


def read_settings(file: UPath) -> dict[Any, Any]:
    """Return the mapping in a YAML file.

    Raises
    ------
    NotFoundError, UsageError
        There is no such file, it is no YAML, it holds no mapping, or a key stands twice in a mapping.
    """
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
    if found:
        _refuse_repeated(node, f"{file}", set())
    return found


def parse_settings(
    given: Mapping[Any, Any], ctx: click.Context, where: str, without: AbstractSet[str] = frozenset()
) -> dict[str, Any]:
    """Return the values of flags and arguments of the command of `ctx` that `given` has, by parameter.

    Parameters
    ----------
    given : mapping
        Values by flag, without the dashes and with ``_`` or ``-``; the argument ``inputs`` is called ``input``.
    ctx : click.Context
    where : str
        The place of `given`, for messages.
    without : set of str
        Parameters that may not be given.

    Raises
    ------
    UsageError
        A key is no flag of the command, or its value is not valid.
    """
    known = {_key_of(p): p for p in ctx.command.params if p.name not in without and p.expose_value}
    names = {
        word.lstrip("-").replace("-", "_"): name
        for name, p in known.items()
        for word in ([name] if isinstance(p, click.Argument) else [name, *p.opts])
    }
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        name = names.get(name, name)
        refuse_unknown(key, name, sorted(known), where)
        if name in values:
            raise UsageError(f"the key {name!r} appears twice", where=where, expected="each setting once")
        values[name] = None if value is None else _parse_value(value, known[name], f"{where}, key {key!r}", ctx)
    return {name: value for name, value in values.items() if value is not None}  # None: a key without a value


def refuse_unknown(key: Any, name: str, known: Sequence[str], where: str, kind: str = "key") -> None:
    """Raise UsageError if `name`, written as `key`, is not among `known`; the message has the nearest of these."""
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise UsageError(
            f"unknown {kind} {key!r}",
            where=where,
            expected=f"one of {', '.join(known)}",
            remedy=f"did you mean {near[0]!r}?" if near else "",
        )


def _key_of(parameter: click.Parameter) -> str:
    return "input" if parameter.name == "inputs" else str(parameter.name)


def _refuse_repeated(node: yaml.Node, where: str, seen: set[int]) -> None:
    """Raise UsageError if a key stands twice in a mapping, of which YAML would take the last.

    An alias is the node itself, once more: `seen` has those that were visited, by identity.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UsageError(f"the key {twice[0]!r} appears twice", where=where, expected="each setting once")
        for _, value in node.value:
            _refuse_repeated(value, where, seen)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _refuse_repeated(each, where, seen)


def _parse_value(value: Any, parameter: click.Parameter, where: str, ctx: click.Context) -> Any:
    """Return `value` as the words of a command line, which `parameter` then parses."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{_show_value(value)} is not a yes or no", where=where, expected="true or false")
        return value
    if isinstance(parameter.type, Json) and isinstance(value, dict):
        return value
    several = parameter.nargs == -1 or parameter.multiple
    words = [_to_word(each, where) for each in (value if several and isinstance(value, list) else [value])]
    try:
        for word in words:
            parameter.type.convert(word, parameter, ctx)
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

"""Options of the steps, each said once: a field of a dataclass, from which its flag, key and checks follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from daskmeans.errors import UsageError


@dataclass(frozen=True)
class Range:
    """The values that an option may have, and how they are called."""

    holds: Callable[[Any], bool]
    says: str


@dataclass(frozen=True)
class Need:
    """Options that another one acts with alone, by name, with the values that they must have."""

    values: Mapping[str, tuple[Any, ...]]
    says: str


@dataclass(frozen=True)
class Option:
    """What is known of an option besides its name, type and default."""

    help: str | None = None
    choices: tuple[str, ...] = ()
    says: str = ""
    """How the choices are listed, if not with "or" between all."""
    range: Range | None = None
    least: int | None = None
    """Of an integer, for the command line to check."""
    required: bool = False
    """On the command line, where Python has a default."""
    flag: str = ""
    """How the command line writes it, if not by its name."""
    need: Need | None = None
    group: str = ""
    """Whose it is, where a dataclass has options of several."""


def option(default: Any, help: str | None = None, *, shown: bool = True, **facts: Any) -> Any:
    """Field of a dataclass that is an option, `shown` in what the object looks like; `facts` as in :class:`Option`.

    Examples
    --------
    >>> @dataclass
    ... class Sorting:
    ...     order: str = option("up", "Which way.", choices=("up", "down"))
    >>> Sorting().order, [facts.choices for _, facts in options(Sorting)]
    ('up', [('up', 'down')])
    >>> check(Sorting("left"))
    Traceback (most recent call last):
    daskmeans.errors.UsageError: --order: unknown order 'left'
      expected: up or down
    """
    return field(default=default, repr=shown, metadata={"option": Option(help, **facts)})


def options(settings: Any) -> list[tuple[Field[Any], Option]]:
    """The options of a dataclass or of an object of one, in their order."""
    return [(each, each.metadata["option"]) for each in fields(settings)]


def check(settings: Any) -> None:
    """Raise UsageError for a field of `settings` that has neither its default nor a value of its range or choices."""
    for each, facts in options(settings):
        value, where = getattr(settings, each.name), flag_of(each.name)
        if facts.choices and value not in facts.choices:
            expected = facts.says or " or ".join(facts.choices)
            raise UsageError(f"unknown {each.name} {value!r}", where=where, expected=expected)
        if facts.range and value is not each.default and not facts.range.holds(value):
            raise UsageError(f"{value!r} is out of range", where=where, expected=facts.range.says)


def kind_of(settings: type, name: str) -> Any:
    """The type of the option `name` of a dataclass, without None; that of its default where anything is taken."""
    hint = get_type_hints(settings)[name]
    if hint is Any:
        return type(getattr(settings, name))
    kinds = get_args(hint)
    return next(kind for kind in kinds if kind is not NoneType) if NoneType in kinds else hint


def flag_of(name: str) -> str:
    """The flag of an option that is written by its name."""
    return f"--{name.replace('_', '-')}"

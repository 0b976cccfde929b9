"""Options of the steps. Each is declared once, as a dataclass field; its flag, YAML key and checks follow from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from daskmeans.errors import UsageError


@dataclass(frozen=True)
class Range:
    """The values that an option may have, and how messages describe them."""

    holds: Callable[[Any], bool]
    says: str


@dataclass(frozen=True)
class Need:
    """Other options, by name, and the values that they must have for an option to take effect."""

    values: Mapping[str, tuple[Any, ...]]
    says: str


@dataclass(frozen=True)
class Option:
    """Everything about an option besides its name, type and default."""

    help: str | None = None
    choices: tuple[str, ...] = ()
    says: str = ""
    """How messages list the choices, if not joined by "or"."""
    range: Range | None = None
    least: int | None = None
    """Smallest integer that the command line accepts."""
    flag_default: Any = None
    """Its default on the command line, if that is another than in Python."""
    flag: str = ""
    """Its flag, if that does not follow from its name."""
    is_path: bool = False
    """Whether it names a file or a directory, alone or among other things."""
    need: Need | None = None
    group: str = ""
    """Its group, where a dataclass has options of several groups."""


def option(default: Any, help: str | None = None, *, shown: bool = True, **facts: Any) -> Any:
    """Return a dataclass field that is an option, `shown` in the repr or not; `facts` are fields of :class:`Option`.

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
    """Return the options of a dataclass, or of an instance of one, in order."""
    return [(each, each.metadata["option"]) for each in fields(settings)]


def check(settings: Any) -> None:
    """Raise UsageError for a field of `settings` whose value is neither its default nor in its range or choices."""
    for each, facts in options(settings):
        value, where = getattr(settings, each.name), flag_of(each.name)
        if facts.choices and value not in facts.choices:
            expected = facts.says or " or ".join(facts.choices)
            raise UsageError(f"unknown {each.name} {value!r}", where=where, expected=expected)
        if facts.range and value is not each.default and not facts.range.holds(value):
            raise UsageError(f"{value!r} is out of range", where=where, expected=facts.range.says)


def check_choice(flag: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    """Raise UsageError if `value`, of the option `flag`, is none of `choices`."""
    if value not in choices:
        raise UsageError(f"unknown choice {value!r}", where=flag, expected=" or ".join(filter(None, choices)))


def kind_of(settings: type, name: str) -> Any:
    """Return the type of the option `name` of a dataclass, without None; for Any, the type of its default."""
    hint = get_type_hints(settings)[name]
    if hint is Any:
        return type(getattr(settings, name))
    kinds = get_args(hint)
    return next(kind for kind in kinds if kind is not NoneType) if NoneType in kinds else hint


def flag_of(name: str) -> str:
    """Return the flag that follows from an option's name."""
    return f"--{name.replace('_', '-')}"

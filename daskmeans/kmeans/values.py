"""Strict checks of numbers and flags: a value that merely behaves like one is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from daskmeans.errors import UsageError


def is_whole(value: Any, least: int) -> bool:
    """Whether `value` is an integer and at least `least`.

    Examples
    --------
    >>> is_whole(3, 1), is_whole(0, 1), is_whole(3.0, 1), is_whole(True, 1)
    (True, False, False, False)
    """
    return (
        isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64)) and int(value) >= least
    )


def is_auto(value: Any) -> bool:
    """Whether `value` is "auto".

    Examples
    --------
    >>> is_auto("auto"), is_auto(8)
    (True, False)
    """
    return isinstance(value, str) and value == "auto"


def to_number(value: Any) -> float:
    """Return `value` as a float; NaN if it is not a number.

    Examples
    --------
    >>> to_number(np.float32(0.5)), to_number("0.5"), to_number(True)
    (0.5, nan, nan)
    """
    real = isinstance(value, (int, float, np.integer, np.floating))
    return float(value) if real and not isinstance(value, (bool, np.timedelta64)) else math.nan


def is_flag(value: Any) -> bool:
    """Whether `value` is True or False.

    Examples
    --------
    >>> is_flag(np.True_), is_flag("no"), is_flag(0)
    (True, False, False)
    """
    return isinstance(value, (bool, np.bool_))


def check_flag(name: str, value: Any) -> None:
    """Raise UsageError if the argument `name` is neither True nor False: "no", for one, counts as true in Python."""
    if not is_flag(value):
        raise UsageError(f"{name}={value!r}", expected="True or False")


def to_python(value: Any) -> Any:
    """Return `value`; numbers and flags of numpy become Python's own, the only ones that JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value

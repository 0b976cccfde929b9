"""What a parameter may be: nothing is taken for a number or a flag that only behaves like one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from daskmeans.errors import UsageError


def is_whole(value: Any, least: int) -> bool:
    """Whether `value` is an integer, and `least` or more.

    Examples
    --------
    >>> is_whole(3, 1), is_whole(0, 1), is_whole(3.0, 1), is_whole(True, 1)
    (True, False, False, False)
    """
    return (
        isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64)) and int(value) >= least
    )


def to_number(value: Any) -> float:
    """`value` as a float; NaN if it is no number.

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
    """Raise UsageError if the argument `name` is neither True nor False: "no" would be taken for True."""
    if not is_flag(value):
        raise UsageError(f"{name}={value!r}", expected="True or False")


def to_python(value: Any) -> Any:
    """`value`, as Python has it if it is a number or a flag of numpy: JSON knows no others."""
    return value.item() if isinstance(value, np.generic) else value

"""What determines decisions, besides the clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daskmeans.duplicates.rank import parse_keep
from daskmeans.errors import UsageError

RULES = ("survivors", "semdedup")
SEARCHES = ("clusters", "exact")
# Below this nearly everything is similar to something.
LEAST_FLOOR = 0.5


@dataclass(frozen=True)
class Settings:
    """Checked arguments of `dedup`."""

    threshold: float
    keep: tuple[str, ...]
    rule: str
    search: str
    floor: float
    random_state: int


def dedup_settings(
    threshold: float | None,
    eps: float | None,
    keep: str | Sequence[str],
    rule: str,
    search: str,
    floor: float | None,
    random_state: int,
) -> Settings:
    """Checked arguments of `dedup`."""
    if (threshold is None) == (eps is None):
        found = "neither threshold nor eps is given" if threshold is None else "both threshold and eps are given"
        raise UsageError(found, where="--threshold, --eps", expected="one of the two, in [0, 1]")
    least = share("--threshold", threshold) if eps is None else share("--eps", eps)
    if rule not in RULES:
        raise UsageError(f"unknown rule {rule!r}", where="--rule", expected=" or ".join(RULES))
    if search not in SEARCHES:
        raise UsageError(f"unknown search {search!r}", where="--search", expected=" or ".join(SEARCHES))
    shown = rounded(least if eps is None else 1 - least)
    stored = shown if floor is None else rounded(share("--floor", floor))
    if floor is not None and (stored > shown or search != "exact"):
        raise UsageError(
            f"{floor!r} is above the threshold" if search == "exact" else "inside clusters no pairs are stored",
            where="--floor",
            expected="a number up to the threshold, with --search exact",
        )
    if search == "exact" and stored < LEAST_FLOOR:
        raise UsageError(
            f"an exact search from {stored} on would find more pairs than anybody can use",
            where="--threshold, --floor",
            expected=f"{LEAST_FLOOR} or more",
        )
    return Settings(shown, parse_keep(keep), rule, search, stored, random_state)


def share(name: str, value: object) -> float:
    """`value` of the option `name` as a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise UsageError(f"{value!r} is out of range", where=name, expected="a number in [0, 1]")
    return float(value)


def rounded(value: float) -> float:
    """The shortest number that rounds to the same float32, so that files show 0.9 and not 0.8999999761581421."""
    return float(str(np.float32(value)))

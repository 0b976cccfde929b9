"""What determines decisions, besides the clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from daskmeans import config
from daskmeans.duplicates.ranking import parse_keep
from daskmeans.errors import UsageError

RULES = ("survivors", "semdedup")
SEARCHES = ("auto", "exact", "clusters")
# Below this nearly everything is similar to something.
LEAST_FLOOR = 0.5
# With more, what rows visit takes more memory than the rows.
MOST_PROBES = 100
# Seeds are less, whatever their sign: they are hashed and stored as int64.
SEEDS = 2**62


@dataclass(frozen=True)
class Settings:
    """Checked arguments of `dedup`."""

    threshold: float
    keep: tuple[str, ...]
    rule: str
    search: str
    probes: int
    floor: float
    random_state: int

    @property
    def stores_pairs(self) -> bool:
        """Whether the search writes down the pairs that it finds, from which rows are then decided."""
        return self.search == "exact" or self.probes > 1


def dedup_settings(
    threshold: float | None,
    eps: float | None,
    keep: str | Sequence[str],
    rule: str,
    search: str,
    probes: int,
    floor: float | None,
    random_state: int,
) -> Settings:
    """Checked arguments of `dedup`; the search may be ``auto`` still, see :func:`chosen`."""
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
    if floor is not None and stored > shown:
        raise UsageError(f"{floor!r} is above the threshold", where="--floor", expected=f"a number up to {shown}")
    if isinstance(probes, bool) or not isinstance(probes, int | np.integer) or not 1 <= probes <= MOST_PROBES:
        raise UsageError(f"{probes!r} is out of range", where="--probes", expected=f"1 to {MOST_PROBES} clusters")
    if probes > 1 and search == "exact":
        raise UsageError("an exact search has no probes", where="--probes", remedy="leave it out, or --search clusters")
    if not isinstance(random_state, int | np.integer) or not -SEEDS < random_state < SEEDS:
        raise UsageError(
            f"{random_state!r} is out of range", where="--random-state", expected="an integer in (-2^62, 2^62)"
        )
    made = Settings(shown, parse_keep(keep), rule, search, int(probes), stored, int(random_state))
    if floor is not None and search == "clusters" and not made.stores_pairs:
        raise UsageError(
            "a search inside clusters stores no pairs",
            where="--floor",
            remedy="leave it out, or add --search exact or --probes 2",
        )
    if made.stores_pairs:
        _check_floor(stored)
    return made


def chosen(settings: Settings, pairs: int, against: bool) -> Settings:
    """`settings` with a search, if they leave it open: ``exact`` unless there are too many pairs of rows.

    How many those are is configured and not measured, so that the same input has the same output on every machine.

    Parameters
    ----------
    settings : Settings
    pairs : int
        That an exact search would compare.
    against : bool
        Whether rows are held against others, which takes an exact search.

    Examples
    --------
    >>> settings = dedup_settings(0.9, None, "hard", "survivors", "auto", 1, None, 0)
    >>> chosen(settings, 10**9, False).search, chosen(settings, 10**15, False).search
    ('exact', 'clusters')
    """
    if settings.search != "auto":
        return settings
    few = are_few(pairs) and settings.floor >= LEAST_FLOOR
    exact = against or (settings.probes == 1 and (few or settings.floor < settings.threshold))
    if exact:
        _check_floor(settings.floor)
    return replace(settings, search="exact" if exact else "clusters", probes=1 if exact else settings.probes)


def are_few(pairs: int) -> bool:
    """Whether so many pairs of rows are all compared, unless it is asked otherwise."""
    return pairs <= config.get("exact-pairs")  # type: ignore[no-any-return]


def _check_floor(floor: float) -> None:
    if floor < LEAST_FLOOR:
        raise UsageError(
            f"from {floor} on there would be more pairs than anybody can use",
            where="--threshold, --floor",
            expected=f"{LEAST_FLOOR} or more, but for --search clusters without --probes",
        )


def share(name: str, value: object) -> float:
    """`value` of the option `name` as a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise UsageError(f"{value!r} is out of range", where=name, expected="a number in [0, 1]")
    return float(value)


def rounded(value: float) -> float:
    """The shortest number that rounds to the same float32, so that files show 0.9 and not 0.8999999761581421."""
    return float(str(np.float32(value)))

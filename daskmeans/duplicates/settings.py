"""Settings of decisions: everything that determines them, besides the clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from daskmeans.duplicates.ranking import parse_keep
from daskmeans.errors import UsageError
from daskmeans.options import Range, check, option
from daskmeans.pairs.settings import LEAST_FLOOR, PairSettings, check_floor, is_exact_default

# With more, the probe lists take more memory than the rows.
MOST_PROBES = 100
# Cosine similarity from which two rows are duplicates, unless another one is asked for.
DEFAULT_THRESHOLD = 0.9
# Bound of the absolute value of seeds, which are hashed and stored as int64.
SEEDS = 2**62


def _is_share(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(0 <= value <= 1)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer)


SHARE = Range(_is_share, "a number in [0, 1]")
PROBES = Range(
    lambda value: _is_integer(value) and not isinstance(value, bool) and 1 <= value <= MOST_PROBES,
    f"1 to {MOST_PROBES} clusters",
)
SEED = Range(lambda value: _is_integer(value) and -SEEDS < value < SEEDS, "an integer in (-2^62, 2^62)")


@dataclass(frozen=True)
class DedupSettings(PairSettings):
    """Settings that follow from the options of `dedup`; its manifest stores them."""

    threshold: float
    keep: tuple[str, ...]
    rule: str


@dataclass(frozen=True)
class Deciding:
    """Options of `dedup`, as given; the fields are flags of the command line."""

    threshold: float | None = option(
        None,
        f"Cosine similarity from which two rows are duplicates; default: {DEFAULT_THRESHOLD}, unless --eps is given.",
        range=SHARE,
    )
    eps: float | None = option(None, "The same as 1 - threshold.", range=SHARE)
    keep: Sequence[str] = option(("hard",), "hard, easy, random, or COLUMN:asc|desc; repeatable.")  # one as it is
    rule: str = option(
        "survivors",
        "survivors: a row is dropped if an earlier-ranked row that stays is similar enough; semdedup: if any is.",
        choices=("survivors", "semdedup"),
    )
    search: str = option(
        "auto",
        "exact: all pairs of rows; clusters: inside clusters, with a measured recall; auto: exact for up to two "
        "million rows.",
        choices=("auto", "exact", "clusters"),
    )
    probes: int = option(1, "With clusters: how many near ones to compare.", range=PROBES)
    floor: float | None = option(None, "Score from which pairs are stored [the threshold].", range=SHARE)
    random_state: int = option(42, "Seed of the ranking `random` and of the recall sample.", range=SEED)

    def settings(self) -> DedupSettings:
        """Settings that follow from the options; the search may still be ``auto``, see :func:`choose_search`.

        Raises
        ------
        UsageError
            An option is out of its range, or has no effect together with the others.
        """
        check(self)
        threshold = round_to_float32(self._least())
        floor = threshold if self.floor is None else round_to_float32(float(self.floor))
        if floor > threshold:
            expected = f"a number up to {threshold}"
            raise UsageError(f"{self.floor!r} is above the threshold", where="--floor", expected=expected)
        if self.probes > 1 and self.search == "exact":
            remedy = "leave it out, or --search clusters"
            raise UsageError("an exact search has no probes", where="--probes", remedy=remedy)
        made = DedupSettings(
            self.search, int(self.probes), floor, int(self.random_state), threshold, parse_keep(self.keep), self.rule
        )
        if self.floor is not None and self.search == "clusters" and not made.stores_pairs:
            raise UsageError(
                "a search inside clusters stores no pairs",
                where="--floor",
                remedy="leave it out, or add --search exact or --probes 2",
            )
        if made.stores_pairs:
            check_floor(floor)
        return made

    def _least(self) -> float:
        """The threshold, which is given directly or as `eps`, or else the default."""
        if self.threshold is not None and self.eps is not None:
            expected = "one of the two, in [0, 1]"
            raise UsageError("both threshold and eps are given", where="--threshold, --eps", expected=expected)
        if self.eps is not None:
            return 1 - float(self.eps)
        return DEFAULT_THRESHOLD if self.threshold is None else float(self.threshold)


def choose_search(settings: DedupSettings, pairs: int, against: bool) -> DedupSettings:
    """Choose the search if `settings` leave it open: ``exact``, unless there are too many pairs of rows.

    The limit is configured and not measured, so that the same input has the same output on every machine.

    Parameters
    ----------
    settings : DedupSettings
    pairs : int
        Number of pairs that an exact search would compare.
    against : bool
        Whether rows are compared with reference clusters too, which takes an exact search.

    Examples
    --------
    >>> settings = Deciding(threshold=0.9).settings()
    >>> choose_search(settings, 10**9, False).search, choose_search(settings, 10**15, False).search
    ('exact', 'clusters')
    """
    if settings.search != "auto":
        return settings
    few = is_exact_default(pairs) and settings.floor >= LEAST_FLOOR
    exact = against or (settings.probes == 1 and (few or settings.floor < settings.threshold))
    if exact:
        check_floor(settings.floor)
    return replace(settings, search="exact" if exact else "clusters", probes=1 if exact else settings.probes)


def check_share(name: str, value: object) -> float:
    """Return `value` of the option `name` as a float; refuse it outside [0, 1]."""
    if not SHARE.holds(value):
        raise UsageError(f"{value!r} is out of range", where=name, expected=SHARE.says)
    return float(value)  # type: ignore[arg-type]


def round_to_float32(value: float) -> float:
    """The shortest number that rounds to the same float32, so files show 0.9 and not 0.8999999761581421."""
    return float(str(np.float32(value)))

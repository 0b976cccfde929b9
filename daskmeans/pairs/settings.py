"""What determines which pairs of rows a search finds, besides the rows."""

from __future__ import annotations

from dataclasses import dataclass

from daskmeans import config
from daskmeans.errors import UsageError

# Below this nearly everything is similar to something.
LEAST_FLOOR = 0.5


@dataclass(frozen=True)
class PairSettings:
    """How similar pairs are searched.

    Attributes
    ----------
    search : {"auto", "exact", "clusters"}
        All pairs of rows, those inside clusters, or what is still to be chosen by the number of pairs.
    probes : int
        Of a search in clusters: how many of them each row is compared in.
    floor : float
        The score from which pairs are stored.
    random_state : int
        Seed of the sample on which recall is measured.
    """

    search: str
    probes: int
    floor: float
    random_state: int

    @property
    def stores_pairs(self) -> bool:
        """Whether the search writes down the pairs that it finds, from which rows are then decided."""
        return self.search == "exact" or self.probes > 1


def is_exact_default(pairs: int) -> bool:
    """Whether so many pairs of rows are all compared, unless it is asked otherwise."""
    return pairs <= config.get("exact-pairs")  # type: ignore[no-any-return]


def check_floor(floor: float) -> None:
    """Refuse to store pairs from a score on that nearly all reach."""
    if floor < LEAST_FLOOR:
        raise UsageError(
            f"from {floor} on there would be more pairs than anybody can use",
            where="--threshold, --floor",
            expected=f"{LEAST_FLOOR} or more, but for --search clusters without --probes",
        )

"""Settings of a search for pairs: everything that determines its result, besides the rows."""

from __future__ import annotations

from dataclasses import dataclass

from daskmeans import config
from daskmeans.errors import UsageError

# Below this score, nearly every row is similar to some other row.
LEAST_FLOOR = 0.5


@dataclass(frozen=True)
class PairSettings:
    """How similar pairs are searched.

    Attributes
    ----------
    search : {"auto", "exact", "clusters"}
        ``exact`` compares all pairs of rows, ``clusters`` those inside clusters; ``auto`` is still to be chosen.
    probes : int
        For a search inside clusters: with how many of them each row is compared.
    floor : float
        Lowest score of the pairs that are stored.
    random_state : int
        Seed of the sample on which recall is measured.
    """

    search: str
    probes: int
    floor: float
    random_state: int

    @property
    def stores_pairs(self) -> bool:
        """Whether the search stores the pairs that it finds; decisions are then made from these."""
        return self.search == "exact" or self.probes > 1


def is_exact_default(pairs: int) -> bool:
    """Whether an exact search is the default for this many pairs of rows."""
    return pairs <= config.get("exact-pairs")  # type: ignore[no-any-return]


def check_floor(floor: float) -> None:
    """Refuse to store pairs from a score that nearly all pairs reach."""
    if floor < LEAST_FLOOR:
        raise UsageError(
            f"with scores from {floor} on, there would be more pairs than anybody can use",
            where="--threshold, --floor",
            expected=f"{LEAST_FLOOR} or more, except for --search clusters without --probes",
        )

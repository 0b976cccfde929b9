"""Checks of the estimator's parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskmeans.errors import UsageError
from daskmeans.kmeans.values import is_whole


def seed_from(random_state: Any) -> int:
    """The seed that `random_state` stands for; drawn where it is None or a generator."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    # What is added to it must leave it an int64.
    if is_whole(random_state, 0) and random_state < 2**62:
        return int(random_state)
    raise UsageError(f"random_state={random_state!r}", expected="an integer in [0, 2^62), a generator or None")

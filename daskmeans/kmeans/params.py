"""The estimator's parameters: their defaults and ranges, and scikit-learn's methods to read and set them."""

from __future__ import annotations

import inspect
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np

from daskmeans.errors import UsageError
from daskmeans.kmeans.values import is_auto, is_flag, is_whole, to_number
from daskmeans.options import Need, Range, option, options

# Runs of n_init="auto" where seeds are drawn without looking at distances, as in scikit-learn.
RANDOM_RUNS = 10
ENGINES = ("auto", "native", "cuml")


def _whole(least: int) -> Range:
    return Range(lambda value: is_whole(value, least), f"an integer >= {least}")


def _is_word(value: Any, *words: str) -> bool:
    return isinstance(value, str) and value in words


@dataclass(eq=False, repr=False)
class Parameters:
    """The parameters of :class:`daskmeans.KMeans`; its docstring explains each."""

    n_clusters: int | str = option(
        8,
        "Number of clusters; auto: a round number, about the square root of the number of rows.",
        flag_default="auto",
        range=Range(lambda value: is_auto(value) or is_whole(value, 1), "an integer >= 1, or 'auto'"),
    )
    _: KW_ONLY
    max_iter: int = option(300, "Updates at most; 0 keeps --init.", range=_whole(0))
    tol: float = option(
        1e-4, "Relative shift at which to stop.", range=Range(lambda value: to_number(value) >= 0, "a number >= 0")
    )
    random_state: Any = option(42, "Seed of all that is random.")
    init: Any = option(
        "auto", "auto, k-means|| (or k-means++), random, a .npy file or a model directory.", is_path=True
    )
    n_init: Any = option(
        1,
        "Runs, of which the best is kept.",
        range=Range(lambda value: is_whole(value, 1) or is_auto(value), "an integer >= 1, or 'auto'"),
    )
    oversampling_factor: float = option(
        2.0,
        "Rows that k-means|| draws as candidates in each round, as a multiple of half of --n-clusters.",
        range=Range(lambda value: 0 < to_number(value) < math.inf, "a number > 0"),
        need=Need({"init": ("auto", "k-means||", "k-means++")}, "--init auto or k-means||"),
    )
    max_samples_per_batch: int = option(
        32768,
        "Rows that cuML compares at once.",
        range=_whole(1),
        need=Need({"engine": ("cuml",)}, "--engine cuml"),
    )
    sample_fraction: float = option(
        1.0, "Share of rows to fit on.", range=Range(lambda value: 0 < to_number(value) <= 1, "a number in (0, 1]")
    )
    normalize: bool = option(True, "Scale rows to unit length.", range=Range(is_flag, "True or False"))
    max_cluster_size: int | None = option(
        None,
        "Split clusters of more rows after the fit.",
        range=Range(lambda value: value is None or is_whole(value, 1), "an integer >= 1, or None"),
    )
    engine: str = option(
        "auto",
        "cuml: cuML on the workers' GPUs finds the centroids; auto is native.",
        choices=ENGINES,
        range=Range(lambda value: _is_word(value, *ENGINES), "'auto', 'native' or 'cuml'"),
    )

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; `deep` is accepted for scikit-learn and has no effect."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name.

        Raises
        ------
        UsageError
            There is no parameter with that name.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise UsageError(
                    f"Invalid parameter {name!r} for {type(self).__name__}", expected=f"one of {', '.join(known)}"
                )
            setattr(self, name, value)
        return self

    def check_params(self) -> None:
        """Raise UsageError if a parameter is out of its range."""
        for each, facts in options(self):
            value = getattr(self, each.name)
            if facts.range and not facts.range.holds(value):
                raise UsageError(f"{each.name}={value!r}", expected=facts.range.says)


def count_runs(n_init: Any, init: Any) -> int:
    """Return how many runs `n_init` asks for, given the resolved `init`; from given centroids all would be the same.

    Examples
    --------
    >>> count_runs(3, "auto"), count_runs("auto", "auto"), count_runs("auto", "random"), count_runs(3, np.eye(2))
    (3, 1, 10, 1)
    """
    if isinstance(init, np.ndarray):
        return 1
    if isinstance(n_init, str):
        return RANDOM_RUNS if callable(init) or init == "random" else 1
    return int(n_init)


def seed_from(random_state: Any) -> int:
    """Return the seed that `random_state` stands for; it is drawn if that is None or a generator."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    # It must remain an int64 after small numbers are added to it.
    if is_whole(random_state, 0) and random_state < 2**62:
        return int(random_state)
    raise UsageError(f"random_state={random_state!r}", expected="an integer in [0, 2^62), a generator or None")

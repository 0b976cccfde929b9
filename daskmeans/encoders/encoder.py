"""The interface of encoders, and the registry of those that come with daskmeans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from daskmeans.errors import UsageError

ENCODERS = ("wordllama",)


class Encoder(Protocol):
    """An encoder of texts into vectors.

    It is sent to every worker, so it must pickle to a few bytes and load its weights on first use.
    """

    name: str
    dimension: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of `texts`, float32, shape (n, dimension); each depends on its own text only."""


def get_encoder(name: str = "wordllama") -> Encoder:
    """Return the encoder called `name`.

    Parameters
    ----------
    name : {"wordllama"}, default "wordllama"

    Raises
    ------
    UsageError
        There is no encoder with that name.
    MissingExtraError
        Its package is not installed.

    Examples
    --------
    >>> get_encoder("wordllama").dimension
    256
    """
    if name not in ENCODERS:
        raise UsageError(f"unknown encoder {name!r}", where="--encoder", expected=" or ".join(ENCODERS))
    from daskmeans.encoders.wordllama import WordLlama

    return WordLlama()

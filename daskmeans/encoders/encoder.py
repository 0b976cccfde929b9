"""What turns texts into vectors, as a seam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from daskmeans.errors import UsageError

ENCODERS = ("wordllama",)


class Encoder(Protocol):
    """Texts in, vectors out.

    An encoder travels to every worker, so it is small to pickle and loads its weights where it is first used.
    """

    name: str
    dimension: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of `texts`, float32, shape (n, dimension); none depends on the other texts."""


def get_encoder(name: str = "wordllama") -> Encoder:
    """The encoder called `name`.

    Parameters
    ----------
    name : {"wordllama"}, default "wordllama"

    Raises
    ------
    UsageError
        There is no encoder of that name.
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

"""WordLlama: the mean of a text's token vectors. The package contains the weights, so nothing is downloaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from daskmeans.errors import MissingExtraError
from daskmeans.kernels.sums import mean_rows

_LOAD_LOCK = Lock()


class WordLlama:
    """Encoder of 256 dimensions that needs neither a GPU nor a network.

    Raises
    ------
    MissingExtraError
        The package wordllama is not installed.

    Notes
    -----
    The vectors are those of ``wordllama.WordLlamaInference.embed``, which pads all texts of a batch to the longest one.
    Here tokens are summed without padding, which is several times faster and bounds memory for texts of any length.

    Examples
    --------
    >>> WordLlama().encode(["a cat sat", "a cat sits"]).shape
    (2, 256)
    """

    name = "wordllama"
    dimension = 256

    def __init__(self) -> None:
        if find_spec("wordllama") is None:
            raise MissingExtraError("wordllama", "text")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of `texts`, float32, shape (n, 256); a text without tokens becomes a zero vector."""
        with _LOAD_LOCK:
            tokenizer, table = _load_model()
        tokens = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        starts = np.zeros(len(tokens) + 1, np.int64)
        np.cumsum([len(ids) for ids in tokens], out=starts[1:])
        flat = np.fromiter((i for ids in tokens for i in ids), np.int64, count=starts[-1])
        return mean_rows(table, np.minimum(flat, len(table) - 1), starts)


@cache
def _load_model() -> tuple[Any, np.ndarray]:
    """Load the tokenizer and the token vectors, once per process."""
    # Tasks use all cores already; the tokenizer reads this on its first run.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _preserve_logging():
        import wordllama
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    model.tokenizer.no_padding()
    return model.tokenizer, model.embedding


@contextmanager
def _preserve_logging() -> Iterator[None]:
    """Restore the root logger after an import: wordllama switches on messages of all loggers."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level

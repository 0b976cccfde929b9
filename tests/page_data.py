"""The files that the commands on the pages work on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from helpers import write_embeddings

N, DIMENSION, N_TOPICS = 3000, 32, 60
WORDS = [
    "red", "blue", "old", "young", "quick", "slow", "quiet", "loud", "cat", "dog", "owl", "horse", "teacher", "farmer",
    "doctor", "pilot", "reads", "paints", "sells", "finds", "keeps", "opens", "closes", "carries", "book", "house",
    "river", "garden", "letter", "ticket", "bridge", "window", "today", "tomorrow", "often", "never",
]  # fmt: skip


class Maker:
    """Makes rows about the same topics, with the texts that belong to them."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._topics = self._rng.normal(size=(N_TOPICS, DIMENSION))

    def rows(self, n: int) -> tuple[np.ndarray, list[str]]:
        """New rows, all far apart, and their texts."""
        noise = 0.6 * self._rng.normal(size=(n, DIMENSION))
        X = self._topics[self._rng.integers(0, N_TOPICS, n)] + noise
        texts = [" ".join(words) for words in self._rng.choice(WORDS, (n, 10))]
        return X.astype(np.float32), texts

    def similar(self, X: np.ndarray, texts: list[str], n: int) -> tuple[np.ndarray, list[str]]:
        """Rows near the first `n` of `X`, some nearer than others, with one word of each text changed."""
        noise = np.linspace(0.02, 0.6, n)[:, None] * self._rng.normal(size=(n, DIMENSION))
        changed = [text.rsplit(" ", 1)[0] + " again" for text in texts[:n]]
        return (X[:n] + noise).astype(np.float32), changed


def columns(n: int, first: int = 0) -> dict[str, list]:
    """The further columns of `n` rows."""
    numbers = range(first, first + n)
    return {"quality": [i * 37 % 101 / 100 for i in numbers], "lang": [("en", "de", "fr")[i % 3] for i in numbers]}


def write_data(folder: Path) -> None:
    """Write all files below `folder`."""
    maker = Maker()
    X, texts = maker.rows(N - 300)
    near, near_texts = maker.similar(X, texts, 150)
    X, texts = np.concatenate([X, near, X[:150]]), texts + near_texts + texts[:150]
    ids = [f"doc-{i:05d}" for i in range(N)]
    for i, part in enumerate(np.array_split(np.arange(N), 3)):
        rest = {"text": [texts[j] for j in part], **columns(len(part), part[0])}
        write_embeddings(folder / "vectors" / f"part-{i}.parquet", X[part], [ids[j] for j in part], **rest)
    for name in ("new", "tomorrow"):
        Y, more = maker.rows(240)
        Z, most = maker.similar(X[200:], texts[200:], 60)
        rest = {"text": more + most, **columns(300)}
        rows = np.concatenate([Y, Z])
        write_embeddings(folder / name / "rows.parquet", rows, [f"{name}-{i:05d}" for i in range(300)], **rest)
    T, train = maker.rows(500)
    Y, test = maker.rows(170)
    Z, leaked = maker.similar(T, train, 30)
    write_embeddings(folder / "train" / "rows.parquet", T, [f"train-{i:05d}" for i in range(500)], text=train)
    rest = {"text": test + leaked}
    write_embeddings(
        folder / "test" / "rows.parquet", np.concatenate([Y, Z]), [f"test-{i:05d}" for i in range(200)], **rest
    )
    Y, more = maker.rows(500)
    more_ids = ids + [f"more-{i:05d}" for i in range(500)]
    rest = {"text": texts + more, **columns(N + 500)}
    write_embeddings(folder / "more" / "rows.parquet", np.concatenate([X, Y]), more_ids, **rest)
    lines = [json.dumps({"id": ids[i], "text": texts[i]}) for i in range(200)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    pq.write_table(pa.table({"id": ids[:200], "text": texts[:200]}), folder / "texts.parquet")
    np.save(folder / "vectors.npy", X[:1200])


def read_matrix(folder: Path) -> np.ndarray:
    """The rows of ``vectors/``: float32, shape (3000, 32)."""
    table = pq.read_table(folder / "vectors", columns=["embedding"])
    return np.ascontiguousarray(np.stack(table["embedding"].to_numpy()), np.float32)

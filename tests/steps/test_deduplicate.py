"""One call finds the near-duplicates of anything: those that brute force finds, and the rows stay that `run` keeps."""

from __future__ import annotations

import builtins
import importlib.util
import pickle
import re
from collections import deque
from dataclasses import replace
from pathlib import Path

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

import daskmeans as dkm
from daskmeans.duplicates.in_memory import decide, find_pairs_in_threads
from daskmeans.duplicates.settings import Deciding
from daskmeans.errors import DataError, MissingExtraError, UsageError
from daskmeans.tuning import DEFAULT
from helpers import blobs, write_embeddings

THRESHOLD = 0.95
X = blobs(500, d=12)
NAMES = [f"row {i}" for i in range(len(X))]


def brute_force(threshold: float) -> list[int]:
    """Rows that stay if the first of two duplicates does, by float64 and a loop."""
    unit = X.astype(np.float64) / np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    kept: list[int] = []
    for i, row in enumerate(unit):
        if not kept or np.float32((unit[kept] @ row).max()) < np.float32(threshold):
            kept.append(i)
    return kept


def arrow_lists() -> pd.Series:
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([pa.array(list(X))])))


class LikePolars:
    """A dataframe of another library, with what polars and its like have."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @property
    def columns(self) -> list[str]:
        return self.table.column_names

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, item):
        if isinstance(item, list):
            return LikePolars(self.table.select(item))
        return LikePolars(self.table.take(pa.array(item)))


class LikeTorch:
    """A tensor that needs gradients."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.shape = rows, rows.shape

    def detach(self) -> LikeTorch:
        return LikeTorch(self.rows)

    cpu = detach

    def numpy(self) -> np.ndarray:
        return self.rows

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    def __getitem__(self, places: np.ndarray) -> LikeTorch:
        return LikeTorch(self.rows[places])


TABLE = pa.table({"name": NAMES, "v": pa.array(list(X))})
KINDS = {
    "array": (lambda: X, lambda kept: kept),
    "float64": (lambda: X.astype(np.float64), lambda kept: kept.astype(np.float32)),
    "lists": (lambda: [row.tolist() for row in X], np.float32),
    "pandas": (lambda: pd.DataFrame({"name": NAMES, "v": list(X)}, index=NAMES), lambda kept: np.stack(kept["v"])),
    "numbers": (lambda: pd.DataFrame(X).assign(id=np.arange(len(X))), lambda kept: kept.drop(columns="id").to_numpy()),
    "names that are no strings": (
        lambda: pd.DataFrame({0: list(X), 1: NAMES}),
        lambda kept: np.stack(kept[0]),
    ),
    "batch": (lambda: TABLE.to_batches()[0], lambda kept: np.stack(kept["v"].to_numpy(zero_copy_only=False))),
    "arrow": (lambda: TABLE, lambda kept: np.stack(kept["v"].to_numpy())),
    "like polars": (lambda: LikePolars(TABLE), lambda kept: np.stack(kept.table["v"].to_numpy())),
    "like torch": (lambda: LikeTorch(X), lambda kept: kept.rows),
    "deque": (lambda: deque(X), np.stack),
    "arrays of Arrow": (lambda: TABLE["v"], lambda kept: np.stack(kept.to_numpy())),
    "objects": (lambda: pd.DataFrame(X).astype(object), lambda kept: kept.to_numpy(np.float32)),
    "series": (arrow_lists, lambda kept: np.stack(kept)),
    "dask array": (lambda: da.from_array(X, chunks=(90, 12)), lambda kept: kept.compute()),
    "dask column": (
        lambda: dd.from_pandas(pd.DataFrame({"v": arrow_lists()}), npartitions=3)["v"],
        lambda kept: np.stack(kept.compute()),
    ),
    "dask numbers": (
        lambda: dd.from_pandas(pd.DataFrame(X).assign(id=np.arange(len(X))), npartitions=3),
        lambda kept: kept.compute().drop(columns="id").to_numpy(),
    ),
    "dask": (
        lambda: dd.from_pandas(pd.DataFrame({"v": arrow_lists(), "name": NAMES}), npartitions=3),
        lambda kept: np.stack(kept.compute()["v"]),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_back_as_they_were_given(kind: str) -> None:
    make, vectors = KINDS[kind]
    given = make()
    found = dkm.deduplicate(given, THRESHOLD, keep="id:asc")
    stay = brute_force(THRESHOLD)
    assert type(found.kept) is type(given) is type(found.removed)
    assert np.array_equal(vectors(found.kept), X[stay])
    assert np.array_equal(vectors(found.removed), np.delete(X, stay, axis=0))
    assert found.pairs["id"].tolist() == np.delete(np.arange(len(X)), stay).tolist()
    assert set(found.pairs["kept_id"]) <= set(stay)
    assert repr(found).startswith(f"Deduplication(rows=500, kept={len(stay)}, exact=")


def test_columns_of_one_name_count_once_each() -> None:
    frame = pd.DataFrame(X, columns=["a", *"abcdefghijk"]).assign(id=np.arange(len(X)))
    found = dkm.deduplicate(frame, THRESHOLD, keep="id:asc")
    assert np.flatnonzero(found.decisions.keep).tolist() == brute_force(THRESHOLD)


def test_columns_and_index_stay() -> None:
    frame = pd.DataFrame({"name": NAMES, "v": list(X), "stars": range(500)}, index=pd.Index(NAMES, name="key"))
    found = dkm.deduplicate(frame, THRESHOLD, keep="stars:asc")
    assert found.kept.equals(frame.iloc[brute_force(THRESHOLD)])
    assert dkm.deduplicate(TABLE, THRESHOLD).kept.schema == TABLE.schema


@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
def test_the_same_rows_stay_as_after_a_run(tmp_path: Path, keep: str) -> None:
    path = write_embeddings(tmp_path / "in.parquet", X, text=NAMES)
    run = dkm.run(path, tmp_path / "out", dkm.KMeans("auto"), THRESHOLD, keep=keep)
    expected = run.removed.compute().sort_values("id", ignore_index=True)
    frame = pd.read_parquet(path)
    found = dkm.deduplicate(frame, THRESHOLD, keep=keep)
    columns = ["id", "kept_id", "kept_score", "max_id", "reason", *(["centroid"] if keep != "random" else [])]
    assert len(expected) > 30
    decided = found.decisions.removed.sort_values("id", ignore_index=True)
    pd.testing.assert_frame_equal(decided[columns], expected[columns])
    files = dkm.deduplicate(path, THRESHOLD, keep=keep)
    kept = files.kept.compute()
    assert list(kept.columns) == list(frame.columns)
    assert kept["id"].tolist() == found.kept["id"].tolist()
    assert files.removed.compute()["text"].tolist() == found.removed["text"].tolist()
    assert files.pairs.compute().sort_values("id")["score"].tolist() == found.pairs.sort_values("id")["score"].tolist()


@pytest.mark.parametrize("rows", [1, 37, 250, 500])
def test_blocks_change_no_pair(rows: int) -> None:
    """But for copies, which may be paired with another row that is the same."""
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    ids, found = pa.array(np.arange(500)), {}
    for name, tuning in {"one": DEFAULT, "many": replace(DEFAULT, rows_per_block=rows, task_pairs=1)}.items():
        pairs = find_pairs_in_threads(unit, ids, np.float32(0.9), tuning=tuning)
        settings = Deciding(0.9, keep="id:asc", search="exact").settings()
        found[name] = decide(pa.table({"id": ids}), "id", np.zeros(500, np.int32), pairs, settings)
    assert found["many"].equals(found["one"])


def test_on_a_cluster_it_is_the_same(thread_client) -> None:
    thread_client(2)
    expected = brute_force(THRESHOLD)
    frame = dd.from_pandas(pd.DataFrame({"v": arrow_lists()}), npartitions=4)
    assert np.flatnonzero(dkm.deduplicate(frame, THRESHOLD, keep="id:asc").decisions.keep).tolist() == expected


def test_other_thresholds_without_a_search(tmp_path: Path) -> None:
    path = write_embeddings(tmp_path / "in.parquet", X)
    for data in (X, path):
        found = dkm.deduplicate(data, 0.99, floor=0.9)
        lower = dkm.deduplicate(data, 0.92)
        again = found.at(0.92)
        assert repr(again) == repr(lower) != repr(found)
        assert sorted(dask.compute(again.pairs)[0]["id"]) == sorted(dask.compute(lower.pairs)[0]["id"])
        with pytest.raises(UsageError, match=r"floor=0\.6"):
            found.at(0.6)


def test_files_stay_where_they_are_told(tmp_path: Path) -> None:
    path = write_embeddings(tmp_path / "in.parquet", X)
    found = dkm.deduplicate([path], THRESHOLD, out=tmp_path / "out")
    assert str(found.decisions.path) == str(tmp_path / "out" / "dedup")
    assert dkm.open_buckets(tmp_path / "out" / "clusters").n_clusters == 20


def test_bad_rows_of_files_are_neither_kept_nor_removed(tmp_path: Path) -> None:
    bad = X.copy()
    bad[3] = np.nan
    path = write_embeddings(tmp_path / "in.parquet", bad)
    found = dkm.deduplicate(path, THRESHOLD, reading=dkm.ReadOptions(on_bad_row="skip"))
    ids = [*found.kept.compute()["id"], *found.removed.compute()["id"]]
    assert sorted(ids) == [name for i, name in enumerate(pd.read_parquet(path)["id"]) if i != 3]


@pytest.mark.skipif(importlib.util.find_spec("wordllama") is None, reason="needs the extra text")
def test_files_without_ids_and_nested_vectors(tmp_path: Path) -> None:
    kept = dkm.deduplicate(pd.DataFrame({"id": range(len(X)), "v": list(X)}), THRESHOLD).kept["id"].tolist()
    numbered = pa.table({"v": list(X), "n": np.arange(len(X))})
    nested = pa.table({"id": np.arange(len(X)), "emb": pa.array([{"values": v} for v in X.tolist()])})
    for name, table, field, columns in (
        ("numbered", numbered, None, ["id", "v", "n"]),
        ("nested", nested, "emb.values", ["id", "emb"]),
    ):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        reading = dkm.ReadOptions(embedding_field=field)
        found = dkm.deduplicate(tmp_path / f"{name}.parquet", THRESHOLD, reading=reading).kept.compute()
        assert list(found.columns) == columns
        assert found["id"].tolist() == kept


def test_objects_of_several_types_are_named() -> None:
    mixed = pd.DataFrame({"v": [np.ones(3), np.ones(3, np.float32)]})
    for call in (dkm.KMeans(1).fit, dkm.deduplicate):
        with pytest.raises(UsageError, match=r"several types(.|\n)*numpy\.asarray"):
            call(mixed)


def test_texts_are_encoded(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a cat sat on the mat", "stock prices fell", "a cat sat on the mat", "the dog barks at night"]
    kept = [texts[0], texts[1], texts[3]]
    found = dkm.deduplicate(texts, keep="id:asc")
    assert found.kept == kept
    assert dkm.deduplicate(tuple(texts), keep="id:asc").kept == tuple(kept)
    assert dkm.deduplicate(np.array(texts), keep="id:asc").kept.tolist() == kept
    series = dkm.deduplicate(pd.Series(texts, index=list("abcd")), keep="id:asc").kept
    assert (series.tolist(), list(series.index)) == (kept, ["a", "b", "d"])
    assert dkm.deduplicate(pa.array(texts), keep="id:asc").kept.to_pylist() == kept
    frame = pd.DataFrame({"key": list("abcd"), "text": texts})
    in_frame = dkm.deduplicate(frame, column="text", id_field="key", keep="key:asc")
    assert in_frame.pairs.iloc[0].to_list() == ["c", "a", 1.0, "exact"]
    found.show(1)
    assert capsys.readouterr().out.splitlines() == [
        "1.0000  kept     0  a cat sat on the mat", "        removed  2  a cat sat on the mat",
    ]  # fmt: skip
    with pytest.raises(DataError, match="row 1"):
        dkm.deduplicate(["a cat", "", "a dog"])
    with pytest.raises(DataError, match="row 1"):
        dkm.deduplicate(["a cat", None])


def test_texts_without_the_encoder_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskmeans.encoders.wordllama.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "daskmeans\[text\]"'):
        dkm.deduplicate(["a cat", "a dog"])


@pytest.mark.parametrize(
    ("data", "arguments", "told"),
    [
        (lambda: X, {"threshold": 2}, "number in"),
        (lambda: X, {"threshold": 0.3}, "0.5 or more"),
        (lambda: X, {"out": "x"}, "rows in memory"),
        (lambda: X, {"column": "v"}, "no columns"),
        (lambda: X, {"keep": "stars:asc"}, "'stars'"),
        (lambda: TABLE, {"id_field": "key"}, "'key'"),
        (lambda: TABLE, {"column": "vector"}, "'vector'"),
        (lambda: TABLE, {"keep": "stars:asc"}, "one of name, v"),
        (lambda: ["a.parquet", "b.parquet"], {}, "pathlib.Path"),
        (lambda: Path("missing.parquet"), {}, "no such path"),
        (lambda: Path("missing.parquet"), {"column": "v"}, "reading="),
        (lambda: np.zeros((3, 2)), {}, "row 0"),
        (lambda: pd.DataFrame({"id": [1, 1], "v": [[1.0], [2.0]]}), {}, "occurs before"),
        (lambda: 7, {}, "got 0D array"),
        (lambda: (row for row in X), {}, "numpy.stack(list(X))"),
        (lambda: {"v": X}, {}, "pandas.DataFrame(X)"),
        (lambda: None, {}, "NoneType"),
        (lambda: scipy.sparse.csr_array(X), {}, "X.toarray()"),
        (lambda: dask.delayed(X), {}, "dask.array.from_delayed"),
        (lambda: np.ma.masked_less(X, 0), {}, "masked"),
    ],
)  # fmt: skip
def test_mistakes_are_told(data, arguments: dict[str, object], told: str) -> None:
    with pytest.raises((UsageError, DataError), match=re.escape(told)):
        dkm.deduplicate(data(), **arguments)


def test_a_result_survives_pickling() -> None:
    found = dkm.deduplicate(pd.DataFrame({"v": list(X)}), THRESHOLD)
    again = pickle.loads(pickle.dumps(found))
    assert again.pairs.equals(found.pairs)
    assert len(again.at(0.99).kept) > len(again.kept)


def test_labels_of_rows_may_repeat() -> None:
    frame = pd.DataFrame({"v": list(X)}, index=[0] * len(X))
    assert len(dkm.deduplicate(frame, THRESHOLD, keep="id:asc").kept) == len(brute_force(THRESHOLD))


def test_partitions_may_be_empty() -> None:
    rows = dd.from_pandas(pd.DataFrame({"k": range(500), "v": arrow_lists()}), npartitions=5)
    chosen = rows[(rows.k < 120) | (rows.k >= 400)]
    found = dkm.deduplicate(chosen, THRESHOLD)
    assert len(found.kept) + len(found.removed) == 220
    described = {group.id: group.metadata["k"] for group in found.groups(5)}
    numbers = chosen.compute()["k"].to_numpy()
    assert described == {id_: numbers[id_] for id_ in described}


def test_no_rows_and_one_row() -> None:
    assert dkm.deduplicate([]).kept == []
    assert dkm.deduplicate(np.empty((0, 3))).kept.shape == (0, 3)
    assert dkm.deduplicate(X[:1]).kept.shape == (1, 12)
    assert dkm.deduplicate(X[:1]).groups() == []
    dkm.deduplicate(X[:1]).show()


def test_rows_in_memory_write_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = builtins.open
    dkm.deduplicate(X[:50])  # loads what is compiled

    def refuse(file, mode="r", *args, **kwargs):
        assert not set("wax+") & set(mode), file
        return opened(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)
    dkm.deduplicate(X, THRESHOLD)

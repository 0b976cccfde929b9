"""The operator, against the search on files."""

import pickle
from types import SimpleNamespace

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest

from daskmeans import KMeans, SemanticDeduplicator, assign, dedup, write_buckets
from daskmeans.duplicates import deduplicator, in_memory
from daskmeans.errors import DataError, MemoryForecastError, NotFoundError, UsageError
from daskmeans.vectors.matrix import to_column
from helpers import make_rows

THRESHOLD = 0.95
X, _, _, STARS = make_rows()
VECTORS = {
    "fixed": lambda X: to_column(X),
    "list": lambda X: pd.Series(X.tolist(), dtype=pd.ArrowDtype(pa.list_(pa.float32()))),
    "numpy": lambda X: pd.Series(list(X)),
    "python": lambda X: pd.Series(X.tolist()),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("deduplicator") / "model"
    KMeans(n_clusters=5).fit(X).save(path)
    return path


def frame_of(kind="fixed", ids=None):
    """Rows whose vectors are not of unit length."""
    ids = np.arange(len(X)) if ids is None else ids
    return pd.DataFrame({"id": ids, "embedding": VECTORS[kind](X * np.float32(3)), "stars": STARS})


def searched(model, tmp_path, search, **settings):
    """Decisions of a search on files, by id."""
    rows = dd.from_pandas(frame_of(), npartitions=2)
    write_buckets(assign(rows, KMeans.load(model)), tmp_path / "clusters")
    found = dedup(tmp_path / "clusters", THRESHOLD, search=search, **settings).decisions.compute()
    return found.sort_values("id").set_index("id")


def by_id(frame):
    return frame.sort_values("id").set_index("id")[list(deduplicator.DECISION_COLUMNS)]


@pytest.mark.parametrize("rule", ["survivors", "semdedup"])
@pytest.mark.parametrize("keep", ["hard", "easy", "random", ["stars:desc", "id:asc"]])
def test_a_frame_gets_the_decisions_of_an_exact_search(tmp_path, model, keep, rule):
    expected = searched(model, tmp_path, "exact", keep=keep, rule=rule)
    given = frame_of().sample(frac=1, random_state=1)
    found = SemanticDeduplicator(model, THRESHOLD, keep=keep, rule=rule)(given)
    assert found.index.equals(given.index)
    assert found[given.columns].equals(given)
    assert set(expected.reason.dropna()) == {"exact", "semantic"}
    pd.testing.assert_frame_equal(by_id(found), expected, check_index_type=False)


@pytest.mark.parametrize("kind", VECTORS)
def test_vectors_of_any_kind(model, kind):
    decide = SemanticDeduplicator(model, THRESHOLD)
    expected = decide(frame_of()).drop(columns="embedding")
    pd.testing.assert_frame_equal(decide(frame_of(kind)).drop(columns="embedding"), expected)
    named = frame_of(kind, [f"row-{i:03d}" for i in range(len(X))])
    assert decide(named).keep.equals(expected.keep)
    assert str(decide(named).kept_id.dtype) == "string[pyarrow]"


def test_directions_change_nothing(model, monkeypatch):
    decide = SemanticDeduplicator(model, THRESHOLD)
    expected = decide(frame_of())
    made = []
    monkeypatch.setattr(
        in_memory, "find_directions", lambda *_: made.append(np.eye(12, 3, dtype=np.float32)) or made[-1]
    )
    assert decide(frame_of()).equals(expected)
    assert made


@pytest.mark.parametrize("kind", VECTORS)
def test_partitions_on_workers(model, client, kind):
    """Dask finds out by itself what comes out; rows of Python objects it leaves alone only when told to."""
    decide = SemanticDeduplicator(model, THRESHOLD)
    with dask.config.set({"dataframe.convert-string": kind in ("fixed", "list")}):
        frame = dd.from_pandas(frame_of(kind), npartitions=3)
        lazy = frame.map_partitions(decide)
        parts = [frame.get_partition(i).compute() for i in range(3)]
    found = lazy.compute()
    assert found.drop(columns="embedding").equals(pd.concat(map(decide, parts)).drop(columns="embedding"))
    assert (found.dtypes == lazy.dtypes).all()
    assert (decide(frame._meta).dtypes == lazy.dtypes).all()


@pytest.mark.parametrize("rule", ["survivors", "semdedup"])
@pytest.mark.parametrize("npartitions", [1, 4])
@pytest.mark.parametrize("where", ["here", "workers"])
def test_a_dask_dataframe_is_searched_inside_clusters(tmp_path, model, rule, npartitions, where, request):
    expected = searched(model, tmp_path, "clusters", rule=rule)
    below = expected.cosine_sim_score < np.float32(THRESHOLD)
    expected.loc[below, ["max_id", "cosine_sim_score"]] = None
    if where == "workers":
        request.getfixturevalue("client")
    frame = dd.from_pandas(frame_of(), npartitions=npartitions)
    lazy = SemanticDeduplicator(model, THRESHOLD, rule=rule)(frame)
    found = lazy.compute()
    pd.testing.assert_frame_equal(by_id(found), expected, check_index_type=False)
    assert (found.dtypes == lazy.dtypes).all()
    assert found.loc[frame_of().index].embedding.equals(frame_of().embedding)


@pytest.mark.parametrize("kind", ["fixed", "numpy"])
def test_partitions_without_rows(model, kind):
    decide = SemanticDeduplicator(model, THRESHOLD)
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dd.from_pandas(frame_of(kind), npartitions=3)
        frame = frame[frame.id >= 100]
        assert decide(frame).compute().id.nunique() == len(frame.map_partitions(decide)) == 200


def test_an_operator_travels_without_its_model(model, monkeypatch):
    packed = pickle.dumps(SemanticDeduplicator(model, THRESHOLD))
    assert len(packed) < 1000
    loads, load = [], KMeans.load
    monkeypatch.setattr(deduplicator, "_models", {})
    monkeypatch.setattr(deduplicator.KMeans, "load", lambda *path: loads.append(path) or load(*path))
    for _ in range(3):
        assert pickle.loads(packed)(frame_of()).keep.sum() < len(X)
    assert len(loads) == 1


def test_a_model_that_was_replaced(tmp_path, monkeypatch):
    KMeans(n_clusters=2).fit(X).save(tmp_path / "model")
    old = SemanticDeduplicator(tmp_path / "model", THRESHOLD)
    KMeans(n_clusters=3).fit(X).save(tmp_path / "model", overwrite=True)
    new = SemanticDeduplicator(tmp_path / "model", THRESHOLD)
    assert [decide(frame_of()).centroid.nunique() for decide in (old, new)] == [2, 3]
    monkeypatch.setattr(deduplicator, "_models", {})
    assert new(frame_of()).centroid.nunique() == 3
    with pytest.raises(DataError, match="the model has changed since"):
        old(frame_of())


def test_few_rows(model):
    decide = SemanticDeduplicator(model, THRESHOLD)
    assert decide(frame_of().head(0)).dtypes.equals(decide(frame_of()).dtypes)
    assert decide(frame_of().head(1)).keep.tolist() == [True]
    one = decide(pd.concat([frame_of().head(1), frame_of().head(1).assign(id=9)], axis=0))
    assert one.reason.fillna("").tolist() == ["exact", ""]
    assert one.kept_id.fillna(-1).tolist() == [9, -1]


def test_rows_of_zeros_are_copies(tmp_path):
    KMeans(n_clusters=2, normalize=False).fit(X).save(tmp_path / "model")
    zeros = pd.DataFrame({"id": range(3), "v": list(np.zeros((3, 12), np.float32))})
    assert SemanticDeduplicator(tmp_path / "model", 0.9)(zeros).reason.tolist()[:2] == ["exact"] * 2


def spoilt(row, vector):
    return frame_of("python").assign(embedding=[vector if i == row else list(x) for i, x in enumerate(X.tolist())])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (lambda: spoilt(7, None), "column 'embedding', row 7: the vector is null"),
        (lambda: spoilt(7, [1.0]), "column 'embedding', row 7: the vector has another length"),
        (lambda: spoilt(7, [0.0] * 12), "column 'embedding', row 7: a vector of zeros"),
        (lambda: spoilt(7, [float("inf")] * 12), "column 'embedding', row 7: the vector holds NaN or infinity"),
        (lambda: frame_of().assign(embedding=to_column(X[:, :5])), "X has 5 features"),
        (lambda: frame_of(ids=[None, *map(str, range(1, 300))]), "column 'id', row 0: the id is null"),
        (lambda: frame_of(ids=["a", *range(1, 300)]), "column 'id': the ids are of several types"),
        (lambda: frame_of(ids=[*range(299), 7]), "column 'id', row 299: the id occurs before"),
    ],
)
def test_rows_that_cannot_be_worked_with(model, frame, message):
    decide = SemanticDeduplicator(model, THRESHOLD)
    with pytest.raises(DataError, match=message):
        decide(frame())


def test_the_partition_of_a_bad_row_is_named(model):
    decide = SemanticDeduplicator(model, THRESHOLD)
    bad = X.copy()
    bad[299] = np.nan
    rows = dd.from_pandas(frame_of().assign(embedding=to_column(bad)), npartitions=3)
    for lazy in (rows.map_partitions(decide), decide(rows)):
        with pytest.raises(DataError, match="partition 2, column 'embedding', row 99: the vector holds NaN"):
            lazy.compute()


@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_an_id_of_two_partitions_that_meet_in_a_cluster(model, kind):
    decide = SemanticDeduplicator(model, THRESHOLD)
    ids = np.arange(300) if kind == "integers" else np.array([f"id{i}" for i in range(300)])
    centroid = decide(frame_of(ids=ids)).centroid.to_numpy()
    together = centroid == centroid[0]
    same, other = (np.flatnonzero(mask)[-1] for mask in (together, ~together))  # in the last partition
    for twin, found in ((same, True), (other, False)):
        given = ids.copy()
        given[twin] = ids[0]
        lazy = decide(dd.from_pandas(frame_of(ids=given), npartitions=3))
        if not found:
            assert len(lazy.compute()) == 300
            continue
        with pytest.raises(DataError, match=rf"'id': the id {ids[0].item()!r} occurs twice in cluster {centroid[0]}"):
            lazy.compute()


def test_two_rows_without_vectors_are_not_taken_for_what_dask_makes_up(model):
    rows = frame_of().head(2).assign(embedding=pd.Series([None, None], dtype=frame_of().embedding.dtype))
    with pytest.raises(DataError, match="row 0: the vector is null"):
        SemanticDeduplicator(model, THRESHOLD)(rows)


@pytest.mark.parametrize(
    ("settings", "frame", "message"),
    [
        ({"threshold": 0.3}, frame_of, "from 0.3 on"),
        ({"random_state": 2**63}, frame_of, r"--random-state: 9223372036854775808 is out of range\n.*2\^62"),
        ({"rule": "first"}, frame_of, "unknown rule 'first'"),
        ({"id_field": "key"}, frame_of, "id_field: there is no column 'key'\n  expected: one of id, embedding, stars"),
        ({"id_field": "embedding"}, frame_of, "column 'embedding': the id is fixed_size_list"),
        ({"keep": "length:desc"}, frame_of, "keep: there is no column 'length'"),
        ({"keep": "embedding:desc"}, frame_of, "which cannot be sorted"),
        ({"embedding_field": "v"}, frame_of, "there is no column 'v'"),
        ({}, lambda: frame_of().assign(keep=True), "has a column 'keep' already"),
        ({}, lambda: frame_of().assign(centroid=1), "has a column 'centroid' already"),
        ({}, lambda: frame_of().drop(columns="embedding"), "no column is known to hold vectors"),
    ],
)
def test_wrong_use(model, settings, frame, message):
    with pytest.raises(UsageError, match=message):
        SemanticDeduplicator(model, **{"threshold": THRESHOLD} | settings)(frame())


def test_without_a_model(tmp_path):
    with pytest.raises(NotFoundError):
        SemanticDeduplicator(tmp_path / "model", THRESHOLD)


def test_more_pairs_than_fit(model, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=200))
    with pytest.raises(MemoryForecastError, match="smaller partitions"):
        SemanticDeduplicator(model, THRESHOLD)(frame_of())

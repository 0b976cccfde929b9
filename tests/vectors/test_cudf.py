"""Frames of cuDF go the way of those of pandas, to the same bits, words and files; stand-ins are made of pandas.

Tests marked `gpu` hold the same against the real ones.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from functools import partial

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

import daskmeans as dkm
import fake_cudf
from daskmeans import KMeans, SemanticDeduplicator, assign, write_buckets
from daskmeans.errors import DataError, MissingExtraError, UsageError
from daskmeans.kernels.backend import Gpu
from daskmeans.kernels.gpu.device import Device
from daskmeans.kmeans.rows import block, inputs
from daskmeans.runtime import gpus
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.steps.fit import fit
from daskmeans.vectors import frames, parquet
from daskmeans.vectors.embeddings import read_embeddings
from daskmeans.vectors.options import ReadOptions
from daskmeans.vectors.partitioning import MAX_LIST_ELEMENTS, FileSurvey, Unit, balance_partitions
from fake_cuml import install, two  # noqa: F401
from helpers import blobs, write_embeddings


@pytest.fixture(params=["here", "there"])
def computing(request, monkeypatch):
    """Workers, and this process, compute on their cores or each on a device of its own."""
    numbers, there = itertools.count(), request.param == "there"
    monkeypatch.setattr(Device, "name", lambda self: f"device {next(numbers)}")
    device = Device()
    monkeypatch.setattr(gpus, "_open_cuda", lambda: device)
    with dask.config.set({"daskmeans.device": "gpu" if there else "cpu"}):
        yield there


@pytest.fixture
def cudf(monkeypatch):
    for name, made in fake_cudf.modules().items():
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setattr(pd.Index, "to_pandas", lambda self: self, raising=False)
    monkeypatch.setattr(fake_cudf, "READ", [])
    monkeypatch.setattr(frames, "find_spec", lambda name: True)
    return sys.modules["cudf"]


@pytest.fixture
def backend(cudf):
    with dask.config.set({"dataframe.backend": "cudf"}):
        yield cudf


@contextlib.contextmanager
def staying(there):
    """If they lie `there`, rows that are copied to memory fail the test."""

    def refuse(*given):
        assert not len(given[0]), "rows were copied to memory"
        return given[0]

    with pytest.MonkeyPatch.context() as patch:
        if there:
            patch.setattr(block._FetchedArrays, "__missing__", refuse)
            patch.setattr(inputs, "array_to_host", refuse)
        yield


def pandas_rows(X, index=None, **columns):
    vectors = pa.array(X.tolist(), pa.list_(pa.float32()))
    ids = pa.array([f"row {i}" for i in range(len(X))])
    data = {"id": ids, "embedding": vectors, **{name: pa.array(values) for name, values in columns.items()}}
    made = {name: pd.arrays.ArrowExtensionArray(pa.chunked_array([array])) for name, array in data.items()}
    return pd.DataFrame(made, index=index)


def lazy(frame, parts=3):
    """A dask dataframe of a frame, in parts of different sizes, the last without rows."""
    ends = [*np.linspace(0, len(frame), parts + 1).astype(int) ** 2 // max(1, len(frame)), len(frame)]
    pieces = [frame.iloc[a:b] for a, b in itertools.pairwise(ends)]
    return from_parts(pieces)


def from_parts(parts):
    with dask.config.set({"dataframe.convert-string": False}):
        kind = type(parts[0]).__module__  # dask takes a frame of ours for the one of pandas that has the same rows
        return dd.from_map(lambda part: part, parts, meta=parts[0].iloc[:0], label=f"from-{kind.partition('.')[0]}")


def both(X, **columns):
    """The same rows for pandas and for cuDF, with an index that is none of theirs."""
    rows = pandas_rows(X, index=np.arange(len(X)) * 3 + 7, **columns)
    return lazy(rows), lazy(fake_cudf.DataFrame(rows))


def same_rows(found, expected):
    """A frame of cuDF has the rows of a frame of pandas, whatever their lists are called."""
    assert type(found) is fake_cudf.DataFrame
    assert found.index.tolist() == expected.index.tolist()
    assert frames.to_table(found).to_pylist() == frames.to_table(expected).to_pylist()


# --- columns and matrices ---


def column(vectors, type_=None):
    array = pa.array(vectors, pa.list_(type_ or pa.float32()))
    return fake_cudf.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([array])))


@pytest.mark.parametrize("type_", [pa.float32(), pa.float64(), pa.int16()])
def test_a_column_is_a_matrix_without_a_copy(type_):
    X = np.arange(12).reshape(4, 3)
    found = frames.to_cupy_matrix(column(X.tolist(), type_).iloc[1:3])
    np.testing.assert_array_equal(found, X[1:3])
    assert found.base is not None


@pytest.mark.parametrize(
    "vectors", [[[1, 2], None], [[1, 2], [3]], [[1], [2, 3]], [[1, None], [3, 4]], [[], []], [], [[1, 2], [], [3, 4]]]
)
def test_what_is_no_matrix_is_not_taken_for_one(vectors):
    assert frames.to_cupy_matrix(column(vectors)) is None
    assert frames.to_cupy_matrix(fake_cudf.Series(range(3))) is None


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["plain", "unit", "some unit", "float64"])
def test_rows_on_a_device_have_the_bits_of_rows_in_memory(kind, normalize):
    X = blobs(60, d=19)
    if "unit" in kind:
        X[: 60 if kind == "unit" else 9] /= np.linalg.norm(X[: 60 if kind == "unit" else 9], axis=1, keepdims=True)
    given = column(X.astype(float).tolist(), pa.float64() if kind == "float64" else pa.float32())
    found = inputs.prepare_on_device(Gpu(Device()), given, normalize)
    np.testing.assert_array_equal(found, inputs.prepare_rows(given, normalize))
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)


BAD = {
    "NaN": ([1, np.nan], "NaN or infinity"),
    "infinity": ([1, np.inf], "NaN or infinity"),
    "beyond float32": ([1, 1e300], "NaN or infinity"),
    "zeros": ([0, 0], "zeros has no direction"),
    "null": (None, "is null"),
    "null element": ([1, None], "element of the vector is null"),
    "length": ([1, 2, 3], "another length"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_rows_are_told_with_the_words_for_memory(bad):
    given = column([[1, 2], [3, 4], BAD[bad][0]], pa.float64())
    for normalize in (True, False)[: 1 if bad == "zeros" else 2]:
        told = []
        for prepare in (inputs.prepare_rows, partial(inputs.prepare_on_device, Gpu(Device()))):
            with pytest.raises(DataError, match=rf"here, row(.|\n)*{BAD[bad][1]}") as caught:
                prepare(given, normalize, "here", 10)
            told.append(str(caught.value))
        assert told[0] == told[1]


def test_numbers_too_large_for_sums_of_squares_are_refused_and_large_ones_are_not():
    with pytest.raises(DataError, match="above 1e15"):
        inputs.prepare_on_device(Gpu(Device()), column([[1, 2], [2e15, 1]]), False)
    given = column([[9e14, 9e14]])  # whose square is too large, but neither number is
    np.testing.assert_array_equal(inputs.prepare_on_device(Gpu(Device()), given, False), np.float32([[9e14, 9e14]]))


# --- fit, predict, assign, write, decide ---


@pytest.mark.parametrize("settings", [{}, {"normalize": False}, {"sample_fraction": 0.6}, {"init": "random"}])
def test_cuml_gets_the_rows_from_where_they_lie(cudf, install, two, computing, settings):  # noqa: F811
    made, (here, there) = install(), both(blobs())
    KMeans(6, engine="cuml", **settings).fit(here, client=two)
    with staying(computing):
        km = KMeans(6, engine="cuml", **settings).fit(there, client=two)
        labels = km.labels_.compute()
    np.testing.assert_array_equal(np.sort(made[1].rows, axis=0), np.sort(made[0].rows, axis=0))
    assert {len(workers) for workers in made[1].places} == {1}
    own = KMeans(6, **settings | {"init": km.cluster_centers_, "max_iter": 0}).fit(here)
    assert (km.inertia_, km.n_features_in_) == (own.inertia_, 16)
    np.testing.assert_array_equal(labels, own.labels_)


def test_rows_on_devices_serve_all_that_an_engine_asks_of_blocks(cudf, install, two, computing):  # noqa: F811
    install()
    here, there = both(blobs())
    km = KMeans(4, engine="cuml", max_cluster_size=60).fit(there, client=two)
    assert np.bincount(km.labels_).max() <= 60
    assert -km.score(here) == km.inertia_


@pytest.mark.parametrize("settings", [{}, {"normalize": False}, {"sample_fraction": 0.5}])
def test_the_native_engine_has_the_bits_of_a_fit_on_pandas(cudf, two, computing, settings):  # noqa: F811
    here, there = both(blobs())
    one, other = (KMeans(8, **settings).fit(X, client=two) for X in (here, there))
    np.testing.assert_array_equal(one.cluster_centers_, other.cluster_centers_)
    np.testing.assert_array_equal(one.labels_, other.labels_)
    assert (one.inertia_, one.score(there)) == (other.inertia_, other.score(here))
    np.testing.assert_array_equal(one.transform(here), other.transform(there))


def test_a_column_alone_is_enough(cudf, computing):
    here, there = both(blobs(100))
    km = KMeans(8).fit(there["embedding"])
    np.testing.assert_array_equal(km.labels_, KMeans(8).fit(here["embedding"]).labels_)
    with pytest.raises(UsageError, match="no column 'vector'"):
        km.predict(there, column="vector")


@pytest.mark.parametrize("normalize", [True, False])
def test_assign_gives_a_frame_of_cudf_with_the_same_numbers(cudf, computing, normalize):
    here, there = both(blobs(), text=[f"text {i}" for i in range(600)])
    km = KMeans(8, normalize=normalize).fit(here)
    expected = assign(here, km).compute()
    lazily = assign(there, km)
    with staying(computing):
        found = lazily.compute()
    same_rows(found, expected)
    assert frames.cudf_schema(frames.frame_schema(lazily._meta)) == frames.cudf_schema(frames.frame_schema(found))
    assert frames.frame_schema(found).field("centroid").type == pa.int32()


def test_assign_says_that_cudf_has_no_float16(cudf):
    here, there = both(blobs(60))
    with pytest.raises(UsageError, match=r"no float16(.|\n)*to_backend"):
        assign(there, KMeans(3).fit(here), dtype="float16")


def test_an_index_over_the_centroids_is_asked_in_memory(cudf, computing):
    pytest.importorskip("faiss")
    here, there = both(blobs())
    km = KMeans(40, max_iter=3).fit(here)
    index = km.build_index(there)
    same_rows(assign(there, km, assign=index).compute(), assign(here, km, assign=index).compute())
    np.testing.assert_array_equal(km.predict(there, assign=index), km.predict(here, assign=index))


@pytest.mark.parametrize("layout", ["bucketed", "hive"])
def test_the_files_are_the_same(cudf, computing, tmp_path, layout):
    here, there = both(blobs(), stars=list(range(600)))
    km = KMeans(8).fit(here)
    for name, rows in (("here", here), ("there", there)):
        write_buckets(assign(rows, km), tmp_path / name, layout=layout)
    files = sorted(file.relative_to(tmp_path / "here") for file in (tmp_path / "here").rglob("*.parquet"))
    assert len(files) > 1
    for file in files:
        assert pq.read_table(tmp_path / "here" / file).equals(pq.read_table(tmp_path / "there" / file))
    removed = [dkm.dedup(tmp_path / name, threshold=0.9).removed.compute() for name in ("here", "there")]
    pd.testing.assert_frame_equal(*removed)


def test_partitions_of_different_dimensions_are_refused(cudf, tmp_path):
    here, there = both(blobs(60))
    km = KMeans(4).fit(here)
    wide = pandas_rows(blobs(20, d=8, copies=5)).assign(centroid=np.int32(0), l2_dist_to_cent=np.float32(0))
    wide = fake_cudf.DataFrame(wide.assign(cosine_dist_to_cent=np.float32(0)))
    parts = [assign(there, km).compute(), wide]
    rows = from_parts(parts)
    with pytest.raises(DataError, match="8 dimensions in one partition and 16 in another"):
        write_buckets(rows, tmp_path / "clusters")


def test_an_operator_decides_the_same(cudf, computing, tmp_path):
    here, there = both(blobs())
    KMeans(8).fit(here).save(tmp_path / "model")
    decide = SemanticDeduplicator(tmp_path / "model", 0.9)
    expected = decide(here).compute()
    found = decide(there)
    assert type(found._meta) is fake_cudf.DataFrame
    same_rows(found.compute().sort_index(), expected.sort_index())
    same_rows(decide(there.compute()), decide(here.compute()))
    assert not expected["keep"].all()


# --- files ---


@pytest.fixture
def files(tmp_path):
    X = blobs(700, d=8)
    for i in range(2):
        part = slice(350 * i, 350 * (i + 1))
        ids = [f"row {j}" for j in range(700)][part]
        write_embeddings(tmp_path / "in" / f"{i}.parquet", X[part], ids, text=[f"t {j}" for j in range(350)])
    return tmp_path / "in"


def test_files_are_read_onto_the_device(backend, files):
    rows = read_embeddings(files, metadata_fields=["text"])
    assert type(rows._meta) is fake_cudf.DataFrame
    with dask.config.set({"dataframe.backend": "pandas"}):
        expected = read_embeddings(files, metadata_fields=["text"]).compute(scheduler="threads")
    found = rows.compute(scheduler="threads").reset_index(drop=True)
    same_rows(found, expected.reset_index(drop=True))
    assert frames.frame_schema(found) == frames.frame_schema(rows._meta)
    assert len(fake_cudf.READ) == 2


def test_a_run_on_them_has_the_same_files_and_decisions(backend, files, tmp_path, computing):
    for kind in ("cudf", "pandas"):
        with dask.config.set({"dataframe.backend": kind}):
            dkm.run(files, tmp_path / kind, KMeans(8), threshold=0.9)
    assert fake_cudf.READ
    one, other = ([pq.read_table(file) for file in sorted((tmp_path / kind / "clusters").glob("*.parquet"))]
                  for kind in ("cudf", "pandas"))  # fmt: skip
    assert pa.concat_tables(one).sort_by("id").equals(pa.concat_tables(other).sort_by("id"))
    np.testing.assert_array_equal(*(np.load(tmp_path / kind / "model/centroids.npy") for kind in ("cudf", "pandas")))


def rewrite(file, metadata=None, **columns):
    """Other columns, of the same length, in the place of those of `file`."""
    table = pq.read_table(file)
    for name, array in columns.items():
        table = table.set_column(table.column_names.index(name), name, array)
    pq.write_table(table.replace_schema_metadata(metadata), file, row_group_size=100)


def with_row(row, type_=None):
    """Vectors, of which number 123 is `row`."""
    rows = [[1.0] * 8] * 123 + [row] + [[1.0] * 8] * 226
    return {"embedding": pa.array(rows, pa.list_(type_ or pa.float32()))}


ILL = {
    "NaN": with_row([1.0, np.nan] * 4),
    "beyond float32": with_row([1.0, 1e300] * 4, pa.float64()),
    "zeros": with_row([0.0] * 8),
    "null": with_row(None),
    "null element": with_row([1.0, None] * 4),
    "length": with_row([1.0] * 9),
    "null id": {"id": pa.array([None if i == 123 else f"row {350 + i}" for i in range(350)])},
}


@pytest.mark.parametrize("ill", ILL)
def test_rows_are_refused_with_the_same_words(backend, files, ill):
    rewrite(files / "1.parquet", **ILL[ill])
    told = []
    for kind in ("cudf", "pandas"):
        with dask.config.set({"dataframe.backend": kind}), pytest.raises(DataError) as caught:
            read_embeddings(files).compute(scheduler="threads")
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "row 123" in told[0]


@pytest.mark.parametrize("ill", ILL)
def test_rows_that_are_skipped_are_listed(backend, files, ill, tmp_path):
    rewrite(files / "1.parquet", **ILL[ill])
    for kind in ("cudf", "pandas"):
        with dask.config.set({"dataframe.backend": kind}):
            fit(files, tmp_path / kind, KMeans(4), ReadOptions(on_bad_row="skip"))
    one, other = (pq.read_table(tmp_path / kind / "_rejects/rejects") for kind in ("cudf", "pandas"))
    assert one.equals(other)
    assert len(one) == 1


def test_strings_that_are_not_utf8_are_refused(backend, files):
    bad = pa.array([b"\xff" if i == 9 else b"fine" for i in range(350)])
    rewrite(files / "1.parquet", text=pa.Array.from_buffers(pa.string(), 350, bad.buffers()))
    with pytest.raises(DataError, match="cannot be read as string"):
        read_embeddings(files, metadata_fields=["text"]).compute(scheduler="threads")


@pytest.mark.parametrize("what", ["int32 ids", "dictionary", "float16", "signed", "jsonl", "unreadable"])
def test_what_cudf_does_not_read_as_we_do_is_read_in_memory(backend, files, what, monkeypatch, tmp_path):
    if what == "int32 ids":
        for i in range(2):
            rewrite(files / f"{i}.parquet", id=pa.array(range(350 * i, 350 * i + 350), pa.int32()))
    elif what == "dictionary":
        rewrite(files / "1.parquet", text=pa.array(["a", "b"] * 175).dictionary_encode())
    elif what == "float16":
        for file in files.iterdir():
            rewrite(file, embedding=pq.read_table(file)["embedding"].cast(pa.list_(pa.float16(), 8)))
    elif what == "signed":
        rewrite(files / "1.parquet", {"daskmeans.format": "1"})
    elif what == "jsonl":
        lines = '{"id": "a", "embedding": [1.0, 2.0]}\n{"id": "b", "embedding": [2.0, 1.0]}\n'
        (tmp_path / "rows.jsonl").write_text(lines)
        files = tmp_path / "rows.jsonl"
    else:
        monkeypatch.setattr(sys.modules["cudf"], "read_parquet", unreadable)
    fields = [] if what == "jsonl" else ["text"]
    found = read_embeddings(files, metadata_fields=fields).compute(scheduler="threads")
    with dask.config.set({"dataframe.backend": "pandas"}):
        expected = read_embeddings(files, metadata_fields=fields).compute(scheduler="threads")
    same_rows(found.reset_index(drop=True), expected.reset_index(drop=True))


def unreadable(*args, **options):
    raise RuntimeError("CUDF failure: unsupported encoding")


def test_a_full_device_is_told_without_a_traceback(backend, files, monkeypatch):
    def full(*args, **options):
        raise MemoryError("std::bad_alloc: out_of_memory")

    monkeypatch.setattr(sys.modules["cudf"], "read_parquet", full)
    with pytest.raises(dkm.errors.RunError, match=r"memory of the device is full(.|\n)*PARTITION_BYTES"):
        read_embeddings(files).compute(scheduler="threads")


def test_what_cudf_cannot_hold_and_a_missing_one_are_told_at_once(backend, files, monkeypatch):
    for file in files.iterdir():
        rewrite(file, text=pa.array([1] * 350).cast(pa.decimal256(40)))
    with pytest.raises(UsageError, match=r"cuDF cannot create a dataframe(.|\n)*decimal256(.|\n)*pandas"):
        read_embeddings(files, metadata_fields=["text"])
    monkeypatch.setattr(frames, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"daskmeans\[gpu\]"):
        read_embeddings(files)


# --- how files are cut for devices ---


def cut(units, rows, dimension=8, workers=1):
    surveys = [(f"file {i}", FileSurvey(pa.schema([]), tuple(each))) for i, each in enumerate(units)]
    partitions = balance_partitions(surveys, rows, dimension, workers)
    numbers = [(piece.path, row) for p in partitions for piece in p.slices
               for row in range(piece.first, piece.first + piece.rows)]  # fmt: skip
    assert numbers == [(path, row) for path, survey in surveys for row in range(survey.rows)]
    assert [p.number for p in partitions] == list(range(len(partitions)))
    return [p.rows for p in partitions]


def test_partitions_are_whole_row_groups_as_many_for_each_worker():
    assert cut([[Unit(100)] * 10, [Unit(100)] * 6], 400, workers=4) == [400] * 4
    assert cut([[Unit(100)] * 7], 300, workers=2) == [200, 100, 200, 200]
    assert cut([[Unit(120), Unit(80)], [Unit(100), Unit(100)]], 200, workers=2) == [200, 200]


def test_a_row_group_is_cut_only_for_the_sake_of_other_workers_or_of_memory():
    assert cut([[Unit(1000)]], 100) == [1000]
    assert cut([[Unit(1000)]], 100, workers=4) == [250] * 4
    assert cut([[Unit(4800)]], 100) == [1600] * 3


@pytest.mark.parametrize(("dimension", "values"), [(1 << 20, 0), (1, 1 << 20)])
def test_no_column_has_too_many_elements(dimension, values):
    """By the dimension of the vectors, or by what a footer tells of any other column."""
    rows = cut([[Unit(500, values=500 * values)] * 20], 10_000, dimension)
    assert sum(rows) == 10_000
    assert max(rows) * (1 << 20) <= MAX_LIST_ELEMENTS


def test_a_footer_tells_elements(tmp_path):
    file = write_embeddings(tmp_path / "rows.parquet", blobs(100, d=4), tokens=[[1] * 50] * 100)
    with dask.config.set({"dataframe.backend": "cudf"}):
        assert parquet.survey_parquet(UPath(file)).units == (Unit(100, values=5000),)
    assert parquet.survey_parquet(UPath(file)).units == (Unit(100),)


# --- the real ones ---


@pytest.mark.gpu
def test_real_frames_go_the_same_way(tmp_path, files):
    import cudf
    import dask_cudf

    with dask.config.set({"dataframe.backend": "pandas"}):
        here = read_embeddings(files, metadata_fields=["text"])
        expected = KMeans(8).fit(here)
        rows = assign(here, expected).compute(scheduler="threads").sort_values("id")
    with open_cluster(ClusterSettings(device="gpu", dashboard_address=":0")) as client:
        with dask.config.set({"dataframe.backend": "cudf"}):
            there = read_embeddings(files, metadata_fields=["text"])
        assert isinstance(there, dask_cudf.DataFrame)
        km = KMeans(8).fit(there, client=client)
        np.testing.assert_array_equal(km.cluster_centers_, expected.cluster_centers_)
        by_cuml = KMeans(8, engine="cuml").fit(there, client=client)
        assert by_cuml.inertia_ < 1.2 * expected.inertia_
        found = assign(there, km).compute()
        assert isinstance(found, cudf.DataFrame)
        found = frames.frame_to_host(found).sort_values("id")
        for name in ("id", "text", "centroid", "l2_dist_to_cent", "cosine_dist_to_cent"):
            assert found[name].tolist() == rows[name].tolist()
        write_buckets(assign(there, km), tmp_path / "clusters", client=client)
        assert dkm.dedup(tmp_path / "clusters", threshold=0.9, client=client).summary["rows"] == 700


@pytest.mark.gpu("cudf")
def test_real_frames_have_what_is_used_of_them():
    """Of objects whose class our code does not name; ci/check-rapids-api.py looks for these names in the wheels."""
    import cudf
    from cudf.core.accessors.lists import ListMethods

    column = cudf.Series([[1.0, 2.0], [3.0, 4.0]])
    index = cudf.Index([3, 4])
    frame = cudf.DataFrame({"id": ["a", "b"]})
    lists = ListMethods(column)
    assert isinstance(column.list, ListMethods)
    assert column.null_count == 0
    assert lists.len().values.tolist() == [2, 2]
    leaves = cudf.Series(lists.leaves)
    type_, values = leaves.dtype, leaves.values
    assert (type_.kind, values.tolist()) == ("f", [1.0, 2.0, 3.0, 4.0])
    assert pa.types.is_list(column.to_arrow().type)
    frame.index = index
    assert frame.iloc[:1].index.to_pandas().tolist() == [3]
    assert index.to_pandas().tolist() == [3, 4]
    assert frame.to_arrow(preserve_index=False).column_names == ["id"]
    assert callable(frame.assign)


@pytest.mark.gpu("cupy", "cudf")
def test_real_columns_are_matrices_and_back():
    import cudf
    import cupy

    X = blobs(60, d=5)
    frame = cudf.DataFrame.from_arrow(frames.to_table(pandas_rows(X)))
    there = frames.to_cupy_matrix(frame["embedding"])
    assert isinstance(there, cupy.ndarray)
    np.testing.assert_array_equal(cupy.asnumpy(there), X)
    back = frames.to_cudf_column(there, frame.index)
    np.testing.assert_array_equal(inputs.prepare_rows(back, False), X)
    for bad, _ in BAD.values():
        series = cudf.Series.from_arrow(pa.array([[1.0, 2.0], bad], pa.list_(pa.float64())))
        with pytest.raises(DataError):
            inputs.prepare_on_device(Gpu(gpus.Cuda()), series, True)

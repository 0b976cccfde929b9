"""Twins across two sets, against all products in float64."""

import json
import uuid
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from daskmeans.cli.main import main
from daskmeans.errors import DataError, OutputError, UsageError
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.steps.apply import apply
from daskmeans.steps.leak import find_leaks, leak
from daskmeans.tuning import Tuning
from daskmeans.vectors.options import DEFAULTS, ReadOptions
from helpers import make_rows, write_embeddings

THRESHOLD = 0.95


@pytest.fixture
def sets(tmp_path):
    """Two sets of rows with copies, inside and across, and their vectors."""
    X = make_rows()[0]
    test = np.arange(300) % 3 == 1
    X[299] = X[1]
    paths = [tmp_path / "train.parquet", tmp_path / "test.parquet"]
    for path, rows in zip(paths, (X[~test], X[test]), strict=True):
        write_embeddings(path, rows, row_group_size=23)
    return *paths, X[~test], X[test]


def expected_leaks(train, test):
    scores = test.astype(np.float64) @ train.astype(np.float64).T
    same = (test[:, None] == train[None]).all(axis=2)
    scores[same] = 1
    near = scores >= THRESHOLD
    return {
        name(i): (name(int(round_(scores[i]).argmax())), scores[i].max(), bool(same[i].any()), int(near[i].sum()))
        for i in np.flatnonzero(near.any(axis=1)).tolist()
    }


def name(i):
    return f"row-{i:05d}"


def round_(scores):
    return np.where(scores == 1, 2, scores.astype(np.float32))


def test_rows_with_a_twin_are_listed(tmp_path, sets):
    train, test, A, B = sets
    facts = find_leaks(train, test, tmp_path / "out", THRESHOLD, DEFAULTS, tuning=Tuning(task_pairs=500))
    found = pq.read_table(tmp_path / "out" / "leaks.parquet").to_pylist()
    expected = expected_leaks(A, B)
    assert [row["id"] for row in found] == sorted(expected)
    for row in found:
        twin, score, same, twins = expected[row["id"]]
        assert (row["exact"], row["twins"]) == (same, twins)
        assert row["score"] == pytest.approx(score, abs=1e-6)
        assert row["twin_id"] == twin
    exact_ones = sum(same for _, _, same, _ in expected.values())
    assert facts == {"train": 200, "test": 100, "rejected": 0, "leaked": len(expected), "exact": exact_ones,
                     "threshold": 0.95}  # fmt: skip
    assert not (tmp_path / "out" / "_rejects").exists()
    assert exact_ones > 3
    assert len(expected) > exact_ones
    with open_cluster(ClusterSettings(n_workers=2, dashboard_address=":0")) as client:
        assert leak(train, test, tmp_path / "there", THRESHOLD, client=client) == facts
    assert pq.read_table(tmp_path / "there" / "leaks.parquet").to_pylist() == found


def test_nothing_leaks(tmp_path):
    write_embeddings(tmp_path / "a.parquet", np.eye(8, dtype=np.float32)[:4])
    write_embeddings(tmp_path / "b.parquet", np.eye(8, dtype=np.float32)[4:])
    facts = leak(tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "out", 0.5)
    assert facts["leaked"] == 0
    table = pq.read_table(tmp_path / "out" / "leaks.parquet")
    assert table.column_names == ["id", "twin_id", "score", "exact", "twins"]
    assert table.num_rows == 0


def test_the_command(tmp_path, sets):
    train, test, A, B = sets
    arguments = ["leak", str(train), str(test), "--out", str(tmp_path / "out"), "--threshold", "0.95", "--json"]
    done = CliRunner().invoke(main, [*arguments, "--n-workers", "1", "--dashboard-address", ":0"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["leaked"] == len(expected_leaks(A, B))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_metadata_of_both_rows(tmp_path, sets, n_workers):
    train, test, A, B = sets
    for path, X, kind in ((train, A, "train"), (test, B, "test")):
        X[[0, 50]] = np.nan  # numbers of rows are not places among those that are left
        text = [f"{kind} {i}" for i in range(len(X))]
        write_embeddings(path, X, row_group_size=23, text=text, stars=list(range(len(X))))
    plain, reading = ReadOptions(on_bad_row="skip"), ReadOptions(on_bad_row="skip", metadata_fields=("stars", "text"))
    with (
        open_cluster(ClusterSettings(n_workers=n_workers, dashboard_address=":0"))
        if n_workers
        else nullcontext() as client
    ):
        leak(train, test, tmp_path / "plain", THRESHOLD, plain, client=client)
        leak(train, test, tmp_path / "out", THRESHOLD, reading, client=client)
    found = pq.read_table(tmp_path / "out" / "leaks.parquet")
    assert found.column_names[5:] == ["stars", "twin_stars", "text", "twin_text"]
    assert found.select(range(5)) == pq.read_table(tmp_path / "plain" / "leaks.parquet")
    rows = found.to_pylist()
    assert len(rows) > 20
    for row in rows:
        one, twin = int(row["id"][4:]), int(row["twin_id"][4:])
        assert (row["stars"], row["twin_stars"]) == (one, twin)
        assert (row["text"], row["twin_text"]) == (f"test {one}", f"train {twin}")
    assert pq.read_metadata(tmp_path / "out" / "_rejects" / "rejects").num_rows == 4


def test_metadata_where_nothing_leaks(tmp_path):
    for i, side in enumerate("ab"):
        write_embeddings(tmp_path / f"{side}.parquet", np.eye(8, dtype=np.float32)[4 * i : 4 * i + 4], text=["t"] * 4)
    leak(tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "out", 0.5, ReadOptions(metadata_fields="text"))
    found = pq.read_table(tmp_path / "out" / "leaks.parquet")
    assert (found.column_names[5:], found.num_rows) == (["text", "twin_text"], 0)


@pytest.mark.parametrize("fields", [["score"], ["text", "twin_text"]])
def test_metadata_that_would_meet_another_column(tmp_path, sets, fields):
    for path, X in zip(sets[:2], sets[2:], strict=True):
        write_embeddings(path, X, **{field: [0] * len(X) for field in fields})
    with pytest.raises(UsageError, match=f"two columns '{fields[-1]}'"):
        leak(*sets[:2], tmp_path / "out", 0.9, ReadOptions(metadata_fields=fields))
    assert not (tmp_path / "out").exists()


def test_wrong_use(tmp_path, sets):
    train, test, _, B = sets
    with pytest.raises(UsageError, match=r"--threshold: 0\.3 is out of range"):
        leak(train, test, tmp_path / "out", 0.3)
    write_embeddings(tmp_path / "narrow.parquet", B[:, :5])
    with pytest.raises(UsageError, match=r"its vectors have 5 dimensions\n  expected: 12, as those of .*train"):
        leak(train, tmp_path / "narrow.parquet", tmp_path / "out", 0.9)
    B[3, 2] = np.nan
    write_embeddings(tmp_path / "bad.parquet", B)
    with pytest.raises(DataError, match=r"bad\.parquet, row 3"):
        leak(train, tmp_path / "bad.parquet", tmp_path / "out", 0.9)
    assert not (tmp_path / "out").exists()
    leak(train, test, tmp_path / "out", 0.9)
    with pytest.raises(OutputError, match="exists already"):
        leak(train, test, tmp_path / "out", 0.95)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_rows_that_were_left_out_are_listed(tmp_path, sets, n_workers):
    """Once each, although every worker reads what it needs, and some of it several times."""
    reading, tuning = ReadOptions(on_bad_row="skip"), Tuning(task_pairs=500)
    A, B = sets[2:]
    bad = {"train": [0, 70, 199], "test": [3, 99]}
    paths = {}
    for name_, X in (("train", A.copy()), ("test", B.copy())):
        X[bad[name_]] = np.nan
        paths[name_] = write_embeddings(tmp_path / f"bad-{name_}.parquet", X, row_group_size=23)
    with (
        open_cluster(ClusterSettings(n_workers=n_workers, dashboard_address=":0"))
        if n_workers
        else nullcontext() as client
    ):
        facts = find_leaks(*paths.values(), tmp_path / "out", THRESHOLD, reading, client=client, tuning=tuning)
    assert (facts["train"], facts["test"], facts["rejected"]) == (197, 98, 5)
    listed = pq.read_table(tmp_path / "out" / "_rejects/rejects").to_pylist()
    assert [(row["input"], row["file"], row["row"], row["id"]) for row in listed] == [
        (input_, str(paths[input_]), row, name(row)) for input_ in ("test", "train") for row in bad[input_]
    ]
    assert {row["reason"] for row in listed} == {"the vector holds NaN, infinity or a number beyond float32"}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "_manifest.json", "_rejects", "leaks.parquet"
    ]  # fmt: skip


@pytest.mark.parametrize("which", ["test", "train"])
def test_a_partition_of_which_nothing_is_left(tmp_path, sets, which):
    train, test, A, B = sets
    bad, rows = tmp_path / "bad.parquet", B if which == "test" else A
    rows[:46] = np.nan
    write_embeddings(bad, rows, row_group_size=23)
    given = (train, bad) if which == "test" else (bad, test)
    facts = leak(*given, tmp_path / "out", THRESHOLD, ReadOptions(on_bad_row="skip"))
    left = {"test": (A, B[46:]), "train": (A[46:], B)}[which]
    assert facts[which] == len(left[which == "test"])
    assert facts["leaked"] == len(expected_leaks(*left))


def test_of_a_train_set_of_which_nothing_is_left_nothing_leaks(tmp_path, sets):
    write_embeddings(tmp_path / "bad.parquet", np.zeros((40, 12), np.float32), row_group_size=20)
    facts = leak(tmp_path / "bad.parquet", sets[1], tmp_path / "out", THRESHOLD, ReadOptions(on_bad_row="skip"))
    assert (facts["train"], facts["leaked"]) == (0, 0)


def test_of_equal_scores_that_of_a_copy_comes_first(tmp_path):
    X = np.float32([[1, 0], [1, 1e-5], [0, 1], [2, 2e-5], [1, 0]])  # the first two score 1, rounded
    rows = write_embeddings(tmp_path / "rows.parquet", X)
    facts = leak(rows, rows, tmp_path / "out", 1.0)
    assert (facts["leaked"], facts["exact"]) == (5, 5)


@pytest.fixture
def some_leak(sets):
    """The same two sets, but of the test set only some rows have a near-duplicate."""
    train, test, A, B = sets
    B[50:99] = np.random.default_rng(5).standard_normal((49, B.shape[1]))
    write_embeddings(test, B, row_group_size=23)
    return train, test, A, B


def clean_rows(A, B):
    """Numbers of the rows of the test set that did not leak."""
    unit = B / np.linalg.norm(B, axis=1, keepdims=True)
    leaked = expected_leaks(A, unit.astype(np.float32))
    return [i for i in range(len(B)) if name(i) not in leaked]


@pytest.mark.parametrize("format_", ["parquet", "jsonl", "npy"])
def test_apply_writes_the_test_set_without_the_rows_that_leaked(tmp_path, some_leak, format_):
    train, _, A, B = some_leak
    folder = tmp_path / "in"
    folder.mkdir()
    halves = np.array_split(np.arange(len(B)), 2)
    for part, rows in enumerate(halves):
        path, ids = folder / f"{part}.{format_}", [name(i) for i in rows]
        if format_ == "npy":
            np.save(path, B[rows].astype(np.float64))
        elif format_ == "parquet":
            write_embeddings(path, B[rows], ids, 7, stars=rows.tolist())
        else:
            lines = [json.dumps({"id": id_, "v": v.tolist()}) for id_, v in zip(ids, B[rows], strict=True)]
            path.write_text("\n".join(lines) + "\n")
    others = np.save(tmp_path / "train.npy", A) or tmp_path / "train.npy" if format_ == "npy" else train
    words = ["leak", str(others), str(folder), "--out", str(tmp_path / "leaks"), "--threshold", "0.95"]
    words += ["--apply", str(tmp_path / "clean"), "--json", "--n-workers", "1", "--dashboard-address", ":0"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    kept = clean_rows(A, B)
    assert 0 < len(kept) < len(B)
    facts = json.loads(done.stdout)
    assert (facts["kept"], facts["leaked"], facts["clean"]) == (len(kept), len(B) - len(kept), f"{tmp_path}/clean")
    apply(tmp_path / "leaks", folder, tmp_path / "again")  # the same, later
    for part, rows in enumerate(halves):
        mine = [i for i in rows if i in kept]
        file = tmp_path / "clean" / f"{part}.{format_}"
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
        if format_ == "npy":
            assert np.array_equal(np.load(file), B[mine].astype(np.float64))
        elif format_ == "parquet":
            assert pq.read_table(file)["stars"].to_pylist() == mine
        else:
            given = (folder / file.name).read_text().splitlines(keepends=True)
            assert file.read_text() == "".join(given[i - rows[0]] for i in mine)


@pytest.mark.parametrize("id_from", ["field", "file-row"])
def test_rows_without_ids_are_applied_by_their_numbers(tmp_path, some_leak, id_from):
    train, test, A, B = some_leak
    for path in (train, test):
        pq.write_table(
            pq.read_table(path).drop_columns("id").append_column("n", [range(pq.read_metadata(path).num_rows)]), path
        )
    facts = leak(train, test, tmp_path / "leaks", THRESHOLD, ReadOptions(id_from=id_from), apply=tmp_path / "clean")
    kept = clean_rows(A, B)
    assert facts["kept"] == len(kept)
    assert pq.read_table(tmp_path / "clean" / "test.parquet")["n"].to_pylist() == kept


def test_ids_of_bytes(tmp_path, some_leak):
    _, test, _, B = some_leak
    keys = pa.array([uuid.UUID(int=i).bytes for i in range(len(B))], pa.binary(16))
    pq.write_table(pq.read_table(test).drop_columns("id").append_column("id", keys), test)
    facts = leak(test, test, tmp_path / "all", THRESHOLD, apply=tmp_path / "none")
    assert (facts["leaked"], facts["kept"]) == (len(B), 0)


@pytest.mark.parametrize("numbers", [False, True])
def test_rows_that_were_not_compared_are_not_clean(tmp_path, some_leak, numbers):
    train, test, A, B = some_leak
    clean = clean_rows(A, B)
    B[[3, 70]] = np.nan
    ids = list(range(100)) if numbers else [name(i) for i in range(100)]
    write_embeddings(test, B, ids, row_group_size=23)
    reading = ReadOptions(on_bad_row="skip")
    kept = [i for i in clean if i not in (3, 70)]
    facts = leak(train, test, tmp_path / "leaks", THRESHOLD, reading, apply=tmp_path / "clean")
    assert facts["kept"] == len(kept)
    assert pq.read_table(tmp_path / "clean" / "test.parquet")["id"].to_pylist() == [ids[i] for i in kept]
    assert pq.read_table(tmp_path / "clean" / "_rejects/rejects")["row"].to_pylist() == [3, 70]
    with pytest.raises(DataError, match=f"no decision on the row with id {ids[3]!r}"):
        apply(tmp_path / "leaks", test, tmp_path / "strict")


def test_leaks_are_applied_to_their_test_set_only(tmp_path, some_leak):
    train, test, _, B = some_leak
    leak(train, test, tmp_path / "leaks", THRESHOLD)
    with pytest.raises(DataError, match=r"200 rows, .*\n  expected: the test set of 100 rows"):
        apply(tmp_path / "leaks", train, tmp_path / "clean", on_bad_row="skip")
    with pytest.raises(UsageError, match="another column than 'key'"):
        apply(tmp_path / "leaks", test, tmp_path / "clean", id_field="key")
    repeated = write_embeddings(tmp_path / "repeated.parquet", B, ["same"] * len(B))
    with pytest.raises(DataError, match="no id may occur twice"):
        leak(train, repeated, tmp_path / "more", THRESHOLD, apply=tmp_path / "clean")
    assert (tmp_path / "more" / "leaks.parquet").exists()
    with pytest.raises(OutputError, match="lies inside the input"):
        leak(train, test, tmp_path / "third", THRESHOLD, apply=tmp_path / "third" / "clean")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(OutputError, match="did not write"):
        leak(train, test, tmp_path / "third", THRESHOLD, apply=tmp_path / "mine")
    assert not (tmp_path / "third").exists()
    assert not (tmp_path / "clean").exists()


def test_leaks_of_nothing_keep_everything(tmp_path):
    for i, side in enumerate("ab"):
        write_embeddings(tmp_path / f"{side}.parquet", np.eye(8, dtype=np.float32)[4 * i : 4 * i + 4])
    facts = leak(tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "out", 0.5, apply=tmp_path / "clean")
    assert (facts["leaked"], facts["kept"]) == (0, 4)

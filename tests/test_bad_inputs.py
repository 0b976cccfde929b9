"""Every mistake gets a message that says what, where and what to do; no traceback, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from daskmeans import KMeans
from daskmeans.cli import main
from helpers import blobs, write_embeddings

X = blobs(n=60, d=8, copies=5)


@dataclass(frozen=True)
class Case:
    """A mistake: what to prepare below a directory, the command, its exit status, and what the message must hold."""

    name: str
    prepare: Callable[[Path], object]
    command: str
    status: int
    words: tuple[str, ...]


def table(path: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), path)


def good(at: Path) -> None:
    write_embeddings(at / "in.parquet", X, text=["t"] * len(X))


def spoilt(row: int, value: float) -> Callable[[Path], object]:
    def prepare(at: Path) -> None:
        Y = X.copy()
        Y[row, 3] = value
        write_embeddings(at / "in.parquet", Y)

    return prepare


def zero(at: Path) -> None:
    Y = X.copy()
    Y[17] = 0
    write_embeddings(at / "in.parquet", Y)


def two_dimensions(at: Path) -> None:
    write_embeddings(at / "in" / "a.parquet", X)
    write_embeddings(at / "in" / "b.parquet", X[:, :5].copy())


def ids(change: Callable[[list], object]) -> Callable[[Path], object]:
    def prepare(at: Path) -> None:
        names: list = [f"row-{i}" for i in range(len(X))]
        change(names)
        write_embeddings(at / "in.parquet", X, ids=names)

    return prepare


def lists(change: Callable[[list], object]) -> Callable[[Path], object]:
    def prepare(at: Path) -> None:
        vectors: list = [list(map(float, x)) for x in X]
        change(vectors)
        table(at / "in.parquet", id=list(range(len(X))), embedding=pa.array(vectors, pa.list_(pa.float32())))

    return prepare


def truncated(at: Path) -> None:
    good(at)
    whole = (at / "in.parquet").read_bytes()
    (at / "in.parquet").write_bytes(whole[: len(whole) // 2])


def modelled(at: Path) -> None:
    good(at)
    KMeans(3).fit(X).save(at / "model")


def other_model(at: Path) -> None:
    good(at)
    KMeans(3).fit(X[:, :5].copy()).save(at / "model")


def unfinished_model(at: Path) -> None:
    modelled(at)
    manifest = at / "model" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished": true', '"finished": false'))


def occupied(at: Path) -> None:
    good(at)
    (at / "out").mkdir()
    (at / "out" / "thesis.tex").write_text("years of work")


def duplicated(rows: list) -> None:
    rows[9] = rows[40] = rows[2]


def at_row(i: int, value: object) -> Callable[[list], object]:
    return lambda rows: rows.__setitem__(i, value)


FIT = "fit IN/in.parquet --model OUT --n-clusters 3"
RUN = "run IN/in.parquet --out OUT --n-clusters 3 --threshold 0.9"
ASSIGN = "assign IN/in.parquet --model IN/model --out OUT"

CASES = [
    Case("no such path", lambda at: None, "fit IN/none.parquet --model OUT --n-clusters 3", 2, ("none.parquet",
         "no such")),
    Case("empty glob", lambda at: None, "fit IN/*.parquet --model OUT --n-clusters 3", 2, ("*.parquet",)),
    Case("empty directory", lambda at: (at / "in").mkdir(), "fit IN/in --model OUT --n-clusters 3", 2, ("/in",)),
    Case("no rows", lambda at: write_embeddings(at / "in.parquet", X[:0]), FIT, 2, ("in.parquet", "no rows")),
    Case("not Parquet", lambda at: (at / "in.parquet").write_text("id,x\n1,2\n"), FIT, 1, ("in.parquet", "not",
         "Parquet")),
    Case("truncated Parquet", truncated, FIT, 1, ("in.parquet", "Parquet")),
    Case("unknown suffix", lambda at: (at / "in.csv").write_text("1"), "fit IN/in.csv --model OUT --n-clusters 3", 2,
         ("in.csv", ".jsonl")),
    Case("embedding column missing", good, f"{FIT} --embedding-field vector", 2, ("'vector'", "embedding")),
    Case("id column missing", good, f"{FIT} --id-field key", 2, ("'key'", "--id-field")),
    Case("metadata column missing", good, f"{RUN} --metadata-field txt", 2, ("'txt'", "text")),
    Case("two embedding columns", lambda at: table(at / "in.parquet", id=[1], a=[[1.0]], b=[[2.0]]), FIT, 2,
         ("a", "b", "--embedding-field")),
    Case("no embedding column", lambda at: table(at / "in.parquet", id=[1], a=["x"]), FIT, 2, ("embedding", "a")),
    Case("ragged vectors", lists(at_row(11, [1.0, 2.0])), FIT, 1, ("in.parquet", "row 11", "2", "8")),
    Case("null vector", lists(at_row(12, None)), FIT, 1, ("in.parquet", "row 12", "null", "--on-bad-row skip")),
    Case("null element", lists(at_row(13, [None] + [1.0] * 7)), FIT, 1, ("in.parquet", "row 13", "null")),
    Case("NaN", spoilt(14, np.nan), FIT, 1, ("in.parquet", "row 14", "NaN", "--on-bad-row skip")),
    Case("infinity", spoilt(15, np.inf), FIT, 1, ("in.parquet", "row 15", "infinity")),
    Case("zero vector", zero, FIT, 1, ("in.parquet", "row 17", "zero", "--no-normalize")),
    Case("dimension differs between files", two_dimensions, "fit IN/in --model OUT --n-clusters 3", 1,
         ("a.parquet", "b.parquet", "8", "5")),
    Case("dimension differs from the model", other_model, ASSIGN, 1, ("8 dimensions", "5", "model")),
    Case("null id", ids(at_row(18, None)), RUN, 1, ("in.parquet", "row 18", "id")),
    Case("duplicate id", ids(duplicated), RUN, 1, ("'row-2'", "row 2", "row 9", "--on-bad-row skip")),
    Case("n_clusters below 1", good, "fit IN/in.parquet --model OUT --n-clusters 0", 2, ("n_clusters", "0", ">= 1")),
    Case("n_clusters above rows", good, "fit IN/in.parquet --model OUT --n-clusters 61", 2, ("61", "60")),
    Case("n_clusters not a number", good, "fit IN/in.parquet --model OUT --n-clusters many", 2, ("many",)),
    Case("threshold above 1", good, "run IN/in.parquet --out OUT --n-clusters 3 --threshold 1.5", 2, ("1.5", "[0, 1]")),
    Case("eps below 0", good, "run IN/in.parquet --out OUT --n-clusters 3 --eps -0.1", 2, ("-0.1", "[0, 1]")),
    Case("threshold and eps", good, f"{RUN} --eps 0.1", 2, ("both threshold and eps",)),
    Case("no threshold", good, "run IN/in.parquet --out OUT --n-clusters 3", 2, ("neither threshold nor eps",)),
    Case("floor above threshold", good, f"{RUN} --search exact --floor 0.99", 2, ("--floor", "0.99", "threshold")),
    Case("unknown keep", good, f"{RUN} --keep best", 2, ("best", "hard")),
    Case("keep column missing", good, f"{RUN} --keep size:desc", 2, ("size", "--metadata-field")),
    Case("init neither name nor path", good, f"{FIT} --init kmeans", 2, ("kmeans", "k-means||")),
    Case("unknown engine", good, f"{FIT} --engine faiss", 2, ("faiss", "cuml", "native")),
    Case("output inside the input", lambda at: write_embeddings(at / "in" / "a.parquet", X),
         "run IN/in --out IN/in/out --n-clusters 3 --threshold 0.9", 2,
         ("inside", "--out")),
    Case("output not empty", occupied, "fit IN/in.parquet --model IN/out --n-clusters 3", 2, ("did not write", "/out")),
    Case("output finished already", modelled, "fit IN/in.parquet --model IN/model --n-clusters 3", 2, ("--overwrite",)),
    Case("model is not one", lambda at: [good(at), (at / "model").mkdir()], ASSIGN, 2, ("/model", "daskmeans fit")),
    Case("model is missing", good, ASSIGN, 2, ("/model", "no such path")),
    Case("model is unfinished", unfinished_model, ASSIGN, 2, ("/model", "unfinished", "again")),
    Case("clusters are not clusters", modelled, "dedup IN/model --out OUT --threshold 0.9", 2, ("daskmeans assign",)),
    Case("decisions are not decisions", modelled, "apply IN/model IN/in.parquet --out OUT", 2, ("daskmeans dedup",)),
    Case("unreachable scheduler", good, f"{FIT} --scheduler tcp://127.0.0.1:9", 1, ("tcp://127.0.0.1:9",
         "dask scheduler")),
    Case("missing extra", good, f"{FIT} --device gpu", 2, ("cudf", 'pip install "daskmeans[gpu]"')),
    Case("missing backend", good, "fit gs://bucket/x.parquet --model OUT --n-clusters 3", 2, ("gcsfs", "pip install")),
    Case("malformed JSON line", lambda at: (at / "in.jsonl").write_text('{"id": 1, "v": [1.0]}\n{"id": 2, "v": [1.0\n'),
         "fit IN/in.jsonl --model OUT --n-clusters 1", 1, ("in.jsonl", "row 1", "JSON")),
    Case("empty text", lambda at: table(at / "in.parquet", id=[1, 2], text=["a", " "]),
         "embed IN/in.parquet --out OUT", 1,
         ("in.parquet", "row 1", "text", "--on-bad-row skip")),
    Case("unknown encoder", lambda at: table(at / "in.parquet", id=[1], text=["a"]),
         "embed IN/in.parquet --out OUT --encoder bert", 2, ("bert", "wordllama")),
    Case("storage options not JSON", good, f"{FIT} --storage-options key=1", 2, ("--storage-options", "JSON")),
    Case("unknown YAML key", lambda at: (at / "c.yaml").write_text("input: x\nn_cluster: 3\n"),
         "run IN/c.yaml --out OUT", 2,
         ("'n_cluster'", "n_clusters", "c.yaml")),
    Case("YAML without input", lambda at: (at / "c.yaml").write_text("n_clusters: 3\n"), "run IN/c.yaml --out OUT", 2,
         ("'input'", "c.yaml")),
    Case("output is a file", lambda at: [good(at), (at / "f").write_text("x")], RUN.replace("OUT", "IN/f"), 2,
         ("is a file",)),
    Case("output below a file", lambda at: [good(at), (at / "f").write_text("x")], FIT.replace("OUT", "IN/f/x"), 2,
         ("/f/x", "cannot be made")),
    Case("unknown kind of URL", good, f"{FIT} --init foo://x", 2, ("foo",)),
    Case("workers of a scheduler", good, f"{FIT} --n-workers 3 --scheduler tcp://127.0.0.1:9", 2,
         ("--n-workers", "--scheduler")),
    Case("local directory", good, f"{FIT} --local-directory /proc/none", 1, ("--local-directory",)),
    Case("memory limit", good, f"{FIT} --memory-limit banana", 2, ("banana", "4GiB")),
    Case("seed too large", good, f"{FIT} --random-state {2**70}", 2, ("random_state", "2^63")),
    Case("keep column twice", good, f"{RUN} --metadata-field text --keep text:asc --keep text:desc", 2, ("twice",)),
    Case("reserved column", good, f"{RUN} --id-field centroid", 2, ("centroid",)),
    Case("unknown info path", lambda at: None, "info IN/none", 2, ("none", "no such")),
]  # fmt: skip


def run(case: Case, at: Path, scheduler: str | None) -> Result:
    """The command of `case` on what it prepares below `at`."""
    (at / "in").mkdir()
    case.prepare(at / "in")
    words = case.command.replace("IN/", f"{at}/in/").replace("OUT", f"{at}/out").split()
    local = {"--scheduler", "--device", "--memory-limit", "--local-directory"} & {*words}
    if scheduler and words[0] != "info" and not local:
        words += ["--scheduler", scheduler]
    return CliRunner().invoke(main, words)


def content(at: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in at.rglob("*") if p.is_file()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_named_and_changes_nothing(case, tmp_path, two_workers, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    before: dict[str, bytes] = {}

    def prepare(at: Path) -> None:
        case.prepare(at)
        before.update(content(at))

    with dask.config.set({"daskmeans.connect-timeout": 1}):
        result = run(replace(case, prepare=prepare), tmp_path, two_workers.scheduler_address)
    assert result.exit_code == case.status, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    for word in case.words:
        assert word in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()
    assert content(tmp_path / "in") == before


def test_skipped_rows_are_listed_with_their_reasons(tmp_path, two_workers):
    vectors: list = [list(map(float, x)) for x in X]
    vectors[3], vectors[4], vectors[5] = None, [float("nan")] * 8, [0.0] * 8
    names = [f"row-{i}" for i in range(len(X))]
    names[7] = names[6]
    table(tmp_path / "in.parquet", id=names, embedding=pa.array(vectors, pa.list_(pa.float32())))
    words = f"run {tmp_path}/in.parquet --out {tmp_path}/out --n-clusters 3 --threshold 0.9 --on-bad-row skip --json"
    result = CliRunner().invoke(main, [*words.split(), "--scheduler", two_workers.scheduler_address])
    assert result.exit_code == 0, result.output
    for step in ("model", "clusters"):
        rejects = pq.read_table(tmp_path / "out" / step / "rejects.parquet").to_pydict()
        assert rejects["row"] == [3, 4, 5, 7]
        assert rejects["id"] == ["row-3", "row-4", "row-5", "row-6"]
        assert all(rejects["reason"])
    assert pq.read_table(tmp_path / "out" / "dedup" / "decisions").num_rows == len(X) - 4


if __name__ == "__main__":  # the table of all mistakes and their messages
    import tempfile

    for each in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = run(each, Path(folder), None)
            message = found.stderr.replace(f"{folder}/", "").split("error ", 1)[-1].strip()
            print(f"| {each.name} | {found.exit_code} | {' '.join(message.split())} |", flush=True)

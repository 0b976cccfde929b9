"""Texts to embeddings: the encoder against its own library, and the step with good and bad rows."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from daskmeans import embed
from daskmeans.encoders import wordllama as ours
from daskmeans.encoders.encoder import get_encoder
from daskmeans.errors import DataError, MissingExtraError, OutputError, UsageError
from daskmeans.steps import embed as steps_embed
from daskmeans.storage import manifest
from daskmeans.vectors.matrix import to_matrix

TEXTS = ["A cat sat on the mat.", "a dog", "žluťoučký kůň", "numbers 1 2 3 " * 200, "A cat sits on the mat."]


def write_texts(path: Path, texts: list, **columns: list) -> Path:
    ids = columns.pop("id", [f"t{i}" for i in range(len(texts))])
    pq.write_table(pa.table({"id": ids, "text": pa.array(texts, pa.string()), **columns}), path)
    return path


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted(out.glob("part-*.parquet"))])


class Length:
    """An encoder that is easy to check: the number of words and characters; nothing for "zero", no number for "nan"."""

    name, dimension = "length", 2

    def encode(self, texts: list[str]) -> np.ndarray:
        special = {"zero": (0, 0), "nan": (np.nan, 1), "large": (1e5, 1)}
        return np.array([special.get(t, (len(t.split()), len(t))) for t in texts], np.float32).reshape(-1, 2)


@pytest.fixture
def length_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_embed, "get_encoder", lambda name: Length())


def test_vectors_are_those_of_the_library() -> None:
    wordllama = pytest.importorskip("wordllama")
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    found = pickle.loads(pickle.dumps(get_encoder("wordllama"))).encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model.embed(TEXTS), atol=1e-5)


def test_a_vector_does_not_depend_on_the_other_texts() -> None:
    encoder = get_encoder()
    together, alone = encoder.encode(TEXTS), [encoder.encode([text])[0] for text in TEXTS]
    np.testing.assert_array_equal(together, alone)
    assert encoder.encode([]).shape == (0, 256)


def test_encoding_is_quiet_and_needs_no_network() -> None:
    # In a process of its own: the hook stays for good, and the library must be imported for the first time.
    script = """
import logging, sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise AssertionError(event)
sys.addaudithook(hook)
from daskmeans.encoders.encoder import get_encoder
assert get_encoder().encode(["a cat"]).any()
assert not logging.getLogger().handlers and logging.getLogger().level == logging.WARNING
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unknown_and_missing_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown encoder 'word2vec'"):
        get_encoder("word2vec")
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"daskmeans\[text\]"):
        get_encoder("wordllama")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_keep_their_order_text_and_metadata(tmp_path: Path, dtype: str) -> None:
    source = write_texts(tmp_path / "texts.parquet", TEXTS, stars=[1, 2, None, 4, 5], other=[0] * 5)
    summary = embed(source, tmp_path / "out", metadata_fields=["stars"], dtype=dtype)
    table = read(tmp_path / "out")
    assert table.column_names == ["id", "embedding", "text", "stars"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32() if dtype == "float32" else pa.float16(), 256)
    assert table["text"].to_pylist() == TEXTS
    assert table["stars"].to_pylist() == [1, 2, None, 4, 5]
    np.testing.assert_allclose(to_matrix(table["embedding"]), get_encoder().encode(TEXTS), rtol=1e-3, atol=1e-3)
    assert summary["rows"] == 5 and summary["rejected"] == 0 and summary["dimension"] == 256
    assert manifest.read_manifest(UPath(tmp_path / "out"), "embed")["rows"] == 5


def test_jsonl_in_many_partitions_on_workers(tmp_path: Path, client: object) -> None:
    n = 20_000  # of which 8192 are a partition
    lines = [json.dumps({"doc": i, "body": f"text number {i}"}) for i in range(n)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    summary = embed(tmp_path / "texts.jsonl", tmp_path / "out", text_field="body", id_field="doc")
    assert summary["files"] == len(list((tmp_path / "out").glob("part-*.parquet"))) >= 3
    table = read(tmp_path / "out")
    assert table["doc"].to_pylist() == list(range(n))
    texts = [f"text number {i}" for i in range(n)]
    np.testing.assert_array_equal(to_matrix(table["embedding"]), get_encoder().encode(texts))


@pytest.mark.parametrize(("bad", "message"), [(None, "the text is null"), ("", "empty"), (" \n", "empty")])
def test_a_row_without_text_is_refused(tmp_path: Path, bad: str | None, message: str) -> None:
    source = write_texts(tmp_path / "texts.parquet", ["a cat", bad, "a dog"])
    with pytest.raises(DataError, match=message) as caught:
        embed(source, tmp_path / "out")
    assert "texts.parquet, row 1" in caught.value.where
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("length_encoder")
@pytest.mark.parametrize(
    ("bad", "dtype", "reason"),
    [("zero", "float32", "zero"), ("nan", "float32", "finite"), ("large", "float16", "finite")],
)
def test_a_text_without_a_vector_is_refused(tmp_path: Path, bad: str, dtype: str, reason: str) -> None:
    source = write_texts(tmp_path / "texts.parquet", ["a cat", "a dog", bad])
    with pytest.raises(DataError, match=reason) as caught:
        embed(source, tmp_path / "out", dtype=dtype)
    assert "texts.parquet, row 2" in caught.value.where and "'t2'" in caught.value.found


@pytest.mark.usefixtures("length_encoder")
def test_skipped_rows_are_listed(tmp_path: Path) -> None:
    texts = ["a cat", None, "zero", "a dog", "nan", "", "a dog"]
    source = write_texts(tmp_path / "texts.parquet", texts, id=["a", "b", "c", "d", "e", "f", "d"])
    summary = embed(source, tmp_path / "out", on_bad_row="skip")
    assert summary["rows"] == 2 and summary["rejected"] == 5
    assert read(tmp_path / "out")["id"].to_pylist() == ["a", "d"]
    rejects = sorted(pq.read_table(tmp_path / "out" / "_rejects/rejects").to_pylist(), key=lambda r: r["row"])
    assert [(r["id"], r["row"]) for r in rejects] == [("b", 1), ("c", 2), ("e", 4), ("f", 5), ("d", 6)]
    assert {r["file"] for r in rejects} == {str(source)}
    assert "zero" in rejects[1]["reason"] and "finite" in rejects[2]["reason"] and "duplicate" in rejects[4]["reason"]
    assert [file.name for file in (tmp_path / "out" / "_rejects").iterdir()] == ["rejects"]


@pytest.mark.usefixtures("length_encoder")
def test_outputs_in_the_way(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "texts.parquet", ["a cat"])
    with pytest.raises(OutputError, match="contains the input"):
        embed(source, tmp_path)
    embed(source, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        embed(source, tmp_path / "out")
    embed(write_texts(source, ["a cat", "a dog"]), tmp_path / "out", overwrite=True)
    assert len(read(tmp_path / "out")) == 2
    with pytest.raises(OutputError, match="contains the input"):
        embed(tmp_path / "out" / "part-00000.parquet", tmp_path / "out", overwrite=True)
    assert len(read(tmp_path / "out")) == 2


@pytest.mark.usefixtures("length_encoder")
def test_wrong_use(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "texts.parquet", ["a cat"], embedding=["no vector"])
    with pytest.raises(UsageError, match="unknown dtype"):
        embed(source, tmp_path / "out", dtype="float64")
    with pytest.raises(UsageError, match="no column 'body'"):
        embed(source, tmp_path / "out", text_field="body")
    with pytest.raises(UsageError, match="name another column with --id-field or --text-field"):
        embed(source, tmp_path / "out", id_field="text")
    with pytest.raises(UsageError, match="the input has a column 'embedding' already"):
        embed(source, tmp_path / "out", metadata_fields=["embedding"])
    assert not (tmp_path / "out").exists()

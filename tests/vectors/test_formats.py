"""The format of a file is what its name shows, else what its first bytes show, and a query is no part of a name."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec.asyn
import numpy as np
import pyarrow as pa
import pyarrow.feather as pf
import pyarrow.orc as po
import pyarrow.parquet as pq
import pytest
from upath import UPath

from daskmeans import KMeans, apply, run
from daskmeans.errors import UsageError
from daskmeans.vectors.files import open_path
from daskmeans.vectors.formats import format_of, named_format, sniff_codec
from daskmeans.vectors.listing import find_files
from daskmeans.vectors.matrix import to_matrix
from daskmeans.vectors.options import ReadOptions
from daskmeans.vectors.source import open_source
from helpers import blobs, write_embeddings

X = blobs(n=60, d=4)
LINES = "".join(json.dumps({"id": i, "embedding": row}) + "\n" for i, row in enumerate(X.tolist())).encode()


def content(kind: str, folder: Path) -> bytes:
    """A file of the rows of X."""
    if kind == "parquet":
        return write_embeddings(folder / "whole" / "x.parquet", X, list(range(60))).read_bytes()
    if kind == "npy":
        (folder / "whole").mkdir()
        np.save(folder / "whole" / "x.npy", X)
        return (folder / "whole" / "x.npy").read_bytes()
    return {
        "lines": LINES,
        "gzip": gzip.compress(LINES),
        "zstd": pa.Codec("zstd").compress(LINES, asbytes=True),
        "mark": b"\xef\xbb\xbf" + LINES,
        "blank": b"\n  \n" + LINES,
    }[kind]


KINDS = {"parquet": "parquet", "npy": "npy", "lines": "jsonl", "gzip": "jsonl", "zstd": "jsonl", "mark": "jsonl",
         "blank": "jsonl"}  # fmt: skip
NAMES = ["000000_0", "rows.json", "x.parquet.snappy", "part-0.v2"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_first_bytes_show_the_format_where_the_name_does_not(tmp_path, caplog, kind: str, name: str) -> None:
    data = content(kind, tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in" / "README").write_text("about the data")
    for given in (tmp_path / "in", f"{tmp_path}/in/*", tmp_path / "in" / name):
        source = open_source(given, partition_bytes=16 * 20)
        assert source.format == KINDS[kind]
        got = source.frame().compute(scheduler="threads")
        np.testing.assert_array_equal(to_matrix(got["embedding"]), X)
        assert got["id"].to_list() == list(range(60))
    assert "1 of 2 files are left out, as their names show no format: README" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_applied_keeps_name_and_compression(tmp_path, kind: str) -> None:
    data = content(kind, tmp_path)
    (tmp_path / "000000_0").write_bytes(data)
    result = run(tmp_path / "000000_0", tmp_path / "out", KMeans(2), 0.9)
    counts = apply(result.path, tmp_path / "000000_0", tmp_path / "kept")
    kept = tmp_path / "kept" / "000000_0"
    assert kept.read_bytes()[:2] == data[:2] or kind in ("mark", "blank")
    assert open_source(kept).rows == counts["kept"] < 60


def test_names() -> None:
    shown = {
        "X.PARQUET": "parquet", "x.Pq": "parquet", "x.snappy.parquet": "parquet", "x.jsonl.gz": "jsonl",
        "x.NDJSON.ZST": "jsonl", "x.npy": "npy", "x.npy.gz": None, "x.parquet.gz": None, "parquet": "parquet",
        "x": None, "x.json": None,
    }  # fmt: skip
    shown["parquet"] = named_format(UPath("/in/parquet"))
    assert {name: named_format(UPath("/in") / name) for name in shown} == shown
    assert named_format(UPath("https://host/a/x.parquet?name=x.npy&signature=a.jsonl")) == "parquet"
    assert named_format(UPath("https://host/download?file=x.parquet")) is None


def test_a_format_that_is_given_decides(tmp_path) -> None:
    (tmp_path / "lines.npy").write_bytes(LINES)
    assert format_of(UPath(tmp_path / "lines.npy")) == "npy"
    assert open_source(tmp_path / "lines.npy", format="jsonl").rows == 60
    assert sniff_codec(UPath(tmp_path / "lines.npy")) is None


def test_a_format_that_is_given_selects(tmp_path) -> None:
    """Vectors and metadata as LAION has them."""
    for i in range(11):
        (tmp_path / "img_emb").mkdir(exist_ok=True)
        np.save(tmp_path / "img_emb" / f"img_emb_{i}.npy", X[:3] + i)
        (tmp_path / "metadata").mkdir(exist_ok=True)
        pq.write_table(pa.table({"url": ["a"] * 3}), tmp_path / "metadata" / f"metadata_{i}.parquet")
    for given in (tmp_path, [tmp_path / "img_emb", tmp_path / "metadata"]):
        with pytest.raises(UsageError, match="mixes formats") as caught:
            open_source(given)
        assert "--format npy" in caught.value.remedy
    source = open_source(tmp_path, format="npy", id_from="file-row")
    assert source.frame().compute(scheduler="threads")["id"].to_list() == [
        f"img_emb_{i}.npy:{row}" for i in range(11) for row in range(3)
    ]
    assert [file.name for file in find_files(tmp_path, format="parquet")][1:3] == [
        "metadata_1.parquet", "metadata_2.parquet"
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no file that can be read"):
        open_source(tmp_path, format="jsonl")


TABLE = {"id": [1, 2], "text": ["a", "b, c"]}


@pytest.mark.parametrize("name", ["x.csv", "x.feather", "x.arrow", "stream.arrow", "x.orc", "x.json"])
@pytest.mark.parametrize("given", ["", "/*", "/NAME"])
def test_the_message_holds_the_line_that_converts_other_formats(tmp_path, monkeypatch, name: str, given: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    if name == "x.csv":
        (tmp_path / "in" / name).write_text('id,text\n1,a\n2,"b, c"\n')
    elif name == "stream.arrow":
        with pa.ipc.new_stream(tmp_path / "in" / name, pa.table(TABLE).schema) as stream:
            stream.write_table(pa.table(TABLE))
    elif name in ("x.feather", "x.arrow"):
        pf.write_feather(pa.table(TABLE), tmp_path / "in" / name)
    elif name == "x.orc":
        po.write_table(pa.table(TABLE), tmp_path / "in" / name)
    else:
        (tmp_path / "in" / name).write_text(json.dumps([{"id": 1, "text": "a"}, {"id": 2, "text": "b, c"}]))
    with pytest.raises(UsageError) as caught:
        open_source(f"{tmp_path}/in{given.replace('NAME', name)}", text_field="text")
    line = caught.value.remedy
    assert shlex.split(line)[:2] == ["python", "-c"]
    subprocess.run(line.replace("python", shlex.quote(sys.executable), 1), shell=True, check=True)
    made = (tmp_path / name).with_suffix(".jsonl" if name == "x.json" else ".parquet")
    got = open_source(made, text_field="text").frame().compute(scheduler="threads")
    assert got.to_dict("list") == TABLE


def test_a_dataset_saved_by_hugging_face_is_named_with_what_to_type(tmp_path) -> None:
    """Files as `save_to_disk` writes them for a DatasetDict: two of JSON beside each stream of Arrow."""
    for split in ("test", "train"):
        (tmp_path / split).mkdir()
        for name in ("dataset_info.json", "state.json"):
            (tmp_path / split / name).write_text(json.dumps({"_fingerprint": "a", "_split": split}, indent=2))
        with pa.ipc.new_stream(tmp_path / split / "data-00000-of-00001.arrow", pa.table(TABLE).schema) as stream:
            stream.write_table(pa.table(TABLE))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    (tmp_path / "README").write_text("about the data")
    train = tmp_path / "train"
    for given, saved in [
        (tmp_path, tmp_path / "test"), (train, train), (f"{train}/*", train), (f"{train}/*.arrow", train)
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=r"data-00000-of-00001\.arrow") as caught:
            open_source(given)
        assert f"datasets.load_from_disk('{saved}').to_parquet('rows.parquet')" in caught.value.remedy


@pytest.mark.parametrize("name", ["x.csv", "x.arrow", "x.npz", "x.safetensors"])
def test_an_object_of_json_hides_no_data_of_other_formats(tmp_path, name: str) -> None:
    (tmp_path / name).write_bytes(b"some data")
    (tmp_path / "part-0").write_bytes(LINES)
    (tmp_path / "README").write_text("about the data")
    with pytest.raises(UsageError, match=f"may be in {name}") as caught:
        open_source(tmp_path)
    assert "if the rows are in part-0 and the like" in caught.value.remedy
    assert open_source(tmp_path, format="jsonl").rows == open_source(f"{tmp_path}/part-*").rows == 60
    write_embeddings(tmp_path / "x.parquet", X)
    assert [file.name for file in find_files(tmp_path)] == ["x.parquet"]


def test_what_nothing_shows(tmp_path) -> None:
    for name, data in {"x": b"", "y": b"\x1f\x8bnot gzip", "z.tar.gz": gzip.compress(b"x" * 999)}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match="neither the name nor the first bytes") as caught:
            open_source(tmp_path / name)
        assert "--format parquet, jsonl or npy" in caught.value.remedy


# URLs


@pytest.mark.parametrize("name", ["with space/é%.parquet", "a#b.parquet", "100%25.parquet", "plain.parquet"])
def test_urls_of_local_files_are_decoded(tmp_path, name: str) -> None:
    path = write_embeddings(tmp_path / name, X)
    for url in (path.as_uri(), path.as_uri().replace("file://", "file://localhost"), f"file:{path.as_uri()[7:]}"):
        assert open_path(url) == UPath(path)
        assert open_source(url).rows == 60
    assert open_path(str(path)) == UPath(path)
    assert open_source(f"{tmp_path.as_uri()}/**/*.parquet").rows == 60


def test_outputs_at_urls_of_local_files(tmp_path) -> None:
    path, out = write_embeddings(tmp_path / "in" / "x.parquet", X), tmp_path / "with space"
    result = run(path.as_uri(), out.as_uri(), KMeans(2), 0.9)
    assert Path(str(result.path)) == out / "dedup"
    assert apply((out / "dedup").as_uri(), path.parent.as_uri(), (tmp_path / "é").as_uri())["kept"] < 60
    assert (tmp_path / "é" / "x.parquet").exists()


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files of a directory, or parts of them, whatever the query."""

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        first, last = (int(each or 0) for each in self.headers.get("Range", f"bytes=0-{len(data)}")[6:].split("-"))
        part = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def loop() -> None:
    """The loop of fsspec, which lasts."""
    fsspec.asyn.get_loop()


@pytest.fixture
def site(loop: None, tmp_path: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_query_is_no_part_of_a_name(tmp_path, site: str) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads web addresses with it")
    write_embeddings(tmp_path / "in" / "x.parquet", X, ["same"] * 60)
    url, other = (f"{site}/in/x.parquet?signature={word}" for word in ("secret", "later"))
    source = open_source(url, id_from="file-row")
    assert source.ids(0)[1].as_py() == "x.parquet:1"
    assert source.fingerprint() == open_source(other, id_from="file-row").fingerprint()
    result = run(url, tmp_path / "out", KMeans(2), 0.9, ReadOptions(id_from="file-row"))
    apply(result.path, other, tmp_path / "kept")
    assert pq.read_table(tmp_path / "kept" / "x.parquet").num_rows < 60
    written = [file for name in ("out", "kept") for file in (tmp_path / name).rglob("*") if file.is_file()]
    assert not [file for file in written if b"secret" in file.read_bytes() or b"later" in file.read_bytes()]

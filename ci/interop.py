"""What other tools write, through every verb, and what they read of the results.

    pip install polars duckdb datasets; python ci/interop.py

Prints a table of writers, layouts and verbs. Its exit status is 1 if something else happened than stands in `LAYOUTS`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import daskmeans as dkm
from daskmeans.planner.describe import describe

ROWS, COPIES, D = 300, 40, 8
X = np.random.default_rng(0).normal(size=(ROWS, D)).astype(np.float32)
X[ROWS - COPIES :] = X[:COPIES]
IDS = [f"doc-{i}" for i in range(ROWS)]
LANGS = ["en" if i % 3 else "de" for i in range(ROWS)]
COLUMNS = {"id": IDS, "lang": LANGS}
LISTS = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), D)

Write = Callable[[Path], Any]
REFUSED = "refused"


def table(vectors: pa.Array = LISTS, name: str = "emb", **columns: Any) -> pa.Table:
    """The rows as Arrow has them."""
    return pa.table({**COLUMNS, name: vectors, **columns})


def polars_frame(kind: Any) -> pl.DataFrame:
    return pl.DataFrame({**COLUMNS, "emb": X.tolist()}, schema_overrides={"emb": kind})


def duck(kind: str, options: str) -> Write:
    """Write with DuckDB, the vectors cast to `kind`."""
    connection = duckdb.connect()
    connection.register("rows", table(pa.array(X.tolist())))
    return lambda to: connection.execute(f"COPY (SELECT id, lang, emb::{kind} AS emb FROM rows) TO '{to}' ({options})")


def huggingface(feature: Any, rows: Any = X) -> datasets.Dataset:
    features = datasets.Features({"id": datasets.Value("string"), "lang": datasets.Value("string"), "emb": feature})
    return datasets.Dataset.from_dict({**COLUMNS, "emb": list(rows)}, features=features)


def spark_rows() -> pa.Table:
    kind = pa.struct(
        {"type": pa.int8(), "size": pa.int32(), "indices": pa.list_(pa.int32()), "values": pa.list_(pa.float64())}
    )
    return table(pa.array([{"type": 1, "values": row} for row in X.tolist()], kind))


def write_spark(rows: pa.Table) -> Write:
    """Write names, marker and checksum as Spark does."""

    def write(to: Path) -> None:
        to.mkdir()
        pq.write_table(rows, to / "part-00000-4f6e0c3e-c000.snappy.parquet")
        (to / "_SUCCESS").touch()
        (to / ".part-00000-4f6e0c3e-c000.snappy.parquet.crc").write_bytes(b"crc")

    return write


def write_laion(to: Path) -> None:
    for i, part in enumerate(np.array_split(np.arange(ROWS), 12)):
        (to / "img_emb").mkdir(parents=True, exist_ok=True)
        np.save(to / "img_emb" / f"img_emb_{i}.npy", X[part].astype(np.float16))


def write_openai(to: Path) -> None:
    rows = (
        {"custom_id": id_, "response": {"status_code": 200, "body": {"data": [{"index": 0, "embedding": row}]}}}
        for id_, row in zip(IDS, X.tolist(), strict=True)
    )
    to.mkdir()
    (to / "batch_output.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def in_folder(write: Callable[[Path], Any], name: str = "0.parquet") -> Write:
    def wrapped(to: Path) -> None:
        to.mkdir()
        write(to / name)

    return wrapped


def tensors() -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [D]), LISTS)


# For each layout: the writer, the reader of the results, and options.
LANG: dict[str, Any] = {"metadata_fields": "lang"}
OPENAI = {"id_field": "custom_id", "embedding_field": "response.body.data[0].embedding"}
LAYOUTS: dict[str, tuple[Write, str, dict[str, Any]]] = {
    "polars, list": (in_folder(polars_frame(pl.List(pl.Float32)).write_parquet), "polars", LANG),
    "polars, array": (in_folder(polars_frame(pl.Array(pl.Float32, D)).write_parquet), "polars", LANG),
    "polars, partitions": (
        lambda to: polars_frame(pl.List(pl.Float32)).write_parquet(to, partition_by="lang"), "polars", LANG),
    "polars, ndjson": (in_folder(polars_frame(pl.List(pl.Float32)).write_ndjson, "0.jsonl"), "polars", LANG),
    "DuckDB, list": (in_folder(duck("FLOAT[]", "FORMAT parquet")), "duckdb", LANG),
    "DuckDB, array": (in_folder(duck(f"FLOAT[{D}]", "FORMAT parquet")), "duckdb", LANG),
    "DuckDB, decimals": (in_folder(duck("DECIMAL(9, 6)[]", "FORMAT parquet")), "duckdb", LANG),
    "DuckDB, partitions": (duck("FLOAT[]", "FORMAT parquet, PARTITION_BY lang"), "duckdb", LANG),
    "DuckDB, json": (in_folder(duck("FLOAT[]", "FORMAT json"), "0.jsonl"), "duckdb", LANG),
    "pandas, lists": (
        in_folder(lambda to: pd.DataFrame({**COLUMNS, "emb": list(X)}).to_parquet(to)), "pandas", LANG),
    "pandas, partitions": (
        lambda to: pd.DataFrame({**COLUMNS, "emb": list(X)}).to_parquet(to, partition_cols=["lang"]), "pandas", LANG),
    "pandas, json": (
        in_folder(lambda to: pd.DataFrame({**COLUMNS, "emb": X.tolist()}).to_json(to, orient="records", lines=True),
                  "0.jsonl"), "pandas", LANG),
    "datasets, List": (
        in_folder(lambda to: huggingface(datasets.List(datasets.Value("float32"))).to_parquet(to)), "datasets", LANG),
    "datasets, Array2D": (
        in_folder(lambda to: huggingface(datasets.Array2D((1, D), "float32"), X[:, None]).to_parquet(to)),
        "datasets", LANG),
    "datasets, json": (
        in_folder(lambda to: huggingface(datasets.List(datasets.Value("float32"))).to_json(to), "0.jsonl"),
        "datasets", LANG),
    "datasets, save_to_disk": (
        lambda to: huggingface(datasets.List(datasets.Value("float32"))).save_to_disk(to), REFUSED, LANG),
    "pyarrow, fixed lists": (in_folder(lambda to: pq.write_table(table(), to)), "pyarrow", LANG),
    "pyarrow, tensors": (in_folder(lambda to: pq.write_table(table(tensors()), to)), "pyarrow", LANG),
    "pyarrow, partitions": (
        lambda to: ds.write_dataset(table(), to, format="parquet", partitioning=["lang"], partitioning_flavor="hive"),
        "pyarrow", LANG),
    "pyarrow, struct": (
        in_folder(lambda to: pq.write_table(table(pa.StructArray.from_arrays([LISTS], ["values"])), to)),
        "pyarrow", LANG | {"embedding_field": "emb.values"}),
    "Spark, arrays": (write_spark(table(pa.array(X.tolist(), pa.list_(pa.float32())))), "pyarrow", LANG),
    "Spark, vectors": (write_spark(spark_rows()), "pyarrow", LANG),
    "NeMo": (in_folder(lambda to: pq.write_table(table(name="embeddings"), to)), "pandas", LANG),
    "LAION": (write_laion, "numpy", {}),
    "OpenAI, batch": (write_openai, "polars", OPENAI),
}  # fmt: skip


def read(reader: str, folder: Path) -> int:
    """The rows that `reader` finds in `folder`."""
    files = [str(file) for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith("_")]
    files = [file for file in files if "/_" not in file.removeprefix(str(folder))]
    if files[0].endswith(".npy"):
        return sum(len(np.load(file)) for file in files)
    lines = files[0].endswith(".jsonl")
    if reader == "polars":
        return len(pl.read_ndjson(files) if lines else pl.read_parquet(f"{folder}/**/*.parquet"))
    if reader == "duckdb":
        return len(duckdb.sql(f"SELECT * FROM read_{'json' if lines else 'parquet'}({files})").fetchall())
    if reader == "datasets":
        kind = "json" if lines else "parquet"
        return len(datasets.load_dataset(kind, data_files=files, split="train", cache_dir=str(folder / "_cache")))
    if reader == "pandas" and lines:
        return sum(len(pd.read_json(file, lines=True)) for file in files)
    return len(pd.read_parquet(folder)) if reader == "pandas" else ds.dataset(folder).count_rows()


def steps(data: Path, work: Path, reader: str, options: dict[str, Any]) -> dict[str, Callable[[], bool]]:
    """The verbs, each of which returns whether all is right."""
    reading = dkm.ReadOptions(**options)
    ours = {name: value for name, value in options.items() if name != "metadata_fields"}
    km = lambda: dkm.KMeans(4, random_state=0)  # noqa: E731
    decided = lambda: work / "run" / "dedup"  # noqa: E731
    return {
        "info": lambda: describe(data, **ours)["rows"] == ROWS,
        "fit": lambda: dkm.fit(data, km(), work / "model", reading).cluster_centers_.shape == (4, D),
        "run": lambda: len(dkm.run(data, work / "run", km(), 0.999, reading).kept) == ROWS - COPIES,
        "read": lambda: read("pyarrow" if reader == "numpy" else reader, decided() / "decisions") == ROWS,
        "apply": lambda: dkm.apply(decided(), data, work / "kept")["kept"] == ROWS - COPIES,
        "read kept": lambda: read(reader, work / "kept") == ROWS - COPIES,
    }


def main() -> int:
    wrong = 0
    for name, (write, reader, options) in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "in"
            write(data)
            found = []
            for verb, step in steps(data, Path(folder), reader, options).items():
                try:
                    found.append(f"{verb}: {'ok' if step() else 'WRONG'}")
                except dkm.DaskmeansError as error:
                    found.append(f"{verb}: {'refused' if reader == REFUSED else 'REFUSED'} ({str(error)[:200]})")
                    break
                except Exception as error:
                    found.append(f"{verb}: FAILED ({type(error).__name__}: {str(error)[:300]})")
        wrong += any(word in line for line in found for word in ("WRONG", "REFUSED", "FAILED"))
        print(f"{name:24}", " | ".join(found), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

"""The step `embed`: turn a text column of files into vectors, in Parquet files that the other steps read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans.encoders.encoder import Encoder, get_encoder
from daskmeans.errors import DataError, UsageError
from daskmeans.runtime import executor
from daskmeans.runtime.client import current_client
from daskmeans.storage import manifest, signature
from daskmeans.storage.result import StepResult
from daskmeans.storage.step import check_output_free, open_step
from daskmeans.vectors.files import Input, find_directories, open_path, refuse_overlap
from daskmeans.vectors.ids import check_ids
from daskmeans.vectors.matrix import to_column
from daskmeans.vectors.rejects import REJECTS_PARTS, gather_rejects
from daskmeans.vectors.source import Source, open_source
from daskmeans.vectors.validate import SKIP_REMEDY

EMBEDDING = "embedding"
# Encoding takes far longer than anything done to vectors later, so its tasks are smaller: 8192 texts.
PARTITION_BYTES = 32 << 20
BATCH_TEXTS = 1024
NOT_FINITE, ZERO = "the vector of the text is not finite", "the vector of the text is zero"


def embed(
    inputs: Input | Sequence[Input],
    out: str | UPath,
    *,
    text_field: str = "text",
    id_field: str = "id",
    metadata_fields: str | Sequence[str] = (),
    encoder: str = "wordllama",
    dtype: str = "float32",
    on_bad_row: str = "error",
    storage_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> StepResult:
    """Make vectors of the texts in `inputs`.

    Parameters
    ----------
    inputs : path, URL or list of these
        Parquet or JSON lines: files, directories or globs.
    out : str or UPath
        Directory for ``part-*.parquet`` with the id, ``embedding`` (a list of d numbers), the text and the metadata.
    text_field, id_field : str
        Columns of the texts and of the ids.
    metadata_fields : str or sequence of str
        Further columns to keep.
    encoder : {"wordllama"}, default "wordllama"
    dtype : {"float32", "float16"}, default "float32"
        How the elements of vectors are stored.
    on_bad_row : {"error", "skip"}, default "error"
        What to do with a row that has no text, or of whose text no vector can be made: stop, or leave it out and list
        it in ``_rejects/rejects``.
    storage_options : mapping, optional
        For fsspec.
    overwrite : bool, default False
        Replace an earlier output.
    client : distributed.Client, optional

    Returns
    -------
    StepResult
        A mapping: ``rows`` written, ``rejected`` rows, ``dimension``, ``dtype``, ``encoder`` and ``files``.

    Raises
    ------
    UsageError
        A path, a column or an option is wrong; MissingExtraError if the encoder is not installed.
    DataError
        A file is damaged, or a row cannot be used.

    Examples
    --------
    >>> lines = '{"id": 1, "text": "a cat sat"}\\n{"id": 2, "text": "a cat sits"}\\n'
    >>> _ = UPath("memory://doctest-embed/texts.jsonl").write_text(lines)
    >>> summary = embed("memory://doctest-embed/texts.jsonl", "memory://doctest-embedded", overwrite=True)
    >>> summary["rows"], summary["dimension"]
    (2, 256)
    """
    if dtype not in ("float32", "float16"):
        raise UsageError(f"unknown dtype {dtype!r}", where="--dtype", expected="float32 or float16")
    client = current_client(client)
    chosen, target = get_encoder(encoder), open_path(out, storage_options)
    source = open_source(
        inputs,
        id_field=id_field,
        text_field=text_field,
        metadata_fields=metadata_fields,
        storage_options=storage_options,
        on_bad_row=on_bad_row,
        rejects=target / REJECTS_PARTS,
        partition_bytes=PARTITION_BYTES,
    )
    _refuse_embedding_column(source)
    refuse_overlap(target, [*find_directories(inputs, storage_options), *source.files])
    check_output_free(target, "embed", overwrite=overwrite)
    source = check_ids(source, on_bad_row, client)
    settings = {
        "text_field": text_field,
        "id_field": id_field,
        "metadata_fields": list(source.metadata_fields),
        "encoder": encoder,
        "dtype": dtype,
        "on_bad_row": on_bad_row,
    }
    need = source.rows * chosen.dimension * np.dtype(dtype).itemsize
    with open_step(target, "embed", settings, source.identity(), overwrite=overwrite, need=need, client=client) as step:
        rows = _encode(source, chosen, dtype, target, client)
        rejected = gather_rejects(target, "embed", source.rows)
        source.check_unchanged()
        manifest.check_row_counts("embed", source.rows, written=rows, rejected=rejected)
        step.facts |= {
            "rows": rows,
            "rejected": rejected,
            "dimension": chosen.dimension,
            "dtype": dtype,
            "encoder": encoder,
            "files": source.n_partitions,
        }
    return StepResult(target, step.facts)


def _encode(source: Source, encoder: Encoder, dtype: str, target: UPath, client: Client | None) -> int:
    """Write the vectors of all partitions of `source`; return the number of rows."""
    shared = executor.broadcast(source, client)
    tasks = [
        delayed(_encode_partition, pure=False)(
            shared, number, encoder, dtype, target, dask_key_name=f"embed-{source.fingerprint()[:16]}-{number}"
        )
        for number in range(source.n_partitions)
    ]
    return sum(executor.compute(tasks, label="embed", client=client))


def _encode_partition(source: Source, number: int, encoder: Encoder, dtype: str, target: UPath) -> int:
    """Write the rows of one partition of `source` with their vectors; return their number."""
    table = source.reader.table(source.partitions[number])
    texts = table.column(1)
    X = np.empty((len(table), encoder.dimension), dtype)
    with np.errstate(over="ignore"):  # what overflows float16 becomes an infinity, and is rejected
        for first in range(0, len(table), BATCH_TEXTS):
            X[first : first + BATCH_TEXTS] = encoder.encode(texts.slice(first, BATCH_TEXTS).to_pylist())
    finite = np.asarray(np.isfinite(X).all(axis=1), bool)
    good = finite & X.any(axis=1)
    if not good.all():
        _reject_rows(source, number, table.column(0).filter(pa.array(~good)), finite[~good], target)
        table, X = table.filter(pa.array(good)), X[good]
    table = table.add_column(1, EMBEDDING, pa.array(to_column(X, dtype)))
    signature.write_table(table, target / f"part-{number:05d}.parquet", "embed")
    return len(table)


def _reject_rows(source: Source, number: int, ids: pa.ChunkedArray, finite: np.ndarray, target: UPath) -> None:
    """Raise for the rows with `ids`, or write them to the rejects, as the source does with invalid rows."""
    reasons = np.where(finite, ZERO, NOT_FINITE)
    rows = pa.compute.index_in(ids, source.ids(number)).to_pylist()
    places = [source.place(number, row) for row in rows]
    if source.reader.on_bad_row == "error":
        raise DataError(
            f"{reasons[0]} with id {ids[0].as_py()!r}",
            where=places[0],
            expected="a text with words that the encoder knows",
            remedy=f"repair the text, or {SKIP_REMEDY}",
        )
    files, numbers = zip(*(place.rsplit(", row ", 1) for place in places), strict=True)
    rejects = {"id": ids.cast(pa.string()), "file": files, "row": np.array(numbers, np.int64), "reason": reasons}
    (target / REJECTS_PARTS).mkdir(parents=True, exist_ok=True)
    signature.write_table(pa.table(rejects), target / REJECTS_PARTS / f"part-{number:05d}-encoded.parquet", "embed")


def _refuse_embedding_column(source: Source) -> None:
    """Refuse an input that already has a column with the name of the one that is added."""
    if EMBEDDING in source.reader.schema.names:
        raise UsageError(
            f"the input has a column {EMBEDDING!r} already, which embed adds",
            where=str(source.files[0]),
            expected=f"no column named {EMBEDDING!r}",
            remedy="leave it out of the metadata fields, or rename it",
        )

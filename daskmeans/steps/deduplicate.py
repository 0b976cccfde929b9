"""The public `deduplicate`: near-duplicates of anything, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import L2
from daskmeans.duplicates.decisions import make_temporary_folder
from daskmeans.duplicates.deduplication import Deduplication, FileRows
from daskmeans.duplicates.in_memory import MemoryDecisions, find_pairs_in_threads
from daskmeans.duplicates.ranking import check_ranking_columns, ranking_columns
from daskmeans.duplicates.rows import Rows, to_rows
from daskmeans.duplicates.settings import DEFAULT_THRESHOLD, Deciding, DedupSettings
from daskmeans.errors import UsageError
from daskmeans.kernels.distances import nearest_centroids
from daskmeans.kernels.norms import normalize_rows
from daskmeans.kmeans.estimator import KMeans
from daskmeans.kmeans.rows.inputs import slice_rows
from daskmeans.pairs.store import SimilarPairs
from daskmeans.runtime import executor
from daskmeans.steps.run import run_steps
from daskmeans.steps.settings import RunSettings
from daskmeans.storage.result import Result
from daskmeans.vectors.files import Input
from daskmeans.vectors.formats import format_from_name
from daskmeans.vectors.options import DEFAULTS, ReadOptions


def deduplicate(
    data: Any,
    threshold: float = DEFAULT_THRESHOLD,
    *,
    keep: str | Sequence[str] = "hard",
    floor: float | None = None,
    random_state: int = 42,
    column: str | None = None,
    id_field: str | None = None,
    out: Input | None = None,
    reading: ReadOptions = DEFAULTS,
    overwrite: bool = False,
    client: Client | None = None,
) -> Deduplication:
    """Find near-duplicates, and which rows stay; the same rows stay as after :func:`daskmeans.run`.

    Rows in memory are all compared with one another, by the threads of this process and without files. Files go through
    the steps of :func:`daskmeans.run` with ``n_clusters="auto"``.

    Parameters
    ----------
    data : array, dataframe, texts or path
        Vectors: whatever ``KMeans.fit`` takes, such as an array (numpy, dask, torch) with a row each, or a
        dataframe (pandas, Arrow, polars, dask) with a column of vectors. Or texts: a list, an array or a column of
        strings, which wordllama encodes (``pip install "daskmeans[text]"``). Or files: a path, a glob, or a list of
        ``Path``; a list of strings is a list of texts.
    threshold : float, default 0.9
        Cosine similarity from which two rows are duplicates, in [0.5, 1] for rows in memory.
    keep : str or sequence of str, default "hard"
        Which of two duplicates stays, as in :func:`daskmeans.dedup`. ``"id:asc"`` keeps the one that comes first, where
        ids are the numbers of the rows; it also saves finding clusters.
    floor : float, optional
        Score from which pairs are kept for :meth:`Deduplication.at`. Default: the threshold.
    random_state : int, default 42
        Seed of the clusters that ``hard`` and ``easy`` rank by, and of ``random``.
    column : str, optional
        For dataframes: the column of vectors, or of texts. Default: the only one that holds vectors.
    id_field : str, optional
        For dataframes: the column of ids. Default: ``id`` if there is one, else the numbers of the rows.
    out : path, optional
        For files: directory for the model, the clusters and the decisions. Default: a temporary one on this machine,
        for as long as Python runs.
    reading : ReadOptions, optional
        For files: how they are read.
    overwrite : bool, default False
        For files: replace a finished output.
    client : distributed.Client, optional
        Default: the current client, else this process. Rows in memory are compared in this process all the same.

    Returns
    -------
    Deduplication

    Raises
    ------
    UsageError
        An argument is out of its range, or does not apply to such data; MissingExtraError if texts are given and the
        encoder is not installed.
    DataError
        A row cannot be used.
    MemoryForecastError
        There are more pairs than fit into memory.

    Examples
    --------
    >>> import daskmeans as dkm
    >>> texts = ["a cat sat on the mat", "the dog barks", "a cat sat on the mat"]
    >>> found = dkm.deduplicate(texts, keep="id:asc")
    >>> found
    Deduplication(rows=3, kept=2, exact=1, semantic=0, threshold=0.9)
    >>> found.kept
    ['a cat sat on the mat', 'the dog barks']
    """
    if _are_files(data):
        _refuse("files: they have reading=ReadOptions(...)", column=column, id_field=id_field)
        deciding = Deciding(threshold, keep=keep, floor=floor)
        model = KMeans(n_clusters="auto", random_state=random_state)
        target = make_temporary_folder() / "run" if out is None else reading.path(out)
        settings = RunSettings(model, deciding, reading=reading)
        result = run_steps(data, target, settings, overwrite=overwrite, client=client)
        return Deduplication(FileRows(data, reading, client), result)
    given = None if reading is DEFAULTS else reading
    _refuse("rows in memory", out=out, reading=given, overwrite=overwrite or None)
    chosen = Deciding(threshold, None, keep, "survivors", "exact", floor=floor, random_state=random_state).settings()
    rows = to_rows(data, column, id_field)
    return Deduplication(rows, _decide(rows, chosen, client))


def _decide(rows: Rows, settings: DedupSettings, client: Client | None) -> MemoryDecisions:
    """Compare all `rows` and decide; clusters are found only if rows are ranked by their distances to centroids."""
    ranking = ranking_columns(settings.keep)
    X = rows.vectors()
    table = rows.table(len(X), [name for name in ranking if name != L2])
    labels = np.zeros(len(X), np.int32)
    if L2 in ranking:
        labels, distances = _find_clusters(X, settings.random_state, client)
        table = table.append_column(L2, [distances])
    check_ranking_columns(settings.keep, table.schema)
    unit = X.copy()
    normalize_rows(unit)
    ids, order = table[0].combine_chunks(), np.argsort(labels, kind="stable")
    similar = SimilarPairs.none()
    if len(X):
        similar = find_pairs_in_threads(unit, ids, np.float32(settings.floor), order)
    return MemoryDecisions(table, labels, similar, settings, rows.describe)


def _find_clusters(X: np.ndarray, seed: int, client: Client | None) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each row of `X`, as a fit and an assignment of :func:`daskmeans.run` find it."""
    if not len(X):
        return np.empty(0, np.int32), np.empty(0, np.float32)
    centroids = KMeans(n_clusters="auto", random_state=seed).fit(X, client=client).cluster_centers_
    found = executor.call_in_threads([partial(nearest_centroids, part, centroids) for part in slice_rows(X)])
    labels, squares = map(np.concatenate, zip(*found, strict=True))
    return labels, np.sqrt(squares).astype(np.float32)


def _are_files(data: Any) -> bool:
    """Whether `data` are files, and not rows in memory; a list of strings is a list of texts.

    Raises
    ------
    UsageError
        A list of strings that are all names of files: they would be taken for texts.
    """
    if isinstance(data, Input):
        return True
    if not isinstance(data, list | tuple) or not data:
        return False
    if all(isinstance(each, str) and format_from_name(each) for each in data):
        raise UsageError(
            f"a list of strings is a list of texts, and {data[0]!r} is the name of a file",
            expected="a path, a glob, or a list of pathlib.Path",
            remedy="give [Path(name), ...] for files",
        )
    return all(isinstance(each, PathLike | UPath | Result) for each in data)


def _refuse(data: str, **given: Any) -> None:
    """Refuse arguments that do nothing for such `data`."""
    if idle := [name for name, value in given.items() if value is not None]:
        raise UsageError("it does nothing here", where=idle[0], expected=f"no such argument with {data}")

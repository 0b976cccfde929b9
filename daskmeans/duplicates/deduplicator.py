"""An operator for pipelines: it takes a dataframe and returns its rows with decisions."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.dataframe.dispatch import meta_nonempty

from daskmeans.buckets.buckets import CENTROID, L2
from daskmeans.duplicates.in_memory import check_unique, decide, find_pairs, read_ids
from daskmeans.duplicates.ranking import check_ranking_columns, ranking_columns
from daskmeans.duplicates.settings import Deciding
from daskmeans.duplicates.table import schema_of
from daskmeans.errors import DataError, UsageError
from daskmeans.kernels.distances import nearest_centroids
from daskmeans.kernels.norms import normalize_rows
from daskmeans.kmeans.assign import refuse_reserved_columns
from daskmeans.kmeans.estimator import KMeans
from daskmeans.kmeans.rows.given import open_frame
from daskmeans.kmeans.rows.inputs import vector_column
from daskmeans.vectors.files import Input, open_path
from daskmeans.vectors.frames import frame_to_device, frame_to_host, is_cudf
from daskmeans.vectors.id_types import quote_id

# Columns that decisions add to a dataframe.
DECISION_COLUMNS = [name for name in schema_of(pa.int64()).names if name != "id"]

# The models that operators in this process have loaded, by their digests.
_models: dict[str, KMeans] = {}
_models_lock = threading.Lock()


class SemanticDeduplicator:
    """Decide for every row of a dataframe whether it stays, as a step of a pipeline.

    Called with a pandas dataframe, it compares all rows with one another, whatever their clusters, and misses no pair.
    The decisions are those of ``dedup(search="exact")`` on these rows. So ``frame.map_partitions(operator)`` finds all
    duplicates inside each partition, and none across partitions.

    Called with a dask dataframe, it brings the rows of each cluster together by a shuffle and decides cluster by
    cluster, lazily. This is the search of ``dedup(search="clusters")``: near-duplicates in different clusters are not
    found, and their share is not measured. ``dedup(search="exact")`` finds all.

    Parameters
    ----------
    model_path : path
        Directory of a fitted model, which workers must be able to read too. A pickled operator does not contain the
        model; each process reads it once.
    threshold : float
        Cosine similarity in [0.5, 1] from which two rows are duplicates.
    keep, rule, random_state
        As in :func:`dedup`; columns to rank by are those of the dataframe.
    id_field : str, default "id"
        Column of unique integers or strings. In a dask dataframe, uniqueness is checked inside each partition and each
        cluster only; an id that repeats elsewhere is not noticed, and affects no decision.
    embedding_field : str, optional
        Column of vectors: Arrow lists, numpy arrays or Python lists. Default: the only one that holds lists of floats.
    storage_options : mapping, optional
        Options of the filesystem of the model.

    Raises
    ------
    UsageError
        An argument is out of its range or unknown, or there is no model. When called: a column is missing, cannot be
        used, or has the name of one that is added.
    DataError
        When called: a row cannot be used; the message has its number.

    Notes
    -----
    Dask converts columns of Python objects, numpy arrays among them, to strings when it reads a pandas dataframe,
    unless ``dataframe.convert-string`` is off. Arrow lists are left alone; :func:`read_embeddings` returns such.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import daskmeans as dkm
    >>> X = np.float32([[1, 0.1], [1, 0.2], [0.1, 1]])
    >>> dkm.KMeans(n_clusters=2).fit(X).save("memory://doctest-deduplicator/model", overwrite=True)
    >>> decide = dkm.SemanticDeduplicator("memory://doctest-deduplicator/model", threshold=0.9)
    >>> frame = decide(pd.DataFrame({"id": ["a", "b", "c"], "embedding": list(X)}))
    >>> frame[["id", "keep", "kept_id", "reason"]]
      id   keep kept_id    reason
    0  a  False       b  semantic
    1  b   True    <NA>      <NA>
    2  c   True    <NA>      <NA>
    """

    def __init__(
        self,
        model_path: Input,
        threshold: float,
        *,
        keep: str | Sequence[str] = "hard",
        rule: str = "survivors",
        id_field: str = "id",
        embedding_field: str | None = None,
        random_state: int = 42,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = Deciding(threshold, None, keep, rule, "exact", random_state=random_state).settings()
        self.model_path = open_path(model_path, storage_options)
        self.id_field, self.embedding_field = id_field, embedding_field
        model = KMeans.load(self.model_path)
        self._digest = _digest_model(model)
        with _models_lock:
            _models[self._digest] = model

    def __repr__(self) -> str:
        return f"SemanticDeduplicator({str(self.model_path)!r}, threshold={self.settings.threshold})"

    def __call__(self, frame: Any, partition_info: Mapping[str, Any] | None = None) -> Any:
        """Decide on the rows of `frame`.

        Parameters
        ----------
        frame : DataFrame of pandas, cuDF, dask, Arrow or polars
        partition_info : mapping, optional
            What dask passes about a partition; messages name its number.

        Returns
        -------
        DataFrame of pandas, cuDF or dask
            `frame`, of pandas if it is of Arrow or polars, with the columns ``keep`` (bool), ``kept_id`` and
            ``kept_score`` (the row that stays in place of this one, and the score of the two), ``max_id`` and
            ``cosine_sim_score`` (the most similar earlier-ranked row, if it is similar enough, and its score; it may
            have been dropped itself), ``reason`` (``exact`` for a copy of ``kept_id``, else ``semantic``; null for rows
            that stay) and ``centroid``. The rows of a pandas
            dataframe keep their order, those of a dask dataframe do not. cuDF frames are decided on in host memory, and
            returned as cuDF.
        """
        frame = open_frame(frame)
        if isinstance(frame, dd.DataFrame) and is_cudf(frame._meta):
            decided = self(frame.map_partitions(frame_to_host, meta=frame_to_host(frame._meta), enforce_metadata=False))
            return decided.map_partitions(frame_to_device, meta=frame_to_device(decided._meta), enforce_metadata=False)
        if not isinstance(frame, dd.DataFrame) and is_cudf(frame):
            return frame_to_device(self(frame_to_host(frame), partition_info))
        if isinstance(frame, dd.DataFrame):
            meta = self(frame._meta)
            rows = frame.map_partitions(
                self._assign_clusters, meta=self._assign_clusters(frame._meta), enforce_metadata=False
            )
            # By tasks: dask's other methods cannot store Arrow lists, or change Python objects.
            rows = rows.shuffle(CENTROID, shuffle_method="tasks")
            return rows.map_partitions(self._decide_rows, whole=False, meta=meta, enforce_metadata=False)
        if frame.empty or _is_made_up(frame):
            self._check_columns(frame)
            return self._join_decisions(frame, self._null_decisions(frame))
        return self._decide_rows(self._assign_clusters(frame, partition_info), whole=True)

    def _assign_clusters(self, frame: pd.DataFrame, partition_info: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """`frame`, checked, with the nearest centroid of each row and the distance to it."""
        self._check_columns(frame)
        if frame.empty:  # an empty column of Python objects does not show that it holds vectors
            return frame.assign(**{CENTROID: np.empty(0, np.int32), L2: np.empty(0, np.float32)})
        where = f"partition {partition_info['number']}, " if partition_info else ""
        check_unique(self._read_ids(frame), f"{where}column {self.id_field!r}")
        model = self._load_model()
        labels, squares = nearest_centroids(self._read_vectors(frame, where), model.cluster_centers_)
        return frame.assign(**{CENTROID: labels, L2: np.sqrt(squares).astype(np.float32)})

    def _decide_rows(self, placed: pd.DataFrame, whole: bool) -> pd.DataFrame:
        """Decide on `placed` rows, compared all together if `whole`, else cluster by cluster."""
        frame = placed.drop(columns=[CENTROID, L2])
        if placed.empty:
            return self._join_decisions(frame, self._null_decisions(frame))
        table, labels = self._ranking_table(placed), placed[CENTROID].to_numpy(np.int32)
        if not whole:  # rows of several partitions meet here
            self._check_clusters(table[self.id_field], labels)
        X = np.array(self._read_vectors(frame))
        normalize_rows(X)
        order = np.argsort(labels, kind="stable")
        # Rows of a group are compared with one another: one group in all, or one for each cluster.
        ends = np.empty(0, np.int64) if whole else np.flatnonzero(np.diff(labels[order])) + 1
        groups = np.split(order, ends)
        decisions = [self._decide_group(table.take(pa.array(rows)), X[rows], labels[rows]) for rows in groups]
        return self._join_decisions(frame, pa.concat_tables(decisions).take(pa.array(np.argsort(order))))

    def _decide_group(self, table: pa.Table, X: np.ndarray, labels: np.ndarray) -> pa.Table:
        """Decide on rows that are all compared with one another; decisions are in the order of the rows."""
        similar = find_pairs(X, table[self.id_field].combine_chunks(), np.float32(self.settings.threshold))
        return decide(table, self.id_field, labels, similar, self.settings)

    def _check_columns(self, frame: pd.DataFrame) -> None:
        refuse_reserved_columns(list(frame.columns))
        if taken := [name for name in DECISION_COLUMNS if name in frame.columns]:
            raise UsageError(
                f"the dataframe has a column {taken[0]!r} already, which the operator adds",
                remedy="drop or rename the column",
            )
        ranking = [name for name in ranking_columns(self.settings.keep) if name != L2]
        for name, argument in [(self.id_field, "id_field"), *((name, "keep") for name in ranking)]:
            if name not in frame.columns:
                columns = ", ".join(map(str, frame.columns))
                raise UsageError(f"there is no column {name!r}", where=argument, expected=f"one of {columns}")
        check_ranking_columns(self.settings.keep, pa.Schema.from_pandas(frame[ranking].assign(**{L2: 0.0})))

    def _check_clusters(self, ids: pa.ChunkedArray, labels: np.ndarray) -> None:
        """Refuse an id that occurs twice in a cluster: decisions name rows by their ids."""
        rows = pd.DataFrame({"id": pd.arrays.ArrowExtensionArray(ids), CENTROID: labels})
        again = rows.duplicated().to_numpy()
        if again.any():
            row = int(again.argmax())
            raise DataError(
                f"the id {quote_id(ids[row].as_py())} occurs twice in cluster {labels[row]}",
                where=f"column {self.id_field!r}",
                expected="ids that occur once, in all partitions",
            )

    def _read_ids(self, frame: pd.DataFrame) -> pa.Array:
        """Ids in a type that decisions have, of whatever type the dataframe holds them."""
        return read_ids(frame[self.id_field], f"column {self.id_field!r}")

    def _read_vectors(self, frame: pd.DataFrame, where: str = "") -> np.ndarray:
        """The vectors as the model compares them."""
        column = vector_column(frame, self.embedding_field)
        return self._load_model().rows(frame[column], f"{where}column {column!r}")

    def _ranking_table(self, placed: pd.DataFrame) -> pa.Table:
        """The columns by which rows are ranked, the ids first."""
        names = [name for name in ranking_columns(self.settings.keep) if name != self.id_field]
        table = pa.Table.from_pandas(placed[names], preserve_index=False)
        return pa.table([self._read_ids(placed), *table.columns], names=[self.id_field, *names])

    def _null_decisions(self, frame: pd.DataFrame) -> pa.Table:
        """One decision per row of `frame`, all null."""
        schema = schema_of(self._read_ids(frame).type)
        return pa.table([pa.nulls(len(frame), column.type) for column in schema], schema=schema)

    @staticmethod
    def _join_decisions(frame: pd.DataFrame, decisions: pa.Table) -> pd.DataFrame:
        columns = decisions.select(DECISION_COLUMNS).to_pandas(types_mapper=pd.ArrowDtype)
        return frame.assign(**{name: columns[name].array for name in DECISION_COLUMNS})

    def _load_model(self) -> KMeans:
        with _models_lock:
            if self._digest not in _models:
                model = KMeans.load(self.model_path)
                if _digest_model(model) != self._digest:
                    raise DataError(
                        "the model has changed since the operator was made",
                        where=str(self.model_path),
                        remedy="make a new operator",
                    )
                _models[self._digest] = model
            return _models[self._digest]


def _digest_model(model: KMeans) -> str:
    """Hash of everything in `model` that determines the clusters of rows."""
    return hashlib.sha256(bytes([model.normalize]) + model.cluster_centers_.tobytes()).hexdigest()


def _is_made_up(frame: pd.DataFrame) -> bool:
    """Whether dask made up the rows to infer the output columns; they contain no valid vectors."""
    return len(frame) == 2 and frame.equals(meta_nonempty(frame.iloc[:0]))

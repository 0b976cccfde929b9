"""What a deduplication found: the rows that stay and those that do not, as they were given, and the pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from dask import delayed
from distributed import Client

from daskmeans.duplicates.groups import Group
from daskmeans.duplicates.in_memory import MemoryDecisions
from daskmeans.duplicates.lookup import DecisionIndex, read_decision_index
from daskmeans.duplicates.result import DedupResult
from daskmeans.duplicates.rows import TEXT, Rows
from daskmeans.storage.result import html_table
from daskmeans.vectors.ids import check_ids
from daskmeans.vectors.looks import SURVEYS, merge_schemas, survey_first
from daskmeans.vectors.options import ReadOptions

# Columns of the pairs, by their names among the decisions.
PAIR_COLUMNS = {"id": "id", "kept_id": "kept_id", "kept_score": "score", "reason": "reason"}
# Most characters of a row that are shown.
SHOWN = 100


class FileRows:
    """Rows of files; selected rows are a lazy dask dataframe with all columns of the files."""

    def __init__(self, inputs: Any, reading: ReadOptions, client: Client | None) -> None:
        self._inputs, self._reading, self._client = inputs, reading, client

    def select(self, decided: DedupResult, keep: bool) -> dd.DataFrame:
        """The rows that stay, or those that are removed; rows without a decision are neither."""
        source = self._reading.open(self._inputs, self._client, allow_zero=False)
        names = merge_schemas(survey_first(source.given, SURVEYS[source.format])).names
        whole = replace(self._reading, embedding_field=source.embedding_field, metadata_fields=tuple(names))
        source = whole.open(self._inputs, self._client, allow_zero=False)
        if whole.on_bad_row == "skip":  # rows with the id of another one were rejected
            source = check_ids(source, whole.on_bad_row, self._client)
        lookup = delayed(read_decision_index, pure=False)(decided.path)
        frame = source.frame()
        made = [source.id_field] if source.id_field not in names else []
        frame = frame[[*made, *(name for name in names if name in frame.columns)]]  # without fields inside others
        return frame.map_partitions(
            _select_decided, lookup, source.id_field, keep, meta=frame._meta, enforce_metadata=False
        )


class Deduplication:
    """The result of :func:`daskmeans.deduplicate`.

    Attributes
    ----------
    decisions : MemoryDecisions or DedupResult
        Every decision: in memory, or for files the result of the step `dedup`.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import daskmeans as dkm
    >>> X = np.float32([[1, 0.1], [1, 0.12], [0.1, 1]])
    >>> found = dkm.deduplicate(pd.DataFrame({"name": ["a", "b", "c"], "v": list(X)}), keep="id:asc")
    >>> found.kept["name"].tolist(), found.removed["name"].tolist()
    (['a', 'c'], ['b'])
    >>> found.pairs[["id", "kept_id", "reason"]].to_numpy().tolist()
    [[1, 0, 'semantic']]
    >>> found.show()
    0.9998  kept     0  name a
            removed  1  name b
    >>> found.at(1.0)
    Deduplication(rows=3, kept=3, exact=0, semantic=0, threshold=1.0)
    """

    def __init__(self, rows: Rows | FileRows, decisions: MemoryDecisions | DedupResult) -> None:
        self._rows: Any = rows
        self.decisions: Any = decisions

    @property
    def kept(self) -> Any:
        """The rows that stay, with all their columns and in the type that they were given in; lazy for dask and files.

        Of files it is a dask dataframe.
        """
        return self._rows.select(self.decisions, True)

    @property
    def removed(self) -> Any:
        """The rows that do not stay, as :attr:`kept`."""
        return self._rows.select(self.decisions, False)

    @property
    def pairs(self) -> Any:
        """A row for each row that is removed: ``id``, ``kept_id`` (the row that stays instead), ``score``, ``reason``.

        The reason is ``exact`` for copies, else ``semantic``. A pandas dataframe; for files a lazy one of dask.
        """
        return self.decisions.removed[list(PAIR_COLUMNS)].rename(columns=PAIR_COLUMNS)

    def groups(self, limit: int = 10) -> list[Group]:
        """Rows that stay, each with the rows removed for it, as :meth:`daskmeans.DedupResult.groups`."""
        return self.decisions.groups(limit)  # type: ignore[no-any-return]

    def at(self, threshold: float) -> Deduplication:
        """Decide at another threshold, without a new search.

        Raises
        ------
        UsageError
            The threshold is below the floor from which pairs are known.
        """
        return Deduplication(self._rows, self.decisions.at(threshold))

    def show(self, n: int = 5) -> None:
        """Print `n` pairs: those closest to the threshold, with their texts or other columns."""
        for group in self.groups(n):
            removed = group.duplicates[0]
            print(f"{removed.score:.4f}  kept     {group.id}{_shorten(group.metadata)}")
            print(f"        removed  {removed.id}{_shorten(removed.metadata)}")

    def __repr__(self) -> str:
        return f"Deduplication({', '.join(f'{name}={value}' for name, value in self._figures().items())})"

    def _repr_html_(self) -> str:
        return html_table("Deduplication", self._figures())

    def _figures(self) -> dict[str, Any]:
        figures = self.decisions.figures()
        return {name: figures[name] for name in ("rows", "kept", "exact", "semantic", "threshold")}


def _shorten(metadata: dict[str, Any]) -> str:
    """The text of a row, or its other metadata, on one line that follows its id; empty if there is none."""
    texts = [metadata[TEXT]] if metadata.get(TEXT) else [f"{name} {value}" for name, value in metadata.items()]
    line = " ".join(", ".join(map(str, texts)).split())
    shown = line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
    return f"  {shown}" if shown else ""


def _select_decided(frame: pd.DataFrame, lookup: DecisionIndex, id_field: str, keep: bool) -> pd.DataFrame:
    """The rows of `frame` on which there is the decision `keep`."""
    ids = pa.array(frame[id_field])
    places = lookup.find(ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids)
    return frame[(places >= 0) & (lookup.keep[places] == keep)]

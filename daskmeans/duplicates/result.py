"""The result of a deduplication: its decisions, groups of duplicates, and other thresholds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import Buckets, find_ids, open_buckets
from daskmeans.duplicates.decisions import (
    SUMMARY,
    as_decided,
    count_removed,
    decide_from_pairs,
    finish_decisions,
    make_temporary_folder,
    rank_rows,
)
from daskmeans.duplicates.groups import (
    ClusterRow,
    Group,
    describe_group,
    find_first_groups,
    find_members,
    find_rows,
    group_rows,
    look_up_rows,
    read_decisions,
    with_kept_score,
)
from daskmeans.duplicates.settings import DedupSettings, check_share, round_to_float32
from daskmeans.errors import DataError, NotFoundError, UsageError
from daskmeans.pairs.store import StoredPairs, open_pairs
from daskmeans.runtime import executor
from daskmeans.runtime.client import current_client
from daskmeans.storage import manifest
from daskmeans.storage.result import Result
from daskmeans.storage.step import open_step
from daskmeans.vectors.files import Input, join_inside, open_path, refuse_overlap, translate_read_errors


class DedupResult(Result):
    """Decisions of a deduplication, read from its directory on access.

    Attributes
    ----------
    path : UPath
        The directory.
    summary : dict
        Content of ``_summary.json``.

    See Also
    --------
    open_decisions
    """

    def __init__(self, path: UPath, clusters: UPath) -> None:
        self.path, self._clusters = path, clusters
        self.summary: dict[str, Any] = json.loads(
            manifest.read_verified(path, SUMMARY, manifest.read_manifest(path, "dedup"))
        )

    @property
    def recall(self) -> dict[str, Any]:
        """Recall of the search, measured on a sample.

        ``sampled`` is the number of rows in the sample, ``with_twin`` how many of these have a near-duplicate anywhere.
        ``recall`` is the share of the latter with a near-duplicate among the rows that the search compared them with
        (None if there are none), and ``low`` and ``high`` bound its 95 % interval. An exact search compares all rows:
        its recall is 1, and ``why`` says so.
        """
        return dict(self.summary["recall"])

    @property
    def against(self) -> tuple[UPath, ...]:
        """Directories of the reference clusters, whose rows all rows were compared with too."""
        others = manifest.read_manifest(self.path, "dedup")["inputs"].get("against", ())
        return tuple(open_path(other["clusters"], self._clusters.storage_options) for other in others)

    @property
    def decisions(self) -> dd.DataFrame:
        """All decisions, one row per input row and one partition per file."""
        return self._to_frame(None)

    @property
    def kept(self) -> dd.DataFrame:
        """Decisions on the rows that stay."""
        return self._to_frame(True)

    @property
    def removed(self) -> dd.DataFrame:
        """Decisions on the rows that are removed."""
        return self._to_frame(False)

    def groups(self, limit: int = 10) -> list[Group]:
        """Rows that stay, each with the rows dropped for it; the most instructive groups first.

        Groups are sorted by their least similar semantic duplicate (by ``kept_score``), those closest to the threshold
        first. Groups of exact copies only come last. Metadata is read from the clusters.

        Parameters
        ----------
        limit : int, default 10
            Number of groups.

        Returns
        -------
        list of Group

        Raises
        ------
        NotFoundError
            The clusters are gone, or others are there now.
        """
        files = decision_files(self.path)
        # Rows of a group may be in several files, but each of the first groups is among the first in some file.
        first = executor.compute([delayed(find_first_groups, pure=False)(file, limit) for file in files])
        heads = group_rows(pa.concat_tables(first)).slice(0, limit)["kept_id"].combine_chunks()
        rows = pa.concat_tables(executor.compute([delayed(find_members, pure=False)(file, heads) for file in files]))
        known = self.look_up(pa.concat_arrays([heads, *rows["id"].chunks]))
        members: dict[Any, list[dict[str, Any]]] = {}
        for row in rows.to_pylist():
            members.setdefault(row["kept_id"], []).append(row)
        return [describe_group(head, members[head], known) for head in heads.to_pylist()]

    def look_up(self, ids: pa.Array) -> dict[Any, ClusterRow]:
        """Look up rows by id: first among the rows that were decided on, then in the reference clusters.

        Raises
        ------
        NotFoundError
            The clusters are gone, or others are there now.
        DataError
            No clusters have a row of this id.
        """
        buckets, *against = self._open_sources()
        find = delayed(find_rows, pure=False)
        homes = executor.compute([find(file, ids) for file in decision_files(self.path)])
        known = look_up_rows(buckets, pa.concat_tables(homes))
        for other in against:
            left = pa.array([id_ for id_ in ids.to_pylist() if id_ not in known], ids.type)
            known |= look_up_rows(other, find_ids(other, left))
        if missing := [id_ for id_ in ids.to_pylist() if id_ not in known]:
            raise DataError(
                f"row {missing[0]!r} of the decisions is in none of the clusters that they were made from",
                where=str(self.path),
                remedy="run `daskmeans dedup` again",
            )
        return known

    def _open_sources(self, *, extended: bool = True) -> list[Buckets]:
        """Open the clusters that were decided on, then the reference clusters; refuse later rows unless `extended`."""
        made = manifest.read_manifest(self.path, "dedup")["inputs"]
        sources = [open_buckets(path) for path in (self._clusters, *self.against)]
        for buckets, entry in zip(sources, [made, *made.get("against", ())], strict=True):
            before = as_decided(buckets, entry["made"], self.path)
            if before.rows < buckets.rows and not extended:
                raise NotFoundError(
                    "rows were appended to these clusters since the pairs of their rows were stored",
                    where=str(buckets.path),
                    expected=f"the clusters as they were when the decisions in {self.path} were made",
                    remedy="choose thresholds before --append",
                )
        return sources

    def _pairs_folder(self, inputs: dict[str, Any], settings: DedupSettings) -> StoredPairs:
        """Open the pairs: below these decisions or, if :meth:`at` made them, below those of the search."""
        stored = open_path(self.summary["pairs"]["path"], self._clusters.storage_options)
        here = self.path / stored.name
        return open_pairs(here if here.exists() else stored, inputs, settings)

    def at(self, threshold: float, *, out: Input | None = None, client: Client | None = None) -> DedupResult:
        """Decide at another threshold, from the stored pairs, without a new search.

        Parameters
        ----------
        threshold : float
            At least the floor from which pairs were stored.
        out : path, optional
            A new directory for the decisions. Default: a temporary one on this machine, for as long as Python runs.
        client : distributed.Client, optional
            Where to run. Default: the current client, else this process.

        Raises
        ------
        UsageError
            The threshold is below the floor, or the search stored no pairs.
        NotFoundError
            The clusters or the pairs are gone, or rows were appended to the clusters since.
        """
        start = time.perf_counter()
        settings, made = self._read_settings(round_to_float32(check_share("threshold", threshold)))
        (buckets, *against), client = self._open_sources(extended=False), current_client(client)
        target = make_temporary_folder() if out is None else open_path(out, self.path.storage_options)
        refuse_overlap(target, [self.path, *(each.path for each in (buckets, *against))])
        inputs = made["inputs"]
        with open_step(target, "dedup", asdict(settings), inputs, client=client) as step:
            stored = self._pairs_folder(inputs, settings)
            found = decide_from_pairs(buckets, against, settings, stored, target, start, client)
            finish_decisions(step, buckets, *found, noted=out is not None)
        return DedupResult(target, self._clusters)

    def curve(self, thresholds: Sequence[float] | None = None, *, client: Client | None = None) -> pd.DataFrame:
        """Count what other thresholds would remove, from the stored pairs.

        Parameters
        ----------
        thresholds : sequence of float, optional
            At least the floor from which pairs were stored. Default: from the floor to 1 in steps of 0.01.
        client : distributed.Client, optional

        Returns
        -------
        pandas.DataFrame
            Columns ``threshold``, and the numbers of rows ``kept``, and removed as ``exact`` copies or ``semantic``
            duplicates.

        Raises
        ------
        UsageError
            A threshold is below the floor, or the search stored no pairs.
        NotFoundError
            The clusters or the pairs are gone, or rows were appended to the clusters since.

        Examples
        --------
        >>> from upath import UPath
        >>> import daskmeans as dkm
        >>> lines = "".join(f'{{"id": {i}, "v": [1.0, {y}]}}\\n' for i, y in enumerate([0.0, 0.0, 0.3, 9.0]))
        >>> folder = "memory://doctest-curve"
        >>> _ = UPath(f"{folder}/in/rows.jsonl").write_text(lines)
        >>> result = dkm.run(f"{folder}/in", f"{folder}/out", dkm.KMeans(n_clusters=2), threshold=0.9, overwrite=True)
        >>> result.curve([0.9, 0.99]).to_numpy().tolist()
        [[0.9, 2.0, 0.0, 2.0], [0.99, 3.0, 1.0, 0.0]]
        """
        floor = self.summary.get("pairs", {}).get("floor", 1.0)
        steps = [*np.arange(np.ceil(round(100 * floor, 4)), 101) / 100] if thresholds is None else thresholds
        asked = [round_to_float32(check_share("thresholds", threshold)) for threshold in steps]
        settings, made = self._read_settings(min(asked, default=1.0))
        (buckets, *against), client = self._open_sources(extended=False), current_client(client)
        similar = self._pairs_folder(made["inputs"], settings).read(settings.floor)
        ranked = rank_rows(buckets, against, similar, settings, client)
        exact, semantic = np.array(count_removed(ranked, similar, settings.rule, asked)).reshape(-1, 2).T
        kept = buckets.rows - exact - semantic
        return pd.DataFrame({"threshold": asked, "kept": kept, "exact": exact, "semantic": semantic})

    def _read_settings(self, threshold: float) -> tuple[DedupSettings, dict[str, Any]]:
        """Settings of decisions at another threshold, and the manifest; refuses a threshold below the stored pairs."""
        made, pairs = manifest.read_manifest(self.path, "dedup"), self.summary.get("pairs")
        if pairs is None or threshold < pairs["floor"]:
            raise UsageError(
                f"no pairs with scores down to {threshold} were stored",
                where=str(self.path),
                expected="an exact search, or one with probes, whose floor is at most the threshold",
                remedy=f"search again with search='exact', floor={threshold}",
            )
        new = {"threshold": threshold, "floor": pairs["floor"], "keep": tuple(made["settings"]["keep"])}
        return DedupSettings(**made["settings"] | new), made

    def _to_frame(self, keep: bool | None) -> dd.DataFrame:
        files = decision_files(self.path)
        with translate_read_errors(files[0]):
            schema = pq.read_schema(files[0].path, filesystem=files[0].fs)
        meta = _to_pandas(with_kept_score(schema.empty_table()))
        return dd.from_map(_read_decisions_frame, files, keep=keep, meta=meta)

    def figures(self) -> dict[str, str]:
        s, recall = self.summary, self.recall
        found = "not measured" if not recall["sampled"] else "no row of the sample has a near-duplicate"
        if s["search"] == "exact":
            found = "100%: all rows were compared"
        elif recall["recall"] is not None:
            found = f"{recall['recall']:.2%} ({recall['low']:.2%} to {recall['high']:.2%})"
        return {
            "rows": f"{s['rows']:,}",
            "kept": f"{s['kept']:,}",
            "exact": f"{s['removed']['exact']:,}",
            "semantic": f"{s['removed']['semantic']:,}",
            "threshold": str(s["threshold"]),
            "rule": s["rule"],
            "keep": str(s["keep"]),
            "recall": found,
        }


def open_decisions(path: Input, storage_options: Mapping[str, Any] | None = None) -> DedupResult:
    """Open the result of an earlier deduplication.

    Parameters
    ----------
    path : path
        Directory that `dedup` wrote.
    storage_options : dict, optional
        Options of the filesystem.

    Raises
    ------
    NotFoundError
        The directory does not exist, or holds something else.
    OutputError
        The deduplication is unfinished.

    Examples
    --------
    >>> from upath import UPath
    >>> import daskmeans as dkm
    >>> lines = '{"id": "a", "v": [1.0, 0.1]}\\n{"id": "b", "v": [1.0, 0.1]}\\n{"id": "c", "v": [0.1, 1.0]}\\n'
    >>> _ = UPath("memory://doctest-result/in/rows.jsonl").write_text(lines)
    >>> km = dkm.KMeans(n_clusters=2)
    >>> result = dkm.run("memory://doctest-result/in", "memory://doctest-result/out", km, threshold=0.9, overwrite=True)
    >>> again = dkm.open_decisions("memory://doctest-result/out/dedup")
    >>> again.summary["kept"], [d.id for d in again.groups()[0].duplicates]
    (2, ['a'])
    """
    folder = open_path(path, storage_options)
    made = manifest.read_manifest(folder, "dedup")
    options = {**folder.storage_options, **(storage_options or {})}
    return DedupResult(folder, open_path(made["inputs"]["clusters"], options))


def decision_files(path: UPath) -> list[UPath]:
    """List the files of the decisions in the directory `path`, in the order of the clusters."""
    files = [join_inside(path, found["path"]) for found in manifest.read_manifest(path, "dedup")["outputs"]]
    if missing := [file for file in files if not file.exists()]:
        remedy = "run `daskmeans dedup` again, with --overwrite"
        raise NotFoundError("the decisions are gone", where=str(missing[0]), remedy=remedy)
    return files


def _read_decisions_frame(file: UPath, keep: bool | None) -> pd.DataFrame:
    table = read_decisions(file)
    return _to_pandas(table if keep is None else table.filter(pc.equal(table["keep"], keep)))


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas(types_mapper=pd.ArrowDtype)

"""Pairs around the threshold, for a person to look at before choosing one."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans.duplicates.groups import ClusterRow, read_decisions
from daskmeans.duplicates.result import DedupResult, decision_files
from daskmeans.errors import UsageError
from daskmeans.pairs.settings import LEAST_FLOOR
from daskmeans.report.examples import Row
from daskmeans.report.html import render_page, render_pair
from daskmeans.runtime import executor
from daskmeans.storage import objectstore, signature
from daskmeans.vectors.files import Input, open_path

# Pairs are shown from this far below the threshold to this far above it.
SPREAD = 0.1
# Directory below that of the decisions. The table in it is Parquet, but not called so, as are the pairs.
REVIEW = "_review"


def write_review(
    result: DedupResult,
    n: int,
    out: Input | None = None,
    *,
    text_field: str = "text",
    client: Client | None = None,
) -> UPath:
    """Write pairs of rows, spread evenly over the scores around the threshold, as a page and as a table.

    Each is a row that was dropped and the one that stays in its place, or a row that stays and the most similar one
    before it in rank. An exact search knows pairs from its floor on only, so a floor below the threshold shows what a
    lower one would drop.

    Parameters
    ----------
    result : DedupResult
    n : int
        Pairs at most.
    out : path, optional
        Directory for ``review.html`` and ``review.parquet``. Default: ``_review`` below that of the decisions, where
        the table is called ``review``, so that readers of the decisions pass it over.
    text_field : str, default "text"
        Metadata column of texts, of which differing words are marked.
    client : distributed.Client, optional

    Returns
    -------
    UPath
        The page.

    Raises
    ------
    UsageError
        `n` is not a positive number.
    NotFoundError
        The clusters are no longer there.

    Examples
    --------
    >>> write_review(dkm.open_decisions("work/dedup"), 50)  # doctest: +SKIP
    """
    if not n > 0:
        raise UsageError(f"{n} pairs cannot be shown", where="--review", expected="a number of 1 or more")
    threshold = result.summary["threshold"]
    low, high = threshold - SPREAD, min(1.0, threshold + SPREAD)
    find = delayed(_read_near_pairs, pure=False)
    found = pa.concat_tables(
        executor.compute([find(file, low, threshold, high, n) for file in decision_files(result.path)], client=client)
    )
    pairs = _spread_pairs(found, n)
    known = result.look_up(pa.concat_arrays([*pairs["id"].chunks, *pairs["twin_id"].chunks]))
    target = result.path / REVIEW if out is None else open_path(out)
    target.mkdir(parents=True, exist_ok=True)
    with pa.BufferOutputStream() as stream:
        signature.write_table(_make_table(pairs, known, threshold), stream, "review")
        objectstore.replace_file(
            target / ("review" if out is None else "review.parquet"), stream.getvalue().to_pybytes(), "tmp"
        )
    shown = _render_review(pairs, known, threshold, result.summary.get("floor"), text_field)
    file = target / "review.html"
    objectstore.replace_file(file, shown.encode(), "tmp")
    return file


def _read_near_pairs(file: UPath, low: float, threshold: float, high: float, n: int) -> pa.Table:
    """Pairs of one file of decisions whose scores lie between, copies left out; at most `n`."""
    table = read_decisions(file)
    # With the row that stays in its place, or else with what is nearest to it.
    shown = pc.is_valid(table["kept_score"])
    twin = pc.if_else(shown, table["kept_id"], table["max_id"])
    score = pc.if_else(shown, table["kept_score"], table["cosine_sim_score"])
    inside = pc.and_(pc.and_(pc.greater_equal(score, low), pc.less_equal(score, high)), pc.is_valid(twin))
    inside = pc.and_(inside, pc.not_equal(pc.fill_null(table["reason"], ""), "exact"))
    # A row that stays may be nearest to one that was dropped: no pair of which either would teach a threshold.
    inside = pc.and_(inside, pc.or_(pc.invert(table["keep"]), pc.less(score, pa.scalar(np.float32(threshold)))))
    return _spread_pairs(pa.table({"id": table["id"], "twin_id": twin, "score": score}).filter(inside), n)


def _spread_pairs(pairs: pa.Table, n: int) -> pa.Table:
    """`n` of the pairs, evenly spread over their scores, in their order; all if there are no more."""
    pairs = pairs.take(pc.sort_indices(pairs, [("score", "ascending"), ("id", "ascending")]))
    if len(pairs) <= n:
        return pairs
    scores = pairs["score"].to_numpy().astype(np.float64)
    taken = np.unique(np.searchsorted(scores, np.linspace(scores[0], scores[-1], n)))
    others = np.setdiff1d(np.arange(len(pairs)), taken)
    more = others[np.linspace(0, len(others) - 1, n - len(taken)).astype(np.int64)]  # where scores are dense
    return pairs.take(pa.array(np.sort(np.concatenate([taken, more]))))


def _make_table(pairs: pa.Table, known: dict[Any, ClusterRow], threshold: float) -> pa.Table:
    """The pairs with the metadata of both rows."""
    table = pairs.append_column("duplicate", pc.greater_equal(pairs["score"], pa.scalar(np.float32(threshold))))
    for prefix, ids in (("", table["id"]), ("twin_", table["twin_id"])):
        rows = [known[id_].metadata for id_ in ids.to_pylist()]
        for name in dict.fromkeys(name for row in rows for name in row):  # twins may come from other clusters
            column = f"{prefix}{name}"
            while column in table.column_names:
                column += "_"
            table = table.append_column(column, _to_column([row.get(name) for row in rows]))
    return table


def _to_column(values: list[Any]) -> pa.Array:
    """A column of `values`; of texts if they are of several types."""
    try:
        return pa.array(values)
    except pa.ArrowException:
        return pa.array([None if value is None else str(value) for value in values])


def _render_review(
    pairs: pa.Table, known: dict[Any, ClusterRow], threshold: float, floor: float | None, text_field: str
) -> str:
    def row(id_: Any) -> Row:
        facts = dict(known[id_].metadata)
        text = facts.pop(text_field, "") or ""
        return Row(id_, str(text), None, facts)

    title = f"Pairs around {threshold}"
    body = [
        f"<h1>{escape(title)}</h1>",
        '<p class="quiet">Each pair is a dropped row and the one that stays in its place, or, below the threshold, a '
        "row and the most similar one before it; words that only one has are marked. Find the score below which they "
        "are no duplicates any more: that is the threshold to choose.</p>",
    ]
    if floor == threshold:
        lower = f"--floor {max(LEAST_FLOOR, round(threshold - SPREAD, 3))}"
        body.append(f'<p class="quiet">Pairs below {threshold} were not stored: {lower} stores and shows them too.</p>')
    above = False
    for pair in pairs.to_pylist():
        score = pair["score"]
        if np.float32(score) >= np.float32(threshold) and not above:
            above = True
            body.append(f"<h2>From {threshold} on: duplicates</h2>")
        body += render_pair(row(pair["twin_id"]), row(pair["id"]), score, "cosine similarity", ("earlier", "later"))
    return render_page(title, body)

"""Pairs around the threshold, for a person to review before choosing one."""

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
# Directory below that of the decisions. Its table is Parquet without the suffix, like the stored pairs.
REVIEW = "_review"


def write_review(
    result: DedupResult,
    n: int,
    out: Input | None = None,
    *,
    text_field: str = "text",
    client: Client | None = None,
) -> UPath:
    """Write pairs of rows, spread evenly over the scores around the threshold, as an HTML page and a table.

    Each pair is a dropped row and the row kept instead, or a kept row and the most similar row before it in rank. An
    exact search only knows pairs from its floor on, so a floor below the threshold shows what a lower threshold would
    drop.

    Parameters
    ----------
    result : DedupResult
    n : int
        Maximum number of pairs.
    out : path, optional
        Directory for ``review.html`` and ``review.parquet``. Default: ``_review`` below that of the decisions, where
        the table is called ``review``, so that readers of the decisions skip it.
    text_field : str, default "text"
        Metadata column of texts, in which differing words are marked.
    client : distributed.Client, optional

    Returns
    -------
    UPath
        Path of the page.

    Raises
    ------
    UsageError
        `n` is not a positive number.
    NotFoundError
        The clusters no longer exist.

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
    """Read at most `n` pairs with scores from `low` to `high` from one file of decisions, without exact copies."""
    table = read_decisions(file)
    # Paired with the row kept instead, or else with the most similar row.
    shown = pc.is_valid(table["kept_score"])
    twin = pc.if_else(shown, table["kept_id"], table["max_id"])
    score = pc.if_else(shown, table["kept_score"], table["cosine_sim_score"])
    inside = pc.and_(pc.and_(pc.greater_equal(score, low), pc.less_equal(score, high)), pc.is_valid(twin))
    inside = pc.and_(inside, pc.not_equal(pc.fill_null(table["reason"], ""), "exact"))
    # A kept row may be most similar to a dropped one: such a pair says nothing about the threshold.
    inside = pc.and_(inside, pc.or_(pc.invert(table["keep"]), pc.less(score, pa.scalar(np.float32(threshold)))))
    return _spread_pairs(pa.table({"id": table["id"], "twin_id": twin, "score": score}).filter(inside), n)


def _spread_pairs(pairs: pa.Table, n: int) -> pa.Table:
    """Return `n` of the pairs, spread evenly over their scores and sorted by them; all if there are no more."""
    pairs = pairs.take(pc.sort_indices(pairs, [("score", "ascending"), ("id", "ascending")]))
    if len(pairs) <= n:
        return pairs
    scores = pairs["score"].to_numpy().astype(np.float64)
    taken = np.unique(np.searchsorted(scores, np.linspace(scores[0], scores[-1], n)))
    others = np.setdiff1d(np.arange(len(pairs)), taken)
    more = others[np.linspace(0, len(others) - 1, n - len(taken)).astype(np.int64)]  # where scores are dense
    return pairs.take(pa.array(np.sort(np.concatenate([taken, more]))))


def _make_table(pairs: pa.Table, known: dict[Any, ClusterRow], threshold: float) -> pa.Table:
    """Return the pairs with the metadata of both rows."""
    table = pairs.append_column("duplicate", pc.greater_equal(pairs["score"], pa.scalar(np.float32(threshold))))
    for prefix, ids in (("", table["id"]), ("twin_", table["twin_id"])):
        rows = [known[id_].metadata for id_ in ids.to_pylist()]
        for name in dict.fromkeys(name for row in rows for name in row):  # neighbors may come from other clusters
            column = f"{prefix}{name}"
            while column in table.column_names:
                column += "_"
            table = table.append_column(column, _to_column([row.get(name) for row in rows]))
    return table


def _to_column(values: list[Any]) -> pa.Array:
    """Return `values` as a column, of strings if they have several types."""
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
        '<p class="quiet">Each pair is a dropped row and the row kept instead, or, below the threshold, a '
        "row and the most similar one before it; words that only one has are marked. Find the score below which "
        "pairs are no longer duplicates, and choose it as the threshold.</p>",
    ]
    if not any(row.metadata for row in known.values()):
        body.append(
            '<p class="quiet">The clusters hold no columns to show besides the ids: `--metadata-field text` keeps a '
            "column of texts, or one of pictures, when rows are assigned (`daskmeans run`, `assign`, or `dedup` of "
            "embeddings).</p>"
        )
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

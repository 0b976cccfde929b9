"""Examples to show: near-duplicates whose difference a reader sees at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask import delayed
from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import Buckets, Part, open_buckets, strip_parts
from daskmeans.duplicates.groups import read_decisions
from daskmeans.duplicates.result import decision_files
from daskmeans.report.values import describe_value
from daskmeans.runtime import executor
from daskmeans.vectors.files import translate_read_errors

# Limits of the work for runs of any size: files read, pairs taken from all of them, and pairs compared.
MOST_FILES, MOST_PAIRS, MOST_COMPARED = 64, 20_000, 2_000
# Minimum and maximum characters of a text worth showing.
SHORTEST, LONGEST = 80, 600
# A stretch of words that both texts share is shortened to this many at each end.
CONTEXT = 7


@dataclass(frozen=True)
class Row:
    """One row of the input: its id, its text (empty if there is none), its source, and its other metadata."""

    id: Any
    text: str
    source: Any
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A dropped row and the row that is kept instead.

    Attributes
    ----------
    kept, dropped : Row
    score : float
        Cosine similarity of the two.
    others : int
        Number of other rows dropped for `kept`.
    quality : float
        How instructive the pair is, in [0, 1].
    """

    kept: Row
    dropped: Row
    score: float
    others: int
    quality: float


class Stretch(NamedTuple):
    """Consecutive words that are in one of two texts or in both: ``kept``, ``dropped`` or ``both``."""

    side: str
    text: str


def find_examples(
    run: UPath,
    limit: int = 10,
    *,
    text_field: str = "text",
    source_field: str = "package",
    client: Client | None = None,
) -> list[Example]:
    """Find the most instructive near-duplicates of a finished run.

    Good examples are pairs of rows from different sources, with texts short enough to read, of which most but not all
    words agree. Examples from many sources are preferred.

    Parameters
    ----------
    run : UPath
        Directory with ``clusters`` and ``dedup``.
    limit : int, default 10
    text_field, source_field : str
        Metadata columns with the texts and the sources of the rows. Without texts, pairs come in the order of their
        scores, closest to the threshold first.
    client : distributed.Client, optional

    Examples
    --------
    >>> find_examples(UPath("run/"))[0].dropped.metadata  # doctest: +SKIP
    """
    buckets, files = open_buckets(run / "clusters"), decision_files(run / "dedup")
    taken = files[:: -(-len(files) // MOST_FILES)]
    read, look_up, count = (delayed(function, pure=False) for function in (_read_pairs, _read_rows, _count_dropped))
    parts = executor.compute([read(file, MOST_PAIRS // len(taken)) for file in taken], "find examples", client)
    pairs = pd.concat(parts).sort_values(["score", "id"], ignore_index=True)
    if not len(pairs):
        return []
    ids = pa.array(pd.concat([pairs["id"], pairs["kept_id"]]).unique(), parts[0].attrs["type"])
    lean = strip_parts(buckets)
    tables = executor.compute([look_up(lean, part, ids) for part in buckets.parts], client=client)
    found = _select_varied(
        _make_examples(pairs, pa.concat_tables(tables), buckets.id_field, text_field, source_field), limit
    )
    heads = pa.array([example.kept.id for example in found], ids.type)
    dropped: Counter[Any] = Counter()
    for counted in executor.compute([count(file, heads) for file in files], client=client):
        dropped.update(counted)
    return [replace(example, others=dropped[example.kept.id] - 1) for example in found]


def compare_texts(kept: str, dropped: str) -> Iterator[Stretch]:
    """Merge the words of two texts: those in both, and those in only one. Long shared stretches are shortened.

    Examples
    --------
    >>> list(compare_texts("a cat sat there", "a cat sits there"))
    [Stretch(side='both', text='a cat'), Stretch(side='kept', text='sat'), Stretch(side='dropped', text='sits'),
     Stretch(side='both', text='there')]
    """
    a, b = _split_words(kept), _split_words(dropped)
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    for number, (_, a0, a1, b0, b1) in enumerate(blocks):
        if a[a0:a1] == b[b0:b1]:
            yield Stretch("both", _shorten_words(a[a0:a1], number == 0, number == len(blocks) - 1))
            continue
        if a1 > a0:
            yield Stretch("kept", _shorten_words(a[a0:a1]))
        if b1 > b0:
            yield Stretch("dropped", _shorten_words(b[b0:b1]))


def describe_place(row: Row) -> str:
    """Describe the place of `row` from its metadata: ``file:line``, or all of the metadata.

    Examples
    --------
    >>> describe_place(Row(7, "", "zoo", {"package": "zoo", "file": "zoo/cat.py", "line": 3}))
    'zoo/cat.py:3'
    """
    if {"file", "line"} <= row.metadata.keys():
        return f"{row.metadata['file']}:{row.metadata['line']}"
    return ", ".join(f"{name} {describe_value(value)}" for name, value in row.metadata.items())


def _split_words(text: str) -> list[str]:
    """Return the words of `text`, without the rules that underline headings."""
    return [word for word in text.split() if word.strip("-=~^")]


def _shorten_words(words: Sequence[str], first: bool = False, last: bool = False) -> str:
    """Join `words`, without the middle if it is long; `first` and `last` mark the start and end of the texts."""
    if len(words) <= 3 * CONTEXT:
        return " ".join(words)
    if last:
        return " ".join([*words[:CONTEXT], "…"])
    head = words[: CONTEXT // (1 if first else 2) + 1]
    return " ".join([*head, "…", *words[-CONTEXT:]])


def _make_examples(
    pairs: pd.DataFrame, table: pa.Table, id_field: str, text_field: str, source_field: str
) -> list[Example]:
    """Return examples from `pairs`, whose rows are in `table`, best first."""
    rows = table.to_pandas().set_index(id_field)
    has_text = text_field in table.column_names and pa.types.is_string(table.schema.field(text_field).type)
    shown = rows.index[rows[text_field].str.len().between(SHORTEST, LONGEST)] if has_text else rows.index
    pairs = pairs[pairs["id"].isin(shown) & pairs["kept_id"].isin(shown)]
    if source_field in rows:
        sources = rows[source_field]
        same = sources.loc[pairs["id"]].to_numpy() == sources.loc[pairs["kept_id"]].to_numpy()
        pairs = pairs[~same] if len(pairs) - same.sum() >= MOST_COMPARED else pairs.assign(same=same).sort_values(
            ["same", "score", "id"])  # fmt: skip

    def row(id_: Any) -> Row:
        values = rows.loc[id_].to_dict()
        text = values.pop(text_field) if has_text else ""
        return Row(id_, text, values.get(source_field), values)

    found = []
    for pair in pairs.iloc[:: max(1, -(-len(pairs) // MOST_COMPARED))].itertuples():
        kept, dropped = row(pair.kept_id), row(pair.id)
        found.append(Example(kept, dropped, float(pair.score), 0, _rate_pair(kept, dropped) if has_text else 0.0))
    return sorted(found, key=lambda e: (-e.quality, e.score, str(e.dropped.id)))


def _read_pairs(file: UPath, most: int) -> pd.DataFrame:
    """Read at most `most` near-duplicates from one file, each with the row kept instead and their score."""
    table = read_decisions(file, ["id", "kept_id", "kept_score", "reason"])
    known = pc.and_(pc.equal(table["reason"], "semantic"), pc.is_valid(table["kept_score"]))
    table = table.filter(known).drop_columns("reason").rename_columns(["id", "kept_id", "score"])
    pairs = table.to_pandas().sort_values(["score", "id"])
    pairs = pairs.iloc[:: max(1, -(-len(pairs) // max(1, most)))]
    pairs.attrs["type"] = table.schema.field("id").type
    return pairs


def _read_rows(buckets: Buckets, part: Part, ids: pa.Array) -> pa.Table:
    """Read ids and metadata of the rows of `part` that have one of `ids`."""
    columns = [buckets.id_field, *buckets.metadata_fields]
    table = buckets.read_part(part, columns)
    return table.filter(pc.is_in(table[buckets.id_field].cast(ids.type), ids))


def _count_dropped(file: UPath, ids: pa.Array) -> Counter[Any]:
    """Count the rows of one file that were dropped for each of `ids`."""
    with translate_read_errors(file):
        kept = pq.read_table(file.path, filesystem=file.fs, columns=["kept_id"])["kept_id"]
    return Counter(kept.filter(pc.is_in(kept, ids)).to_pylist())


def _rate_pair(kept: Row, dropped: Row) -> float:
    """Rate a pair of texts: best if about four of five words agree, and the rows come from different sources."""
    a, b = _split_words(kept.text), _split_words(dropped.text)
    ratio = SequenceMatcher(None, a, b, autojunk=False).ratio()
    shape = ratio / 0.8 if ratio < 0.8 else (1 - ratio) / 0.2
    apart = 1.0 if kept.source != dropped.source else 0.3
    # A file bundled unchanged is less instructive than a text that somebody adapted.
    files = [str(row.metadata.get("file", row.id)).rpartition("/")[2] for row in (kept, dropped)]
    return shape * apart * (0.7 if files[0] == files[1] else 1.0)


def _select_varied(examples: list[Example], limit: int) -> list[Example]:
    """Return the best `limit` of sorted `examples`; each time a source repeats, its pairs count half."""
    seen: dict[Any, int] = {}
    kept_ids: set[Any] = set()
    ranked = []
    for example in examples:
        if example.kept.id in kept_ids:
            continue
        kept_ids.add(example.kept.id)
        sources = {example.kept.source, example.dropped.source}
        repeated = max(seen.get(source, 0) for source in sources)
        for source in sources:
            seen[source] = seen.get(source, 0) + 1
        ranked.append((example.quality / 2**repeated, example))
    return [example for _, example in sorted(ranked, key=lambda r: -r[0])][:limit]

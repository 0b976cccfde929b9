import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskmeans.duplicates.ranking import check_ranking_columns, parse_keep, rank
from daskmeans.errors import UsageError
from daskmeans.kernels.hashing import hash_column

IDS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=30),
    st.lists(st.text(max_size=4), unique=True, max_size=30),
)


def table_of(ids, data):
    kind = pa.string() if ids and isinstance(ids[0], str) else pa.int64()
    distances = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.5]), min_size=len(ids), max_size=len(ids)))
    stars = data.draw(st.lists(st.sampled_from([None, 1, 2]), min_size=len(ids), max_size=len(ids)))
    names = data.draw(st.lists(st.sampled_from([None, "a", "b"]), min_size=len(ids), max_size=len(ids)))
    return pa.table(
        {
            "key": pa.array(ids, kind),
            "l2_dist_to_cent": pa.array(distances, pa.float32()),
            "stars": pa.array(stars, pa.int8()),
            "a:name": pa.array(names, pa.string()).dictionary_encode(),
        }
    )


@given(IDS, st.data())
def test_distance_orders(ids, data):
    table = table_of(ids, data)
    pairs = list(zip(table["l2_dist_to_cent"].to_pylist(), ids, strict=True))
    expected = sorted(range(len(ids)), key=lambda i: pairs[i])
    assert rank(table, ("easy",), "key", 0).tolist() == expected
    assert rank(table, ("hard",), "key", 0).tolist() == expected[::-1]


@given(IDS, st.integers(0, 2**32), st.data())
def test_random_order_follows_the_hash_of_the_id(ids, seed, data):
    table = table_of(ids, data)
    hashes = hash_column(table["key"], seed)
    assert rank(table, ("random",), "key", seed).tolist() == sorted(range(len(ids)), key=lambda i: (hashes[i], ids[i]))


@given(IDS, st.data())
def test_columns_in_their_order_nulls_last(ids, data):
    table = table_of(ids, data)
    stars, names = table["stars"].to_pylist(), table["a:name"].to_pylist()

    def key(i):
        star = (1, 0) if stars[i] is None else (0, -stars[i])
        return star, (names[i] is None, names[i] or ""), ids[i]

    assert rank(table, ("stars:desc", "a:name:asc"), "key", 0).tolist() == sorted(range(len(ids)), key=key)


@pytest.mark.parametrize(
    "keep", ["hardest", "stars", "stars:up", ":asc", ["hard", "stars:asc"], [], ["stars:desc", "random"]]
)
def test_unknown_rules_are_refused_with_the_choices(keep):
    with pytest.raises(UsageError, match="hard, easy, random, or columns as COLUMN:asc or COLUMN:desc"):
        parse_keep(keep)


def test_columns_are_checked():
    schema = pa.schema({"stars": pa.int8(), "tags": pa.list_(pa.string())})
    check_ranking_columns(("stars:asc",), schema)
    with pytest.raises(
        UsageError, match=r"no column 'likes'\n  expected: one of stars, tags\n  remedy: .*--metadata-field likes"
    ):
        check_ranking_columns(("stars:asc", "likes:desc"), schema)
    with pytest.raises(UsageError, match="which cannot be sorted"):
        check_ranking_columns(("tags:asc",), schema)


def test_every_row_has_one_rank():
    table = pa.table({"key": np.arange(1000), "l2_dist_to_cent": np.zeros(1000, np.float32)})
    for keep in ("hard", "easy", "random"):
        assert sorted(rank(table, (keep,), "key", 7).tolist()) == list(range(1000))

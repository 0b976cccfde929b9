"""A share of what ``ci/fuzz.py`` feeds: files and command lines that are wrong in ways that nobody has thought of."""

from __future__ import annotations

import pytest

import fuzz


# How many cases take about a third of a second.
@pytest.mark.parametrize(
    ("kind", "cases"),
    [("parquet-bytes", 60), ("parquet-values", 60), ("jsonl-bytes", 60), ("jsonl-values", 60), ("npy", 80),
     ("commands", 12), ("configurations", 20), ("outputs", 12)],
)  # fmt: skip
def test_every_input_ends_in_a_right_result_or_in_a_message(kind, cases):
    counts, faults = fuzz.fuzz(cases, seed=7, kinds={kind: fuzz.KINDS[kind]})
    assert not faults
    assert counts[kind, "refused"]
    assert counts[kind, "right"] or kind == "configurations"


@pytest.mark.parametrize(("seed", "number"), [(11, 2875)])  # Arrow ended the process as it looked at a footer
def test_what_was_once_a_fault_is_none(seed, number):
    _, outcome, told = fuzz.one(seed, number, fuzz.KINDS)
    assert outcome != "FAULT", told


def test_a_wrong_result_would_be_found(tmp_path):
    case = fuzz.Case(fuzz.np.random.default_rng(0), tmp_path)
    data = fuzz.parquet_file(fuzz.np.random.default_rng(0))
    where = fuzz.put(case, "rows.parquet", data)
    truth = fuzz.parquet_truth(data)
    truth.sure = True
    assert fuzz.read_and_compare(case, where, truth) == "right"
    id_, vector, meta = truth.rows[5]
    for wrong in ((id_, [*vector[:3], vector[3] + 0.1], meta), (-1, vector, meta), (id_, None, meta)):
        spoilt = fuzz.Truth([*truth.rows[:5], wrong, *truth.rows[6:]], truth.dimension)
        with pytest.raises(fuzz.Fault):
            fuzz.read_and_compare(case, where, spoilt)
    with pytest.raises(fuzz.Fault, match="another reader refuses"):
        fuzz.read_and_compare(case, where, fuzz.Truth(None))

"""The number of clusters that is proposed, its reasons, and forecasts that follow from what was measured."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from daskmeans.cli.main import main
from daskmeans.errors import DataError, UsageError
from daskmeans.kmeans.cluster_count import propose_clusters
from daskmeans.planner.advise import CostModel, _find_fastest, advise
from daskmeans.planner.trial import Costs, ExactCosts, StepsTrial
from daskmeans.runtime.client import n_threads
from helpers import blobs, write_embeddings

UPDATES = 10


def trial(rows: int, n_clusters: int, fixed: float, comparing: float) -> StepsTrial:
    """Steps of which each takes `fixed` seconds, and a fit as many more as it compares rows with centroids."""
    sizes = np.full(n_clusters, rows // n_clusters)
    update = {"rows": rows, "compared": 1.0, "seconds": (fixed / 2 + comparing) / UPDATES}
    seconds = {"fit": fixed + comparing, "assign": fixed, "dedup": fixed}
    return StepsTrial(rows, n_clusters, seconds, [update] * UPDATES, sizes)


def costs(pair: float = 1e-8, compare: float = 1e-9, read: float = 0.0) -> Costs:
    comparing = {k: UPDATES * 10_000 * k * compare / n_threads() for k in (10, 40, 160)}
    trials = tuple(trial(10_000, k, 1.0, seconds) for k, seconds in comparing.items())
    return Costs(read, compare, pair, 0.0, trial(250, 2, 0.1, 0.0), trials, 0.0, ExactCosts(0.1, 1e-6, 1e-9))


def model(rows: int, **kwargs: float) -> CostModel:
    return CostModel(rows, 64, costs(**kwargs), None)


def test_a_forecast_for_the_rows_of_a_trial_is_the_trial():
    found = model(10_000).forecast(40).seconds
    assert found == pytest.approx(costs().trials[1].seconds, rel=0.1)


def test_pairs_in_clusters_take_time_with_the_square_of_the_rows():
    few, many = (model(rows, pair=1e-6).forecast(10).seconds["dedup"] for rows in (1_000_000, 2_000_000))
    assert many / few == pytest.approx(4, rel=0.05)


def test_fits_with_fewer_clusters_than_any_trial_take_as_long_as_the_one_with_fewest():
    slow = trial(10_000, 10, 5.0, 0.0)
    found = CostModel(10_000, 64, replace(costs(), trials=(slow, *costs().trials[1:])), None)
    assert found.forecast(1).seconds["fit"] == pytest.approx(found.forecast(10).seconds["fit"])


def test_an_exact_search_takes_time_with_the_square_of_the_rows():
    threads = n_threads()
    assert model(100_000).exact_seconds == pytest.approx(0.1 + 0.1 + 1e-9 * 5e9 / threads, rel=1e-3)
    assert model(2_000_000).exact_by_default
    assert not model(2_000_100).exact_by_default


def test_pairs_of_rows_and_centroids_take_time_with_their_product():
    few, many = (model(1_000_000, compare=1e-6).forecast(k).seconds["fit"] for k in (48_000, 96_000))
    assert many > 1.5 * few


def test_reading_counts_for_fit_and_assign():
    without, slow = (model(1_000_000, read=read).forecast(1000).seconds for read in (0.0, 1e-3))
    assert [slow[step] - without[step] for step in ("fit", "assign", "dedup")] == pytest.approx([1000, 1000, 0])


@pytest.mark.parametrize("rows", [1, 19, 300, 10_000, 3_000_000, 1_000_000_000])
def test_every_forecast_is_a_positive_number(rows):
    for k in {1, min(rows, 7), max(1, rows // 20), rows}:
        found = model(rows).forecast(k)
        assert all(0 < value < np.inf for value in (*found.seconds.values(), *found.worker_bytes.values()))
        assert 1 <= found.largest_cluster <= rows


@pytest.mark.parametrize(
    ("rows", "dimension", "expected"),
    [(1, 8, 1), (39, 8, 1), (100, 8, 5), (900, 8, 30), (10_000, 8, 100), (99_999, 4096, 300), (2_000_000, 384, 1000),
     (100_000_000, 384, 10_000), (1_000_000_000, 768, 50_000)],
)  # fmt: skip
def test_the_proposed_number_of_clusters_follows_from_the_rows(rows, dimension, expected):
    """By hand: the largest of 1, 1.5, 2, 3, 5, 7 times a power of ten up to the root; clusters of up to 64 MiB."""
    assert propose_clusters(rows, dimension) == expected


def test_dearer_pairs_make_more_clusters_the_fastest_and_change_no_proposal():
    cheap, dear = (_find_fastest(model(1_000_000, pair=pair)) for pair in (1e-10, 1e-6))
    assert cheap.n_clusters < dear.n_clusters <= 50_000


def test_advice_on_a_file_is_a_command_that_runs(tmp_path, two_workers):
    X = blobs(n=900)
    path = write_embeddings(tmp_path / "in put.parquet", X, text=[f"text {i}" for i in range(len(X))])
    scheduler = ["--scheduler", two_workers.scheduler_address]
    done = CliRunner().invoke(main, ["info", str(path), "--advise", "--json", "--n-clusters", "33", *scheduler])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["rows"], facts["dimension"]) == (900, 16)
    k = facts["n_clusters"]
    assert 1 <= k <= 900 // 20
    assert {f["n_clusters"] for f in facts["forecasts"]} == {max(1, k // 4), k, 4 * k, 33}
    words = shlex.split(facts["command"])
    assert words[:3] == ["daskmeans", "run", str(path)]
    words[words.index("--out") + 1] = str(tmp_path / "out")
    done = CliRunner().invoke(main, [*words[1:], *scheduler])
    assert done.exit_code == 0, done.output


def test_advice_in_words(embeddings, two_workers, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    scheduler = ["--scheduler", two_workers.scheduler_address]
    done = CliRunner().invoke(main, ["info", str(embeddings), "--advise", *scheduler])
    assert done.exit_code == 0, done.output
    for words in ("clusters", "dedup", "rows²/k", "worker memory", "daskmeans run", "--n-clusters"):
        assert words in done.stdout
    assert "finished already" not in done.output and "search exact" not in done.stderr
    assert re.search(r"(?m)^trials: \d+ in .* s$", done.stderr)
    dedup, _, fit, *_ = [line for line in done.stdout.splitlines() if line.startswith("·")]
    for line in (dedup, fit):  # none is told twice
        told = line.rpartition(": ")[2].split(", ")
        assert len({*told}) == len(told), line


def test_few_rows_are_not_tried(tmp_path):
    with pytest.raises(UsageError, match=r"2 of 3 rows(.|\n)*at least 8 usable rows"):
        advise(write_embeddings(tmp_path / "in.parquet", blobs(n=3, d=4, copies=0)))


def test_sixty_rows_are_enough_for_advice(tmp_path):
    facts = advise(write_embeddings(tmp_path / "in.parquet", blobs(n=60, d=4, copies=0)))
    assert facts["n_clusters"] == 3


def test_rows_that_cannot_be_worked_with_are_counted(tmp_path):
    X = blobs(n=400, d=4)
    X[::4] = np.nan
    facts = advise(write_embeddings(tmp_path / "in.parquet", X))
    assert any("25.00%" in reason and "--on-bad-row skip" in reason for reason in facts["reasons"])


def test_an_input_without_a_good_row(tmp_path):
    vectors = pa.array([[0.0, 0.0]] * 5, pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"id": range(5), "embedding": vectors}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match="no row"):
        advise(tmp_path / "in.parquet")


def test_advice_on_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("no vectors")
    with pytest.raises(UsageError):
        advise(tmp_path / "notes.txt")

"""`daskmeans dedup` takes clusters, and embeddings, which it decides on as `run` does."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

import daskmeans as dkm
from daskmeans.cli.main import main
from helpers import blobs, write_embeddings

X = blobs(900)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    write_embeddings(tmp_path / "in" / "one.parquet", X[:500], text=["a text"] * 500, ids=list(range(500)))
    write_embeddings(tmp_path / "in" / "two.parquet", X[500:], text=["a text"] * 400, ids=list(range(500, 900)))
    return tmp_path / "in"


def call(words: str, client) -> Result:
    return CliRunner().invoke(main, [*words.split(), "--scheduler", client.scheduler_address])


def test_embeddings_get_the_decisions_of_a_run(tmp_path: Path, given: Path, two_workers) -> None:
    for verb in ("run", "dedup"):
        done = call(f"{verb} {given} --out {tmp_path}/{verb} --metadata-field text --json", two_workers)
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert facts["threshold"] == 0.9
    assert facts["decisions"] == f"{tmp_path}/dedup/dedup"
    run, dedup = (
        pd.read_parquet(tmp_path / verb / "dedup" / "decisions").sort_values("id", ignore_index=True)
        for verb in ("run", "dedup")
    )
    assert not dedup["keep"].all()
    pd.testing.assert_frame_equal(dedup, run)
    assert dkm.KMeans.load(tmp_path / "dedup" / "model").n_clusters == 30
    done = call(f"apply {tmp_path}/dedup/dedup {given} --out {tmp_path}/kept --json", two_workers)
    assert json.loads(done.stdout)["kept"] == int(dedup["keep"].sum())


def test_clusters_are_taken_as_before(tmp_path: Path, given: Path, two_workers) -> None:
    assert call(f"run {given} --out {tmp_path}/run", two_workers).exit_code == 0
    done = call(f"dedup {tmp_path}/run/clusters --out {tmp_path}/again --json", two_workers)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["decisions"] == f"{tmp_path}/again"
    assert (tmp_path / "again" / "decisions").is_dir()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("dedup IN --out OUT --against RUN/clusters", ("--against", "daskmeans assign")),
        ("dedup IN --out OUT --append", ("--append", "daskmeans assign")),
        ("dedup RUN/clusters --out OUT --embedding-field v", ("--embedding-field", "clusters know their columns")),
        ("dedup RUN/clusters IN --out OUT", ("several inputs", "RUN/clusters")),
        ("dedup RUN --out OUT", ("output of a run", "RUN/clusters")),
        ("dedup RUN/model --out OUT", ("RUN/model", "assign")),
    ],
)
def test_mistakes(tmp_path: Path, given: Path, two_workers, words: str, told: tuple[str, ...]) -> None:
    dkm.run(str(given), tmp_path / "run", dkm.KMeans(2))
    places = {"IN": str(given), "RUN": f"{tmp_path}/run", "OUT": f"{tmp_path}/out"}
    for name, place in places.items():
        words = words.replace(name, place)
        told = tuple(each.replace(name, place) for each in told)
    done = call(words, two_workers)
    assert done.exit_code == 2, done.output
    for each in told:
        assert each in done.stderr
    assert not (tmp_path / "out").exists()

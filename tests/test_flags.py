"""A flag acts or is refused; a name that stands where several may stand is one name."""

import glob

import click
import pandas as pd
import pytest
from click.testing import CliRunner

import daskmeans as dkm
from daskmeans.cli.main import main
from daskmeans.steps.assign import assign_files
from daskmeans.vectors.options import Reading
from helpers import blobs, write_embeddings

RUN = "run in.parquet --out out --n-clusters 3 --threshold 0.9"


@pytest.mark.parametrize(
    ("words", "flag", "told"),
    [
        ("fit in.parquet --model out --n-clusters 3 --metadata-field text", "--metadata-field", "No such option"),
        ("embed in.parquet --out out --embedding-field embedding", "--embedding-field", "No such option"),
        (f"{RUN} --assign-recall 0.9", "--assign-recall", "--assign ann"),
        (f"{RUN} --assign exact --assign-recall 0.99", "--assign-recall", "--assign ann"),
        (f"{RUN} --max-samples-per-batch 99", "--max-samples-per-batch", "--engine cuml"),
        (f"{RUN} --init random --oversampling-factor 3", "--oversampling-factor", "--init auto"),
        (f"{RUN} --scheduler tcp://h:1 --dashboard-address :0", "--dashboard-address", "on this machine"),
        ("info in.parquet --n-clusters 3", "--n-clusters", "--advise"),
        ("info in.parquet --n-workers 3", "--n-workers", "--advise"),
        ("info --system --id-field key", "--id-field", "no file"),
        ("info model --embedding-field v", "--embedding-field", "an output"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(tmp_path, monkeypatch, words: str, flag: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    X = blobs(100)
    write_embeddings(tmp_path / "in.parquet", X, text=["a text"] * 100)
    dkm.KMeans(2).fit(X).save(tmp_path / "model")
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 2
    assert flag in done.output
    assert told in done.output
    assert not (tmp_path / "out").exists()


def test_a_setting_that_would_do_nothing_is_refused(tmp_path) -> None:
    (tmp_path / "job.yaml").write_text("input: in.parquet\nn_clusters: 3\nthreshold: 0.9\nassign_recall: 0.9\n")
    done = CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "--assign-recall" in done.output


def flags_of(verb: click.Command) -> set[str]:
    return {option for parameter in verb.params if isinstance(parameter, click.Option) for option in parameter.opts}


def test_the_flags_of_reading_are_those_that_a_verb_has_a_use_for() -> None:
    assert isinstance(main, click.Group)
    reading = {"--id-field", "--embedding-field", "--metadata-field", "--storage-options", "--on-bad-row"}
    missing = {name: reading - flags_of(verb) for name, verb in main.commands.items()}
    assert missing == {
        "demo": reading,
        "embed": {"--embedding-field"},
        "fit": {"--metadata-field"},
        "assign": set(),
        "dedup": reading - {"--storage-options"},
        "leak": set(),
        "apply": {"--embedding-field", "--metadata-field"},
        "run": set(),
        "info": {"--metadata-field", "--on-bad-row"},
    }


def test_one_name_is_a_list_of_one(tmp_path) -> None:
    given = write_embeddings(tmp_path / "in.parquet", blobs(100), text=["a text"] * 100, stars=list(range(100)))
    assert Reading(metadata_fields="stars") == Reading(metadata_fields=("stars",))
    assert list(dkm.read_embeddings(given, metadata_fields="stars").columns) == ["id", "embedding", "stars"]
    result = dkm.run(given, tmp_path / "out", dkm.KMeans(2), 0.9, Reading(metadata_fields="stars"), keep="stars:desc")
    assert dkm.open_buckets(tmp_path / "out" / "clusters").metadata_fields == ("stars",)
    assert result.summary["rows"] == 100
    assign_files(given, tmp_path / "out" / "model", tmp_path / "again", Reading(metadata_fields="text"))
    assert dkm.open_buckets(tmp_path / "again").metadata_fields == ("text",)
    dkm.embed(given, tmp_path / "embedded", metadata_fields="stars")
    assert list(pd.read_parquet(glob.glob(f"{tmp_path}/embedded/*.parquet"))) == ["id", "embedding", "text", "stars"]

"""Jobs of stages: they do what the commands do, nothing twice, and say what is wrong before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

import daskmeans as dkm
from daskmeans.cli import stages
from daskmeans.cli.main import LazyCommands, main
from daskmeans.steps.stages import OPERATORS
from helpers import blobs, parquet_below, write_embeddings

X = blobs(300, copies=20)
LOCAL = ["--n-workers", "1", "--dashboard-address", ":0"]


@pytest.fixture
def at(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_embeddings(tmp_path / "vectors" / "a.parquet", X, text=[f"text {i % 9}" for i in range(300)])
    write_embeddings(tmp_path / "test" / "a.parquet", X[:30] + np.float32(0.3) * (np.arange(30)[:, None] > 9))
    return tmp_path


def stage(name: str, operator: str, **params: Any) -> dict[str, Any]:
    return {"name": name, "operator": operator, "params": params}


def whole_job() -> dict[str, Any]:
    return {
        "out": "work",
        "stages": [
            stage("model", "Fit", input="vectors/", n_clusters=5),
            stage("clusters", "Assign", input="vectors/", model="${model}", metadata_field="text"),
            stage("decisions", "SemanticDeduplicator", input="${clusters}", threshold=0.98, review=5, export="nemo"),
            stage("kept", "Apply", decisions="${decisions}", input="vectors/"),
            stage("leaks", "Leak", train="${kept}", test="test/", threshold=0.98, apply="clean"),
        ],
    }


def run(job: Any, *words: str) -> Result:
    Path("job.yaml").write_text(job if isinstance(job, str) else yaml.safe_dump(job))
    return CliRunner(env={"COLUMNS": "300"}).invoke(main, ["run", "job.yaml", *words])


def write_times(folder: Path) -> dict[str, int]:
    return {file.parent.name: file.stat().st_mtime_ns for file in folder.rglob("_manifest.json")}


def test_a_job_does_what_its_commands_do_and_nothing_twice(at, monkeypatch) -> None:
    done = run(whole_job(), *LOCAL)
    assert done.exit_code == 0, done.output
    for words in (
        "fit vectors/ --model single/model --n-clusters 5",
        "assign vectors/ --model single/model --out single/clusters --metadata-field text",
        "dedup single/clusters --out single/decisions --threshold 0.98 --review 5 --export nemo",
        "apply single/decisions vectors/ --out single/kept",
        "leak single/kept test/ --out single/leaks --threshold 0.98 --apply single-clean",
    ):
        assert CliRunner().invoke(main, [*words.split(), *LOCAL]).exit_code == 0, words
    for one, other in (("work", "single"), ("clean", "single-clean")):
        ours, theirs = ({f.relative_to(at / d): f.read_bytes() for f in parquet_below(at / d)} for d in (one, other))
        assert ours == theirs
        assert ours
    assert (at / "work/decisions/_review/review.html").exists()
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines] == [[each["name"], each["operator"]] for each in whole_job()["stages"]]
    before = write_times(at / "work") | write_times(at / "clean")
    # Nothing is left to do: no cluster is started.
    with monkeypatch.context() as patch:
        patch.setattr(stages, "open_session", None)
        again = run(whole_job(), "--json")
    assert again.exit_code == 0, again.output
    facts = json.loads(again.stdout)["stages"]
    assert {name: each["made"] for name, each in facts.items()} == dict.fromkeys(facts, False)
    assert (facts["model"]["rows"], facts["kept"]["rows"]) == (300, 300)
    assert facts["decisions"]["kept"] == facts["kept"]["kept"] < 300
    assert before == write_times(at / "work") | write_times(at / "clean")
    # What is gone is done again, from what is there.
    (at / "work/kept/_manifest.json").unlink()
    (at / "work/kept/a.parquet").unlink()
    (at / "work/kept").rmdir()
    third = run(whole_job(), *LOCAL)
    assert third.exit_code == 2
    assert "stage 'leaks': " in third.output
    assert "train: the file a.parquet was" in third.output  # written anew, so what was made of it is old
    last = run(whole_job(), "--json", "--overwrite", *LOCAL)
    assert last.exit_code == 0, last.output
    made = {name: each["made"] for name, each in json.loads(last.stdout)["stages"].items()}
    assert made == dict.fromkeys(("model", "clusters", "decisions", "kept"), False) | {"leaks": True}


def test_a_change_is_told_and_done_with_overwrite(at) -> None:
    job = whole_job()
    job["stages"] = job["stages"][:3]
    assert run(job, *LOCAL).exit_code == 0
    before = write_times(at / "work")
    job["stages"][2]["params"]["threshold"] = 0.9
    refused = run(job)  # before workers start
    assert refused.exit_code == 2
    assert "stage 'decisions': " in refused.output
    assert "threshold was 0.98, now 0.9" in refused.output
    assert write_times(at / "work") == before
    done = run(job, "--overwrite", "--json", *LOCAL)
    assert done.exit_code == 0, done.output
    made = {name: each["made"] for name, each in json.loads(done.stdout)["stages"].items()}
    assert made == {"model": False, "clusters": False, "decisions": True}


def test_embeddings_of_texts_are_a_stage(at) -> None:
    pytest.importorskip("wordllama", reason="the encoder is an extra")
    Path("texts.jsonl").write_text("".join(f'{{"id": {i}, "text": "the cat number {i % 7} sat"}}\n' for i in range(40)))
    job = {
        "stages": [
            stage("vectors", "Embed", input="texts.jsonl"),
            stage("model", "Fit", input="${vectors}", n_clusters=3),
        ]
    }
    done = run(job, "--out", "work", "--json", *LOCAL)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["stages"]["vectors"]["rows"] == 40
    assert not json.loads(run(job, "--out", "work", "--json").stdout)["stages"]["model"]["made"]


def test_clusters_of_another_tool_are_an_input(at) -> None:
    for i in range(3):
        write_embeddings(at / "kmeans" / f"centroid={i}" / "a.parquet", X[i::3], [f"r{j}" for j in range(i, 300, 3)])
    job = {"stages": [stage("decisions", "SemanticDeduplicator", input="kmeans", threshold=0.98)]}
    assert run(job, "--out", "work", *LOCAL).exit_code == 0
    again = run(job, "--out", "work", "--json", *LOCAL)
    assert again.exit_code == 0, again.output
    assert (at / "work/decisions-clusters/_manifest.json").exists()


def test_rows_that_a_stage_appends_make_no_earlier_one_old(at) -> None:
    clusters = stage("clusters", "Assign", input="vectors/", model="${model}")
    batch = stage("batch", "Assign", input="test/", model="${model}")
    decided = stage("decisions", "SemanticDeduplicator", input="${clusters}", threshold=0.98)
    appended = stage(
        "new", "SemanticDeduplicator", input="${batch}", against=["${clusters}"], append=True, threshold=0.98
    )
    write_embeddings(at / "test/a.parquet", X[:30] * -1, [f"new {i}" for i in range(30)])
    job = {"stages": [FIT, clusters, decided, batch, appended]}
    rows = []
    for _ in range(2):
        done = run(job, "--out", "work", "--json", *LOCAL)
        assert done.exit_code == 0, done.output
        rows.append({name: each["rows"] for name, each in json.loads(done.stdout)["stages"].items()})
        assert dkm.open_buckets("work/clusters").rows == 330
    assert rows[0] == rows[1]


def test_aliases_of_yaml_are_followed_once(at) -> None:
    job = "stages:\n- {name: a, operator: Fit, params: &p {input: vectors, n_clusters: 3}}\n"
    job += "- {name: b, operator: Fit, params: {<<: *p, n_clusters: 4}}\n"
    done = run(job, "--out", "work", "--json", *LOCAL)
    assert done.exit_code == 0, done.output
    lists = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    assert run(f"a0: &a0 [x, x]\n{lists}stages: *a39\n", "--out", "work").exit_code == 2


FIT = stage("model", "Fit", input="vectors/", n_clusters=5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], ["no list of stages"]),
        ([stage("a", "Fitt", input="vectors/")], ["stage 'a'", "unknown operator 'Fitt'", "did you mean 'Fit'?"]),
        ([{"name": "a"}], ["unknown operator None", "SemanticDeduplicator"]),
        ([{"name": "a", "operator": "Fit", "parms": {}}], ["unknown key 'parms'", "'params'"]),
        ([stage("../a", "Fit")], ["it has no name"]),
        ([FIT, FIT], ["the name appears twice"]),
        ([stage("a", "Fit", n_clusters=5)], ["the key 'input' is missing"]),
        ([stage("a", "Fit", input="vectors/", n_cluster=5)], ["unknown key 'n_cluster'", "did you mean 'n_clusters'?"]),
        ([stage("a", "Fit", input="vectors/", n_clusters="five")], ["key 'n_clusters'", "'five' is not a valid"]),
        ([stage("a", "Fit", input="vectors/", n_clusters=0)], ["n_clusters=0", "an integer >= 1"]),
        ([stage("a", "Fit", input="vectors/", n_clusters=5, threshold=1)], ["unknown key 'threshold'"]),
        ([stage("a", "Fit", input="vectors/", n_clusters=5, json=True)], ["is for all stages", "beside `stages:`"]),
        ([stage("a", "Fit", input="nothing/", n_clusters=5)], ["stage 'a': ", "nothing", "no such path"]),
        ([stage("a", "Fit", input="vectors/", n_clusters=5, init="km.pkl")], ["km.pkl", "not loaded"]),
        ([stage("a", "Fit", input="vectors/", n_clusters=5, max_samples_per_batch=9)], ["has no effect here", "cuml"]),
        ([stage("a", "Fit", input="vectors/", n_clusters=5, model="vectors/model")], ["lies inside the input"]),
        ([FIT, stage("b", "Fit", input="vectors/", n_clusters=5, model="work/model")], ["has the same output"]),
        ([stage("b", "Assign", input="vectors/", model="m.joblib")], ["not loaded"]),
        ([stage("b", "Assign", input="vectors/", model="${modle}"), FIT], ["unknown earlier stage 'modle'"]),
        ([FIT, stage("b", "Assign", input="vectors/", model="${modle}")], ["did you mean 'model'?"]),
        ([FIT, stage("b", "Assign", input="${model}", model="${model}")], ["which is Fit", "Embed or Assign or Apply"]),
        ([FIT, stage("b", "SemanticDeduplicator", input="${model}", threshold=0.9)], ["that of Assign"]),
        ([stage("b", "SemanticDeduplicator", input="vectors", threshold=0.9)], ["these are no clusters"]),
        ([FIT, stage("b", "Assign", input="vectors/", model="${model}"),
          stage("c", "SemanticDeduplicator", input="${b}", threshold=0.9, eps=0.1)], ["stage 'c'", "both threshold"]),
        ([stage("a", "Leak", train="vectors/", test="test/", threshold=0.3)], ["--threshold: 0.3 is out of range"]),
        ([stage("a", "Apply", decisions="vectors/", input="vectors/")], ["no output of daskmeans"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_anything_starts(at, monkeypatch, given: Any, words: list[str]) -> None:
    monkeypatch.setattr(stages, "open_session", None)
    done = run({"out": "work", "stages": given})
    assert done.exit_code == 2, (done.output, done.exception)
    assert isinstance(done.exception, SystemExit), done.exception
    for word in words:
        assert word in done.output
    assert not (at / "work").exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("stages: []\nn_clusters: 3\n", "unknown key 'n_clusters'"),
        ("stages: []\nstages: []\n", "the key 'stages' appears twice"),
        ("stages:\n- {name: a, operator: Fit, params: {input: x, input: y}}\n", "the key 'input' appears twice"),
        ("stages:\n- {name: a, operator: Fit, params: {tol: 1, n-clusters: 3, n_clusters: 4}}\n", "'n_clusters' app"),
    ],
)
def test_keys_of_the_file(at, text: str, word: str) -> None:
    done = run(text, "--out", "work")
    assert done.exit_code == 2
    assert word in done.output


def test_flags_of_one_run_are_refused(at) -> None:
    done = run(whole_job(), "--n-clusters", "3")
    assert done.exit_code == 2
    assert "No such option" in done.output


@pytest.mark.parametrize("operator", OPERATORS)
def test_params_are_the_options_of_the_command(operator: str) -> None:
    """Every option that may be the output of a stage is one of the command's."""
    command = LazyCommands()[OPERATORS[operator].verb]
    assert set(OPERATORS[operator].takes) <= {parameter.name for parameter in command.params}
    assert "out" in {parameter.name for parameter in command.params}

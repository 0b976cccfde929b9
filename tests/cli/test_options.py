"""A flag acts or is refused; a name that stands where several may stand is one name."""

import glob
import inspect
import json
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import fields
from types import SimpleNamespace

import click
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

import daskmeans as dkm
from daskmeans.cli import commands
from daskmeans.cli.main import main
from daskmeans.duplicates.settings import Deciding, DedupSettings
from daskmeans.options import flag_of, options
from daskmeans.runtime.cluster import GPU, ClusterSettings
from daskmeans.steps import run
from daskmeans.steps.assign import assign_files
from daskmeans.steps.settings import RunSettings, Storing
from daskmeans.vectors.options import ReadOptions
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


def all_flags() -> list[tuple[str, click.Option]]:
    assert isinstance(main, click.Group)
    return [
        (name, each) for name, verb in main.commands.items() for each in verb.params if isinstance(each, click.Option)
    ]


@pytest.mark.parametrize(("verb", "flag"), all_flags(), ids=lambda each: each if isinstance(each, str) else each.name)
def test_every_flag_has_a_sentence(verb: str, flag: click.Option) -> None:
    told = flag.help or ""
    assert len(told.split()) >= 3, f"{verb} {flag.opts[0]}: {told}"
    assert told.endswith((".", "]")), told


@pytest.mark.parametrize("verb", main.commands)
def test_flags_of_gpus_are_in_a_help_of_their_own(verb: str) -> None:
    flags = [flag_of(each.name) for each, facts in options(ClusterSettings) if facts.group == GPU]
    assert len(flags) == 11
    plain, gpu = (CliRunner().invoke(main, [verb, word]) for word in ("--help", "--help-gpu"))
    assert (plain.exit_code, gpu.exit_code) == (0, 0)
    assert not [flag for flag in flags if flag in plain.output]
    assert not [flag for flag in flags if flag not in gpu.output]


def test_what_a_settings_file_may_give_is_not_required(tmp_path, handed_over) -> None:
    assert not [each.name for each in main.commands["run"].params if isinstance(each, click.Option) and each.required]
    (tmp_path / "job.yaml").write_text("input: in\nout: there\n")
    assert CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml")]).exit_code == 0
    done = CliRunner().invoke(main, ["run", "in"])
    assert done.exit_code == 2
    assert "--out" in done.output


def flags_of(verb: click.Command) -> set[str]:
    return {option for parameter in verb.params if isinstance(parameter, click.Option) for option in parameter.opts}


def test_the_flags_of_reading_are_those_that_a_verb_has_a_use_for() -> None:
    assert isinstance(main, click.Group)
    reading = {
        "--id-field", "--embedding-field", "--metadata-field", "--storage-options", "--format", "--id-from",
        "--on-bad-row",
    }  # fmt: skip
    missing = {name: reading - flags_of(verb) for name, verb in main.commands.items()}
    assert missing == {
        "demo": reading,
        "embed": {"--embedding-field"},
        "fit": {"--metadata-field"},
        "assign": set(),
        "dedup": set(),
        "leak": set(),
        "apply": {"--embedding-field", "--metadata-field", "--id-from"},
        "run": set(),
        "info": {"--metadata-field", "--on-bad-row", "--id-from"},
    }


def test_one_name_is_a_list_of_one(tmp_path) -> None:
    given = write_embeddings(tmp_path / "in.parquet", blobs(100), text=["a text"] * 100, stars=list(range(100)))
    assert ReadOptions(metadata_fields="stars") == ReadOptions(metadata_fields=("stars",))
    assert list(dkm.read_embeddings(given, metadata_fields="stars").columns) == ["id", "embedding", "stars"]
    result = dkm.run(
        given, tmp_path / "out", dkm.KMeans(2), 0.9, ReadOptions(metadata_fields="stars"), keep="stars:desc"
    )
    assert dkm.open_buckets(tmp_path / "out" / "clusters").metadata_fields == ("stars",)
    assert result.summary["rows"] == 100
    assign_files(given, tmp_path / "out" / "model", tmp_path / "again", ReadOptions(metadata_fields="text"))
    assert dkm.open_buckets(tmp_path / "again").metadata_fields == ("text",)
    dkm.embed(given, tmp_path / "embedded", metadata_fields="stars")
    assert list(pd.read_parquet(glob.glob(f"{tmp_path}/embedded/*.parquet"))) == ["id", "embedding", "text", "stars"]


def names(settings: type) -> set[str]:
    return {each.name for each in fields(settings)}


OF_RUN = {"model": dkm.KMeans, "deciding": Deciding, "storing": Storing, "reading": ReadOptions}
# Options of all kinds, with values that are not their defaults.
ASKED = {
    "model": {
        "n_clusters": 3, "max_iter": 7, "tol": 0.5, "random_state": 9, "init": "k-means||", "n_init": 2,
        "oversampling_factor": 3.0, "max_samples_per_batch": 99, "sample_fraction": 0.25, "normalize": False,
        "max_cluster_size": 50, "engine": "cuml",
    },
    "deciding": {
        "threshold": 0.75, "eps": 0.25, "keep": ("a:asc", "b:desc"), "rule": "semdedup", "search": "clusters",
        "probes": 5, "floor": 0.5,
    },
    "storing": {"layout": "hive", "embedding_dtype": "float16", "assign": "ann", "assign_recall": 0.5},
    "reading": {
        "id_field": "key", "embedding_field": "v", "metadata_fields": ("a", "b"), "storage_options": {"anon": True},
        "format": "parquet", "id_from": "file-row", "on_bad_row": "skip",
    },
}  # fmt: skip
ASKED_OF_CLUSTERS = {
    "device": "gpu", "n_workers": 2, "threads_per_worker": 3, "memory_limit": "4GiB", "dashboard_address": ":0",
    "local_directory": "spill", "rmm_pool_size": "1GB", "rmm_maximum_pool_size": "2GB", "rmm_managed_memory": True,
    "rmm_async": True, "device_memory_limit": "3GB", "enable_cudf_spill": True, "protocol": "ucx",
    "enable_tcp_over_ucx": True, "enable_infiniband": True, "enable_nvlink": False, "enable_rdmacm": True,
}  # fmt: skip


def as_words(asked: dict[str, object]) -> list[str]:
    """`asked` as a command line."""
    words: list[str] = []
    for name, value in asked.items():
        flag = "--metadata-field" if name == "metadata_fields" else f"--{name.replace('_', '-')}"
        if value is False:
            flag = {"--normalize": "--no-normalize", "--enable-nvlink": "--disable-nvlink"}[flag]
        for each in value if isinstance(value, tuple) else [value]:
            words += [flag] if isinstance(each, bool) else [flag, json.dumps(each) if name in HELD else str(each)]
    return words


HELD = {"storage_options"}


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the command `run` hands over: where to run, then what."""
    found: list[object] = []
    monkeypatch.setattr(commands, "open_session", lambda cluster, output: (found.append(cluster), nullcontext())[1])
    made = SimpleNamespace(summary={}, figures=lambda: defaultdict(str))
    monkeypatch.setattr(run, "run_steps", lambda inputs, out, settings, **others: (found.append(settings), made)[1])
    return found


@pytest.mark.parametrize("from_file", [False, True])
def test_each_option_of_a_run_is_a_flag_and_a_key(tmp_path, handed_over, from_file: bool) -> None:
    """An option that is new in a class below must be asked for here."""
    assert {name: set(asked) for name, asked in ASKED.items()} == {
        "model": names(dkm.KMeans),
        "deciding": names(Deciding) - {"random_state"},  # that of the model
        "storing": names(Storing),
        "reading": names(ReadOptions),
    }
    assert set(ASKED_OF_CLUSTERS) == names(ClusterSettings) - {"scheduler", "scheduler_file"}  # excluded by others
    asked: dict[str, object] = {name: value for group in ASKED.values() for name, value in group.items()}
    words = as_words(asked | ASKED_OF_CLUSTERS)
    if from_file:
        held = {k: list(v) if isinstance(v, tuple) else v for k, v in (asked | ASKED_OF_CLUSTERS).items()}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump({"input": "in", **held}))
        words = [str(tmp_path / "job.yaml")]
    done = CliRunner().invoke(main, ["run", *(words if from_file else ["in", *words]), "--out", "out"])
    assert done.exit_code == 0, done.output
    where, settings = handed_over
    assert where == ClusterSettings(**ASKED_OF_CLUSTERS)  # type: ignore[arg-type]
    assert isinstance(settings, RunSettings)
    for name, group in ASKED.items():
        assert {each: getattr(getattr(settings, name), each) for each in group} == group


def test_no_value_that_is_asked_for_above_is_a_default() -> None:
    for settings, asked in [*((OF_RUN[name], asked) for name, asked in ASKED.items()),
                            (ClusterSettings, ASKED_OF_CLUSTERS)]:  # fmt: skip
        assert not [each.name for each in fields(settings) if asked.get(each.name, ...) == each.default]


@pytest.mark.parametrize(
    ("verb", "groups", "function"),
    [
        ("fit", {dkm.KMeans: set()}, dkm.KMeans),
        ("dedup", {Deciding: set()}, dkm.dedup),
        ("run", {Deciding: {"random_state"}, Storing: set()}, dkm.run),
    ],
)
def test_flags_and_arguments_of_python_have_the_same_defaults(verb: str, groups, function) -> None:
    flags = {str(each.name): each for each in main.commands[verb].params}
    arguments = inspect.signature(function).parameters
    for settings, without in groups.items():
        for each in fields(settings):
            if each.name in without:
                continue
            default = arguments[each.name].default
            assert ((default,) if each.name == "keep" else default) == each.default, each.name
            expected = "auto" if each.name == "n_clusters" else each.default  # scikit-learn's in Python
            assert flags[each.name].default == expected, each.name


def test_what_a_run_is_asked_stands_in_its_manifests(tmp_path) -> None:
    given = write_embeddings(tmp_path / "in.parquet", blobs(100))
    dkm.run(given, tmp_path / "out", dkm.KMeans(2), 0.9)
    found = {name: json.loads((tmp_path / "out" / name / "_manifest.json").read_text())["settings"]
             for name in ("model", "clusters", "dedup")}  # fmt: skip
    reading = names(ReadOptions) - {"storage_options", "format", "id_from"}  # which the files and the ids show
    assert set(found["model"]) == names(dkm.KMeans) - {"max_samples_per_batch"} | {"embedding_field", "on_bad_row"}
    assert set(found["clusters"]) == names(Storing) | reading
    assert set(found["dedup"]) == names(Deciding) - {"eps"} == names(DedupSettings)

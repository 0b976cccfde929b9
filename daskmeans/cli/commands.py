"""What each command does: parse, call, print."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import click
from rich.console import Console

from daskmeans.buckets.buckets import index_facts
from daskmeans.cli import options
from daskmeans.cli.config_file import from_yaml
from daskmeans.cli.jobs import JobCommand
from daskmeans.cli.options import PLACE, Output, StrictCommand
from daskmeans.cli.output import hint_apply, print_json, show_advice, show_decisions, show_facts
from daskmeans.cli.session import open_session
from daskmeans.cli.verbs import VERBS
from daskmeans.duplicates.export import EXPORTS
from daskmeans.duplicates.settings import Deciding
from daskmeans.errors import UsageError
from daskmeans.kmeans.estimator import KMeans
from daskmeans.runtime.cluster import ClusterSettings
from daskmeans.steps.settings import RunSettings, Storing
from daskmeans.vectors.options import ReadOptions

verb = partial(click.command, cls=StrictCommand)


@verb(help=VERBS["demo"])
@click.option("--out", type=PLACE, default="daskmeans-demo", show_default=True, help="Directory to create.")
@click.option("--n-clusters", type=click.IntRange(1), help="Number of clusters; default: one for 500 docstrings.")
@click.option("--threshold", type=click.FLOAT, default=0.9, show_default=True, help="Cosine similarity of duplicates.")
@options.overwrite
@options.cluster
@options.output
def demo(
    out: str, n_clusters: int | None, threshold: float, overwrite: bool, cluster: ClusterSettings, output: Output
) -> None:
    from daskmeans.report.demo import demo

    with open_session(cluster, output):
        result = demo(out, n_clusters=n_clusters, threshold=threshold, overwrite=overwrite)
    if output.json:
        print_json(result.facts | {"report": str(result.report)})
    else:
        Console(highlight=False).print(result)


@verb(help=VERBS["embed"])
@click.argument("inputs", type=PLACE, nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", type=PLACE, required=True, help="Directory to write the embeddings to.")
@click.option("--text-field", default="text", show_default=True, help="Column of texts.")
@click.option("--encoder", default="wordllama", show_default=True, help="What turns texts into vectors.")
@options.make_flag(Storing, "embedding_dtype")
@options.overwrite
@options.reading("embedding_field")
@options.cluster
@options.output
def embed(
    inputs: tuple[str, ...], out: str, text_field: str, encoder: str, embedding_dtype: str, overwrite: bool,
    reading: ReadOptions, cluster: ClusterSettings, output: Output,
) -> None:  # fmt: skip
    from daskmeans.steps.embed import embed

    with open_session(cluster, output):
        made = embed(
            inputs, out, text_field=text_field, id_field=reading.id_field, metadata_fields=reading.metadata_fields,
            encoder=encoder, dtype=embedding_dtype, on_bad_row=reading.on_bad_row,
            storage_options=reading.storage_options, format=reading.format, id_from=reading.id_from,
            overwrite=overwrite,
        )  # fmt: skip
    show_facts(made.facts, output)


@verb(help=VERBS["fit"])
@click.argument("inputs", type=PLACE, nargs=-1, required=True, metavar="INPUT...")
@click.option("--model", "out", type=PLACE, required=True, help="Directory to write the model to.")
@options.overwrite
@options.kmeans
@options.reading("metadata_fields")
@options.cluster
@options.output
def fit(
    inputs: tuple[str, ...], out: str, overwrite: bool, model: KMeans, reading: ReadOptions, cluster: ClusterSettings,
    output: Output,
) -> None:  # fmt: skip
    from daskmeans.steps.fit import fit as fit_files

    with open_session(cluster, output):
        fit_files(inputs, out, model, reading, overwrite=overwrite)
    facts = {
        "model": out,
        "n_clusters": len(model.cluster_centers_) if model.n_clusters == "auto" else model.n_clusters,
        "n_features": model.n_features_in_,
        "inertia": model.inertia_,
        "n_iter": model.n_iter_,
        "converged": model.converged_,
    }
    show_facts(facts, output)


@verb(help=VERBS["assign"])
@click.argument("inputs", type=PLACE, nargs=-1, required=True, metavar="INPUT...")
@click.option("--model", type=PLACE, required=True, help="Directory of a fitted model.")
@click.option("--out", type=PLACE, required=True, help="Directory to write the clusters to.")
@options.storing
@options.overwrite
@options.reading()
@options.cluster
@options.output
def assign(
    inputs: tuple[str, ...], model: str, out: str, storing: Storing, overwrite: bool, reading: ReadOptions,
    cluster: ClusterSettings, output: Output,
) -> None:  # fmt: skip
    from daskmeans.steps.assign import assign_files

    with open_session(cluster, output):
        buckets = assign_files(inputs, model, out, reading, storing, overwrite=overwrite)
    show_facts({"clusters": out, "rows": buckets.rows, "rejected": buckets.manifest["rejected"],
           "clusters_with_rows": buckets.n_clusters, "files": len(buckets.manifest["outputs"])}
          | index_facts(buckets.manifest), output)  # fmt: skip


@verb(help=VERBS["dedup"])
@click.argument("inputs", type=PLACE, nargs=-1, required=True, metavar="CLUSTERS|EMBEDDINGS...")
@click.option(
    "--out",
    type=PLACE,
    required=True,
    help="Directory for the decisions; for embeddings they are in OUT/dedup, beside a model and clusters.",
)
@options.deciding
@click.option("--review", type=click.IntRange(1),
              help="Write this many pairs around the threshold to OUT/_review/review.html.")  # fmt: skip
@click.option("--against", type=PLACE, multiple=True, metavar="CLUSTERS",
              help="Clusters, or decisions, whose kept rows stay; their duplicates are dropped.")  # fmt: skip
@click.option("--append", is_flag=True, help="Then append the kept rows to the clusters given with --against.")
@click.option("--export", type=click.Choice(EXPORTS),
              help="Also write the decisions as NeMo Curator stores its own, to OUT-nemo.")  # fmt: skip
@options.fill_argument("deciding", Deciding, ["random_state"])
@options.overwrite
@options.reading()
@options.cluster
@options.output
def dedup(
    inputs: tuple[str, ...], out: str, deciding: Deciding, review: int | None, against: tuple[str, ...], append: bool,
    export: str | None, overwrite: bool, reading: ReadOptions, cluster: ClusterSettings, output: Output,
) -> None:  # fmt: skip
    from daskmeans.report.review import write_review
    from daskmeans.steps.dedup import dedup_step
    from daskmeans.steps.foreign import find_cluster_folders, holds_clusters
    from daskmeans.steps.run import run_steps

    given_clusters = holds_clusters(inputs, reading)
    if given_clusters:
        columns = ["id_field", "id_from", "embedding_field", "metadata_fields", "on_bad_row", "format"]
        _refuse_idle_flags(columns, "clusters know their columns", "leave it out")
    else:
        remedy = "make clusters of them with `daskmeans assign` and the model of the other clusters, and give these"
        _refuse_idle_flags(["against", "append"], "embeddings cannot be compared with clusters", remedy)
        remedy = f"give it to `daskmeans dedup {out.rstrip('/')}/clusters` afterwards"
        _refuse_idle_flags(["export"], "decisions on clusters can be exported", remedy)
    with open_session(cluster, output):
        if given_clusters:
            result = dedup_step(
                inputs[0], deciding, out, against=against, append=append, export=export,
                storage_options=reading.storage_options, overwrite=overwrite,
            )  # fmt: skip
        else:
            model = KMeans(n_clusters="auto", random_state=deciding.random_state)
            result = run_steps(inputs, out, RunSettings(model, deciding, reading=reading), overwrite=overwrite)
        page = {"review": str(write_review(result, review))} if review else {}
    decisions = out if given_clusters else out.rstrip("/") + "/dedup"
    where = {"decisions": decisions} | ({"appended_to": str(result.against[0])} if append else {})
    show_decisions(result, where | page, output)
    known = not given_clusters or find_cluster_folders(reading.path(inputs[0]))  # ours do not say what they are made of
    files, with_options = inputs if known else ["INPUT"], bool(reading.storage_options)
    hint_apply(decisions, files, result.summary.get("rejected", 0), with_options, cluster, output)


@verb(help=VERBS["leak"])
@click.argument("train", type=PLACE)
@click.argument("test", type=PLACE)
@click.option("--out", type=PLACE, required=True, help="Directory to create.")
@click.option(
    "--threshold", type=click.FLOAT, default=0.9, show_default=True, help="Cosine similarity of near-duplicates."
)
@click.option("--apply", metavar="DIR", help="Also write the files of TEST, without the rows that leaked, to DIR.")
@options.overwrite
@options.reading()
@options.cluster
@options.output
def leak(
    train: str, test: str, out: str, threshold: float, apply: str | None, overwrite: bool, reading: ReadOptions,
    cluster: ClusterSettings, output: Output,
) -> None:  # fmt: skip
    from daskmeans.steps.leak import leak as find_leaks

    with open_session(cluster, output):
        found = find_leaks(train, test, out, threshold, reading, apply=apply, overwrite=overwrite)
    show_facts({"leaks": out} | ({"clean": apply} if apply else {}) | found.facts, output)


@verb(help=VERBS["apply"])
@click.argument("decisions", type=PLACE)
@click.argument("inputs", type=PLACE, nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", type=PLACE, required=True, help="Directory to write the kept rows to.")
@options.make_flag(
    ReadOptions, "id_field", default=None, help="Column of ids [default: the one the decisions were made with]."
)
@options.make_flag(ReadOptions, "storage_options")
@options.make_flag(ReadOptions, "format")
@options.make_flag(ReadOptions, "on_bad_row", help="What to do about rows without a decision.")
@options.overwrite
@options.cluster
@options.output
def apply(
    decisions: str, inputs: tuple[str, ...], out: str, id_field: str | None, storage_options: dict[str, Any] | None,
    format: str | None, on_bad_row: str, overwrite: bool, cluster: ClusterSettings, output: Output,
) -> None:  # fmt: skip
    from daskmeans.steps.apply import apply

    with open_session(cluster, output):
        made = apply(
            decisions, inputs, out, id_field=id_field, storage_options=storage_options, format=format,
            on_bad_row=on_bad_row, overwrite=overwrite,
        )  # fmt: skip
    show_facts(made.facts, output)


@click.command(cls=JobCommand, help=VERBS["run"])
@click.argument(
    "inputs", type=PLACE, nargs=-1, required=True, metavar="INPUT...|CONFIG.yaml", callback=from_yaml, is_eager=True
)
@click.option(
    "--out", type=PLACE, help="Directory for the model, the clusters and the decisions; needed here or in CONFIG.yaml."
)
@options.kmeans
@options.deciding
@options.storing
@options.overwrite
@options.reading()
@options.cluster
@options.output
@options.fill_argument("settings", RunSettings, flags=False)
def run(
    inputs: tuple[str, ...], out: str | None, settings: RunSettings, overwrite: bool, cluster: ClusterSettings,
    output: Output,
) -> None:  # fmt: skip
    from daskmeans.steps.run import run_steps

    if out is None:
        remedy = "add --out DIRECTORY, or a line `out: DIRECTORY` to the YAML file"
        raise UsageError("no directory for the output is given", where="--out", remedy=remedy)
    with open_session(cluster, output):
        result = run_steps(inputs, out, settings, overwrite=overwrite)
    show_decisions(result, {"out": out}, output)
    decisions, reading = out.rstrip("/") + "/dedup", settings.reading
    given = [*inputs, *(["--format", reading.format] if reading.format else [])]
    hint_apply(decisions, given, result.summary.get("rejected", 0), bool(reading.storage_options), cluster, output)


@verb(help=VERBS["info"])
@click.argument("path", type=PLACE, required=False)
@click.option("--system", is_flag=True, help="Show what this machine has, and how much of it is used.")
@click.option("--advise", is_flag=True, help="Suggest a number of clusters, and forecast what the steps take.")
@click.option("--n-clusters", type=click.IntRange(1), multiple=True, help="With --advise: forecast for this many too.")
@options.make_flag(ReadOptions, "id_field")
@options.make_flag(ReadOptions, "embedding_field")
@options.make_flag(ReadOptions, "storage_options")
@options.make_flag(ReadOptions, "format")
@options.cluster
@options.output
def info(
    path: str | None, system: bool, advise: bool, n_clusters: tuple[int, ...], id_field: str,
    embedding_field: str | None, storage_options: dict[str, Any] | None, format: str | None, cluster: ClusterSettings,
    output: Output,
) -> None:  # fmt: skip
    from daskmeans.planner.advise import advise as find_advice
    from daskmeans.planner.describe import describe
    from daskmeans.planner.system import describe_system

    if (path is None) != system or (advise and system):
        raise UsageError("give exactly one of these", expected="PATH, PATH --advise, or --system")
    _refuse_idle_flags([] if advise else ["n_clusters", *asdict(cluster)], "it is for forecasts only", "add --advise")
    columns = ["id_field", "embedding_field", "format"]
    _refuse_idle_flags([*columns, "storage_options"] if system else [], "no file is read", "leave it out")
    reading: dict[str, Any] = {
        "id_field": id_field, "embedding_field": embedding_field, "storage_options": storage_options, "format": format
    }  # fmt: skip
    if path is None:
        show_facts(describe_system(), output)
    elif advise:
        with open_session(cluster, output):
            facts = find_advice(path, **reading, n_clusters=n_clusters)
        show_advice(facts, output)
    else:
        facts = describe(path, **reading)
        is_output = "complete" in facts
        _refuse_idle_flags(columns if is_output else [], "this is an output, whose columns are known", "leave it out")
        show_facts(facts, output)


def _refuse_idle_flags(names: list[str], found: str, remedy: str) -> None:
    """Raise UsageError for given flags among `names`, which would have no effect."""
    if idle := [each for each in options.find_given(click.get_current_context()) if each.name in names]:
        raise UsageError(found, where=idle[0].opts[0], remedy=remedy)

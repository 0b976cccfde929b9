"""The commands: parse, call, print."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click
from dask.utils import format_bytes
from distributed import Client
from distributed.comm import CommClosedError
from rich.console import Console
from rich.table import Table

from daskmeans import flags, progress, runtime, stores
from daskmeans.cluster import ClusterSettings, dashboard
from daskmeans.cluster import cluster as start_cluster
from daskmeans.configuration import from_yaml
from daskmeans.errors import (
    ClusterError,
    ClusterSizeWarning,
    ConvergenceWarning,
    DaskmeansError,
    PrecisionWarning,
    UsageError,
)
from daskmeans.flags import Output
from daskmeans.interrupts import INTERRUPTED, STATUS, leave, once
from daskmeans.kmeans.estimator import KMeans
from daskmeans.system import keeps_kernels
from daskmeans.vectors.buckets import index_facts
from daskmeans.watch import lost_scheduler, reached
from daskmeans.workflow import Reading


class Commands(click.Group):
    """Commands whose errors are messages: exit status 2 for wrong use, 1 for work that failed."""

    command_class = flags.Verb

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DaskmeansError as error:
            _complain(error)
            ctx.exit(error.exit_status)
        except CommClosedError:
            _complain(lost_scheduler())
            ctx.exit(ClusterError.exit_status)
        except (KeyboardInterrupt, click.exceptions.Abort):
            if signal.getsignal(signal.SIGINT) is leave:  # which has the last word, as more of them may come
                leave()
            _complain(INTERRUPTED)
            ctx.exit(STATUS)
        except Exception as error:
            if not stores.has_failed(error):
                raise
            # A full disk, a missing permission, a lost connection, options that no client takes.
            _complain(error if isinstance(error, OSError) else f"{type(error).__name__}: {error}")
            ctx.exit(1)


def _complain(error: object) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error[/] {_plain(error)}")


def _plain(value: object) -> str:
    return str(value).replace("[", r"\[")


@click.group(name="kmeans", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="daskmeans")
def kmeans() -> None:
    """Cluster embeddings and find their near-duplicates, with Dask."""


main = kmeans


@contextlib.contextmanager
def _session(cluster: ClusterSettings, output: Output) -> Iterator[Client]:
    """A cluster with a display: progress and logs on stderr, nothing on stdout."""
    console = Console(stderr=True, quiet=output.quiet)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # complains of what Ctrl-C cancels
    for name in ("client", "batched"):  # they have tracebacks for a scheduler that is lost
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)
    runtime.logger.setLevel(logging.DEBUG if output.verbose else logging.WARNING if output.quiet else logging.INFO)
    with start_cluster(cluster) as client:
        console.print(f"[dim]{runtime.n_threads(client)} threads · dashboard {dashboard(client)}")
        if not (cluster.scheduler or cluster.scheduler_file or keeps_kernels()):
            console.print("[dim]kernels are compiled when they are first used, which takes half a minute in all")
        shown = progress.display_on(console)
        with once(), shown as display, progress.shown_on(display), _warnings_as_messages(), reached(client):
            yield client


@contextlib.contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """Tell warnings of this package without the line of code that they come from."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, ConvergenceWarning | ClusterSizeWarning | PrecisionWarning):
                runtime.logger.warning("%s", message)
            else:
                others(message, category, *where)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _show(facts: dict[str, Any], output: Output) -> None:
    """Print what a command found: as JSON, or as a table."""
    if output.json:
        click.echo(json.dumps(facts, ensure_ascii=False))
    elif not output.quiet:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in _flat(facts):
            table.add_row(f"[dim]{name}", _plain(value))
        Console(soft_wrap=True, highlight=False).print(table)


def _show_advice(facts: dict[str, Any], output: Output) -> None:
    """Print advice: as JSON, or as a table of forecasts with the reasons and the command below."""
    if output.json or output.quiet:
        _show(facts, output)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("clusters", "rows each", "largest", "fit", "assign", "dedup inside", "worker memory"):
        table.add_column(name, justify="right")
    for each in facts["forecasts"]:
        seconds = [f"{value:,.3g} s" for value in each["seconds"].values()]
        rows = [f"{each[name]:,}" for name in ("n_clusters", "rows_per_cluster", "largest_cluster")]
        style = "bold" if each["n_clusters"] == facts["n_clusters"] else ""
        table.add_row(*rows, *seconds, format_bytes(max(each["worker_bytes"].values())), style=style)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for reason in facts["reasons"]:
        console.print(f"· {_plain(reason)}")
    console.print(f"\n{_plain(facts['command'])}")


def _hint(
    decisions: str, inputs: Sequence[str], rejected: int, with_options: bool, cluster: ClusterSettings, output: Output
) -> None:
    """Say on stderr which command writes the rows that are kept; of storage options, which may be secrets, no value."""
    if output.json or output.quiet:
        return
    command = shlex.join(["daskmeans", "apply", decisions, *inputs]) + " --out KEPT"
    if rejected:  # rows on which there is no decision
        command += " --on-bad-row skip"
    if with_options:
        command += " --storage-options '{...}'"
    for flag, value in (("--scheduler", cluster.scheduler), ("--scheduler-file", cluster.scheduler_file)):
        if value:
            command += f" {flag} {shlex.quote(value)}"
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[dim]the kept rows: {_plain(command)}")


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values as people read them, a line each; a value that has its group's name stands for the group."""
    for key, value in facts.items():
        name = prefix.strip() if f"{key} " == prefix else f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name} ")
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            yield name, str(value)
        else:
            yield name, format_bytes(int(value)) if "bytes" in name else f"{value:,.6g}" if value % 1 else f"{value:,}"


# --- verbs ---


@kmeans.command()
@click.option("--out", default="daskmeans-demo", show_default=True, help="Directory to make.")
@click.option("--n-clusters", type=click.IntRange(1), help="Default: one for 500 docstrings.")
@click.option("--threshold", type=click.FLOAT, default=0.9, show_default=True, help="Cosine similarity of duplicates.")
@flags.overwrite
@flags.cluster
@flags.output
def demo(
    out: str, n_clusters: int | None, threshold: float, overwrite: bool, cluster: ClusterSettings, output: Output
) -> None:
    """Find the near-duplicates among the docstrings of the Python packages installed here."""
    from daskmeans.demo import demo

    with _session(cluster, output) as client:
        result = demo(out, n_clusters=n_clusters, threshold=threshold, overwrite=overwrite, client=client)
    if output.json:
        click.echo(json.dumps(result.facts | {"report": str(result.report)}, ensure_ascii=False))
    else:
        Console(highlight=False).print(result)


@kmeans.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, help="Directory of embeddings to make.")
@click.option("--text-field", default="text", show_default=True, help="Column of texts.")
@click.option("--encoder", default="wordllama", show_default=True)
@click.option("--embedding-dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@flags.overwrite
@flags.reading("embedding_field")
@flags.cluster
@flags.output
def embed(
    inputs: tuple[str, ...], out: str, text_field: str, encoder: str, embedding_dtype: str, overwrite: bool,
    reading: Reading, cluster: ClusterSettings, output: Output,
) -> None:  # fmt: skip
    """Turn a column of texts into embeddings."""
    from daskmeans.embedding.step import embed

    with _session(cluster, output) as client:
        facts = embed(
            inputs, out, text_field=text_field, id_field=reading.id_field, metadata_fields=reading.metadata_fields,
            encoder=encoder, dtype=embedding_dtype, on_bad_row=reading.on_bad_row,
            storage_options=reading.storage_options, overwrite=overwrite, client=client,
        )  # fmt: skip
    _show(facts, output)


@kmeans.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--model", "out", required=True, help="Directory of the model to make.")
@flags.overwrite
@flags.kmeans
@flags.reading("metadata_fields")
@flags.cluster
@flags.output
def fit(
    inputs: tuple[str, ...], out: str, overwrite: bool, model: KMeans, reading: Reading, cluster: ClusterSettings,
    output: Output,
) -> None:  # fmt: skip
    """Find the centroids of embeddings."""
    from daskmeans import workflow

    with _session(cluster, output) as client:
        workflow.fit(inputs, out, model, reading, overwrite=overwrite, client=client)
    facts = {
        "model": out,
        "n_clusters": model.n_clusters,
        "n_features": model.n_features_in_,
        "inertia": model.inertia_,
        "n_iter": model.n_iter_,
        "converged": model.converged_,
    }
    _show(facts, output)


@kmeans.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--model", required=True, help="Directory of a fitted model.")
@click.option("--out", required=True, help="Directory of clusters to make.")
@flags.storing
@flags.overwrite
@flags.reading()
@flags.cluster
@flags.output
def assign(
    inputs: tuple[str, ...], model: str, out: str, layout: str, embedding_dtype: str, assign: str, assign_recall: float,
    overwrite: bool, reading: Reading, cluster: ClusterSettings, output: Output,
) -> None:  # fmt: skip
    """Give every row its cluster and distances, grouped by cluster."""
    from daskmeans import workflow

    with _session(cluster, output) as client:
        buckets = workflow.assign_files(
            inputs, model, out, reading,
            layout=layout, embedding_dtype=embedding_dtype, assign=assign, assign_recall=assign_recall,
            overwrite=overwrite, client=client,
        )  # fmt: skip
    _show({"clusters": out, "rows": buckets.rows, "rejected": buckets.manifest["rejected"],
           "clusters_with_rows": buckets.n_clusters, "files": len(buckets.manifest["outputs"])}
          | index_facts(buckets.manifest), output)  # fmt: skip


@kmeans.command()
@click.argument("clusters")
@click.option("--out", required=True, help="Directory of decisions to make.")
@flags.deciding
@click.option("--review", type=click.IntRange(1), help="Write so many pairs around the threshold into OUT/review.html.")
@click.option("--against", multiple=True, metavar="CLUSTERS",
              help="Clusters whose kept rows stay, and rows like them go; or decisions on them.")  # fmt: skip
@click.option("--append", is_flag=True, help="Then add the rows that are kept to the clusters --against.")
@click.option("--random-state", type=click.INT, default=42, show_default=True)
@click.option("--storage-options", type=flags.Json(), help="Options of the file system, as JSON.")
@flags.overwrite
@flags.cluster
@flags.output
def dedup(
    clusters: str, out: str, threshold: float | None, eps: float | None, keep: tuple[str, ...], rule: str, search: str,
    probes: int, floor: float | None, review: int | None, against: tuple[str, ...], append: bool, random_state: int,
    storage_options: dict[str, Any] | None, overwrite: bool, cluster: ClusterSettings, output: Output,
) -> None:  # fmt: skip
    """Decide which rows of clusters are duplicates."""
    from daskmeans.duplicates.search import dedup
    from daskmeans.review import write_review

    with _session(cluster, output) as client:
        result = dedup(
            clusters, threshold, eps=eps, out=out, keep=keep, rule=rule, search=search, probes=probes, floor=floor,
            against=against, append=append, random_state=random_state, storage_options=storage_options,
            overwrite=overwrite, client=client,
        )  # fmt: skip
        page = {"review": str(write_review(result, review, client=client))} if review else {}
    where = {"decisions": out} | ({"appended_to": str(result.against[0])} if append else {})
    _show(where | page | result.summary, output)
    _hint(out, ["INPUT"], result.summary.get("rejected", 0), bool(storage_options), cluster, output)


@kmeans.command()
@click.argument("train")
@click.argument("test")
@click.option("--out", required=True, help="Directory to make.")
@click.option("--threshold", type=click.FLOAT, default=0.9, show_default=True, help="Cosine similarity of twins.")
@flags.overwrite
@flags.reading()
@flags.cluster
@flags.output
def leak(
    train: str, test: str, out: str, threshold: float, overwrite: bool, reading: Reading, cluster: ClusterSettings,
    output: Output,
) -> None:  # fmt: skip
    """List the rows of TEST that have a twin in TRAIN."""
    from daskmeans.leak import leak

    with _session(cluster, output) as client:
        facts = leak(train, test, out, threshold, reading, overwrite=overwrite, client=client)
    _show({"leaks": out} | facts, output)


@kmeans.command()
@click.argument("decisions")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, help="Directory of kept rows to make.")
@click.option("--id-field", help="Column of ids [the one that the decisions were made by].")
@click.option("--storage-options", type=flags.Json(), help="Options of the file system, as JSON.")
@click.option("--on-bad-row", type=click.Choice(["error", "skip"]), default="error", show_default=True,
              help="About rows without a decision.")  # fmt: skip
@flags.overwrite
@flags.cluster
@flags.output
def apply(
    decisions: str, inputs: tuple[str, ...], out: str, id_field: str | None, storage_options: dict[str, Any] | None,
    on_bad_row: str, overwrite: bool, cluster: ClusterSettings, output: Output,
) -> None:  # fmt: skip
    """Write the kept rows of the original files, in their format."""
    from daskmeans.duplicates.apply import apply

    with _session(cluster, output) as client:
        facts = apply(
            decisions, inputs, out, id_field=id_field, storage_options=storage_options, on_bad_row=on_bad_row,
            overwrite=overwrite, client=client,
        )  # fmt: skip
    _show(facts, output)


@kmeans.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...|CONFIG.yaml", callback=from_yaml, is_eager=True)
@click.option("--out", required=True, help="Directory for model, clusters and dedup.")
@flags.kmeans
@flags.deciding
@flags.storing
@flags.overwrite
@flags.reading()
@flags.cluster
@flags.output
def run(
    inputs: tuple[str, ...], out: str, model: KMeans, threshold: float | None, eps: float | None, keep: tuple[str, ...],
    rule: str, search: str, probes: int, floor: float | None, layout: str, embedding_dtype: str, assign: str,
    assign_recall: float, overwrite: bool, reading: Reading, cluster: ClusterSettings, output: Output,
) -> None:  # fmt: skip
    """Fit, assign and dedup in one go; a run that was interrupted goes on where it stopped."""
    from daskmeans import workflow

    with _session(cluster, output) as client:
        result = workflow.run(
            inputs, out, model, threshold, reading, eps=eps, layout=layout, embedding_dtype=embedding_dtype,
            assign=assign, assign_recall=assign_recall, keep=keep, rule=rule, search=search, probes=probes,
            floor=floor, overwrite=overwrite, client=client,
        )  # fmt: skip
    _show({"out": out} | result.summary, output)
    decisions = out.rstrip("/") + "/dedup"
    _hint(decisions, inputs, result.summary.get("rejected", 0), bool(reading.storage_options), cluster, output)


@kmeans.command()
@click.argument("path", required=False)
@click.option("--system", is_flag=True, help="Say what this machine offers, and what of it is used.")
@click.option("--advise", is_flag=True, help="Propose a number of clusters, and forecast what the steps will take.")
@click.option("--n-clusters", type=click.IntRange(1), multiple=True, help="With --advise: forecast for this one too.")
@click.option("--id-field", default="id", show_default=True)
@click.option("--embedding-field", help="Column of vectors; default: the only list of floats.")
@click.option("--storage-options", type=flags.Json(), help="Options of the file system, as JSON.")
@flags.cluster
@flags.output
def info(
    path: str | None, system: bool, advise: bool, n_clusters: tuple[int, ...], id_field: str,
    embedding_field: str | None, storage_options: dict[str, Any] | None, cluster: ClusterSettings, output: Output,
) -> None:  # fmt: skip
    """Say what a file or directory is: ours, or embeddings; what this machine offers; or what steps will take."""
    from daskmeans.advice import advise as find_advice
    from daskmeans.info import describe
    from daskmeans.system import describe_system

    if (path is None) != system or (advise and system):
        raise UsageError("there is nothing to look at, or too much", expected="a PATH, PATH --advise, or --system")
    _refuse_idle([] if advise else ["n_clusters", *asdict(cluster)], "only forecasts take it", "add --advise")
    columns = ["id_field", "embedding_field"]
    _refuse_idle([*columns, "storage_options"] if system else [], "no file is looked at", "leave it out")
    reading: dict[str, Any] = {
        "id_field": id_field, "embedding_field": embedding_field, "storage_options": storage_options
    }  # fmt: skip
    if path is None:
        _show(describe_system(), output)
    elif advise:
        with _session(cluster, output) as client:
            facts = find_advice(path, **reading, n_clusters=n_clusters, client=client)
        _show_advice(facts, output)
    else:
        facts = describe(path, **reading)
        is_output = "complete" in facts
        _refuse_idle(columns if is_output else [], "this is an output, which knows its columns", "leave it out")
        _show(facts, output)


def _refuse_idle(names: list[str], found: str, remedy: str) -> None:
    """Refuse flags with these `names`, which would do nothing."""
    if idle := [name for name in flags.given(click.get_current_context()) if name in names]:
        raise UsageError(found, where=flags.flag(idle[0]), remedy=remedy)

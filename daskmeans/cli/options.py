"""Flags that several commands share, a group for each of the settings they fill."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import click
from click.core import ParameterSource

from daskmeans.errors import UsageError
from daskmeans.kmeans.centroid_index import TARGET
from daskmeans.kmeans.estimator import KMeans
from daskmeans.runtime.cluster import ClusterSettings
from daskmeans.vectors.options import Reading

Command = Callable[..., Any]
Option = Callable[[Command], Command]


class Json(click.ParamType):
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, dict):
            return value
        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as error:
            self.fail(f"not valid JSON: {error}", param, ctx)  # without the value, which may hold secrets
        if not isinstance(found, dict):
            self.fail("expected a JSON object such as '{\"anon\": true}'", param, ctx)
        return found


class Verb(click.Command):
    """A command that refuses a flag which would do nothing beside the others."""

    def invoke(self, ctx: click.Context) -> Any:
        for name in given(ctx):
            is_used, need = _NEEDS.get(name, (lambda values: True, ""))
            if not is_used(ctx.params):
                raise UsageError(
                    "it does nothing here", where=flag(name), expected=need, remedy="leave it out, or give that too"
                )
        return super().invoke(ctx)


# For flags that need others: whether those are there, and what to say.
_NEEDS: dict[str, tuple[Callable[[dict[str, Any]], bool], str]] = {
    "assign_recall": (lambda values: values["assign"] == "ann", "--assign ann"),
    "max_samples_per_batch": (lambda values: values["engine"] == "cuml", "--engine cuml"),
    "oversampling_factor": (lambda values: values["init"] in ("auto", "k-means||"), "--init auto or k-means||"),
    "dashboard_address": (
        lambda values: not (values["scheduler"] or values["scheduler_file"]),
        "workers on this machine: no --scheduler, no --scheduler-file",
    ),
}


def given(ctx: click.Context) -> list[str]:
    """Names of the flags that the command line or a file of settings holds."""
    return [name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]


def flag(name: str) -> str:
    """How the flag called `name` is written."""
    return f"--{name.removesuffix('s') if name == 'metadata_fields' else name}".replace("_", "-")


@dataclass(frozen=True)
class Output:
    """What a command shows."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False


def _added(command: Command, options: Sequence[Option]) -> Command:
    """`command` with `options`, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def _filled(
    command: Command, argument: str, make: Callable[..., Any], names: list[str], options: Sequence[Option]
) -> Command:
    """`command` with `options`, whose values called `names` it gets as one ``argument=make(...)``."""

    @functools.wraps(command)
    def called(**values: Any) -> Any:
        mine = {name: values.pop(name) for name in names if name in values}
        return command(**values, **{argument: make(**mine)})

    return _added(called, options)


def kmeans(command: Command) -> Command:
    """Flags of :class:`KMeans`, handed over as an estimator called `model`."""
    return _filled(command, "model", KMeans, list(KMeans().get_params()), _KMEANS)


_KMEANS = [
    click.option("--n-clusters", type=click.INT, required=True, help="Number of clusters."),
    click.option("--max-iter", type=click.INT, default=300, show_default=True, help="Updates at most; 0 keeps --init."),
    click.option("--tol", type=click.FLOAT, default=1e-4, show_default=True, help="Relative shift at which to stop."),
    click.option("--random-state", type=click.INT, default=42, show_default=True, help="Seed of all that is random."),
    click.option(
        "--init", default="auto", show_default=True, help="auto, k-means||, random, a .npy file or a model directory."
    ),
    click.option("--n-init", type=click.INT, default=1, show_default=True, help="Runs, of which the best is kept."),
    click.option("--oversampling-factor", type=click.FLOAT, default=2.0, show_default=True, help="Of k-means||."),
    click.option(
        "--max-samples-per-batch",
        type=click.INT,
        default=32768,
        show_default=True,
        help="Rows that cuML compares at once.",
    ),
    click.option(
        "--sample-fraction", type=click.FLOAT, default=1.0, show_default=True, help="Share of rows to fit on."
    ),
    click.option("--normalize/--no-normalize", default=True, show_default=True, help="Scale rows to unit length."),
    click.option("--max-cluster-size", type=click.INT, help="Split clusters of more rows after the fit."),
    click.option(
        "--engine",
        type=click.Choice(["auto", "native", "cuml"]),
        default="auto",
        show_default=True,
        help="cuml: cuML on the workers' GPUs finds the centroids; auto is native.",
    ),
]


def reading(*without: str) -> Option:
    """Flags of :class:`Reading`: how embeddings are read; handed over as `reading`, `without` some of its fields."""
    names = [f.name for f in fields(Reading) if f.name not in without]
    return lambda command: _filled(command, "reading", Reading, names, [_READING[name] for name in names])


_READING = {
    "id_field": click.option("--id-field", default="id", show_default=True, help="Column of ids."),
    "embedding_field": click.option("--embedding-field", help="Column of vectors; default: the only list of floats."),
    "metadata_fields": click.option(
        "--metadata-field", "metadata_fields", multiple=True, help="Column that travels along; repeatable."
    ),
    "storage_options": click.option("--storage-options", type=Json(), help="Options of the file system, as JSON."),
    "on_bad_row": click.option(
        "--on-bad-row",
        type=click.Choice(["error", "skip"]),
        default="error",
        show_default=True,
        help="Stop at a bad row, or leave it out and list it below _rejects in the output.",
    ),
}


def cluster(command: Command) -> Command:
    """Flags of :class:`ClusterSettings`: where tasks run; handed over as `cluster`."""
    return _filled(command, "cluster", ClusterSettings, [f.name for f in fields(ClusterSettings)], _CLUSTER)


_CLUSTER = [
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "gpu"]),
        default="auto",
        show_default=True,
        help="gpu: a worker for each GPU; auto: that, if there are GPUs and the packages.",
    ),
    click.option("--n-workers", type=click.IntRange(1), help="Worker processes; default: one a core, or a GPU."),
    click.option("--threads-per-worker", type=click.IntRange(1), help="Default: 1, or a GPU's share of the cores."),
    click.option("--memory-limit", default="auto", show_default=True, help="Of each worker, such as 4GiB."),
    click.option("--scheduler", help="Address of a running scheduler, instead of workers here."),
    click.option("--scheduler-file", help="File that a running scheduler has written."),
    click.option("--dashboard-address", default="127.0.0.1:8787", show_default=True),
    click.option("--local-directory", help="Where workers spill to."),
    click.option("--rmm-pool-size", help="GPU: as in dask-cuda."),
    click.option("--rmm-maximum-pool-size", help="GPU: as in dask-cuda."),
    click.option("--rmm-managed-memory", is_flag=True, help="GPU: as in dask-cuda."),
    click.option("--rmm-async", is_flag=True, help="GPU: as in dask-cuda."),
    click.option("--device-memory-limit", default="default", show_default=True, help="GPU: as in dask-cuda."),
    click.option("--enable-cudf-spill", is_flag=True, help="GPU: as in dask-cuda."),
    click.option("--protocol", help="GPU: as in dask-cuda."),
    click.option("--enable-tcp-over-ucx/--disable-tcp-over-ucx", default=None, help="GPU: as in dask-cuda."),
    click.option("--enable-infiniband/--disable-infiniband", default=None, help="GPU: as in dask-cuda."),
    click.option("--enable-nvlink/--disable-nvlink", default=None, help="GPU: as in dask-cuda."),
    click.option("--enable-rdmacm/--disable-rdmacm", default=None, help="GPU: as in dask-cuda."),
]


def output(command: Command) -> Command:
    """Flags of :class:`Output`: what is shown; handed over as `output`."""
    return _filled(command, "output", Output, [f.name for f in fields(Output)], _OUTPUT)


_OUTPUT = [
    click.option("--json", is_flag=True, help="Print one JSON object on stdout."),
    click.option("--quiet", is_flag=True, help="Print errors alone."),
    click.option("--verbose", is_flag=True, help="Log what is done."),
]

overwrite = click.option(
    "--overwrite", is_flag=True, help="Replace a finished output, or an unfinished one of other settings."
)

_DECIDING = [
    click.option("--threshold", type=click.FLOAT, help="Cosine similarity from which two rows are duplicates."),
    click.option("--eps", type=click.FLOAT, help="The same as 1 - threshold."),
    click.option(
        "--keep",
        multiple=True,
        default=("hard",),
        show_default=True,
        help="hard, easy, random, or COLUMN:asc|desc; repeatable.",
    ),
    click.option("--rule", type=click.Choice(["survivors", "semdedup"]), default="survivors", show_default=True),
    click.option(
        "--search",
        type=click.Choice(["auto", "exact", "clusters"]),
        default="auto",
        show_default=True,
        help="exact: all pairs of rows; clusters: inside clusters, with a measured recall; auto: exact for up to two "
        "million rows.",
    ),
    click.option(
        "--probes", type=click.INT, default=1, show_default=True, help="With clusters: how many near ones to compare."
    ),
    click.option("--floor", type=click.FLOAT, help="Score from which pairs are stored [the threshold]."),
]


def deciding(command: Command) -> Command:
    """Flags of dedup but the seed."""
    return _added(command, _DECIDING)


_STORING = [
    click.option("--layout", type=click.Choice(["bucketed", "hive"]), default="bucketed", show_default=True),
    click.option("--embedding-dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True),
    click.option(
        "--assign",
        type=click.Choice(["exact", "ann"]),
        default="exact",
        show_default=True,
        help="ann: by an index over the centroids, for very many; what share of the labels is exact is measured.",
    ),
    click.option(
        "--assign-recall",
        type=click.FLOAT,
        default=TARGET,
        show_default=True,
        help="Share of exact labels that --assign ann aims at.",
    ),
]


def storing(command: Command) -> Command:
    """Flags of the clusters and their files."""
    return _added(command, _STORING)

"""Stages of a job: each is a step with the options of its command, checked before any work, and not done twice.

An operator is a command as a stage. Its `values` are the options of the command by name, as the command parses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import open_buckets
from daskmeans.duplicates.against import open_reference
from daskmeans.duplicates.decisions import dedup_inputs
from daskmeans.duplicates.export import check_export, export_decisions, export_identity
from daskmeans.duplicates.settings import Deciding, choose_search
from daskmeans.encoders.encoder import get_encoder
from daskmeans.errors import UsageError
from daskmeans.kmeans.engine.checkpoints import CHECKPOINTS
from daskmeans.kmeans.engine.seeding import resolve_init
from daskmeans.kmeans.estimator import KMeans
from daskmeans.kmeans.model import refuse_pickle
from daskmeans.pairs.plan import n_pairs
from daskmeans.steps.apply import apply, apply_inputs, find_id_field, read_decided
from daskmeans.steps.assign import assign_files, assign_inputs
from daskmeans.steps.dedup import dedup_step
from daskmeans.steps.embed import embed, embed_settings
from daskmeans.steps.fit import fit, fit_settings, resolve_params, with_cluster_count
from daskmeans.steps.foreign import find_cluster_folders, holds_clusters, open_clusters, refuse_foreign_references
from daskmeans.steps.leak import find_leaks, leak_inputs, leak_settings
from daskmeans.steps.once import find_decided_clusters
from daskmeans.steps.settings import Storing
from daskmeans.storage import manifest
from daskmeans.storage.step import check_output_free
from daskmeans.vectors.files import as_list, open_path
from daskmeans.vectors.listing import find_files
from daskmeans.vectors.options import ReadOptions
from daskmeans.vectors.source import open_source
from daskmeans.vectors.stamps import stamp_files

Values = Mapping[str, Any]
# Whether an earlier stage will make what lies at a path, so that it cannot be checked yet.
IsMade = Callable[[Any], bool]
# Operators whose output others read as files of rows.
ROWS = ("Embed", "Assign", "Apply")


@dataclass(frozen=True)
class Planned:
    """A step with all that determines it, ready to be done."""

    path: UPath
    step: str
    settings: dict[str, Any]
    inputs: dict[str, Any]
    work: Callable[[], object]
    resume: str | None = None


@dataclass(frozen=True)
class Operator:
    """A command as a stage.

    Attributes
    ----------
    verb : str
        The command.
    step : str
        The step that its output is of.
    takes : mapping
        For each option that may be the output of an earlier stage, the operators of such stages.
    check : callable
        Checks values, before any work.
    plan : callable
        Yields what is to be done with values, one after the other; None for what is known during the work only.
    """

    verb: str
    step: str
    takes: Mapping[str, Sequence[str]]
    check: Callable[[Values, IsMade], None]
    plan: Callable[[Values, Client | None], Iterator[Planned | None]]


def take(settings: type, values: Values) -> Any:
    """Return the dataclass `settings` filled from `values`; what is not among them has its default."""
    return settings(**{each.name: values[each.name] for each in fields(settings) if each.name in values})


def check_output(operator: Operator, values: Values) -> UPath:
    """Return the output directory of a stage; raise OutputError if something else lies there."""
    path = open_path(values["out"], values.get("storage_options"))
    check_output_free(path, operator.step, overwrite=True)  # whether it may be replaced is known when it is planned
    return path


def _check_files(values: Values, is_made: IsMade, *names: str) -> None:
    for name in names:
        given = [each for each in as_list(values[name]) if not is_made(each)]
        if given:
            find_files(given, values.get("storage_options"))


def _check_manifest(values: Values, is_made: IsMade, name: str, *steps: str) -> None:
    """Make sure that the option `name` is the output of one of `steps`, unless an earlier stage makes it."""
    if not is_made(values[name]):
        path = open_path(values[name], values.get("storage_options"))
        refuse_pickle(path)
        if steps != ("assign",) or not find_cluster_folders(path):
            manifest.read_manifest(path, *steps)


# --- Embed ---


def _check_embed(values: Values, is_made: IsMade) -> None:
    get_encoder(values["encoder"])
    _check_files(values, is_made, "inputs")


def _plan_embed(values: Values, client: Client | None) -> Iterator[Planned]:
    reading, dtype, encoder = take(ReadOptions, values), values["embedding_dtype"], values["encoder"]
    read = {name: value for name, value in asdict(reading).items() if name != "embedding_field"}
    source = open_source(values["inputs"], text_field=values["text_field"], **read)
    work = partial(
        embed, values["inputs"], values["out"], text_field=values["text_field"], encoder=encoder, dtype=dtype,
        overwrite=values["overwrite"], client=client, **read,
    )  # fmt: skip
    settings = embed_settings(source, encoder, dtype, reading.on_bad_row)
    yield Planned(reading.path(values["out"]), "embed", settings, source.identity(), work)


# --- Fit ---


def _check_fit(values: Values, is_made: IsMade) -> None:
    model = take(KMeans, values)
    model.check_params()
    if not is_made(model.init):
        resolve_init(model.init, model.n_clusters, values["storage_options"])
    _check_files(values, is_made, "inputs")


def _plan_fit(values: Values, client: Client | None) -> Iterator[Planned]:
    model, reading, overwrite = take(KMeans, values), take(ReadOptions, values), values["overwrite"]
    path = reading.path(values["out"])
    resolved = resolve_params(model, reading, path, path, overwrite)
    source = reading.open(values["inputs"], client, allow_zero=not model.normalize)
    resolved = with_cluster_count(resolved, source)
    work = partial(fit, values["inputs"], path, model, reading, overwrite=overwrite, client=client)
    yield Planned(path, "fit", fit_settings(resolved, reading), source.identity(), work, CHECKPOINTS)


# --- Assign ---


def _check_assign(values: Values, is_made: IsMade) -> None:
    take(Storing, values).settings(take(ReadOptions, values))
    _check_manifest(values, is_made, "model", "fit")
    _check_files(values, is_made, "inputs")


def _plan_assign(values: Values, client: Client | None) -> Iterator[Planned]:
    storing, reading = take(Storing, values), take(ReadOptions, values)
    model, path = reading.path(values["model"]), reading.path(values["out"])
    source = reading.open(values["inputs"], client, allow_zero=not KMeans.load(model).normalize)
    work = partial(
        assign_files, values["inputs"], model, path, reading, storing, overwrite=values["overwrite"], client=client
    )
    yield Planned(path, "assign", storing.settings(reading), assign_inputs(source, model), work)


# --- SemanticDeduplicator ---


def _clusters_of(values: Values) -> Any:
    """Return the clusters that a stage decides on; embeddings are for a stage of Fit and one of Assign before it."""
    given = as_list(values["inputs"])
    if len(given) != 1:
        raise UsageError("several inputs are given", expected="clusters: the output of one stage, or a directory")
    if take(ReadOptions, values) != ReadOptions(storage_options=values["storage_options"]):
        raise UsageError(
            "clusters know their columns", expected="no option of how files are read", remedy="leave it out"
        )
    return given[0]


def _check_dedup(values: Values, is_made: IsMade) -> None:
    take(Deciding, values).settings()
    clusters = _clusters_of(values)
    if not is_made(clusters) and not holds_clusters([clusters], take(ReadOptions, values)):
        raise UsageError(
            "these are no clusters",
            where=str(clusters),
            expected="the output of `daskmeans assign`, or a directory for each cluster",
            remedy="make clusters by a stage of Fit and one of Assign before this one",
        )
    if values["export"]:
        check_export(values["export"], open_path(values["out"], values["storage_options"]), overwrite=True)
    _check_manifest({**values, "clusters": clusters}, is_made, "clusters", "assign")
    refuse_foreign_references([open_path(each, values["storage_options"]) for each in values["against"]])
    for each in values["against"]:
        _check_manifest({**values, "against": each}, is_made, "against", "assign", "dedup")


def _plan_dedup(values: Values, client: Client | None) -> Iterator[Planned | None]:
    deciding, options, overwrite = take(Deciding, values), values["storage_options"], values["overwrite"]
    clusters, path = open_path(_clusters_of(values), options), open_path(values["out"], options)
    given = {"storage_options": options, "overwrite": overwrite, "client": client}
    work = partial(dedup_step, clusters, deciding, path, against=values["against"], append=values["append"], **given)
    if find_cluster_folders(clusters):
        yield None  # they are written once more
        clusters = open_clusters(clusters, path, ReadOptions(storage_options=options), overwrite, client).path
    if values["append"]:  # a repeated call does what is left of it
        yield None
        work()
    else:
        buckets = find_decided_clusters(open_buckets(clusters), path)
        references = [open_reference(each, options) for each in values["against"]]
        pairs = n_pairs([buckets, *(each.buckets for each in references)])
        settings = asdict(choose_search(deciding.settings(), pairs, bool(references)))
        yield Planned(path, "dedup", settings, dedup_inputs(buckets, [each.describe() for each in references]), work)
    if values["export"]:
        target = check_export(values["export"], path, overwrite=True)
        write = partial(export_decisions, path, target, True, client)
        yield Planned(target, "export", *export_identity(path), write)


# --- Apply ---


def _check_apply(values: Values, is_made: IsMade) -> None:
    _check_manifest(values, is_made, "decisions", "dedup", "leak")
    _check_files(values, is_made, "inputs")


def _plan_apply(values: Values, client: Client | None) -> Iterator[Planned]:
    options, on_bad_row = values["storage_options"], values["on_bad_row"]
    decisions, path = open_path(values["decisions"], options), open_path(values["out"], options)
    id_field = find_id_field(decisions, read_decided(decisions), values["id_field"])
    settings = {"id_field": id_field, "on_bad_row": on_bad_row}
    work = partial(
        apply, decisions, values["inputs"], path, id_field=values["id_field"], storage_options=options,
        on_bad_row=on_bad_row, format=values["format"], overwrite=values["overwrite"], client=client,
    )  # fmt: skip
    files = find_files(values["inputs"], options, values["format"])
    yield Planned(path, "apply", settings, apply_inputs(decisions, files, stamp_files(files)), work)


# --- Leak ---


def _check_leak(values: Values, is_made: IsMade) -> None:
    leak_settings(values["threshold"], take(ReadOptions, values))
    _check_files(values, is_made, "train", "test")


def _plan_leak(values: Values, client: Client | None) -> Iterator[Planned | None]:
    reading, threshold, overwrite = take(ReadOptions, values), values["threshold"], values["overwrite"]
    train, test, path = values["train"], values["test"], reading.path(values["out"])
    sources = [reading.open(each, client, allow_zero=False).without_metadata() for each in (test, train)]
    work = partial(find_leaks, train, test, path, threshold, reading, overwrite, client)
    yield Planned(path, "leak", leak_settings(threshold, reading), leak_inputs(sources), work)
    if values["apply"]:
        applied = {"decisions": path, "inputs": test, "out": values["apply"], "id_field": None}
        yield from _plan_apply({**values, **applied}, client)


OPERATORS = {
    "Embed": Operator("embed", "embed", {"inputs": ROWS}, _check_embed, _plan_embed),
    "Fit": Operator("fit", "fit", {"inputs": ROWS, "init": ("Fit",)}, _check_fit, _plan_fit),
    "Assign": Operator("assign", "assign", {"inputs": ROWS, "model": ("Fit",)}, _check_assign, _plan_assign),
    "SemanticDeduplicator": Operator(
        "dedup", "dedup", {"inputs": ("Assign",), "against": ("Assign", "SemanticDeduplicator")}, _check_dedup,
        _plan_dedup,
    ),
    "Apply": Operator(
        "apply", "apply", {"inputs": ROWS, "decisions": ("SemanticDeduplicator", "Leak")}, _check_apply, _plan_apply
    ),
    "Leak": Operator("leak", "leak", {"train": ROWS, "test": ROWS}, _check_leak, _plan_leak),
}  # fmt: skip

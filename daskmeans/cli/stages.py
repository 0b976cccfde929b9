"""Jobs of stages: ``run job.yaml`` where the file lists ``stages``, each a command of its own."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import click

from daskmeans.cli import options
from daskmeans.cli.config_file import STAGES, parse_settings, read_settings, refuse_unknown
from daskmeans.cli.options import Output, StrictCommand
from daskmeans.cli.output import show_facts
from daskmeans.cli.session import open_session
from daskmeans.duplicates.result import open_decisions
from daskmeans.errors import DaskmeansError, UsageError
from daskmeans.report.review import REVIEW, write_review
from daskmeans.runtime.cluster import ClusterSettings
from daskmeans.steps.once import is_done, run_once
from daskmeans.steps.stages import OPERATORS, Operator, check_output
from daskmeans.storage import manifest
from daskmeans.vectors.files import as_list, open_path, real_path, refuse_overlap

KEYS = ("name", "operator", "params")
# How a value names the output of an earlier stage; names of stages are names of directories.
REFERENCE = re.compile(r"\$\{([^}]*)\}")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# Flags that are not those of one stage.
OF_THE_JOB = frozenset(each.name for settings in (ClusterSettings, Output) for each in fields(settings))
# What the manifest of a stage says that is shown.
SHOWN = ("rows", "rejected", "n_clusters", "dimension", "kept", "removed", "counts", "seconds")


@dataclass(frozen=True)
class Stage:
    """One stage of a job: its name, its operator, and the values of its command's options."""

    name: str
    kind: str
    values: dict[str, Any]
    where: str

    @property
    def operator(self) -> Operator:
        return OPERATORS[self.kind]


def _read_job(ctx: click.Context, param: click.Parameter, job: str) -> tuple[str, Any]:
    """Return the path of the file and its stages as they stand there; its other keys become defaults of the flags."""
    settings = read_settings(open_path(job))
    stages = settings.pop(STAGES)
    ctx.default_map = {**(ctx.default_map or {}), **parse_settings(settings, ctx, job, {"job"})}
    return job, stages


@click.command("run", cls=StrictCommand, help="Do the stages of a job that are not done yet, one after the other.")
@click.argument("job", callback=_read_job, is_eager=True)
@click.option("--out", required=True, help="Directory for the outputs of the stages, each in a directory of its name.")
@options.overwrite
@options.cluster
@options.output
def run_job(job: tuple[str, Any], out: str, overwrite: bool, cluster: ClusterSettings, output: Output) -> None:
    """Check all stages, then do those that are not done."""
    stages = check_stages(read_stages(*job, out.rstrip("/"), overwrite))
    made = {stage.name: False for stage in stages}
    left = stages[_count_done(stages) :]
    if left:
        with open_session(cluster, output):
            for stage in left:
                made[stage.name] = _run_stage(stage)
    _show_stages(out, stages, made, output)


def read_stages(file: str, given: Any, root: str, overwrite: bool = False) -> list[Stage]:
    """Return the stages `given` in `file`; the output of each is in ``root/NAME`` if it does not say otherwise.

    Raises
    ------
    UsageError
        A stage, an operator, a parameter or the name of an earlier stage is unknown, or a value is not valid.
    """
    expected = "a list of stages, each with name, operator and params"
    if not isinstance(given, list) or not given or not all(isinstance(each, dict) for each in given):
        raise UsageError("the key 'stages' holds no list of stages", where=file, expected=expected)
    stages: list[Stage] = []
    for number, each in enumerate(given, 1):
        where = f"{file}, stage {each.get('name', number)!r}"
        for key in each:
            refuse_unknown(key, str(key), KEYS, where)
        name, kind, params = each.get("name"), str(each.get("operator", "")), each.get("params") or {}
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UsageError("it has no name", where=where, expected="`name:` letters, digits, '_', '-' and '.'")
        if name in (stage.name for stage in stages):
            raise UsageError("the name appears twice", where=where, expected="a name of its own for each stage")
        refuse_unknown(each.get("operator"), kind, [*OPERATORS], where, "operator")
        if not isinstance(params, dict):
            raise UsageError("its params are no mapping", where=where, expected="`params:` with a line for each option")
        stages.append(_parse_stage(name, kind, params, where, stages, root, overwrite))
    return stages


def _parse_stage(
    name: str, kind: str, params: Mapping[Any, Any], where: str, before: Sequence[Stage], root: str, overwrite: bool
) -> Stage:
    command = _find_command(OPERATORS[kind].verb)
    if session := [key for key in params if str(key).replace("-", "_") in OF_THE_JOB]:
        remedy = f"write it beside `{STAGES}:`, not in `params:`"
        raise UsageError(f"the key {session[0]!r} is for all stages", where=where, remedy=remedy)
    values = parse_settings(params, click.Context(command), where, OF_THE_JOB)
    for key, value in values.items():
        values[key] = _fill_references(value, OPERATORS[kind].takes.get(_option(key)), f"{where}, key {key!r}", before)
    given: list[str] = []
    for argument in (each for each in command.params if isinstance(each, click.Argument)):
        key = "input" if argument.name == "inputs" else str(argument.name)
        if not values.get(key):
            raise UsageError(f"the key {key!r} is missing", where=where, expected=f"`{key}:` a path")
        value = values.pop(key)
        given += value if isinstance(value, list) else [value]
    values = {"out": f"{root}/{name}"} | values
    try:
        ctx = command.make_context(command.name, ["--", *given], default_map=values)
        options.refuse_idle(ctx)
    except click.UsageError as error:
        raise UsageError(error.format_message().rstrip("."), where=where) from None
    return Stage(name, kind, ctx.params | {"overwrite": overwrite or ctx.params["overwrite"]}, where)


def _find_command(verb: str) -> click.Command:
    """The command `verb` of the group that `run` is one of."""
    parent = click.get_current_context().parent
    assert parent and isinstance(parent.command, click.Group)  # `run` is called by its group only
    return parent.command.commands[verb]


def _option(key: str) -> str:
    return "inputs" if key == "input" else key


def _fill_references(value: Any, takes: Sequence[str] | None, where: str, before: Sequence[Stage]) -> Any:
    """Return `value` with the outputs of the stages that it names, whose operators must be those that it `takes`."""
    if isinstance(value, list):
        return [_fill_references(each, takes, where, before) for each in value]
    if not isinstance(value, str):
        return value
    outputs = {stage.name: stage for stage in before}
    for name in REFERENCE.findall(value):
        refuse_unknown(name, name, [*outputs], where, "earlier stage")
        if value == f"${{{name}}}" and outputs[name].kind not in (takes or ()):
            found = f"it is the output of stage {name!r}, which is {outputs[name].kind}"
            raise UsageError(
                found, where=where, expected=f"that of {' or '.join(takes)}" if takes else "no stage's output"
            )
    return REFERENCE.sub(lambda match: str(outputs[match[1]].values["out"]), value)


def check_stages(stages: list[Stage]) -> list[Stage]:
    """Return `stages`, of which no work is done, after checking their options, files and outputs.

    Raises
    ------
    DaskmeansError
        What the command of the stage would refuse too, with the name of the stage in front.
    """
    outputs: list[str] = []
    for stage in stages:
        with _name_stage(stage):
            storage_options = stage.values.get("storage_options")
            out = check_output(stage.operator, stage.values)
            if real_path(out) in outputs:
                raise UsageError("an earlier stage has the same output", where=str(out), remedy="choose another `out:`")
            stage.operator.check(stage.values, partial(_is_made, outputs, storage_options))
            given = [path for name in stage.operator.takes for path in as_list(stage.values[name])]
            refuse_overlap(out, [open_path(path, storage_options) for path in given])
            also = [open_path(each, storage_options) for each in (stage.values.get("apply"),) if each]
            outputs += [real_path(path) for path in (out, *also)]
    return stages


@contextlib.contextmanager
def _name_stage(stage: Stage) -> Iterator[None]:
    """Put the name of a stage in front of the errors within."""
    try:
        yield
    except DaskmeansError as error:
        error.where = ": ".join(filter(None, (stage.where, error.where)))
        raise


def _is_made(outputs: Sequence[str], storage_options: Any, path: Any) -> bool:
    """Whether `path` is one of `outputs`, or lies below one."""
    place = real_path(open_path(path, storage_options)) + "/"
    return any(place.startswith(f"{output}/") for output in outputs)


def _count_done(stages: Sequence[Stage]) -> int:
    """The number of stages that are done, from the first on."""
    for number, stage in enumerate(stages):
        with _name_stage(stage):
            for planned in stage.operator.plan(stage.values, None):
                if planned is None or not is_done(
                    planned.path, planned.step, planned.settings, planned.inputs, stage.values["overwrite"]
                ):
                    return number
            if _lacks_review(stage):
                return number
    return len(stages)


def _run_stage(stage: Stage) -> bool:
    """Do what is not done of a stage; return whether anything was."""
    made = False
    with _name_stage(stage):
        for planned in stage.operator.plan(stage.values, None):
            made |= planned is None or run_once(
                planned.path, planned.step, planned.settings, planned.inputs, stage.values["overwrite"], planned.work,
                planned.resume,
            )  # fmt: skip
        if _lacks_review(stage):
            decided = open_decisions(stage.values["out"], stage.values["storage_options"])
            write_review(decided, stage.values["review"])
            made = True
    return made


def _lacks_review(stage: Stage) -> bool:
    path = open_path(stage.values["out"], stage.values.get("storage_options"))
    return bool(stage.values.get("review")) and not (path / REVIEW).exists()


def _show_stages(out: str, stages: Sequence[Stage], made: Mapping[str, bool], output: Output) -> None:
    """Print a line for each stage, or all figures as JSON."""
    facts: dict[str, Any] = {}
    for stage in stages:
        path = open_path(stage.values["out"], stage.values.get("storage_options"))
        found = manifest.read_manifest(path, stage.operator.step)
        figures = {name: found[name] for name in SHOWN if name in found}
        figures |= figures.pop("counts", {})
        facts[stage.name] = {
            "operator": stage.kind,
            "out": str(stage.values["out"]),
            "made": made[stage.name],
        } | figures
    lines = {name: _summarize(each) for name, each in facts.items()}
    show_facts({"out": out, "stages": facts} if output.json else lines, output)


def _summarize(facts: Mapping[str, Any]) -> str:
    words = {"rows": "rows", "n_clusters": "clusters", "kept": "kept", "leaked": "leaked", "rejected": "left out"}
    named = [name for name in words if name in facts and (facts[name] or name != "rejected")]
    shown = [f"{facts[name]:,} {words[name]}" for name in named]
    state = f"{facts['seconds']:.1f} s" if facts["made"] else "done before"
    return " · ".join([facts["operator"], *shown, state])

"""What commands print: figures as JSON or a table, advice, and the command to run next."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from dask.utils import format_bytes
from rich.console import Console
from rich.table import Table

from daskmeans.cli.options import Output
from daskmeans.runtime.cluster import ClusterSettings

if TYPE_CHECKING:
    from daskmeans.duplicates.result import DedupResult


# Characters of a line of a table where there is no terminal.
WIDTH = 120


def escape_markup(value: object) -> str:
    return str(value).replace("[", r"\[")


def show_facts(facts: dict[str, Any], output: Output) -> None:
    """Print the figures of a command as JSON or as a table."""
    if output.json:
        print_json(facts)
    elif not output.quiet:
        lines = list(_flatten_facts(facts))
        width = max((len(name) for name, _ in lines), default=0)
        console = Console(soft_wrap=True, highlight=False)
        for name, value in lines:  # not a table, which would cut long paths where there is no terminal
            console.print(f"[dim]{escape_markup(name.ljust(width))}[/]  {escape_markup(value)}")


def print_json(facts: dict[str, Any]) -> None:
    """Print one JSON object on stdout, in the characters that it can encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    click.echo(json.dumps(facts, ensure_ascii=not encoding.lower().startswith("utf")))


def show_decisions(result: DedupResult, places: dict[str, Any], output: Output) -> None:
    """Print what was decided in a few lines; all figures as JSON if that is asked for, as they are in _summary.json."""
    if output.json:
        show_facts(places | result.summary, output)
        return
    figures, rejected = result.figures(), result.summary.get("rejected", 0)
    facts = {
        "kept": f"{figures['kept']} of {figures['rows']} rows",
        "removed": f"{figures['exact']} exact copies, {figures['semantic']} near-duplicates",
        "threshold": figures["threshold"],
        "recall": figures["recall"],
    }
    show_facts(facts | ({"rows left out": rejected} if rejected else {}) | places, output)


def show_advice(facts: dict[str, Any], output: Output) -> None:
    """Print advice as JSON, or as a table of forecasts followed by the reasons and a command."""
    if output.json or output.quiet:
        show_facts(facts, output)
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
    console.print(table, width=None if console.is_terminal else max(WIDTH, console.width))
    for reason in facts["reasons"]:
        console.print(f"· {escape_markup(reason)}")
    console.print(f"\n{escape_markup(facts['command'])}")


def hint_apply(
    decisions: str, inputs: Sequence[str], rejected: int, with_options: bool, cluster: ClusterSettings, output: Output
) -> None:
    """Print on stderr what to do next, without values of storage options, which may be secret."""
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
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[dim]look:  {escape_markup(shlex.join(['daskmeans', 'info', decisions]))}")
    console.print(f"[dim]apply: {escape_markup(command)}")


def _flatten_facts(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and values for people to read, one per line; a value named like its group stands for the group."""
    for key, value in facts.items():
        name = prefix.strip() if f"{key} " == prefix else f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flatten_facts(value, f"{name} ")
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            yield name, str(value)
        else:
            yield name, format_bytes(int(value)) if "bytes" in name else f"{value:,.6g}" if value % 1 else f"{value:,}"

"""The command line: which commands there are.

What one of them does, and all that this takes, is imported when it is called: imports take seconds, and `--help` none.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

from daskmeans.cli.interrupts import INTERRUPTED, STATUS, end_process
from daskmeans.cli.verbs import VERBS


class LazyCommands(Mapping[str, click.Command]):
    """The commands by name, imported when one is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in VERBS:
            raise KeyError(name)
        return getattr(import_module("daskmeans.cli.commands"), name)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class Commands(click.Group):
    """Commands that report errors as messages."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands as click does, without importing them."""
        limit = formatter.width - 6 - max(len(name) for name in VERBS)
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, click.Command(name, help=VERBS[name]).get_short_help_str(limit)) for name in sorted(VERBS)]
            )

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):  # whatever the locale, no character ends a command
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.exceptions.Abort):
            from daskmeans.cli.session import print_error

            if signal.getsignal(signal.SIGINT) is end_process:  # it prints the message, as Ctrl-C may come again
                end_process()
            print_error(INTERRUPTED)
            ctx.exit(STATUS)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            from daskmeans.cli.session import report_error

            if (status := report_error(error)) is None:
                raise
            ctx.exit(status)


@click.group(
    name="kmeans", cls=Commands, commands=LazyCommands(), context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="daskmeans", prog_name="daskmeans")
def kmeans() -> None:
    """Cluster embeddings and find their near-duplicates, with Dask."""


main = kmeans

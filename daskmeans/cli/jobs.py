"""The command of a job: one run, or one stage after the other."""

from __future__ import annotations

from typing import Any

import click
import yaml

from daskmeans.cli.config_file import STAGES, is_yaml
from daskmeans.cli.options import StrictCommand
from daskmeans.vectors.files import open_path


class JobCommand(StrictCommand):
    """The command `run`; for a file with stages, the command that does them stands in for it."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        named = [word for word in args if is_yaml(word)]
        if len(named) == 1 and _has_stages(named[0]):
            from daskmeans.cli.stages import run_job  # it takes all steps

            return run_job.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _has_stages(word: str) -> bool:
    try:
        found = yaml.safe_load(open_path(word).read_text(encoding="utf-8"))
    except Exception:  # the command says what is wrong with the file
        return False
    return isinstance(found, dict) and STAGES in found

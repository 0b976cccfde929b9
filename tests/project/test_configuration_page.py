"""docs/reference/configuration.md names every setting with its default, and every key of a job file."""

from __future__ import annotations

import re
from pathlib import Path

import click
import yaml

import daskmeans
from daskmeans.cli.main import main
from helpers import ROOT

PAGE = (ROOT / "docs" / "reference" / "configuration.md").read_text()


def test_every_setting_stands_there_with_its_default() -> None:
    named = dict(re.findall(r"(?m)^### `([\w-]+)`\n\nDefault: `([^`]+)`$", PAGE))
    settings = yaml.safe_load((Path(daskmeans.__path__[0]) / "daskmeans.yaml").read_text())["daskmeans"]
    assert {name: yaml.safe_load(default) for name, default in named.items()} == settings


def test_every_key_of_a_job_file_stands_there() -> None:
    table = PAGE.split("| about | keys |")[1].split("## Environment")[0]
    flags = {
        max(parameter.opts, key=len).lstrip("-").replace("-", "_")
        for parameter in main.commands["run"].params
        if isinstance(parameter, click.Option) and parameter.expose_value
    }
    assert set(re.findall(r"`(\w+)`", table)) == flags - {"help"} | {"input"}

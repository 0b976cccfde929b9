"""docs/reference/python.md has every public name."""

from __future__ import annotations

import re

import daskmeans
from daskmeans import errors
from helpers import ROOT


def test_every_public_name_stands_there_once() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    named = [name.rpartition(".")[2] for name in re.findall(r"(?m)^\.\. auto\w+:: ([\w.]+)$", page)]
    assert {*daskmeans.__all__, *errors.__all__} <= {*named}
    assert len(named) == len({*named})

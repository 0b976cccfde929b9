"""The demo, on packages that the test writes."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from daskmeans.errors import OutputError
from daskmeans.report import docstrings
from daskmeans.report.demo import DemoResult, demo

ANIMALS = ("cat", "dog", "cow", "owl", "bat", "ant", "bee", "eel", "elk", "fox")
VERBS = ("feeds", "washes", "counts", "paints", "sells", "draws")


def function(verb: str, animal: str, tail: str) -> str:
    text = f"Find the {animal} that somebody {verb} in the old zoo, and return its name and {tail}."
    return f'def {verb}_{animal}():\n    """{text}"""\n\n'


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages, of which the second has copied from the first with a few words changed."""
    for package, tail in (("first", "its age in whole years"), ("second", "its age in years")):
        body = "".join(function(verb, animal, tail) for verb in VERBS for animal in ANIMALS)
        (tmp_path / "site" / package).mkdir(parents=True)
        (tmp_path / "site" / package / "__init__.py").write_text(body)
    monkeypatch.setattr(docstrings, "_find_roots", lambda: [tmp_path / "site"])
    return tmp_path / "site"


@pytest.fixture
def shown(site: Path, tmp_path: Path) -> DemoResult:
    return demo(tmp_path / "out", n_clusters=3, threshold=0.97)


def printed(result: DemoResult, **settings: object) -> str:
    paper = io.StringIO()
    Console(file=paper, width=100, **settings).print(result)  # type: ignore[arg-type]
    return paper.getvalue()


def test_the_copies_are_found(shown: DemoResult, tmp_path: Path) -> None:
    assert shown.facts["docstrings"] == "120 from 2 files of 2 packages"
    assert shown.examples[0].kept.source != shown.examples[0].dropped.source
    assert len(pq.read_table(tmp_path / "out" / "docstrings.parquet")) == 120
    assert shown.report.read_text(encoding="utf-8").startswith("<!doctype html>")
    for place in ("embeddings", "run/model", "run/clusters", "run/dedup"):
        assert (tmp_path / "out" / place / "_manifest.json").exists()


def test_what_is_printed(shown: DemoResult) -> None:
    plain = printed(shown)
    assert "120 from 2 files of 2 packages" in plain and str(shown.report) in plain.replace("\n", "")
    assert "[-whole-]" in plain or "{+whole+}" in plain
    assert "first/__init__.py:" in plain and "second/__init__.py:" in plain
    assert "\x1b" not in plain
    coloured = printed(shown, force_terminal=True, color_system="truecolor")
    assert "\x1b[" in coloured and "[-" not in coloured.replace("\x1b[", "")


def test_an_output_in_the_way(shown: DemoResult, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="has already run here"):
        demo(tmp_path / "out", n_clusters=3)
    demo(tmp_path / "out", n_clusters=3, overwrite=True)

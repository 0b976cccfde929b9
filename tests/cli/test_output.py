"""The end of a command is short, and `--json` prints every figure."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import daskmeans
from daskmeans.cli.main import main
from daskmeans.cli.options import Output
from daskmeans.cli.output import hint_apply, show_decisions, show_facts
from daskmeans.duplicates.result import DedupResult
from daskmeans.runtime.cluster import ClusterSettings

RECALL = {"recall": 0.9, "low": 0.8, "high": 0.95, "sampled": 100, "with_twin": 40}
SUMMARY = {"rows": 1200, "kept": 1000, "removed": {"exact": 90, "semantic": 110}, "threshold": 0.9, "rule": "survivors",
           "keep": "medoid", "search": "clusters", "recall": RECALL, "rejected": 3, "seconds": 1.5}  # fmt: skip


def decided() -> DedupResult:
    result = SimpleNamespace(summary=SUMMARY, recall=RECALL)
    result.figures = lambda: DedupResult.figures(result)
    return result


def test_the_end_of_a_run_fits_in_ten_lines(capsys):
    output = Output(json=False, quiet=False, verbose=False)
    show_decisions(decided(), {"out": "results"}, output)
    hint_apply("results/dedup", ["vectors"], 3, False, ClusterSettings(), output)
    shown = capsys.readouterr()
    rows = [" ".join(row.split()) for row in (shown.out + shown.err).splitlines()]
    assert len(rows) <= 10
    assert rows == [
        "kept 1,000 of 1,200 rows",
        "removed 90 exact copies, 110 near-duplicates",
        "threshold 0.9",
        "recall 90.00% (80.00% to 95.00%)",
        "rows left out 3",
        "out results",
        "look: daskmeans info results/dedup",
        "apply: daskmeans apply results/dedup vectors --out KEPT --on-bad-row skip",
    ]


def test_json_has_every_figure(capsys):
    show_decisions(decided(), {"out": "results"}, Output(json=True, quiet=False, verbose=False))
    assert json.loads(capsys.readouterr().out) == {"out": "results"} | SUMMARY


def test_long_paths_are_not_cut_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "/data/" + "very-long-name/" * 20
    show_facts({"rows": 3, "place of it": path}, Output(json=False, quiet=False, verbose=False))
    assert capsys.readouterr().out.splitlines() == ["rows         3", f"place of it  {path}"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_any_encoding(monkeypatch, encoding: str):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    show_facts({"name": "naïve ²"}, Output(json=True, quiet=False, verbose=False))
    assert json.loads(written.getvalue().decode(encoding)) == {"name": "naïve ²"}


def test_characters_that_the_locale_lacks_end_no_command(tmp_path):
    """In a process of its own, whose streams are real ones."""
    (tmp_path / "naïve.jsonl").write_text('{"id": 1, "v": [1.5, 2.5]}\n')
    command = [sys.executable, "-m", "daskmeans", "info", str(tmp_path / "naïve.jsonl"), "--embedding-field", "²"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "there is no column '?'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_that_of_daskmeans_whatever_calls_it():
    for name in ("daskmeans", "dask"):
        done = CliRunner().invoke(main, ["--version"], prog_name=name)
        assert done.output == f"daskmeans, version {daskmeans.__version__}\n"


@pytest.mark.parametrize("words", ["run x", "run a.parquet --out x", "assign a --model x", "fit a --init x", "info x"])
def test_shells_complete_paths(words: str):
    environment = {"_DASKMEANS_COMPLETE": "bash_complete", "COMP_WORDS": f"daskmeans {words}",
                   "COMP_CWORD": str(len(words.split()))}  # fmt: skip
    assert CliRunner(env=environment).invoke(main, [], prog_name="daskmeans").output == "file,x\n"

"""The end of a command is short, and `--json` prints every figure."""

from __future__ import annotations

import json
from types import SimpleNamespace

from daskmeans.cli.options import Output
from daskmeans.cli.output import hint_apply, show_decisions
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
        "recall 90.00% (80.00% to 95.00%)",
        "rows left out 3",
        "out results",
        "look: daskmeans info results/dedup",
        "apply: daskmeans apply results/dedup vectors --out KEPT --on-bad-row skip",
    ]


def test_json_has_every_figure(capsys):
    show_decisions(decided(), {"out": "results"}, Output(json=True, quiet=False, verbose=False))
    assert json.loads(capsys.readouterr().out) == {"out": "results"} | SUMMARY

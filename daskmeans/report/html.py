"""The HTML report of a run: what was kept and removed, the recall, and examples of duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import dask
import numpy as np
import pyarrow.parquet as pq
from dask.utils import format_bytes
from distributed import Client
from upath import UPath

from daskmeans.buckets.buckets import open_buckets
from daskmeans.duplicates.result import DedupResult, decision_files, open_decisions
from daskmeans.kmeans.model import read_model
from daskmeans.report import charts
from daskmeans.report.examples import Example, Row, compare_texts, describe_place, find_examples
from daskmeans.report.values import render_picture
from daskmeans.runtime import executor
from daskmeans.storage import manifest, objectstore
from daskmeans.vectors.files import open_path, translate_read_errors
from daskmeans.vectors.id_types import id_to_text

STEPS = {"model": "fit", "clusters": "assign", "dedup": "dedup"}
SCORE_BINS, SIZE_BINS = 50, 40


def write_report(
    run: str | UPath,
    out: str | UPath,
    *,
    title: str | None = None,
    shown: Sequence[Example] | None = None,
    client: Client | None = None,
) -> UPath:
    """Write a self-contained HTML page about a finished run.

    Parameters
    ----------
    run : str or UPath
        Directory with ``model``, ``clusters`` and ``dedup``.
    out : str or UPath
        The HTML file to write.
    title : str, optional
        Default: the directory's name.
    shown : sequence of Example, optional
        Pairs to show; default: the most instructive ones.
    client : distributed.Client, optional

    Returns
    -------
    UPath
        `out`.

    Raises
    ------
    NotFoundError, OutputError
        `run` lacks a step, or one is unfinished.

    Examples
    --------
    >>> write_report("run/", "report.html")  # doctest: +SKIP
    """
    root, target = open_path(run), open_path(out)
    result, model = open_decisions(root / "dedup"), read_model(root / "model")[1]
    found = find_examples(root, client=client) if shown is None else shown
    similarity = _draw_similarity(_count_all_scores(root, client), result.summary["threshold"])
    inertia = model["inertia_per_iteration"] or [model["inertia"]]
    body = [
        f"<h1>{escape(title or root.name)}</h1>",
        f'<p class="quiet">{escape(_make_subtitle(result, model))}</p>',
        *_render_tiles(result.summary),
        '<div class="cards">',
        _render_chart(
            "Similarity", f"of each row to the most similar one before it{_floor_note(result.summary)}", similarity
        ),
        _render_chart("Cluster sizes", f"{model['n_clusters']:,} clusters, by their number of rows", _draw_sizes(root)),
        _render_chart("Inertia", _inertia_note(model), charts.draw_curve(inertia, charts.format_short)),
        *_render_thresholds(result, client),
        "</div>",
        *_render_examples(found),
        *_render_steps(root),
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    objectstore.replace_file(target, render_page(title or root.name, body).encode(), "tmp")
    return target


def read_run_facts(run: UPath) -> dict[str, str]:
    """Return the figures of a finished run for display, by name."""
    s, model = open_decisions(run / "dedup").summary, read_model(run / "model")[1]
    return {
        "rows": f"{s['rows']:,}",
        "clusters": f"{model['n_clusters']:,}",
        "threshold": f"{s['threshold']}",
        "exact copies removed": _format_share(s["removed"]["exact"], s["rows"]),
        "near-duplicates removed": _format_share(s["removed"]["semantic"], s["rows"]),
        "kept": _format_share(s["kept"], s["rows"]),
        "recall": "100%: all rows were compared" if s["search"] == "exact" else _format_recall(s["recall"]),
        "seconds": ", ".join(f"{name} {found['seconds']:.1f}" for name, found in _read_manifests(run).items()),
    }


def _read_manifests(run: UPath) -> dict[str, dict[str, Any]]:
    return {step: manifest.read_manifest(run / folder, step) for folder, step in STEPS.items()}


def _format_share(number: int, whole: int) -> str:
    return f"{number:,} ({number / max(whole, 1):.1%})"


def _format_recall(recall: dict[str, Any]) -> str:
    if recall["recall"] is None:
        return "not measured: no sampled row has a neighbor" if recall["sampled"] else "not measured"
    return f"{recall['recall']:.1%} (95% interval {recall['low']:.1%} to {recall['high']:.1%})"


def render_page(title: str, body: Sequence[str]) -> str:
    """Return a self-contained HTML page."""
    style = files("daskmeans.report").joinpath("report.css").read_text()
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{style}</style>"
    start = f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>'
    return "\n".join([start, *body, "</main></body></html>", ""])


def _make_subtitle(result: DedupResult, model: dict[str, Any]) -> str:
    s = result.summary
    keep = ", ".join(s["keep"]) if isinstance(s["keep"], list) else s["keep"]
    vectors = f"{s['rows']:,} vectors of {model['n_features']} dimensions"
    return f"{vectors} · duplicates from similarity {s['threshold']} on · rule {s['rule']}, keep {keep}"


def _render_tiles(s: dict[str, Any]) -> Iterator[str]:
    rows, removed, recall = s["rows"], s["removed"], s["recall"]
    tiles = [("kept", s["kept"], "rows kept"), ("semantic", removed["semantic"], "near-duplicates removed")]
    tiles += [("exact", removed["exact"], "exact copies removed")]
    yield '<div class="tiles">'
    for kind, number, label in tiles:
        share = f"{number / max(rows, 1):.1%}"
        yield f'<div class="tile"><b>{number:,}</b><span><i class="key {kind}"></i>{label}, {share}</span></div>'
    if s["search"] == "exact":
        measured, note = "100%", "recall: all rows were compared"
    elif recall["recall"] is None:
        measured, note = "–", f"recall: {'no sampled row has a neighbor' if recall['sampled'] else 'not measured'}"
    else:
        measured = f"{recall['recall']:.1%}"
        note = f"recall, {recall['low']:.1%} to {recall['high']:.1%} at 95% confidence"
    yield f'<div class="tile"><b>{measured}</b><span>{note}</span></div></div>'
    yield charts.draw_shares([(kind, number) for kind, number, _ in tiles])


def _render_chart(name: str, note: str, svg: str) -> str:
    return f'<section class="card"><h3>{escape(name)}</h3><p class="quiet">{escape(note)}</p>{svg}</section>'


def _draw_similarity(counts: np.ndarray, threshold: float) -> str:
    edges = np.linspace(0, 1, SCORE_BINS + 1)
    first = min(np.flatnonzero(counts)[0] if counts.any() else 0, int(threshold * SCORE_BINS))
    return charts.draw_histogram(counts[first:], edges[first:], lambda v: f"{v:.3g}", "rows", threshold)


def _count_all_scores(run: UPath, client: Client | None) -> np.ndarray:
    """Count rows by score, in bins from 0 to 1; a negative score counts as 0. Shape (SCORE_BINS,)."""
    tasks = [
        dask.delayed(_count_scores, pure=False)(file, dask_key_name=f"count-scores-{dask.base.tokenize(str(file))}")
        for file in decision_files(run / "dedup")
    ]
    return np.sum(executor.compute(tasks, client=client), axis=0)


def _count_scores(file: UPath) -> np.ndarray:
    with translate_read_errors(file):
        scores = pq.read_table(file.path, filesystem=file.fs, columns=["cosine_sim_score"])["cosine_sim_score"]
    # An exact search only knows scores from its floor on.
    return np.histogram(np.clip(scores.drop_null().to_numpy(), 0, 1), SCORE_BINS, (0, 1))[0]


def _floor_note(summary: dict[str, Any]) -> str:
    """Return a note on scores if only those of stored pairs are known."""
    return f", from {summary['floor']} on" if "pairs" in summary else ""


def _render_thresholds(result: DedupResult, client: Client | None) -> Iterator[str]:
    """Draw the rows that other thresholds would remove, if pairs are stored for several thresholds."""
    if result.summary.get("pairs", {}).get("floor", 1.0) < 0.995:
        found = result.curve(client=client)
        removed = (found["exact"] + found["semantic"]).tolist()
        svg = charts.draw_curve(removed, lambda v: f"{v:,.0f}", found["threshold"].tolist(), "threshold")
        yield _render_chart("Threshold", "rows that other thresholds would remove", svg)


def _draw_sizes(run: UPath) -> str:
    buckets = open_buckets(run / "clusters")
    sizes = [cluster.rows for cluster in buckets.clusters()]
    empty = buckets.n_clusters - len(sizes)
    width = max(1, -(-max(sizes) // SIZE_BINS))
    edges = np.arange(0, max(sizes) + width + 1, width)
    return charts.draw_histogram(np.histogram([*sizes, *[0] * empty], edges)[0], edges, charts.format_short, "clusters")


def _inertia_note(model: dict[str, Any]) -> str:
    state = "converged" if model["converged"] else "stopped"
    return f"{state} after {model['n_iter']:,} iterations at {model['inertia']:,.6g}"


def _render_examples(found: Sequence[Example]) -> Iterator[str]:
    if not found:
        return
    yield "<h2>Near-duplicates</h2>"
    yield '<p class="quiet">Each kept row and a row dropped for it; words that only one of them has are marked.</p>'
    for example in found:
        more = f", and {example.others:,} more rows dropped for this one" if example.others else ""
        yield from render_pair(example.kept, example.dropped, example.score, f"cosine similarity{more}")


def render_pair(
    kept: Row, dropped: Row, score: float, note: str, names: tuple[str, str] = ("kept", "dropped")
) -> Iterator[str]:
    """Render two rows side by side; words that only one of them has are marked."""
    stretches = list(compare_texts(kept.text, dropped.text))
    head = f'<b>{score:.4f}</b><span class="quiet">{escape(note)}</span>'
    yield f'<article class="card pair"><header>{head}</header><div class="sides">'
    for side, name, row in (("kept", names[0], kept), ("dropped", names[1], dropped)):
        text = " ".join(_mark_text(s.side, s.text) for s in stretches if s.side in ("both", side))
        yield _render_side(side, name, row, text)
    yield "</div></article>"


def _render_side(side: str, name: str, row: Row, text: str) -> str:
    head = f'<h4><span class="{side}">{escape(name)}</span> {escape(id_to_text(row.id))}</h4>'
    place = f'<p class="place">{escape(describe_place(row))}</p>'
    pictures = "".join(render_picture(column, value) for column, value in row.metadata.items())
    return f'<div class="side">{head}{place}<p class="text">{text}</p>{pictures}</div>'


def _mark_text(side: str, text: str) -> str:
    return escape(text) if side == "both" else f'<mark class="{side}">{escape(text)}</mark>'


def _render_steps(run: UPath) -> Iterator[str]:
    yield "<h2>Steps</h2><table><tr><th>step</th><th>seconds</th><th>peak memory of a worker</th></tr>"
    for name, found in _read_manifests(run).items():
        peak = found["peak_bytes"]
        memory = format_bytes(peak["worker"] or peak["client"])
        yield f'<tr><td>{name}</td><td class="number">{found["seconds"]:.1f}</td><td class="number">{memory}</td></tr>'
    yield "</table>"

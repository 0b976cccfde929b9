"""The demo: it takes the docstrings of the installed packages through every step and shows the duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from distributed import Client
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from upath import UPath

from daskmeans.duplicates.settings import Deciding
from daskmeans.encoders.encoder import get_encoder
from daskmeans.errors import OutputError
from daskmeans.kmeans.estimator import KMeans
from daskmeans.pairs.settings import LEAST_FLOOR
from daskmeans.report import docstrings, examples
from daskmeans.report.docstrings import Corpus
from daskmeans.report.examples import Example
from daskmeans.report.html import read_run_facts, write_report
from daskmeans.steps.embed import embed
from daskmeans.steps.run import run
from daskmeans.storage import manifest, signature
from daskmeans.storage.step import check_output_free
from daskmeans.vectors.files import open_path
from daskmeans.vectors.options import ReadOptions

ROWS_PER_CLUSTER = 500
# Pairs are stored from this far below the threshold, so that the report can show the effect of other thresholds.
FLOOR_MARGIN = 0.1
# Number of examples in the report, and of those printed.
REPORT_EXAMPLES, PRINT_EXAMPLES = 30, 10
TITLE = "Docstrings of the packages installed here"
METADATA = ("text", "package", "file", "line")
# Styles of words that only one of two texts has, on terminals with and without colours.
STYLES = {"both": "", "kept": "cyan", "dropped": "yellow"}
INDENT = (0, 0, 0, 11)
MARKS = {"both": ("", ""), "kept": ("[-", "-]"), "dropped": ("{+", "+}")}


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo; a rich console can print it.

    Attributes
    ----------
    facts : dict
        Numbers and texts by display name.
    examples : list of Example
    report : UPath
        The HTML page with more examples.
    """

    facts: dict[str, str]
    examples: list[Example]
    report: UPath

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        table = Table(box=box.SIMPLE_HEAD, show_header=False, title=TITLE, title_justify="left")
        for name, value in self.facts.items():
            table.add_row(f"[dim]{name}", value)
        yield table
        yield ""
        coloured = console.color_system is not None and not console.no_color
        yield _make_heading(coloured)
        for number, example in enumerate(self.examples[:PRINT_EXAMPLES], 1):
            yield ""
            yield from _show_example(number, example, coloured)
        yield ""
        yield Text.assemble(("More of them, with charts: ", "dim"), str(self.report))


def demo(
    out: str | UPath,
    *,
    n_clusters: int | None = None,
    threshold: float = 0.9,
    overwrite: bool = False,
    client: Client | None = None,
) -> DemoResult:
    """Find the near-duplicates among the docstrings of the packages that are installed here.

    Parameters
    ----------
    out : str or UPath
        Directory for ``docstrings.parquet``, ``embeddings``, ``run`` (model, clusters, dedup) and ``report.html``.
    n_clusters : int, optional
        Default: one for every 500 docstrings.
    threshold : float, default 0.9
        Cosine similarity in [0, 1] from which two docstrings are duplicates.
    overwrite : bool, default False
        Replace the output of an earlier demo.
    client : distributed.Client, optional

    Raises
    ------
    UsageError
        Such as OutputError if `out` has other content, and MissingExtraError if the encoder is not installed.

    Examples
    --------
    >>> demo("demo/").facts["docstrings"]  # doctest: +SKIP
    """
    root, model = open_path(out), KMeans(n_clusters=1 if n_clusters is None else n_clusters)
    model.check_params()
    Deciding(threshold).settings()
    get_encoder()
    if (root / "report.html").exists() and not overwrite:
        raise OutputError(
            f"the demo has already run here: its report is {root / 'report.html'}",
            where=str(root),
            remedy="open the report, or add --overwrite to run the demo again",
        )
    check_output_free(root / "embeddings", "embed", overwrite=overwrite)
    corpus = docstrings.collect_docstrings(client=client)
    root.mkdir(parents=True, exist_ok=True)
    source = root / "docstrings.parquet"
    signature.write_table(corpus.table, source, "demo")
    embed(source, root / "embeddings", metadata_fields=METADATA[1:], overwrite=True, client=client)
    run(
        root / "embeddings",
        root / "run",
        model if n_clusters else KMeans(n_clusters=-(-len(corpus.table) // ROWS_PER_CLUSTER)),
        threshold,
        ReadOptions(embedding_field="embedding", metadata_fields=METADATA),
        floor=max(LEAST_FLOOR, threshold - FLOOR_MARGIN) if threshold >= LEAST_FLOOR else None,
        overwrite=overwrite,
        client=client,
    )
    found = examples.find_examples(root / "run", REPORT_EXAMPLES, client=client)
    write_report(root / "run", root / "report.html", title=TITLE, shown=found)
    return DemoResult(_demo_facts(corpus, root), found, root / "report.html")


def _demo_facts(corpus: Corpus, root: UPath) -> dict[str, str]:
    packages = corpus.table["package"].unique()
    found = {"docstrings": f"{len(corpus.table):,} from {corpus.files:,} files of {len(packages):,} packages"}
    if corpus.broken:
        found["files left out"] = f"{len(corpus.broken):,}, not valid Python of this version"
    seconds = manifest.read_manifest(root / "embeddings", "embed")["seconds"]
    shown = read_run_facts(root / "run")
    shown["seconds"] = f"embed {seconds:.1f}, {shown['seconds']}"
    return found | {name: value for name, value in shown.items() if name != "rows"}


def _make_heading(coloured: bool) -> Text:
    marks = {
        side: _mark_text(text, side, coloured) for side, text in (("kept", "kept one"), ("dropped", "dropped one"))
    }
    return Text.assemble(
        ("Some of the near-duplicates", "bold"), ", with the words that only the ", marks["kept"], " or only the ",
        marks["dropped"], " has",
    )  # fmt: skip


def _show_example(number: int, example: Example, coloured: bool) -> Iterator[RenderableType]:
    """Yield the score, sources, places and words of one example."""
    yield Text.assemble(
        (f"{number:>2}  ", "dim"), (f"{example.score:.3f}", "bold"), "  ",
        (f"{example.kept.source}", "bold"), " and ", (f"{example.dropped.source}", "bold"),
    )  # fmt: skip
    more = f" and {example.others:,} more" if example.others else ""
    for side, row, note in (("kept", example.kept, ""), ("dropped", example.dropped, more)):
        place = Text.assemble((f"{side:<9}", STYLES[side]), examples.describe_place(row), (note, "dim"))
        yield Padding(place, INDENT)
    stretches = examples.compare_texts(example.kept.text, example.dropped.text)
    yield Padding(Text(" ").join(_mark_text(s.text, s.side, coloured) for s in stretches), INDENT)


def _mark_text(text: str, side: str, coloured: bool) -> Text:
    before, after = ("", "") if coloured else MARKS[side]
    return Text(f"{before}{text}{after}", STYLES[side])

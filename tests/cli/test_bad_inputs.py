"""Every mistake gets a message that says what, where and what to do; no traceback, and nothing is written.

As a program this writes them all: ``PYTHONPATH=tests python tests/cli/test_bad_inputs.py > docs/reference/errors.md``.
"""

from __future__ import annotations

import gc
import gzip
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import dask
import distributed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from daskmeans import KMeans
from daskmeans.cli import session
from daskmeans.cli.main import main
from daskmeans.errors import DaskmeansError
from helpers import ROOT, blobs, write_embeddings

X = blobs(n=60, d=8, copies=5)


@dataclass(frozen=True)
class Case:
    """A mistake: what to prepare below a directory, the command, its exit status, and what the message must hold."""

    name: str
    prepare: Callable[[Path], object]
    command: str
    status: int
    words: tuple[str, ...]


def table(path: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), path)


def good(at: Path) -> None:
    write_embeddings(at / "in.parquet", X, text=["t"] * len(X))


def spoilt(row: int, value: float) -> Callable[[Path], object]:
    def prepare(at: Path) -> None:
        Y = X.copy()
        Y[row, 3] = value
        write_embeddings(at / "in.parquet", Y)

    return prepare


def zero(at: Path) -> None:
    Y = X.copy()
    Y[17] = 0
    write_embeddings(at / "in.parquet", Y)


def delta_table(at: Path) -> None:
    write_embeddings(at / "in" / "a.parquet", X)
    (at / "in" / "_delta_log").mkdir()
    (at / "in" / "_delta_log" / "00000000000000000000.json").write_text("{}")


def two_dimensions(at: Path) -> None:
    write_embeddings(at / "in" / "a.parquet", X)
    write_embeddings(at / "in" / "b.parquet", X[:, :5].copy())


def ids(change: Callable[[list], object]) -> Callable[[Path], object]:
    def prepare(at: Path) -> None:
        names: list = [f"row-{i}" for i in range(len(X))]
        change(names)
        write_embeddings(at / "in.parquet", X, ids=names)

    return prepare


def lists(change: Callable[[list], object]) -> Callable[[Path], object]:
    def prepare(at: Path) -> None:
        vectors: list = [list(map(float, x)) for x in X]
        change(vectors)
        table(at / "in.parquet", id=list(range(len(X))), embedding=pa.array(vectors, pa.list_(pa.float32())))

    return prepare


def truncated(at: Path) -> None:
    good(at)
    whole = (at / "in.parquet").read_bytes()
    (at / "in.parquet").write_bytes(whole[: len(whole) // 2])


def modelled(at: Path) -> None:
    good(at)
    KMeans(3).fit(X).save(at / "model")


def other_model(at: Path) -> None:
    good(at)
    KMeans(3).fit(X[:, :5].copy()).save(at / "model")


def unfinished_model(at: Path) -> None:
    modelled(at)
    manifest = at / "model" / "_manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished": true', '"finished": false'))


def occupied(at: Path) -> None:
    good(at)
    (at / "out").mkdir()
    (at / "out" / "thesis.tex").write_text("years of work")


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda at: (at / name).write_bytes(data)


def array(values: np.ndarray) -> Callable[[Path], object]:
    return lambda at: np.save(at / "in.npy", values)


def cut_array(at: Path) -> None:
    np.save(at / "in.npy", X)
    whole = (at / "in.npy").read_bytes()
    (at / "in.npy").write_bytes(whole[:-100])


def duplicated(rows: list) -> None:
    rows[9] = rows[40] = rows[2]


def at_row(i: int, value: object) -> Callable[[list], object]:
    return lambda rows: rows.__setitem__(i, value)


FIT = "fit IN/in.parquet --model OUT --n-clusters 3"
FIT_JSON = FIT.replace("in.parquet", "in.jsonl").replace("3", "1")
FIT_NPY = FIT.replace("in.parquet", "in.npy")
CONFIGURED = "run IN/c.yaml --out OUT"
LINE = '{"id": 1, "v": [1.0, 2.0]}\n'
RUN = "run IN/in.parquet --out OUT --n-clusters 3 --threshold 0.9"
ASSIGN = "assign IN/in.parquet --model IN/model --out OUT"

CASES = [
    Case("no such path", lambda at: None, "fit IN/none.parquet --model OUT --n-clusters 3", 2, ("none.parquet",
         "no such")),
    Case("empty glob", lambda at: None, "fit IN/*.parquet --model OUT --n-clusters 3", 2, ("*.parquet",)),
    Case("empty directory", lambda at: (at / "in").mkdir(), "fit IN/in --model OUT --n-clusters 3", 2, ("/in",)),
    Case("no rows", lambda at: write_embeddings(at / "in.parquet", X[:0]), FIT, 2, ("in.parquet", "no rows")),
    Case("not Parquet", lambda at: (at / "in.parquet").write_text("id,x\n1,2\n"), FIT, 1, ("in.parquet", "not",
         "Parquet")),
    Case("truncated Parquet", truncated, FIT, 1, ("in.parquet", "Parquet")),
    Case("unknown suffix", lambda at: (at / "in.csv").write_text("1"), "fit IN/in.csv --model OUT --n-clusters 3", 2,
         ("in.csv", ".jsonl")),
    Case("Parquet of another name", lambda at: [write_embeddings(at / "in" / "a.parquet.snappy", X),
         write_embeddings(at / "in" / "b.parquet", X)], "fit IN/in --model OUT --n-clusters 3", 2,
         ("a.parquet.snappy", ".parquet", "glob", "--format parquet")),
    Case("Delta table", delta_table, "fit IN/in --model OUT --n-clusters 3", 2, ("/in", "Delta", "daskmeans[lakes]")),
    Case("embedding column missing", good, f"{FIT} --embedding-field vector", 2, ("'vector'", "embedding")),
    Case("id column missing", good, f"{FIT} --id-field key", 2, ("'key'", "--id-field")),
    Case("metadata column missing", good, f"{RUN} --metadata-field txt", 2, ("'txt'", "text")),
    Case("two embedding columns", lambda at: table(at / "in.parquet", id=[1], a=[[1.0]], b=[[2.0]]), FIT, 2,
         ("a", "b", "--embedding-field")),
    Case("no embedding column", lambda at: table(at / "in.parquet", id=[1], a=["x"]), FIT, 2, ("embedding", "a")),
    Case("ragged vectors", lists(at_row(11, [1.0, 2.0])), FIT, 1, ("in.parquet", "row 11", "2", "8")),
    Case("null vector", lists(at_row(12, None)), FIT, 1, ("in.parquet", "row 12", "null", "--on-bad-row skip")),
    Case("null element", lists(at_row(13, [None] + [1.0] * 7)), FIT, 1, ("in.parquet", "row 13", "null")),
    Case("NaN", spoilt(14, np.nan), FIT, 1, ("in.parquet", "row 14", "NaN", "--on-bad-row skip")),
    Case("infinity", spoilt(15, np.inf), FIT, 1, ("in.parquet", "row 15", "infinity")),
    Case("zero vector", zero, FIT, 1, ("in.parquet", "row 17", "zero", "--no-normalize")),
    Case("dimension differs between files", two_dimensions, "fit IN/in --model OUT --n-clusters 3", 1,
         ("a.parquet", "b.parquet", "8", "5")),
    Case("dimension differs from the model", other_model, ASSIGN, 1, ("8 dimensions", "5", "model")),
    Case("null id", ids(at_row(18, None)), RUN, 1, ("in.parquet", "row 18", "id")),
    Case("duplicate id", ids(duplicated), RUN, 1, ("'row-2'", "row 2", "row 9", "--on-bad-row skip")),
    Case("n_clusters below 1", good, "fit IN/in.parquet --model OUT --n-clusters 0", 2, ("n_clusters", "0", ">= 1")),
    Case("n_clusters above rows", good, "fit IN/in.parquet --model OUT --n-clusters 61", 2, ("61", "60")),
    Case("n_clusters not a number", good, "fit IN/in.parquet --model OUT --n-clusters many", 2, ("many",)),
    Case("threshold above 1", good, "run IN/in.parquet --out OUT --n-clusters 3 --threshold 1.5", 2, ("1.5", "[0, 1]")),
    Case("eps below 0", good, "run IN/in.parquet --out OUT --n-clusters 3 --eps -0.1", 2, ("-0.1", "[0, 1]")),
    Case("threshold and eps", good, f"{RUN} --eps 0.1", 2, ("both threshold and eps",)),
    Case("floor above threshold", good, f"{RUN} --search exact --floor 0.99", 2, ("--floor", "0.99", "threshold")),
    Case("unknown keep", good, f"{RUN} --keep best", 2, ("best", "hard")),
    Case("keep column missing", good, f"{RUN} --keep size:desc", 2, ("size", "--metadata-field")),
    Case("init neither name nor path", good, f"{FIT} --init kmeans", 2, ("kmeans", "k-means||")),
    Case("unknown engine", good, f"{FIT} --engine faiss", 2, ("faiss", "cuml", "native")),
    Case("output inside the input", lambda at: write_embeddings(at / "in" / "a.parquet", X),
         "run IN/in --out IN/in/out --n-clusters 3 --threshold 0.9", 2,
         ("inside", "--out")),
    Case("output not empty", occupied, "fit IN/in.parquet --model IN/out --n-clusters 3", 2, ("did not write", "/out")),
    Case("output finished already", modelled, "fit IN/in.parquet --model IN/model --n-clusters 3", 2, ("--overwrite",)),
    Case("model is not one", lambda at: [good(at), (at / "model").mkdir()], ASSIGN, 2, ("/model", "daskmeans fit")),
    Case("model is missing", good, ASSIGN, 2, ("/model", "no such path")),
    Case("model is unfinished", unfinished_model, ASSIGN, 2, ("/model", "unfinished", "again")),
    Case("clusters are not clusters", modelled, "dedup IN/model --out OUT --threshold 0.9", 2, ("daskmeans assign",)),
    Case("decisions are not decisions", modelled, "apply IN/model IN/in.parquet --out OUT", 2, ("daskmeans dedup",)),
    Case("unreachable scheduler", good, f"{FIT} --scheduler tcp://127.0.0.1:9", 1, ("tcp://127.0.0.1:9",
         "dask scheduler")),
    Case("missing extra", good, f"{FIT} --device gpu", 2, ("cudf", 'pip install "daskmeans[gpu]"')),
    Case("missing backend", good, "fit gs://bucket/x.parquet --model OUT --n-clusters 3", 2, ("gcsfs", "pip install")),
    Case("malformed JSON line", text("in.jsonl", LINE + '{"id": 2, "v": [1.0\n'), FIT_JSON, 1,
         ("in.jsonl", "row 1", "JSON")),
    Case("JSON line without an object", text("in.jsonl", LINE + "[1, 2]\n"), FIT_JSON, 1,
         ("in.jsonl", "row 1", "object")),
    Case("null as first JSON line", text("in.jsonl", "null\n" + LINE), FIT_JSON, 1, ("in.jsonl", "row 0", "null")),
    Case("two objects in a JSON line", text("in.jsonl", LINE + LINE.strip() + LINE), FIT_JSON, 1,
         ("in.jsonl", "row 1", "more than one object")),
    Case("text in a JSON vector", text("in.jsonl", LINE + '{"id": 2, "v": [1.0, "b"]}\n'), FIT_JSON, 1,
         ("in.jsonl", "row 1", "list<item: float>")),
    Case("JSON line without a vector", text("in.jsonl", LINE + '{"id": 2}\n'), FIT_JSON, 1,
         ("in.jsonl", "row 1", "null", "--on-bad-row skip")),
    Case("JSON vector of another length", text("in.jsonl", LINE + '{"id": 2, "v": [1.0]}\n'), FIT_JSON, 1,
         ("in.jsonl", "row 1", "1 elements", "2")),
    Case("JSON that is not UTF-8", text("in.jsonl", b'{"id": "a", "v": [1.0]}\n{"id": "\xff", "v": [2.0]}\n'), FIT_JSON,
         1, ("in.jsonl", "row 1", "UTF")),
    Case("no JSON lines", text("in.jsonl", "\n\n"), FIT_JSON, 2, ("in.jsonl", "no rows")),
    Case("gzip that is none", text("in.jsonl.gz", LINE), FIT_JSON.replace("jsonl", "jsonl.gz"), 1, ("in.jsonl.gz",)),
    Case("truncated gzip", text("in.jsonl.gz", gzip.compress(LINE.encode() * 99, mtime=0)[:-20]),
         FIT_JSON.replace("jsonl", "jsonl.gz"), 1, ("in.jsonl.gz",)),
    Case("not a NumPy file", text("in.npy", "1, 2, 3"), FIT_NPY, 1, ("in.npy", "not a NumPy file", "np.save")),
    Case("truncated NumPy file", cut_array, FIT_NPY, 1, ("in.npy", "ends before its last row")),
    Case("one-dimensional array", array(np.ones(9, np.float32)), FIT_NPY, 1, ("in.npy", "shape (9,)", "2-D")),
    Case("array of integers", array(np.ones((9, 3), np.int64)), FIT_NPY, 1, ("in.npy", "int64", "float32")),
    Case("array of Python objects", array(np.array([[None, {}], [1, 2]])), FIT_NPY, 1, ("in.npy", "object", "float32")),
    Case("array stored by columns", array(np.asfortranarray(X)), FIT_NPY, 1, ("in.npy", "column by column", "np.save")),
    Case("NaN in an array", array(np.where(np.arange(60)[:, None] == 14, np.float32(np.nan), X)), FIT_NPY, 1,
         ("in.npy", "row 14", "NaN", "--on-bad-row skip")),
    Case("metadata of an array", array(X), RUN.replace("in.parquet", "in.npy") + " --metadata-field text", 2,
         ("in.npy", "'text'")),
    Case("files of two formats", lambda at: [good(at), array(X)(at)], "fit IN/in.parquet IN/in.npy --model OUT "
         "--n-clusters 3", 2, ("mixes formats", "in.parquet", "in.npy")),
    Case("file named twice", good, "fit IN/in.parquet IN/in.parquet --model OUT --n-clusters 3", 2,
         ("in.parquet", "named twice")),
    Case("empty text", lambda at: table(at / "in.parquet", id=[1, 2], text=["a", " "]),
         "embed IN/in.parquet --out OUT", 1,
         ("in.parquet", "row 1", "text", "--on-bad-row skip")),
    Case("unknown encoder", lambda at: table(at / "in.parquet", id=[1], text=["a"]),
         "embed IN/in.parquet --out OUT --encoder bert", 2, ("bert", "wordllama")),
    Case("storage options not JSON", good, f"{FIT} --storage-options key=1", 2, ("--storage-options", "JSON")),
    Case("unknown YAML key", text("c.yaml", "input: x\nn_cluster: 3\n"), CONFIGURED, 2,
         ("'n_cluster'", "n_clusters", "c.yaml")),
    Case("YAML without input", text("c.yaml", "n_clusters: 3\n"), CONFIGURED, 2, ("'input'", "c.yaml")),
    Case("broken YAML", text("c.yaml", "input: x\nkeep: [hard\nn_clusters: 3\n"), CONFIGURED, 2,
         ("c.yaml, line", "not valid YAML")),
    Case("YAML that holds a list", text("c.yaml", "- input\n- x\n"), CONFIGURED, 2, ("c.yaml", "n_clusters: 1000")),
    Case("YAML key twice", text("c.yaml", "input: x\nn-clusters: 3\nn_clusters: 4\n"), CONFIGURED, 2,
         ("c.yaml", "'n_clusters'", "twice")),
    Case("YAML value of another kind", text("c.yaml", "input: x\nn_clusters: 3.7\nthreshold: 0.9\n"), CONFIGURED, 2,
         ("c.yaml", "'n_clusters'", "3.7")),
    Case("YAML flag that is no yes or no", text("c.yaml", "input: x\nn_clusters: 3\noverwrite: maybe\n"), CONFIGURED, 2,
         ("c.yaml", "'overwrite'", "true or false")),
    Case("YAML that would run code", text("c.yaml", "input: !!python/object/apply:os.getcwd []\n"), CONFIGURED, 2,
         ("c.yaml, line 1", "not valid YAML")),
    Case("no such YAML", lambda at: None, CONFIGURED, 2, ("c.yaml", "no such file")),
    Case("output is a file", lambda at: [good(at), (at / "f").write_text("x")], RUN.replace("OUT", "IN/f"), 2,
         ("is a file",)),
    Case("output below a file", lambda at: [good(at), (at / "f").write_text("x")], FIT.replace("OUT", "IN/f/x"), 2,
         ("/f/x", "cannot be created")),
    Case("unknown kind of URL", good, f"{FIT} --init foo://x", 2, ("foo",)),
    Case("workers of a scheduler", good, f"{FIT} --n-workers 3 --scheduler tcp://127.0.0.1:9", 2,
         ("--n-workers", "--scheduler")),
    Case("local directory", good, f"{FIT} --local-directory /proc/none", 1, ("--local-directory",)),
    Case("memory limit", good, f"{FIT} --memory-limit banana", 2, ("banana", "4GiB")),
    Case("GPU options without a GPU", good, f"{FIT} --device cpu --rmm-pool-size 1GB", 2,
         ("--rmm-pool-size", "--device gpu")),
    Case("recall of an exact search for labels", good, f"{RUN} --assign-recall 0.9", 2, ("--assign-recall",
         "--assign ann")),
    Case("workers without advice", good, "info IN/in.parquet --n-workers 2", 2, ("--n-workers", "--advise")),
    Case("clusters without advice", good, "info in.parquet --n-clusters 7", 2, ("--n-clusters", "--advise")),
    Case("seed too large", good, f"{FIT} --random-state {2**70}", 2, ("random_state", "2^62")),
    Case("keep column twice", good, f"{RUN} --metadata-field text --keep text:asc --keep text:desc", 2, ("twice",)),
    Case("reserved column", lambda at: table(at / "in.parquet", centroid=[1, 2, 3], v=[[1.0], [2.0], [3.0]]),
         f"{RUN} --id-field centroid", 2, ("'centroid'", "another name")),
    Case("unknown info path", lambda at: None, "info IN/none", 2, ("none", "no such")),
]  # fmt: skip


def run(case: Case, at: Path, scheduler: str | None) -> Result:
    """The command of `case` on what it prepares below `at`."""
    (at / "in").mkdir()
    case.prepare(at / "in")
    words = case.command.replace("IN/", f"{at}/in/").replace("OUT", f"{at}/out").split()
    local = {"--scheduler", "--device", "--memory-limit", "--local-directory"} & {*words}
    if scheduler and words[0] != "info" and not local:
        words += ["--scheduler", scheduler]
    # Where nobody listens this is how long it takes.
    with dask.config.set({"daskmeans.connect-timeout": 1 if "tcp://127.0.0.1:9" in words else 60}):
        result = CliRunner(env={"COLUMNS": "300"}).invoke(main, words)
    if local:
        with warnings.catch_warnings():  # distributed leaves a socket to the collector where it gives up connecting
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    return result


PAGE = ROOT / "docs" / "reference" / "errors.md"
HEAD = """# Errors

A message says what was found, where, what was expected, and what you can do. A command that ends with an error has
the exit status 2 if it was used wrongly, and 1 if the work failed. Ctrl-C ends it with 130. A traceback means a bug in
daskmeans.

In Python each error is an exception below `daskmeans.DaskmeansError`. Its attributes `found`, `where`, `expected` and
`remedy` are the parts of the message.

## Exceptions

The class, what else it is an instance of, the exit status, and what it means. They are in `daskmeans.errors`
([reference](python.md#errors-and-warnings)).

{tree}

## Messages

What the commands answer to mistakes, and to files that are not what they should be. None of them writes anything.
`ci/fuzz.py` tries many more, made at random.

`PYTHONPATH=tests python tests/cli/test_bad_inputs.py > docs/reference/errors.md` makes this page, and `pytest` compares
it with what the commands say. Libraries say what stands in parentheses, in the versions of `ci/constraints.txt`.
"""


def tree(error: type[DaskmeansError] = DaskmeansError, depth: int = 0) -> list[str]:
    """The class and those below it, as nested lists."""
    others = [base.__name__ for base in error.__bases__ if base.__module__ == "builtins" and base is not Exception]
    kinds = f" ({', '.join(f'`{name}`' for name in others)})" if others else ""
    meaning = (error.__doc__ or "").splitlines()[0]
    here = f"{'  ' * depth}- `{error.__name__}`{kinds}, status {error.exit_status}: {meaning}"
    below = [each for each in error.__subclasses__() if each.__module__ == DaskmeansError.__module__]
    return [here, *(line for each in below for line in tree(each, depth + 1))]


def head() -> str:
    return HEAD.format(tree="\n".join(tree()))


def section(case: Case, result: Result, at: Path) -> str:
    """What the page says of a mistake, with paths below `at` cut short."""
    told = re.split(r"(?im)^(?=error:? )", result.stderr.replace(f"{at}/in/", "").replace(f"{at}/", ""))[-1]
    first, *more = map(str.strip, told.strip().split("\n"))
    command = case.command.replace("IN/", "").replace("OUT", "out")
    lines = [f"$ daskmeans {command}", first, *(f"  {line}" for line in more), f"[exit status {case.status}]"]
    return "\n".join([f"### {title(case)}", "", "```text", *lines, "```", ""])


def title(case: Case) -> str:
    return case.name[0].upper() + case.name[1:]


def content(at: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in at.rglob("*") if p.is_file()}


def shown(text: str) -> list[str]:
    """Lines of the page without what libraries say, which changes with their versions."""
    return [re.sub(r" \([^()]*\)", "", each) for each in text.splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_named_and_changes_nothing(case, tmp_path, two_workers):
    before: dict[str, bytes] = {}

    def prepare(at: Path) -> None:
        case.prepare(at)
        before.update(content(at))

    result = run(replace(case, prepare=prepare), tmp_path, two_workers.scheduler_address)
    assert result.exit_code == case.status, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    for word in case.words:
        assert word in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()
    assert content(tmp_path / "in") == before
    assert "\n".join(shown(section(case, result, tmp_path))) in "\n".join(shown(PAGE.read_text()))


# Mistakes in usage that show only when all files were read, or that workers tell.
TOLD_LATER = {"n_clusters above rows"}


@pytest.mark.parametrize("case", [case for case in CASES if case.status == 2], ids=lambda case: case.name)
def test_wrong_usage_starts_no_workers(case, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(session, "start_cluster", lambda settings: started.append(settings) or 1 / 0)
    run(case, tmp_path, None)
    assert bool(started) == (case.name in TOLD_LATER)


def test_the_page_has_these_mistakes():
    page = PAGE.read_text()
    assert page.startswith(head())
    assert re.findall("(?m)^### (.*)$", page) == [title(case) for case in CASES]


def test_skipped_rows_are_listed_with_their_reasons(tmp_path, two_workers):
    vectors: list = [list(map(float, x)) for x in X]
    vectors[3], vectors[4], vectors[5] = None, [float("nan")] * 8, [0.0] * 8
    names = [f"row-{i}" for i in range(len(X))]
    names[7] = names[6]
    table(tmp_path / "in.parquet", id=names, embedding=pa.array(vectors, pa.list_(pa.float32())))
    words = f"run {tmp_path}/in.parquet --out {tmp_path}/out --n-clusters 3 --threshold 0.9 --on-bad-row skip --json"
    result = CliRunner().invoke(main, [*words.split(), "--scheduler", two_workers.scheduler_address])
    assert result.exit_code == 0, result.output
    for step in ("model", "clusters"):
        rejects = pq.read_table(tmp_path / "out" / step / "_rejects/rejects").to_pydict()
        assert rejects["row"] == [3, 4, 5, 7]
        assert rejects["id"] == ["row-3", "row-4", "row-5", "row-6"]
        assert all(rejects["reason"])
    assert pq.read_table(tmp_path / "out" / "dedup" / "decisions").num_rows == len(X) - 4


if __name__ == "__main__":
    print(head())
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        for each in CASES:
            with tempfile.TemporaryDirectory() as folder:
                print(section(each, run(each, Path(folder), cluster.scheduler_address), Path(folder)), flush=True)

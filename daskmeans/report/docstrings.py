"""A corpus that every environment has: the docstrings of the Python packages installed in it.

Libraries copy each other's functions and texts, so it holds exact and near-duplicates that nobody planted.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import sysconfig
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import dask
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from distributed import Client

from daskmeans.errors import DataError
from daskmeans.runtime import executor

SHORTEST = 40
TESTS = {"test", "tests"}
CHUNK_BYTES = 2 << 20
SCHEMA = pa.schema(
    {"id": pa.string(), "text": pa.string(), "package": pa.string(), "file": pa.string(), "line": pa.int64()}
)
SOURCE_NAME = "<installed source>"

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Corpus:
    """Docstrings and their places in the source.

    Attributes
    ----------
    table : pyarrow.Table
        Columns ``id`` ("package.module:Qual.name", unique), ``text``, ``package``, ``file`` (path below site-packages)
        and ``line``.
    files : int
        Source files that were read.
    broken : tuple of str
        Source files that are not valid in this version of Python, and were left out.
    """

    table: pa.Table
    files: int
    broken: tuple[str, ...]


def collect_docstrings(
    packages: Collection[str] | None = None, *, client: Client | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Corpus:
    """Collect the docstrings of the modules, classes and functions of the installed packages.

    They are read from the source, and nothing is imported. Docstrings of fewer than 40 characters and those of tests
    are left out. The order is that of the files' paths.

    Parameters
    ----------
    packages : collection of str, optional
        Top-level names to read, such as ``{"numpy", "dask"}``. Default: all.
    client : distributed.Client, optional
        Where to read; workers must see the same files.
    chunk_bytes : int
        Approximate bytes that one task reads.

    Raises
    ------
    DataError
        No docstrings are found.

    Examples
    --------
    >>> corpus = collect_docstrings({"toolz"})
    >>> "toolz.functoolz:curry" in corpus.table["id"].to_pylist()
    True
    """
    found = [(root, file) for root in _find_roots() for file in _find_sources(root, packages)]
    tasks = [
        dask.delayed(_read_chunk, pure=False)(chunk, dask_key_name=f"docstrings-{dask.base.tokenize(chunk)}-{number}")
        for number, chunk in enumerate(_split_chunks(found, chunk_bytes))
    ]
    read = executor.compute(tasks, label="collect docstrings", client=client)
    table = pa.concat_tables([SCHEMA.empty_table(), *(part for part, _ in read)])
    if not len(table):
        raise DataError(
            "no docstrings are found", where=", ".join(map(str, _find_roots())), expected="installed packages"
        )
    return Corpus(_number_ids(table), len(found), tuple(file for _, broken in read for file in broken))


def _find_roots() -> list[Path]:
    """Return the directories that packages are installed in."""
    return sorted({Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")})


def _find_sources(root: Path, packages: Collection[str] | None) -> Iterator[str]:
    """Yield source files below `root` as sorted relative paths, without tests and files outside packages."""
    for top in sorted(root.iterdir()):
        if not top.stem.isidentifier() or not (packages is None or top.stem in packages):
            continue
        files = sorted(top.rglob("*.py")) if top.is_dir() else [top] if top.suffix == ".py" else []
        for file in (file.relative_to(root) for file in files):
            if not TESTS.intersection(file.parts):
                yield file.as_posix()


def _split_chunks(found: list[tuple[Path, str]], nbytes: int) -> Iterator[list[tuple[Path, str]]]:
    """Split `found` into consecutive chunks of about `nbytes`."""
    chunk, size = [], 0
    for root, file in found:
        chunk.append((root, file))
        size += (root / file).stat().st_size
        if size >= nbytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _read_chunk(files: list[tuple[Path, str]]) -> tuple[pa.Table, list[str]]:
    """Return the docstrings of `files`, and the files that cannot be parsed."""
    rows, broken = [], []
    with _freeze_collector():
        for root, file in files:
            try:
                rows += _read_source(root, file)
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
                broken.append(file)
    columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA), broken


def _read_source(root: Path, file: str) -> list[tuple[str, str, str, str, int]]:
    """Return the rows of the corpus from the source `file` below `root`."""
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    rows = []
    for name, node in _find_documented(_parse_source((root / file).read_bytes())):
        text = ast.get_docstring(node)
        if text and len(text) >= SHORTEST:
            place = node.body[0].lineno
            rows.append(
                (f"{module}:{name}" if name else module, _drop_surrogates(text), module.split(".")[0], file, place)
            )
    return rows


@contextlib.contextmanager
def _freeze_collector() -> Iterator[None]:
    """Hide all existing objects from the garbage collector in the ``with`` block.

    Otherwise half the time would go into collections over them, which the many nodes of a syntax tree trigger.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _parse_source(source: bytes) -> ast.Module:
    # The compiler warns about invalid escapes in other people's code. The module name limits the filter to these, so
    # any thread may set it at any time.
    warnings.filterwarnings("ignore", module=SOURCE_NAME)
    return ast.parse(source, filename=SOURCE_NAME)


def _find_documented(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Documented]]:
    """Yield the qualified name and node of `node` and of the classes and functions in it, except local ones."""
    if isinstance(node, ast.Module):
        yield "", node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{child.name}"
            yield name, child
            if isinstance(child, ast.ClassDef):
                yield from _find_documented(child, f"{name}.")
        elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _find_documented(child, prefix)


def _drop_surrogates(text: str) -> str:
    r"""Return `text` without lone surrogates, as from an escape like ``\ud800``, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _number_ids(table: pa.Table) -> pa.Table:
    """Return `table` with "#2", "#3", … after repeated ids, such as that of a property's setter."""
    ids = table["id"].to_pandas()
    again = ids.groupby(ids).cumcount() + 1
    unique = ids.where(again == 1, ids + "#" + again.astype(str))
    return table.set_column(0, "id", pc.cast(pa.array(pd.Series(unique)), pa.string()))

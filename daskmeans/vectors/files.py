"""Which files an input is made of: a file, a directory, a glob, or a list of these, on any fsspec URL."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from upath import UPath

from daskmeans import manifest, stores
from daskmeans.errors import DaskmeansError, DataError, MissingExtraError, NotFoundError, OutputError, UsageError

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".npy": "npy",
}
PACKINGS = (".gz", ".zst")
SUFFIXES = ".parquet, .pq, .jsonl, .ndjson (also with .gz or .zst) or .npy"
BACKENDS = {"gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs"}
VERSION_KEYS = ("ETag", "etag", "LastModified", "mtime", "updated", "created")

Input = str | os.PathLike | UPath


def listed(inputs: Input | Sequence[Input]) -> list[Input]:
    """One or several inputs as a list."""
    return [inputs] if isinstance(inputs, Input) else list(inputs)


def find_files(inputs: Input | Sequence[Input], storage_options: Mapping[str, Any] | None = None) -> list[UPath]:
    """Files of `inputs`: those of a directory or a glob sorted by path, those of a list in its order.

    Raises
    ------
    NotFoundError
        A path that does not exist, or a glob that matches nothing.
    UsageError
        A file of an unknown format, files of several formats, a file named twice, or an unknown kind of URL.
    """
    found = [file for one in listed(inputs) for file in _expand(open_path(one, storage_options))]
    if not found:
        raise UsageError("the input is an empty list", expected=f"files: {SUFFIXES}")
    formats: dict[str, UPath] = {}
    for file in found:
        formats.setdefault(format_of(file), file)
    if len(formats) > 1:
        examples = " and ".join(f"{file} ({name})" for name, file in formats.items())
        raise UsageError(
            f"the input mixes formats: {examples}",
            expected="files of one format",
            remedy="name the files of one format, such as 'vectors/*.parquet'",
        )
    seen: dict[str, UPath] = {}
    for file in found:
        place = _real(file)
        if before := seen.get(place):
            also = "" if str(before) == str(file) else f", also as {before}"
            raise UsageError(f"the file is named twice{also}", where=str(file), remedy="name every input once")
        seen[place] = file
    return found


def directories(inputs: Input | Sequence[Input], storage_options: Mapping[str, Any] | None = None) -> list[UPath]:
    """Those of `inputs` that are directories."""
    return [path for path in (open_path(one, storage_options) for one in listed(inputs)) if path.is_dir()]


def refuse_overlap(out: UPath, inputs: Sequence[UPath]) -> None:
    """Make sure that the directory `out` neither lies inside one of `inputs`, files or directories, nor holds one.

    Raises
    ------
    OutputError
    """
    mine = _real(out).rstrip("/") + "/"
    for one in inputs:
        theirs = _real(one).rstrip("/") + "/"
        if out.fs == one.fs and (mine.startswith(theirs) or theirs.startswith(mine)):
            raise OutputError(
                "the output lies inside the input" if mine.startswith(theirs) else "the output holds the input",
                where=str(out),
                expected=f"a directory apart from {one}",
                remedy="choose another --out",
            )


def format_of(path: UPath) -> str:
    """``parquet``, ``jsonl`` or ``npy``, from the name of `path`."""
    name = path.name.lower()
    stem = next((name.removesuffix(packing) for packing in PACKINGS if name.endswith(packing)), name)
    format_ = FORMATS.get("." + stem.rpartition(".")[2])
    if format_ is None or (stem != name and format_ != "jsonl"):
        expected = f"a name ending in {SUFFIXES}"
        raise UsageError("the format is not known from the name", where=str(path), expected=expected)
    return format_


def open_path(path: Input, storage_options: Mapping[str, Any] | None = None) -> UPath:
    """`path` as an absolute UPath whose filesystem is there."""
    if not str(path):
        raise UsageError("the path is empty", expected="a path or a URL")
    try:
        opened = UPath(path)
        if is_local(opened):
            return opened.expanduser().absolute()
        opened = stores.watched(UPath(opened, **(storage_options or {})))
        opened.fs  # noqa: B018  the import of the backend happens here
        return opened
    except ImportError:
        raise _missing_backend(str(path)) from None
    except Exception as error:  # whatever a backend raises for options it does not take
        raise UsageError(
            f"the URL cannot be opened ({type(error).__name__}: {_without(storage_options, str(error))})",
            where=str(path),
            expected="a path, or a URL of a kind that fsspec knows, with the storage options that it takes",
        ) from None


def _without(options: Any, text: str) -> str:
    """`text` in which no value of `options` can be read: some of them are secrets."""
    if isinstance(options, Mapping):
        return functools.reduce(lambda left, value: _without(value, left), options.values(), text)
    return text.replace(options, "***") if options and isinstance(options, str) else text


def inside(root: UPath, name: str) -> UPath:
    """The file `name`, as a manifest or an object store tells it, below the directory `root`.

    Raises
    ------
    DataError
        It lies somewhere else.

    Examples
    --------
    >>> inside(UPath("/data/clusters"), "../x")
    Traceback (most recent call last):
    ...
    daskmeans.errors.DataError: /data/clusters: it names the file '../x', which is not below it
    """
    if not name or name.startswith("/") or "://" in name or {"..", "."} & set(name.replace("\\", "/").split("/")):
        raise DataError(f"it names the file {name!r}, which is not below it", where=str(root))
    return root / name


def is_local(path: UPath) -> bool:
    """Whether `path` lies on a disk of this machine, as far as the URL tells."""
    return path.protocol in ("", "file", "local")


def _real(path: UPath) -> str:
    """Where `path` lies: on a disk of this machine without links and ``..``, so that a place has one name."""
    return os.path.realpath(path.path) if is_local(path) else path.path


@contextlib.contextmanager
def reached(out: UPath) -> Iterator[None]:
    """Explain what goes wrong where a worker writes below the directory `out`, which the client has made."""
    try:
        yield
    except FileNotFoundError:
        raise OutputError(
            "a worker cannot see the output directory",
            where=str(out),
            remedy="give an --out that all workers reach",
        ) from None


@contextlib.contextmanager
def reading(path: UPath) -> Iterator[None]:
    """Turn whatever goes wrong while `path` is read into an error of ours.

    Only calls into file systems and parsers belong inside: every backend has exceptions of its own, so all are caught.
    """
    try:
        yield
    except (DaskmeansError, MemoryError):
        raise
    except FileNotFoundError:
        raise NotFoundError("no such file", where=str(path)) from None
    except PermissionError:
        raise UsageError("permission denied", where=str(path), remedy="make the file readable for this user") from None
    except pa.ArrowException as error:
        raise DataError(f"the file is damaged ({error})", where=str(path), remedy="write the file again") from error
    except Exception as error:
        found = f"the file cannot be read ({type(error).__name__}: {error})"
        raise DataError(found, where=str(path), remedy="check the file and the connection to its storage") from error


def facts(path: UPath) -> tuple[int, str]:
    """Size of `path` in bytes, and what tells its version: an etag or a time, empty if the storage knows neither."""
    with reading(path):
        info = path.fs.info(path.path)
    version = next((info[key] for key in VERSION_KEYS if info.get(key)), "")
    return int(info.get("size") or 0), str(version)


def _missing_backend(url: str) -> UsageError:
    protocol = url.split("://")[0]
    if protocol in ("s3", "s3a"):
        return MissingExtraError("s3fs", "s3")
    package = BACKENDS.get(protocol, f'"fsspec[{protocol}]"')
    found = f"{protocol}:// needs a package that is not installed"
    return UsageError(found, where=url, remedy=f"pip install {package}")


def _expand(path: UPath) -> list[UPath]:
    with reading(path):
        if path.is_file():
            format_of(path)
            return [path]
        if path.is_dir():
            return _in_directory(path, _below(path))
        if _has_magic(path.path):
            return _in_glob(path)
    raise NotFoundError("no such path", where=str(path), expected="a file, a directory or a glob")


class _Linked(LocalFileSystem):
    """A disk on which a link to a directory is one too, unless it leads back to what it is reached by from `top` on."""

    cachable = False

    def __init__(self, top: str) -> None:
        super().__init__()
        self._top = top.rstrip("/")
        self._real = functools.cache(os.path.realpath)

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> list[Any]:
        found = []
        for info in super().ls(path, detail=True, **kwargs):
            if info["type"] not in ("directory", "file") and os.path.isdir(info["name"]):
                info["type"] = "directory"
            if info["type"] != "directory" or not self._leads_back(info["name"]):
                found.append(info)
        return found if detail else [info["name"] for info in found]

    def _leads_back(self, folder: str) -> bool:
        above = (folder[:end] or "/" for end in range(len(self._top), len(folder)) if folder[end] == "/")
        return self._real(folder) in map(self._real, above)


def _below(top: UPath) -> AbstractFileSystem:
    """The file system to find files below `top` with."""
    return _Linked(top.path) if is_local(top) else top.fs


def _in_directory(root: UPath, fs: AbstractFileSystem) -> list[UPath]:
    """Files in `root`; of an output of ours those with rows, and it is refused if it is unfinished or holds none."""
    ours = manifest.read(root, "embed", "apply", "assign") if manifest.peek(root) else None
    if ours and ours["step"] == "assign":  # beside these there may be some that an append has not finished
        return [inside(root, name) for name in sorted(file["path"] for file in ours["outputs"])]
    prefix = root.path.rstrip("/") + "/"
    names = [found.removeprefix(prefix) for found in fs.find(root.path)]
    names = [name for name in names if not any(part.startswith((".", "_")) for part in name.split("/"))]
    if ours:
        names = [name for name in names if name != "rejects.parquet" and not name.startswith("rejects/")]
    return _supported([root / name for name in sorted(names)], root)


def _in_glob(pattern: UPath) -> list[UPath]:
    base = pattern
    while _has_magic(base.path):
        base = base.parent
    prefix = base.path.rstrip("/") + "/"
    fs = _below(base)
    matches = [base / found.removeprefix(prefix) for found in sorted(fs.glob(pattern.path))]
    if not matches:
        raise NotFoundError("the glob matches nothing", where=str(pattern), remedy="quote it, and check the path")
    # `**` matches a directory and also the files in it.
    files = {file.path: file for match in matches for file in (_in_directory(match, fs) if match.is_dir() else [match])}
    return _supported([files[path] for path in sorted(files)], pattern)


def _supported(files: list[UPath], where: UPath) -> list[UPath]:
    found = [file for file in files if _is_supported(file)]
    if not found:
        example = f", but {files[0].name} and the like" if files else ""
        raise UsageError(f"no file that can be read{example}", where=str(where), expected=f"files: {SUFFIXES}")
    return found


def _is_supported(path: UPath) -> bool:
    try:
        return bool(format_of(path))
    except UsageError:
        return False


def common_parent(paths: Sequence[str]) -> str:
    """Longest prefix of all `paths` that ends with a slash; empty if there is none.

    Examples
    --------
    >>> common_parent(["bucket/in/a/1.npy", "bucket/in/ab.npy"]), common_parent(["bucket/1.npy", "other/1.npy"])
    ('bucket/in/', '')
    """
    low, high = min(paths), max(paths)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[: low.rfind("/", 0, length) + 1]


def _has_magic(path: str) -> bool:
    return any(character in path for character in "*?[")

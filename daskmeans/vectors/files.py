"""Paths and URLs on any fsspec file system: names, opening, and errors."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from upath import UPath

from daskmeans.errors import DaskmeansError, DataError, MissingExtraError, NotFoundError, OutputError, UsageError
from daskmeans.storage import objectstore
from daskmeans.storage.result import Result

BACKEND_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs"}
VERSION_KEYS = ("ETag", "etag", "LastModified", "mtime", "updated", "created")

# A result stands for the directory of its step.
Input = str | os.PathLike | UPath | Result


def as_list(inputs: Input | Sequence[Input]) -> list[Input]:
    """Return one or several inputs as a list."""
    return [inputs] if isinstance(inputs, Input) else list(inputs)


def find_directories(inputs: Input | Sequence[Input], storage_options: Mapping[str, Any] | None = None) -> list[UPath]:
    """Return those of `inputs` that are directories."""
    return [path for path in (open_path(one, storage_options) for one in as_list(inputs)) if path.is_dir()]


def refuse_overlap(out: UPath, inputs: Sequence[UPath]) -> None:
    """Make sure that the directory `out` neither lies inside one of `inputs`, files or directories, nor contains one.

    Raises
    ------
    OutputError
    """
    mine = real_path(out).rstrip("/") + "/"
    for one in inputs:
        theirs = real_path(one).rstrip("/") + "/"
        if _is_same_storage(out, one) and (mine.startswith(theirs) or theirs.startswith(mine)):
            raise OutputError(
                "the output lies inside the input" if mine.startswith(theirs) else "the output contains the input",
                where=str(out),
                expected=f"a directory outside {one}",
                remedy="choose another --out",
            )


def open_path(path: Input, storage_options: Mapping[str, Any] | None = None) -> UPath:
    """Return `path`, or that of a result, as an absolute UPath whose file system is available."""
    if isinstance(path, Result):
        path = path.path
    if not str(path):
        raise UsageError("the path is empty", expected="a path or a URL")
    try:
        opened = UPath(_decode_file_url(path))
        if is_local(opened):
            return opened.expanduser().absolute()
        opened = objectstore.disable_listing_cache(UPath(opened, **(storage_options or {})))
        opened.fs  # noqa: B018  the import of the backend happens here
        return opened
    except ImportError:
        raise _missing_backend_error(str(path)) from None
    except Exception as error:  # whatever a backend raises for invalid options
        raise UsageError(
            f"the URL cannot be opened ({type(error).__name__}: {_redact(storage_options, str(error))})",
            where=str(path),
            expected="a path, or a URL that fsspec supports, with valid storage options",
        ) from None


def _decode_file_url(path: str | os.PathLike | UPath) -> str | os.PathLike | UPath:
    """Return the path that a URL of a local file stands for, without percent-encoding; anything else as it is.

    Examples
    --------
    >>> _decode_file_url("file:///tmp/with%20space/%C3%A9%25.parquet"), _decode_file_url("/tmp/100%25")
    ('/tmp/with space/é%.parquet', '/tmp/100%25')
    """
    if not isinstance(path, str) or not path.startswith("file:"):
        return path
    place = path.removeprefix("file:").removeprefix("//")
    return unquote(place.removeprefix("localhost") if place.startswith("localhost/") else place)


def _redact(options: Any, text: str) -> str:
    """Return `text` without any value of `options`, as some are secrets."""
    if isinstance(options, Mapping):
        return functools.reduce(lambda left, value: _redact(value, left), options.values(), text)
    return text.replace(options, "***") if options and isinstance(options, str) else text


def join_inside(root: UPath, name: str) -> UPath:
    """Return the file `name`, which comes from a manifest or an object store, below the directory `root`.

    Raises
    ------
    DataError
        The file lies outside `root`.

    Examples
    --------
    >>> join_inside(UPath("/data/clusters"), "../x")
    Traceback (most recent call last):
    ...
    daskmeans.errors.DataError: /data/clusters: it names the file '../x', which is not below it
    """
    if not name or name.startswith("/") or "://" in name or {"..", "."} & set(name.replace("\\", "/").split("/")):
        raise DataError(f"it names the file {name!r}, which is not below it", where=str(root))
    return root / name


def bare_path(path: UPath) -> str:
    """Return the path of a file; of a web address, without the query, which may be a signature.

    Examples
    --------
    >>> bare_path(UPath("/in/is it?.npy")), bare_path(UPath("https://host/x.npy?signature=ab"))
    ('/in/is it?.npy', 'https://host/x.npy')
    """
    return path.path.partition("?")[0] if is_web(path) else path.path


def public_name(path: UPath) -> str:
    """Return `path` as files store it: a web address without its query, which may be a signature."""
    return bare_path(path) if is_web(path) else str(path)


def is_web(path: UPath) -> bool:
    """Whether `path` is a web address."""
    return path.protocol in ("http", "https")


def is_local(path: UPath) -> bool:
    """Whether `path` lies on a disk of this machine, judging by the URL."""
    return path.protocol in ("", "file", "local")


def _is_same_storage(one: UPath, other: UPath) -> bool:
    """Whether `one` and `other` lie on the same storage; fsspec's file system objects differ between threads."""
    if is_local(one) or is_local(other):
        return is_local(one) and is_local(other)
    return type(one.fs) is type(other.fs) and one.storage_options == other.storage_options


def real_path(path: UPath) -> str:
    """Return a unique name for the place of `path`: on a local disk, without links and ``..``."""
    return os.path.realpath(path.path) if is_local(path) else path.path


@contextlib.contextmanager
def translate_write_errors(out: UPath) -> Iterator[None]:
    """Explain errors of a worker that writes below the directory `out`, which the client has created."""
    try:
        yield
    except FileNotFoundError:
        raise OutputError(
            "a worker cannot see the output directory",
            where=str(out),
            remedy="choose an --out that all workers can reach",
        ) from None


@contextlib.contextmanager
def translate_read_errors(path: UPath) -> Iterator[None]:
    """Turn any error while `path` is read into a DaskmeansError.

    Only calls into file systems and parsers belong inside: every backend has its own exceptions, so all are caught.
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


def stat_file(path: UPath) -> tuple[int, str]:
    """Return the size of `path` in bytes and its version: an ETag or a time, empty if the storage has neither."""
    with translate_read_errors(path):
        info = path.fs.info(path.path)
    version = next((info[key] for key in VERSION_KEYS if info.get(key)), "")
    return int(info.get("size") or 0), str(version)


def _missing_backend_error(url: str) -> UsageError:
    protocol = url.split("://")[0]
    if protocol in ("s3", "s3a"):
        return MissingExtraError("s3fs", "s3")
    package = BACKEND_PACKAGES.get(protocol, f'"fsspec[{protocol}]"')
    found = f"{protocol}:// needs a package that is not installed"
    return UsageError(found, where=url, remedy=f"pip install {package}")


def common_parent(paths: Sequence[str]) -> str:
    """Return the longest common prefix of `paths` that ends with a slash; empty if there is none.

    Examples
    --------
    >>> common_parent(["bucket/in/a/1.npy", "bucket/in/ab.npy"]), common_parent(["bucket/1.npy", "other/1.npy"])
    ('bucket/in/', '')
    """
    low, high = min(paths), max(paths)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[: low.rfind("/", 0, length) + 1]


def common_root(files: Sequence[UPath]) -> str:
    """Return the directory that all `files` have in common, with a slash at its end."""
    return common_parent([bare_path(path) for path in files])

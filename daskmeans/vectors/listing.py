"""Finding the files of an input: a file, a directory, a glob, or a list of these."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from upath import UPath

from daskmeans.errors import NotFoundError, UsageError
from daskmeans.runtime.client import logger
from daskmeans.storage import manifest
from daskmeans.storage.signature import is_signed
from daskmeans.vectors.files import (
    Input,
    as_list,
    bare_path,
    is_local,
    join_inside,
    open_path,
    real_path,
    translate_read_errors,
)
from daskmeans.vectors.formats import SUFFIXES, conversion, format_of, is_other_format, named_format, sniff_format
from daskmeans.vectors.lakes import is_delta_table, list_delta_files, refuse_lake_parts, refuse_lake_tables

# File of rejected rows in older outputs, beside their data.
OLD_REJECTS = "rejects.parquet"
# Maximum number of files of unknown format that are probed, the number at once, and the number that a message names.
MAX_PROBED_FILES, PROBE_THREADS, MAX_NAMED_FILES = 1000, 16, 3
# Files that are none, by their modes.
SPECIAL = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class InputFiles(NamedTuple):
    """Files of an input."""

    files: dict[UPath, str]
    """Files to read, with their formats."""
    others: list[UPath]
    """Files left out because their names show no format; files known not to be data are not among them."""


def find_files(
    inputs: Input | Sequence[Input], storage_options: Mapping[str, Any] | None = None, format: str | None = None
) -> list[UPath]:
    """Return the files of `inputs`: those of a directory or a glob sorted by path, those of a list in its order.

    Numbers in paths sort as numbers, 2 before 10. In a directory or a glob, files whose names show a format are read;
    if there are none, those whose first bytes do. A warning names those that are left out. With a `format` given, it is
    that of all files that are named, and those of a directory or a glob that have another one are left out.

    Raises
    ------
    NotFoundError
        A path does not exist, or a glob matches nothing.
    UsageError
        A file of an unknown format, files of several formats, a file named twice, an unknown kind of URL, a Parquet
        file that would be left out because of its name, or a table whose log cannot be followed.
    """
    opened = [open_path(one, storage_options) for one in as_list(inputs)]
    each = [_expand_input(path, format) for path in opened]
    found = [file for one in each for file in one.files]
    if not found:
        raise UsageError("the input is an empty list", expected=f"files: {SUFFIXES}")
    _refuse_mixed_formats(each)
    seen: dict[str, UPath] = {}
    for file in found:
        place = real_path(file)
        if before := seen.get(place):
            also = "" if str(before) == str(file) else f", also as {before}"
            raise UsageError(f"the file is named twice{also}", where=str(file), remedy="name every input once")
        seen[place] = file
    for path, one in zip(opened, each, strict=True):
        if one.others:
            _warn_of_left_out(path, one)
    return found


def _refuse_mixed_formats(found: Sequence[InputFiles]) -> None:
    formats: dict[str, UPath] = {}
    for one in found:
        for file, format_ in one.files.items():
            formats.setdefault(format_, file)
    if len(formats) > 1:
        examples = " and ".join(f"{file} ({name})" for name, file in formats.items())
        raise UsageError(
            f"the input mixes formats: {examples}",
            expected="files of one format",
            remedy=f"name the files of one format, such as 'vectors/*.parquet', or add --format {next(iter(formats))}",
        )


def warn_of_added_files(inputs: Sequence[UPath], known: Sequence[UPath]) -> None:
    """Log a warning that names the files of `inputs`, as from :func:`open_path`, that are not among `known`."""
    before = {file.path for file in known}
    new = [file for path in inputs for file in _list_files(path) if file.path not in before and named_format(file)]
    if new:
        logger.warning(
            "%s: %s files were added while the input was being read, and are not in the output: %s",
            new[0].parent,
            f"{len(new):,}",
            _name_some(new),
        )


def _expand_input(path: UPath, format: str | None) -> InputFiles:
    files = _list_files(path)
    if files == [path]:
        return InputFiles({path: format_of(path, format)}, [])
    with translate_read_errors(path):
        refuse_lake_parts(dict.fromkeys(file.parent for file in files), path)
        return _split_by_format(files, path, format)


def _list_files(path: UPath) -> list[UPath]:
    """Return all files that `path` stands for, of any kind."""
    with translate_read_errors(path):
        if path.is_file():
            return [path]
        if path.is_dir():
            return _refuse_special(_list_directory(path, _open_filesystem(path)))
        if _has_wildcard(bare_path(path)):
            return _refuse_special(_list_glob(path))
        if path.exists():
            _refuse_special([path])
    raise NotFoundError("no such path", where=str(path), expected="a file, a directory or a glob")


def _refuse_special(files: list[UPath]) -> list[UPath]:
    """Return `files`; raise UsageError for a pipe, a socket or a device among those that would be read."""
    for file in files if files and is_local(files[0]) else ():
        if (len(files) == 1 or named_format(file)) and os.path.exists(file.path):
            mode = os.stat(file.path).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise UsageError(
                    f"this is {SPECIAL.get(stat.S_IFMT(mode), 'no regular file')}, which can be read only once",
                    where=str(file),
                    expected="a file, as rows are read several times",
                    remedy="write what it gives to a file first",
                )
    return files


class _LinkedFileSystem(LocalFileSystem):
    """A local file system that follows links to directories, except those that lead back to their own parents."""

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


def _open_filesystem(top: UPath) -> AbstractFileSystem:
    """Return the file system to find files below `top` with."""
    return _LinkedFileSystem(top.path) if is_local(top) else top.fs


def _list_directory(root: UPath, fs: AbstractFileSystem) -> list[UPath]:
    """Return the files in `root`; an output of daskmeans gives those with rows, and must be finished and have some."""
    ours = manifest.read_manifest(root, "embed", "apply", "assign") if manifest.peek_manifest(root) else None
    if ours and ours["step"] == "assign":  # there may also be files of an unfinished append
        return [join_inside(root, name) for name in sorted(file["path"] for file in ours["outputs"])]
    prefix = root.path.rstrip("/") + "/"
    names = [found.removeprefix(prefix) for found in fs.find(root.path)]
    if is_delta_table(names):
        return sorted(list_delta_files(root), key=lambda file: _natural_key(file.path))
    refuse_lake_tables(root, names)
    return [root / name for name in sorted(names, key=_natural_key) if not any(map(_is_hidden, name.split("/")))]


def _natural_key(path: str) -> tuple[list[Any], str]:
    """Return a key by which numbers in paths sort as numbers.

    Examples
    --------
    >>> sorted(["b/1", "a10", "a9", "a09"], key=_natural_key)
    ['a09', 'a9', 'a10', 'b/1']
    """
    parts = re.split("([0-9]+)", path)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path


def _list_glob(pattern: UPath) -> list[UPath]:
    base = pattern
    while _has_wildcard(base.path):
        base = base.parent
    prefix = base.path.rstrip("/") + "/"
    fs = _open_filesystem(base)
    names = [found.removeprefix(prefix) for found in sorted(fs.glob(pattern.path))]
    asked = any(map(_is_hidden, pattern.path.removeprefix(prefix).split("/")))
    if not asked:  # wildcards do not match hidden directories
        names = [name for name in names if not any(map(_is_hidden, name.split("/")[:-1]))]
    if not names:
        raise NotFoundError("the glob matches nothing", where=str(pattern), remedy="quote it, and check the path")
    files: dict[str, UPath] = {}
    for match in (base / name for name in names):
        if not match.is_dir():
            files[match.path] = match
        elif asked or not _is_hidden(match.name):  # `**` matches a directory and its files too
            files |= {file.path: file for file in _list_directory(match, fs)}
    return [files[path] for path in sorted(files, key=_natural_key)]


def _split_by_format(files: list[UPath], where: UPath, format: str | None) -> InputFiles:
    """Split the `files` of the input `where` into those to read, of any or of the given `format`, and others."""
    named = {file: shown for file in files if (shown := named_format(file)) and not _is_old_rejects(file)}
    unnamed = [file for file in files if not named_format(file) and not _is_sidecar(file)]
    looks: dict[UPath, str | None] = {}
    if format is None and named:
        _refuse_parquet(unnamed, where)
    else:
        with ThreadPoolExecutor(PROBE_THREADS) as pool:
            looks = dict(zip(unnamed, pool.map(sniff_format, unnamed), strict=True))
    formats = {file: named.get(file) or looks.get(file) for file in files}
    known = {file: shown for file, shown in formats.items() if shown and format in (None, shown)}
    others = [file for file in unnamed if file not in known]
    if format is None and not named:
        _refuse_beside_others(known, others, where)
    if not known:
        first = next(filter(is_other_format, others), others[0]) if others else None
        example, remedy = (f", but {first.name} and the like", conversion(first)) if first else ("", "")
        expected = f"files: {SUFFIXES}" if format is None else f"files of the format {format}"
        raise UsageError(f"no file that can be read{example}", where=str(where), expected=expected, remedy=remedy)
    return InputFiles(known, others)


def _refuse_beside_others(known: Mapping[UPath, str], others: list[UPath], where: UPath) -> None:
    """Raise UsageError if all that is `known` are objects of JSON, and one of `others` may hold the rows instead.

    Many writers leave such an object beside their data, to describe it.
    """
    data = [file for file in others if is_other_format(file)]
    if data and {*known.values()} == {"jsonl"}:
        rest = f"if the rows are in {next(iter(known)).name} and the like, read those with --format jsonl"
        line = conversion(data[0])
        raise UsageError(
            f"no name shows a format that can be read, and the rows may be in {_name_some(data)}",
            where=str(where),
            expected=f"files: {SUFFIXES}",
            remedy=f"{line}; {rest}" if line else rest,
        )


def _refuse_parquet(others: list[UPath], where: UPath) -> None:
    """Raise UsageError if one of the first of `others` is Parquet: its rows would be missed."""
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        looks = list(pool.map(sniff_format, others[:MAX_PROBED_FILES]))
    found = [file for file, shown in zip(others, looks, strict=False) if shown == "parquet"]
    if found:
        raise UsageError(
            f"the input contains Parquet files whose names do not say so: {_name_some(found)}",
            where=str(where),
            expected=f"names ending in {SUFFIXES}",
            remedy="read all of them with --format parquet, or name those to read with a glob such as "
            "'vectors/*.parquet'",
        )


def _warn_of_left_out(where: UPath, found: InputFiles) -> None:
    logger.warning(
        "%s: %s of %s files are left out, as their names show no format: %s. Names of files with rows must end in %s; "
        "to leave out others without this warning, name those to read with a glob such as 'vectors/*.parquet'",
        where,
        f"{len(found.others):,}",
        f"{len(found.others) + len(found.files):,}",
        _name_some(found.others),
        SUFFIXES,
    )


def _name_some(files: list[UPath]) -> str:
    more = f" and {len(files) - MAX_NAMED_FILES:,} more" if len(files) > MAX_NAMED_FILES else ""
    return ", ".join(file.name for file in files[:MAX_NAMED_FILES]) + more


def _is_old_rejects(file: UPath) -> bool:
    """Whether `file` is the list of rejected rows in an output of an earlier version."""
    if file.name != OLD_REJECTS:
        return False
    with translate_read_errors(file):
        schema = pq.read_schema(file.path, filesystem=file.fs)
        return is_signed(schema) and {*schema.names} - {"input"} == {"id", "file", "row", "reason"}


def _is_sidecar(file: UPath) -> bool:
    """Whether the name of `file`, which shows no format, is that of a file that data writers leave beside data."""
    return _is_hidden(file.name) or file.name == manifest.old_name(manifest.MANIFEST_NAME) or file.name.endswith(".crc")


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _has_wildcard(path: str) -> bool:
    return any(character in path for character in "*?[")

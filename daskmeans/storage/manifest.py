"""What a finished step is: a directory whose ``_manifest.json`` says so.

The manifest is written first with ``"finished": false`` and last with ``true``. Nothing is renamed, so the same
holds on object stores. A step may name a directory below its own from which it can go on after it was interrupted;
what lies there is kept as long as the step has the same settings and inputs.

What is no data lies behind an underscore, and its name does not end in ``.parquet``. So other readers find the rows
alone: some pass over what is hidden, the others go by the ending.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
from enum import Enum
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

from upath import UPath

from daskmeans.errors import DataError, NotFoundError, OutputError, RunError
from daskmeans.storage import objectstore

MANIFEST_NAME = "_manifest.json"
# Of manifests and of what they describe; goes up when a reader of the one before would be wrong.
FORMAT = 1
# Seconds between attempts to remove a directory.
RETRY_SECONDS = (0.1, 0.5, 2.0)
# Changed files that a message names.
MAX_NAMED_FILES = 3


@cache
def library_versions() -> dict[str, str]:
    """Versions of what determines a result: Python and the libraries that compute."""
    names = ("daskmeans", "dask", "distributed", "numpy", "numba", "pandas", "pyarrow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def identity_hash(found: dict[str, Any]) -> str:
    """Hash of what determines the output that a manifest describes; steps that read the output depend on it."""
    parts = [found[key] for key in ("step", "settings", "inputs")]
    if found.get("appended"):  # to clusters, since they were assigned
        parts.append(found["appended"])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def checksum(content: bytes) -> str:
    """SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def old_name(name: str) -> str:
    """How earlier versions called a file that is no data.

    Examples
    --------
    >>> old_name(MANIFEST_NAME)
    'manifest.json'
    """
    return name.removeprefix("_")


def write_manifest(path: UPath, found: dict[str, Any]) -> None:
    """Write the manifest `found` into the directory `path`, with its checksum."""
    write_json(path / MANIFEST_NAME, found | {"checksum": _manifest_checksum(found)})


def _manifest_checksum(found: dict[str, Any]) -> str:
    reported = {key: value for key, value in found.items() if key != "checksum"}
    return checksum(json.dumps(reported, sort_keys=True).encode())


def remove_tree(path: UPath) -> None:
    """Remove `path` and all below it; nothing happens if it is not there."""
    for wait in RETRY_SECONDS:
        with contextlib.suppress(OSError):  # a task that was cancelled on a worker may write one file more
            return _remove_once(path)
        time.sleep(wait)
    _remove_once(path)


def _remove_once(path: UPath) -> None:
    if path.exists():
        path.fs.rm(path.path, recursive=True)


def describe_changes(found: dict[str, Any], settings: dict[str, Any], inputs: dict[str, Any]) -> list[str]:
    """What `settings` and `inputs` have that the manifest `found` has not, or otherwise; a phrase each.

    Examples
    --------
    >>> before = {"settings": {"k": 3}, "inputs": {"fingerprint": "5e1f", "files": {"a.npy": "80 bytes"}}}
    >>> describe_changes(before, {"k": 4}, {"fingerprint": "90c2", "files": {"a.npy": "96 bytes"}})
    ['the file a.npy was 80 bytes, now 96 bytes', 'k was 3, now 4']
    """
    before = found.get("settings", {}) | found.get("inputs", {})
    now = json.loads(json.dumps(settings | inputs))
    reported = _describe_file_changes(before, now) if "files" in before and "files" in now else []
    of_files = {"files", "fingerprint", "rows"} if reported else {"files"}  # without names the fingerprint tells
    changed = [key for key in sorted({*before, *now} - of_files) if before.get(key) != now.get(key)]
    return reported + [f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed]


def _describe_file_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two inputs differ in, of which both tell the fingerprint and the files."""
    if before["fingerprint"] == now["fingerprint"]:
        return []
    then, files = before["files"], now["files"]
    changed = [name for name in {**then, **files} if then.get(name) != files.get(name)]
    if not changed:
        return ["the files come in another order, or other columns are read"]
    reported = [
        f"the file {name} was {then[name]}, now {files[name]}"
        if name in then and name in files
        else f"the file {name} is {'new' if name in files else 'gone'}"
        for name in changed[:MAX_NAMED_FILES]
    ]
    return reported + (
        [f"{len(changed) - MAX_NAMED_FILES:,} more files are others"] if len(changed) > MAX_NAMED_FILES else []
    )


class State(Enum):
    """What a directory is to a step that is asked for."""

    FREE = "free"
    """It holds no step."""
    DONE = "done"
    """It holds this one, finished."""
    RESUMABLE = "resumable"
    """It holds this one, unfinished."""
    OTHER = "another's"
    """It holds another step, or this one with other settings or inputs, or by another version of daskmeans."""


class Status(NamedTuple):
    """Whether a step is done already."""

    state: State
    changed: list[str]
    """Of another's, what it differs in; a phrase each."""


def status(found: dict[str, Any] | None, step: str, settings: dict[str, Any], inputs: dict[str, Any]) -> Status:
    """Whether a directory with the manifest `found` holds the step with these settings and inputs already.

    What another version of daskmeans has made is another's, as it may compute other bits.

    Examples
    --------
    >>> made = {"step": "fit", "finished": True, "settings": {"k": 3}, "inputs": {}, "versions": library_versions()}
    >>> status(made, "fit", {"k": 3}, {}).state.value
    'done'
    >>> status(made | {"versions": {"daskmeans": "0.0.1"}}, "fit", {"k": 4}, {}).changed[0]
    'k was 3, now 4'
    """
    if found is None:
        return Status(State.FREE, [])
    changed = describe_changes(found, settings, inputs)
    ours, theirs = version("daskmeans"), found.get("versions", {}).get("daskmeans")
    if ours != theirs:
        changed.append(f"daskmeans was {theirs}, now {ours}")
    if found["step"] != step:
        changed.append(f"the step was {found['step']!r}, now {step!r}")
    if changed:
        return Status(State.OTHER, changed)
    return Status(State.DONE if found["finished"] else State.RESUMABLE, [])


def check_row_counts(step: str, given: int, **found: int) -> None:
    """Make sure that the rows that `step` was given are those that it has found a place for, by the name of the place.

    Raises
    ------
    RunError

    Examples
    --------
    >>> check_row_counts("assign", 5, written=4, rejected=1)
    """
    if given != sum(found.values()):
        places = " and ".join(f"{rows:,} were {place}" for place, rows in found.items())
        raise RunError(
            f"{given:,} rows went in, but {places}",
            where=step,
            remedy="leave the input alone while it is read, and run the command again",
        )


def read_manifest(path: UPath, *steps: str) -> dict[str, Any]:
    """Manifest of the finished step in `path`, which must be one of `steps`.

    Raises
    ------
    NotFoundError
        `path` is not there, or is not an output of one of `steps`.
    OutputError
        It is unfinished: a run is still writing it, or was interrupted. Or another version of daskmeans wrote it, in a
        format of its own.
    DataError
        The manifest is not what was written.
    """
    wanted = " or ".join(f"`daskmeans {step}`" for step in steps)
    if not path.exists():
        raise NotFoundError("no such path", where=str(path), expected=f"the output directory of {wanted}")
    found = peek_manifest(path)
    if found is None or found["step"] not in steps:
        raise NotFoundError(
            "this is not what it should be" if found is None else f"this is the output of `daskmeans {found['step']}`",
            where=str(path),
            expected=f"the output directory of {wanted}",
        )
    if not found["finished"]:
        raise OutputError(
            f"the output of `daskmeans {found['step']}` is unfinished",
            where=str(path),
            remedy="run the command that writes it again; it goes on, or replaces what is there",
        )
    if found.get("format") != FORMAT:
        theirs = found.get("versions", {}).get("daskmeans", "of unknown version")
        raise OutputError(
            f"the output of `daskmeans {found['step']}` has format {found.get('format', 0)}, from daskmeans {theirs}",
            where=str(path),
            expected=f"format {FORMAT}, as daskmeans {version('daskmeans')} writes it",
            remedy="run the command that writes it again, with --overwrite",
        )
    if found.get("checksum", _manifest_checksum(found)) != _manifest_checksum(found):
        raise _damaged_error(path / MANIFEST_NAME)
    return found


def file_checksums(path: UPath, *names: str) -> dict[str, dict[str, str]]:
    """What a manifest says of small files in the directory `path`, by which :func:`read_verified` knows them again."""
    return {"checksums": {name: checksum((path / name).read_bytes()) for name in names}}


def read_verified(path: UPath, name: str, found: dict[str, Any]) -> bytes:
    """Content of the file `name` in the directory `path`, whose manifest `found` holds its checksum.

    Raises
    ------
    DataError
        It is not what was written, or not there.
    """
    known = found.get("checksums", {})
    name = name if name in known else old_name(name)
    try:
        content = (path / name).read_bytes()
    except FileNotFoundError:
        content = None
    if content is None or known.get(name, checksum(content)) != checksum(content):
        raise _damaged_error(path / name)
    return content


def _damaged_error(file: UPath) -> DataError:
    return DataError(
        "the file is gone, damaged, or was changed by hand",
        where=str(file),
        expected="what daskmeans has written",
        remedy="run the command that writes it again, with --overwrite",
    )


def peek_manifest(path: UPath) -> dict[str, Any] | None:
    """The manifest in `path`, finished or not; None where there is none of ours, whatever has its name."""
    try:
        try:
            content = (path / MANIFEST_NAME).read_bytes()
        except FileNotFoundError:
            content = (path / old_name(MANIFEST_NAME)).read_bytes()
        found = json.loads(content)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None  # but storage that does not answer is no reason to take hours of work for nothing
    ours = isinstance(found, dict) and isinstance(found.get("finished"), bool) and isinstance(found.get("step"), str)
    whole = ours and all(isinstance(found.get(name, {}), dict) for name in ("settings", "inputs", "versions"))
    return found if whole else None


def write_json(path: UPath, value: Any) -> None:
    """Write `value` to `path`, readable by people too; a reader sees the old content or the new, never half of it."""
    objectstore.replace_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), "tmp")

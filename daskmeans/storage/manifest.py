"""Manifests: a step is finished when the ``_manifest.json`` in its directory says so.

The manifest is written first with ``"finished": false`` and last with ``true``. No directory is renamed, so this also
works on object stores. A step may name a directory below its own from which it can resume after an interruption. The
content of that is kept as long as the step has the same settings and inputs.

Names of files other than data begin with an underscore and do not end in ``.parquet``. So other readers find only the
rows: some skip hidden files, the others select by suffix.
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
# Version of manifests and of what they describe; increased when older readers would misread it.
FORMAT = 1
# Seconds between attempts to remove a directory.
RETRY_SECONDS = (0.1, 0.5, 2.0)
# Maximum number of changed files that a message names.
MAX_NAMED_FILES = 3


@cache
def library_versions() -> dict[str, str]:
    """Return the versions that determine a result: of Python and of the libraries that compute."""
    names = ("daskmeans", "dask", "distributed", "numpy", "numba", "pandas", "pyarrow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def identity_hash(found: dict[str, Any]) -> str:
    """Return a hash of what determines the output of a manifest; steps that read the output depend on it."""
    parts = [found[key] for key in ("step", "settings", "inputs")]
    if found.get("appended"):  # to clusters, since they were assigned
        parts.append(found["appended"])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def checksum(content: bytes) -> str:
    """Return the SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def old_name(name: str) -> str:
    """Return the name that earlier versions gave to a file that is not data.

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
    """Remove `path` and everything below it, if it exists."""
    for wait in RETRY_SECONDS:
        with contextlib.suppress(OSError):  # a cancelled task on a worker may still write a file
            return _remove_once(path)
        time.sleep(wait)
    _remove_once(path)


def _remove_once(path: UPath) -> None:
    if path.exists():
        path.fs.rm(path.path, recursive=True)


def describe_changes(found: dict[str, Any], settings: dict[str, Any], inputs: dict[str, Any]) -> list[str]:
    """Describe how `settings` and `inputs` differ from those in the manifest `found`, one phrase per difference.

    Examples
    --------
    >>> before = {"settings": {"k": 3}, "inputs": {"fingerprint": "5e1f", "files": {"a.npy": "80 bytes"}}}
    >>> describe_changes(before, {"k": 4}, {"fingerprint": "90c2", "files": {"a.npy": "96 bytes"}})
    ['the file a.npy was 80 bytes, now 96 bytes', 'k was 3, now 4']
    """
    before = found.get("settings", {}) | found.get("inputs", {})
    now = json.loads(json.dumps(settings | inputs))
    of_inputs = all({"files", "fingerprint"} <= each.keys() for each in (before, now))
    reported = _describe_file_changes(before, now) if of_inputs else []
    of_files = {"files", "fingerprint", "rows"} if reported else {"files"}  # else the fingerprint shows it
    changed = [key for key in sorted({*before, *now} - of_files) if before.get(key) != now.get(key)]
    for key in changed:
        one, other = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict) and "files" in one and "files" in other:  # one of several
            reported += [f"{key}: {phrase}" for phrase in describe_changes({"inputs": one}, {}, other)]
        else:
            reported.append(f"{key} was {one!r}, now {other!r}")
    return reported


def _describe_file_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describe how two inputs differ, both of which have a fingerprint and files."""
    if before["fingerprint"] == now["fingerprint"]:
        return []
    then, files = before["files"], now["files"]
    changed = [name for name in {**then, **files} if then.get(name) != files.get(name)]
    if not changed:
        return ["the files are in another order, or other columns are read"]
    reported = [
        f"the file {name} was {then[name]}, now {files[name]}"
        if name in then and name in files
        else f"the file {name} is {'new' if name in files else 'gone'}"
        for name in changed[:MAX_NAMED_FILES]
    ]
    return reported + (
        [f"{len(changed) - MAX_NAMED_FILES:,} more files have changed"] if len(changed) > MAX_NAMED_FILES else []
    )


class State(Enum):
    """The state of a directory with respect to a requested step."""

    FREE = "free"
    """It holds no step."""
    DONE = "done"
    """It holds this step, finished."""
    RESUMABLE = "resumable"
    """It holds this step, unfinished."""
    OTHER = "another's"
    """It holds another step, or this one with other settings or inputs, or from another version of daskmeans."""


class Status(NamedTuple):
    """The state of a directory, with the reasons."""

    state: State
    changed: list[str]
    """If the state is OTHER, the differences, one phrase each."""


def status(found: dict[str, Any] | None, step: str, settings: dict[str, Any], inputs: dict[str, Any]) -> Status:
    """Compare a directory's manifest `found` with a step, its settings and its inputs.

    Output of another version of daskmeans counts as OTHER, as its results may not be bitwise identical.

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
    """Make sure that `step` accounts for all rows that it was given; `found` has the rows of each outcome.

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
    """Return the manifest of the finished step in `path`, which must be one of `steps`.

    Raises
    ------
    NotFoundError
        `path` does not exist, or is not an output of one of `steps`.
    OutputError
        It is unfinished: a run is still writing it, or was interrupted. Or another version of daskmeans wrote it, in
        another format.
    DataError
        The manifest is damaged, or was changed.
    """
    wanted = " or ".join(f"`daskmeans {step}`" for step in steps)
    if not path.exists():
        raise NotFoundError("no such path", where=str(path), expected=f"the output directory of {wanted}")
    found = peek_manifest(path)
    if found is None or found["step"] not in steps:
        raise NotFoundError(
            "this is no output of daskmeans" if found is None else f"this is the output of `daskmeans {found['step']}`",
            where=str(path),
            expected=f"the output directory of {wanted}",
        )
    if not found["finished"]:
        raise OutputError(
            f"the output of `daskmeans {found['step']}` is unfinished",
            where=str(path),
            remedy="run the command that writes it again; it resumes or replaces the output",
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
    """Return the manifest entry with the checksums of small files in `path`, which :func:`read_verified` checks."""
    return {"checksums": {name: checksum((path / name).read_bytes()) for name in names}}


def read_verified(path: UPath, name: str, found: dict[str, Any]) -> bytes:
    """Return the content of the file `name` in the directory `path`, whose manifest `found` holds its checksum.

    Raises
    ------
    DataError
        The file is missing, or its checksum differs.
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
        "the file is missing, damaged, or was changed by hand",
        where=str(file),
        expected="the file as daskmeans wrote it",
        remedy="run the command that writes it again, with --overwrite",
    )


def peek_manifest(path: UPath) -> dict[str, Any] | None:
    """Return the manifest in `path`, finished or not; None if there is none that daskmeans wrote."""
    try:
        try:
            content = (path / MANIFEST_NAME).read_bytes()
        except FileNotFoundError:
            content = (path / old_name(MANIFEST_NAME)).read_bytes()
        found = json.loads(content)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None  # other storage errors are raised: hours of work must not be taken for missing
    ours = isinstance(found, dict) and isinstance(found.get("finished"), bool) and isinstance(found.get("step"), str)
    whole = ours and all(isinstance(found.get(name, {}), dict) for name in ("settings", "inputs", "versions"))
    return found if whole else None


def write_json(path: UPath, value: Any) -> None:
    """Write `value` to `path` as indented JSON; readers see the old content or the new, never a part."""
    objectstore.replace_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), "tmp")

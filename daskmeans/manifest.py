"""What a finished step is: a directory whose ``manifest.json`` says so.

The manifest is written first with ``"finished": false`` and last with ``true``. Nothing is renamed, so the same
holds on object stores. A step may name a directory below its own from which it can go on after it was interrupted;
what lies there is kept as long as the step has the same settings and inputs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from distributed import Client
from upath import UPath

from daskmeans import lock, room, runtime, stores
from daskmeans.errors import DataError, NotFoundError, OutputError, RunError

NAME = "manifest.json"
# Of manifests and of what they describe; goes up when a reader of the one before would be wrong.
FORMAT = 1
# Seconds between attempts to remove a directory.
WAITS = (0.1, 0.5, 2.0)
# Changed files that a message names.
TOLD = 3


@cache
def versions() -> dict[str, str]:
    """Versions of what determines a result: Python and the libraries that compute."""
    names = ("daskmeans", "dask", "distributed", "numpy", "numba", "pandas", "pyarrow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def identity(found: dict[str, Any]) -> str:
    """Hash of what determines the output that a manifest describes; steps that read the output depend on it."""
    parts = [found[key] for key in ("step", "settings", "inputs")]
    if found.get("appended"):  # to clusters, since they were assigned
        parts.append(found["appended"])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def checksum(content: bytes) -> str:
    """SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def write(path: UPath, found: dict[str, Any]) -> None:
    """Write the manifest `found` into the directory `path`, with its checksum."""
    write_json(path / NAME, found | {"checksum": _checksum(found)})


def _checksum(found: dict[str, Any]) -> str:
    told = {key: value for key, value in found.items() if key != "checksum"}
    return checksum(json.dumps(told, sort_keys=True).encode())


def remove(path: UPath) -> None:
    """Remove `path` and all below it; nothing happens if it is not there."""
    for wait in WAITS:
        with contextlib.suppress(OSError):  # a task that was cancelled on a worker may write one file more
            return _remove(path)
        time.sleep(wait)
    _remove(path)


def _remove(path: UPath) -> None:
    if path.exists():
        path.fs.rm(path.path, recursive=True)


def changes(found: dict[str, Any], settings: dict[str, Any], inputs: dict[str, Any]) -> list[str]:
    """What `settings` and `inputs` have that the manifest `found` has not, or otherwise; a phrase each.

    Examples
    --------
    >>> before = {"settings": {"k": 3}, "inputs": {"fingerprint": "5e1f", "files": {"a.npy": "80 bytes"}}}
    >>> changes(before, {"k": 4}, {"fingerprint": "90c2", "files": {"a.npy": "96 bytes"}})
    ['the file a.npy was 80 bytes, now 96 bytes', 'k was 3, now 4']
    """
    before = found.get("settings", {}) | found.get("inputs", {})
    now = json.loads(json.dumps(settings | inputs))
    told = _changed_files(before, now) if "files" in before and "files" in now else []
    of_files = {"files", "fingerprint", "rows"} if told else {"files"}  # without names the fingerprint tells
    changed = [key for key in sorted({*before, *now} - of_files) if before.get(key) != now.get(key)]
    return told + [f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed]


def _changed_files(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two inputs differ in, of which both tell the fingerprint and the files."""
    if before["fingerprint"] == now["fingerprint"]:
        return []
    then, files = before["files"], now["files"]
    changed = [name for name in {**then, **files} if then.get(name) != files.get(name)]
    if not changed:
        return ["the files come in another order, or other columns are read"]
    told = [
        f"the file {name} was {then[name]}, now {files[name]}"
        if name in then and name in files
        else f"the file {name} is {'new' if name in files else 'gone'}"
        for name in changed[:TOLD]
    ]
    return told + ([f"{len(changed) - TOLD:,} more files are others"] if len(changed) > TOLD else [])


def check_rows(step: str, given: int, **found: int) -> None:
    """Make sure that the rows that `step` was given are those that it has found a place for, by the name of the place.

    Raises
    ------
    RunError

    Examples
    --------
    >>> check_rows("assign", 5, written=4, rejected=1)
    """
    if given != sum(found.values()):
        places = " and ".join(f"{rows:,} were {place}" for place, rows in found.items())
        raise RunError(
            f"{given:,} rows went in, but {places}",
            where=step,
            remedy="leave the input alone while it is read, and run the command again",
        )


class Step:
    """An output directory while it is being made.

    Attributes
    ----------
    path : UPath
        The directory.
    facts : dict
        What the manifest will tell besides settings and inputs, such as row counts; JSON types only.
    """

    def __init__(self, path: UPath, head: dict[str, Any], held: lock.Lock, client: Client | None = None) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}
        self._head = head
        self._start = time.perf_counter()
        self._client = runtime.current_client(client)
        self._lock = held
        runtime.reset_peaks(self._client)

    def write(self, finished: bool) -> None:
        """Write the manifest as it stands, if no other run has taken the output."""
        if finished:
            stores.flush(self.path)
        self._lock.check()
        seconds = round(time.perf_counter() - self._start, 3)
        tail = {"seconds": seconds, "peak_bytes": runtime.peaks(self._client), "finished": finished}
        write(self.path, self._head | self.facts | tail)


@contextlib.contextmanager
def step(
    out: UPath,
    name: str,
    settings: dict[str, Any],
    inputs: dict[str, Any],
    *,
    overwrite: bool = False,
    resume: str | None = None,
    keep: Sequence[str] = (),
    need: int = 0,
    client: Client | None = None,
) -> Iterator[Step]:
    """Make `out` the output of step `name`; on any error remove it again, or what cannot be gone on from.

    Parameters
    ----------
    out : UPath
        A directory that does not exist, is empty, holds an unfinished output of the same step, or (with `overwrite`)
        a finished one.
    name : str
        ``embed``, ``fit``, ``assign``, ``dedup``, ``apply``.
    settings, inputs : dict
        What determines the result; JSON types only.
    overwrite : bool, default False
        Replace a finished output of daskmeans, or an unfinished one that has other settings or inputs. A directory of
        anything else is never touched.
    resume : str, optional
        Name of the directory below `out` from which this step can go on. An unfinished step with the same settings
        and inputs finds there what it has left, also when it failed; a finished one has none.
    keep : sequence of str
        Names of directories below `out` that are kept; if they are steps of their own, when this step fails, only
        finished ones.
    need : int, default 0
        Bytes that the output will take, about.
    client : distributed.Client, optional
        Whose workers' peak memory the manifest tells.

    Raises
    ------
    OutputError
        `out` holds something that must not be overwritten.
    DiskError
        The output does not fit on its disk, by `need` or when it is written.
    """
    check_free(out, name, overwrite=overwrite)
    room.check(out, need)
    fresh = [parent for parent in out.parents if not parent.exists()]
    if out.parents[-1] in fresh:
        raise OutputError(
            "there is no such bucket, or it must not be seen with these credentials",
            where=str(out.parents[-1]),
            expected="a bucket that is there",
            remedy="make the bucket, or correct its name, the endpoint or the credentials",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, NotImplementedError) as error:  # such as http, which is only read
        told = getattr(error, "strerror", None) or error or "this kind of storage is only read"
        remedy = "choose a directory that this user may write, below no file"
        raise OutputError(f"the directory cannot be made ({told})", where=str(out), remedy=remedy) from None
    with room.explained(out), lock.hold(out) as mine:
        check_free(out, name, overwrite=overwrite)  # the run that held it may have finished meanwhile
        kept = {resume} if resume and goes_on(out, settings, inputs, resume, overwrite=overwrite) else set()
        head = {"step": name, "format": FORMAT, "settings": settings, "inputs": inputs, "versions": versions()}
        made = Step(out, head, mine, client)
        if kept:
            made.facts["resumed"] = True  # seconds and peaks are those of the last part
        made.write(finished=False)  # before the rest is removed, so that a kill in between leaves an output of ours
        _clear(out, {NAME, *kept, *keep})
        try:
            yield made
        except BaseException:
            with stores.tolerated():  # the first error is the one to tell
                if mine.held:
                    _give_up(out, resume, keep, fresh)
            raise
        made.write(finished=True)
        if resume:
            remove(out / resume)  # last: a kill before this leaves a finished output with something too much
    counts = {key: value for key, value in made.facts.items() if not isinstance(value, list)}
    runtime.log_event("daskmeans", {"step": name, "out": str(out)} | counts, client)


def sweep(out: UPath, resume: str | None) -> None:
    """Remove what a run has left beside its finished output that was killed before it could.

    Raises
    ------
    OutputError
        Another run is writing it.
    """
    if (out / lock.NAME).exists():  # what goes last
        with lock.hold(out):
            if resume:
                remove(out / resume)


def _clear(out: UPath, kept: set[str]) -> None:
    for child in list(out.iterdir()):
        if child.name not in kept and child.name != lock.NAME:
            remove(child)


def _give_up(out: UPath, resume: str | None, keep: Sequence[str], fresh: Sequence[UPath]) -> None:
    """Remove what a step has left that failed, but for what can be gone on from."""
    if resume and (out / resume).exists():
        runtime.logger.info("what is done is kept, and the same command goes on from it: %s", out / resume)
        return
    done = {name for name in keep if (out / name).exists() and (peek(out / name) or {"finished": True})["finished"]}
    if done:
        _clear(out, {NAME, *done})
        return
    remove(out)
    for parent in fresh:  # made for this step only, unless something else lies there by now
        if parent.exists() and not any(parent.iterdir()):
            remove(parent)


def goes_on(
    out: UPath, settings: dict[str, Any], inputs: dict[str, Any], resume: str, *, overwrite: bool = False
) -> bool:
    """Whether `out` holds an unfinished step with these settings and inputs, which then goes on from `resume`.

    Raises
    ------
    OutputError
        It has others, something is left in `resume`, and `overwrite` is not set: hours of work may lie there.
    """
    found = peek(out)
    if found is None or found["finished"]:
        return False
    changed = changes(found, settings, inputs)
    ours, theirs = version("daskmeans"), found.get("versions", {}).get("daskmeans")
    if ours != theirs:  # another version may compute other bits
        changed.append(f"daskmeans was {theirs}, now {ours}")
    if changed and not overwrite and (out / resume).exists():
        raise OutputError(
            f"the step {found['step']!r} is unfinished here, with other settings or another input: "
            + "; ".join(changed),
            where=str(out),
            expected="the settings and the input with which it began, to go on",
            remedy="call it as before, choose another directory, or add --overwrite to begin anew",
        )
    return not changed


def check_free(out: UPath, name: str, *, overwrite: bool = False) -> None:
    """Make sure that step `name` may write `out`; changes nothing.

    Raises
    ------
    OutputError
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(
            "the output exists and is a file",
            where=str(out),
            expected="a directory to be made",
            remedy="choose another --out",
        )
    # A run that was killed may have left its lock, and what was to become its manifest.
    if all(child.name.startswith((lock.NAME, NAME + ".")) for child in out.iterdir()):
        return
    found = peek(out)
    if found is None:
        raise OutputError(
            "the output directory holds files that daskmeans did not write",
            where=str(out),
            expected="a new or an empty directory",
            remedy="choose another --out, or empty it yourself",
        )
    if found["finished"] and not overwrite:
        raise OutputError(
            f"the output exists already (step {found['step']!r}, finished)",
            where=str(out),
            expected="a new or an empty directory",
            remedy="choose another --out, or add --overwrite to replace it",
        )
    if found["step"] != name:
        raise OutputError(
            f"the output directory belongs to another step ({found['step']!r})",
            where=str(out),
            expected=f"a new directory, or one of step {name!r}",
            remedy="choose another --out",
        )


def read(path: UPath, *steps: str) -> dict[str, Any]:
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
    found = peek(path)
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
    if found.get("checksum", _checksum(found)) != _checksum(found):
        raise _damaged(path / NAME)
    return found


def checksums(path: UPath, *names: str) -> dict[str, dict[str, str]]:
    """What a manifest says of small files in the directory `path`, by which :func:`read_checked` knows them again."""
    return {"checksums": {name: checksum((path / name).read_bytes()) for name in names}}


def read_checked(path: UPath, name: str, found: dict[str, Any]) -> bytes:
    """Content of the file `name` in the directory `path`, whose manifest `found` holds its checksum.

    Raises
    ------
    DataError
        It is not what was written, or not there.
    """
    try:
        content = (path / name).read_bytes()
    except FileNotFoundError:
        content = None
    if content is None or found.get("checksums", {}).get(name, checksum(content)) != checksum(content):
        raise _damaged(path / name)
    return content


def _damaged(file: UPath) -> DataError:
    return DataError(
        "the file is gone, damaged, or was changed by hand",
        where=str(file),
        expected="what daskmeans has written",
        remedy="run the command that writes it again, with --overwrite",
    )


def peek(path: UPath) -> dict[str, Any] | None:
    """The manifest in `path`, finished or not; None where there is none of ours, whatever has its name."""
    try:
        found = json.loads((path / NAME).read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None  # but storage that does not answer is no reason to take hours of work for nothing
    ours = isinstance(found, dict) and isinstance(found.get("finished"), bool) and isinstance(found.get("step"), str)
    whole = ours and all(isinstance(found.get(name, {}), dict) for name in ("settings", "inputs", "versions"))
    return found if whole else None


def write_json(path: UPath, value: Any) -> None:
    """Write `value` to `path`, readable by people too; a reader sees the old content or the new, never half of it."""
    stores.replace(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), "tmp")

"""The lifecycle of a step's output: its manifest is marked finished last."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from distributed import Client
from upath import UPath

from daskmeans.errors import OutputError
from daskmeans.runtime import resources
from daskmeans.runtime.client import client_in_use, log_event, logger
from daskmeans.storage import diskspace, lock, manifest, objectstore


class Step:
    """An output directory while it is being written.

    Attributes
    ----------
    path : UPath
        The output directory.
    facts : dict
        What the manifest records besides settings and inputs, such as row counts; JSON types only.
    """

    def __init__(self, path: UPath, head: dict[str, Any], held: lock.Lock, client: Client | None = None) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}
        self._head = head
        self._start = time.perf_counter()
        self._client = client_in_use(client)
        self._lock = held
        resources.reset_peaks(self._client)

    def write_manifest(self, finished: bool) -> None:
        """Write the manifest in its present state; raise if another run has taken over the output."""
        if finished:
            objectstore.flush_to_disk(self.path)
        self._lock.check()
        seconds = round(time.perf_counter() - self._start, 3)
        tail = {"seconds": seconds, "peak_bytes": resources.peak_bytes(self._client), "finished": finished}
        manifest.write_manifest(self.path, self._head | self.facts | tail)


@contextlib.contextmanager
def open_step(
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
    """Make `out` the output of step `name`; on an error, remove everything that the step cannot resume from.

    Parameters
    ----------
    out : UPath
        A directory that does not exist, is empty, holds an unfinished output of the same step, or (with `overwrite`)
        a finished one.
    name : str
        ``embed``, ``fit``, ``assign``, ``dedup``, ``pairs``, ``export``, ``apply`` or ``leak``.
    settings, inputs : dict
        Everything that determines the result; JSON types only.
    overwrite : bool, default False
        Replace a finished output of daskmeans, or an unfinished one with other settings or inputs. A directory with
        any other content is never touched.
    resume : str, optional
        Name of the directory below `out` from which this step can resume. It is kept when the step fails, for the next
        run with the same settings and inputs, and removed when the step is finished.
    keep : sequence of str
        Names of directories below `out` that are kept. If this step fails, those that are steps of their own are kept
        only if finished.
    need : int, default 0
        Approximate size of the output, in bytes.
    client : distributed.Client, optional
        The manifest records the peak memory of its workers.

    Raises
    ------
    OutputError
        `out` holds something that must not be overwritten.
    DiskError
        The output does not fit on its disk: `need` says so, or writing fails.
    """
    check_output_free(out, name, overwrite=overwrite)
    diskspace.check_space(out, need)
    fresh = [parent for parent in out.parents if not parent.exists()]
    if out.parents[-1] in fresh:
        raise OutputError(
            "there is no such bucket, or these credentials give no access to it",
            where=str(out.parents[-1]),
            expected="an existing bucket",
            remedy="create the bucket, or correct its name, the endpoint or the credentials",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, NotImplementedError) as error:  # such as http, which is read-only
        reason = getattr(error, "strerror", None) or error or "this kind of storage is read-only"
        raise _creation_error(out, reason) from None
    with diskspace.translate_disk_errors(out), lock.hold_lock(out) as mine:
        check_output_free(out, name, overwrite=overwrite)  # the run that held it may have finished meanwhile
        kept = {resume} if resume and is_resumable(out, name, settings, inputs, resume, overwrite=overwrite) else set()
        head = {
            "step": name,
            "format": manifest.FORMAT,
            "settings": settings,
            "inputs": inputs,
            "versions": manifest.library_versions(),
        }
        made = Step(out, head, mine, client)
        if kept:
            made.facts["resumed"] = True  # seconds and peaks are those since it resumed
        # Before the rest is removed, so that a kill in between leaves a recognisable output.
        made.write_manifest(finished=False)
        _clear_directory(out, {manifest.MANIFEST_NAME, *kept, *keep})
        try:
            yield made
        except BaseException:
            with objectstore.suppress_storage_errors():  # the first error is the one to report
                if mine.held:
                    _remove_failed_output(out, resume, keep, fresh)
            raise
        made.write_manifest(finished=True)
        if resume:
            manifest.remove_tree(out / resume)  # last: a kill before this leaves a finished output with leftovers
    counts = {key: value for key, value in made.facts.items() if not isinstance(value, list)}
    log_event("daskmeans", {"step": name, "out": str(out)} | counts, client)


def remove_leftovers(out: UPath, resume: str | None) -> None:
    """Remove leftovers beside a finished output whose run was killed before it could.

    Raises
    ------
    OutputError
        Another run is writing it.
    """
    if (out / lock.LOCK_NAME).exists():  # it is removed last
        with lock.hold_lock(out):
            if resume:
                manifest.remove_tree(out / resume)


def _clear_directory(out: UPath, kept: set[str]) -> None:
    for child in list(out.iterdir()):
        if child.name not in kept and child.name != lock.LOCK_NAME:
            manifest.remove_tree(child)


def _remove_failed_output(out: UPath, resume: str | None, keep: Sequence[str], fresh: Sequence[UPath]) -> None:
    """Remove the output of a failed step, except for what it can resume from."""
    if resume and (out / resume).exists():
        logger.info("finished work is kept, and the same command resumes from it: %s", out / resume)
        return
    done = {
        name
        for name in keep
        if (out / name).exists() and (manifest.peek_manifest(out / name) or {"finished": True})["finished"]
    }
    if done:
        _clear_directory(out, {manifest.MANIFEST_NAME, *done})
        return
    manifest.remove_tree(out)
    for parent in fresh:  # created for this step, unless something else lies there by now
        if parent.exists() and not any(parent.iterdir()):
            manifest.remove_tree(parent)


def is_resumable(
    out: UPath, name: str, settings: dict[str, Any], inputs: dict[str, Any], resume: str, *, overwrite: bool = False
) -> bool:
    """Whether `out` holds step `name` with these settings and inputs, unfinished, so that it resumes from `resume`.

    Raises
    ------
    OutputError
        Settings or inputs differ, `resume` is not empty, and `overwrite` is not set: hours of work may lie there.
    """
    found = manifest.peek_manifest(out)
    if found is None or found["finished"]:
        return False
    state, changed = manifest.status(found, name, settings, inputs)
    if changed and not overwrite and (out / resume).exists():
        raise OutputError(
            f"the step {found['step']!r} is unfinished here, with other settings or another input: "
            + "; ".join(changed),
            where=str(out),
            expected="the settings and the input it began with, to resume it",
            remedy="call it as before, choose another directory, or add --overwrite to start over",
        )
    return state is manifest.State.RESUMABLE


def check_parents(out: UPath) -> None:
    """Make sure that `out` is not below a file of a local disk."""
    if out.protocol in ("", "file", "local"):
        nearest = next((parent for parent in out.parents if parent.exists()), None)
        if nearest is not None and not nearest.is_dir():
            raise _creation_error(out, os.strerror(errno.ENOTDIR))


def _creation_error(out: UPath, reason: object) -> OutputError:
    remedy = "choose a directory that this user may write to, not below a file"
    return OutputError(f"the directory cannot be created ({reason})", where=str(out), remedy=remedy)


def check_output_free(out: UPath, name: str, *, overwrite: bool = False) -> None:
    """Make sure that step `name` may write `out`, whatever its settings and inputs; changes nothing.

    Raises
    ------
    OutputError
    """
    if not out.exists():
        check_parents(out)
        return
    if not out.is_dir():
        raise OutputError(
            "the output exists and is a file",
            where=str(out),
            expected="a directory to create",
            remedy="choose another --out",
        )
    # A killed run may have left its lock and the temporary file of its manifest.
    if all(child.name.startswith((lock.LOCK_NAME, manifest.MANIFEST_NAME + ".")) for child in out.iterdir()):
        return
    found = manifest.peek_manifest(out)
    if found is None:
        raise OutputError(
            "the output directory holds files that daskmeans did not write",
            where=str(out),
            expected="a new or empty directory",
            remedy="choose another --out, or empty it yourself",
        )
    if found["finished"] and not overwrite:
        raise OutputError(
            f"the output exists already (step {found['step']!r}, finished)",
            where=str(out),
            expected="a new or empty directory",
            remedy="choose another --out, or add --overwrite to replace it",
        )
    if found["step"] != name:
        raise OutputError(
            f"the output directory belongs to another step ({found['step']!r})",
            where=str(out),
            expected=f"a new directory, or one of step {name!r}",
            remedy="choose another --out",
        )

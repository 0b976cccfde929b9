"""Atomic writes, and the differences between object stores and disks.

Object stores have no directories and no renames, but an object appears completely or not at all. Their clients cache
listings, and raise errors of many kinds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from upath import UPath

# URL schemes of object stores.
PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl")
# Number of files and directories flushed at the same time.
FLUSH_THREADS = 16
# Packages of their clients.
STORE_PACKAGES = ("adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs")


def is_object_store(path: UPath) -> bool:
    """Whether `path` lies on an object store."""
    return path.protocol in PROTOCOLS


def disable_listing_cache(path: UPath) -> UPath:
    """Return `path` without a listing cache if it lies on an object store, where other processes write too."""
    return UPath(path, use_listings_cache=False) if is_object_store(path) else path


def replace_file(path: UPath, content: bytes, writer: str) -> None:
    """Replace the content of the file `path` atomically: readers see the old content or the new, never a part.

    The temporary file is named after its `writer`, of which there may be several. On a disk, the new content survives a
    power loss.
    """
    if is_object_store(path):
        path.write_bytes(content)
        return
    aside = path.with_name(f"{path.name}.{writer}")
    aside.write_bytes(content)
    flush_to_disk(aside)
    path.fs.mv(aside.path, path.path)
    if _is_on_disk(path):
        _fsync(path.parent.path)


def flush_to_disk(path: UPath) -> None:
    """Flush the file `path`, or all files below the directory, to a disk of this machine, to survive a power loss."""
    if not _is_on_disk(path):  # object stores do so before they respond
        return
    tree = os.walk(path.path) if path.is_dir() else [(path.path, [], [])]
    places = [os.path.join(folder, name) for folder, _, names in tree for name in (*names, "")]
    with ThreadPoolExecutor(FLUSH_THREADS) as pool:  # a flush waits for the disk, which takes many at a time
        list(pool.map(_fsync, places))


def _is_on_disk(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


def _fsync(place: str) -> None:
    try:
        number = os.open(place.rstrip("/") or "/", os.O_RDONLY)
    except FileNotFoundError:  # a lock file replaced by a heartbeat meanwhile
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not support it
            raise
    finally:
        os.close(number)


def is_storage_error(error: Exception) -> bool:
    """Whether `error` comes from storage: an object store or a disk that is unreachable, or has refused.

    Examples
    --------
    >>> is_storage_error(PermissionError()), is_storage_error(ZeroDivisionError())
    (True, False)
    """
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, OSError) or any(module.partition(".")[0] in STORE_PACKAGES for module in modules)


@contextlib.contextmanager
def suppress_storage_errors() -> Iterator[None]:
    """Suppress storage errors in the ``with`` block; the next run cleans up what is left."""
    try:
        yield
    except Exception as error:
        if not is_storage_error(error):
            raise

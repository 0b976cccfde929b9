"""Files that are whole or not there, and what object stores do otherwise than disks.

Stores have no directories and rename nothing, but an object appears whole or not at all. Their clients remember
listings, and raise errors of all kinds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from upath import UPath

# As URLs name them.
PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl")
# Files and directories that are flushed at the same time.
FLUSH_THREADS = 16
# Packages that speak to them.
STORE_PACKAGES = ("adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs")


def is_object_store(path: UPath) -> bool:
    """Whether `path` lies on an object store."""
    return path.protocol in PROTOCOLS


def disable_listing_cache(path: UPath) -> UPath:
    """`path`, where on an object store each listing is a fresh one: other processes write there too."""
    return UPath(path, use_listings_cache=False) if is_object_store(path) else path


def replace_file(path: UPath, content: bytes, writer: str) -> None:
    """Make `content` that of the file `path`; a reader sees the old content or the new, never half of it.

    Until then it is called after its `writer`, of which there may be several. On a disk it outlives a loss of power.
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
    """Have a disk of this machine keep the file `path`, or all below the directory, even if the power goes."""
    if not _is_on_disk(path):  # stores see to it before they answer
        return
    tree = os.walk(path.path) if path.is_dir() else [(path.path, [], [])]
    places = [os.path.join(folder, name) for folder, _, names in tree for name in (*names, "")]
    with ThreadPoolExecutor(FLUSH_THREADS) as pool:  # one waits for the disk, which takes many at a time
        list(pool.map(_fsync, places))


def _is_on_disk(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


def _fsync(place: str) -> None:
    try:
        number = os.open(place.rstrip("/") or "/", os.O_RDONLY)
    except FileNotFoundError:  # a lock that gave a sign of life meanwhile
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(number)


def is_storage_error(error: Exception) -> bool:
    """Whether `error` comes from storage: a store or a disk was not reached, or has refused.

    Examples
    --------
    >>> is_storage_error(PermissionError()), is_storage_error(ZeroDivisionError())
    (True, False)
    """
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, OSError) or any(module.partition(".")[0] in STORE_PACKAGES for module in modules)


@contextlib.contextmanager
def suppress_storage_errors() -> Iterator[None]:
    """Let it pass if the store or the disk fails in the ``with`` block: what is left to clean, the next run cleans."""
    try:
        yield
    except Exception as error:
        if not is_storage_error(error):
            raise

"""Disk space for outputs: checked before the work begins, and reported clearly if it runs out."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator

from dask.utils import format_bytes
from upath import UPath

from daskmeans.errors import DiskError

# Errors of a full disk, an exhausted quota, or a file-size limit of the process.
FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDY = "free some space, or choose a directory on a larger disk"


def check_space(out: UPath, need: int) -> None:
    """Make sure that `need` bytes fit on the local disk of the directory `out`, whose present content counts as free.

    Other storage is not checked.

    Raises
    ------
    DiskError

    Examples
    --------
    >>> check_space(UPath("/tmp/daskmeans-doctest"), 10**18)
    Traceback (most recent call last):
    ...
    daskmeans.errors.DiskError: /tmp/daskmeans-doctest: the output takes about 888.18 PiB, and its disk has ...
    """
    if out.protocol not in ("", "file", "local"):
        return
    disk = next(parent for parent in (out, *out.parents) if parent.exists())
    free = shutil.disk_usage(disk.path).free + (out.fs.du(out.path) if out.exists() else 0)
    if need > free:
        raise DiskError(
            f"the output takes about {format_bytes(need)}, and its disk has {format_bytes(free)} free",
            where=str(out),
            remedy=REMEDY,
        )


@contextlib.contextmanager
def translate_disk_errors(out: UPath) -> Iterator[None]:
    """Turn the system's error for a full disk, while `out` is written, into a DiskError."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_ERRNOS:
            raise
        raise DiskError(
            f"nothing more can be written ({error.strerror or error})",
            where=str(out),
            expected="enough disk space for the output",
            remedy=f"{REMEDY}; then run the same command again to resume, or to start over if it cannot",
        ) from error

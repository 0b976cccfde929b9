"""Room on the disk that an output is written to: forecast before the work begins, and explained when it ends."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator

from dask.utils import format_bytes
from upath import UPath

from daskmeans.errors import DiskError

# What the system says where a disk, a quota or a limit of the process is used up.
FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDY = "make room, or choose a directory on a larger disk"


def check_space(out: UPath, need: int) -> None:
    """Make sure that `need` bytes fit on the local disk of the directory `out`, what lies in it counted as room.

    Of other storage nothing is known.

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
            f"the output takes about {format_bytes(need)}, and its disk has {format_bytes(free)}",
            where=str(out),
            remedy=REMEDY,
        )


@contextlib.contextmanager
def translate_disk_errors(out: UPath) -> Iterator[None]:
    """Turn what the system says of a full disk, while `out` is written, into an error of ours."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_ERRNOS:
            raise
        raise DiskError(
            f"nothing more can be written ({error.strerror or error})",
            where=str(out),
            expected="room for the output on its disk",
            remedy=f"{REMEDY}; the same command goes on, or begins again where it cannot",
        ) from error

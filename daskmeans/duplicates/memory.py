"""Memory that rewriting files takes."""

from __future__ import annotations

from dask.utils import format_bytes
from distributed import Client

from daskmeans.errors import MemoryForecastError
from daskmeans.runtime import resources
from daskmeans.runtime.client import threads_per_process
from daskmeans.runtime.memory import COPIES


def apply_bytes(decisions: int, group: int) -> int:
    """Bytes of one task that rewrites a file, where all decisions take `decisions` bytes.

    `group` bytes of rows are in memory several times: as in the file, as they are read, as they are kept and as they
    are written.

    Examples
    --------
    >>> apply_bytes(48_000_000, 0)
    96000000
    """
    return 2 * decisions + (2 + COPIES) * group


def check_apply(decisions: int, where: str, client: Client | None) -> int | None:
    """Bytes that each task has besides the decisions, all of which every process holds; None if there is no limit.

    Raises
    ------
    MemoryForecastError
    """
    task = resources.memory_per_task(client)
    need, have = apply_bytes(decisions, 0), None if task is None else task * threads_per_process(client)
    if have is not None and need > have:
        raise MemoryForecastError(
            f"the decisions on all rows take {format_bytes(need)} in each worker, which has {format_bytes(have)}",
            where=where,
            remedy="give workers a higher --memory-limit",
        )
    return None if have is None else (have - need) // threads_per_process(client)


def check_rewrite(group: int, have: int | None, where: str) -> None:
    """Refuse to rewrite `group` bytes of rows at a time if a task, which has `have` bytes, needs more for it.

    Raises
    ------
    MemoryForecastError
    """
    need = apply_bytes(0, group)
    if have is not None and need > have:
        raise MemoryForecastError(
            f"rewriting {format_bytes(group)} of rows takes {format_bytes(need)}, and a task has {format_bytes(have)} "
            "besides the decisions",
            where=where,
            remedy="give workers a higher --memory-limit or fewer --threads-per-worker, or write the file with smaller "
            "row groups",
        )

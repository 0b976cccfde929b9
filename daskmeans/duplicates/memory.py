"""What rewriting files takes in memory."""

from __future__ import annotations

from dask.utils import format_bytes
from distributed import Client

from daskmeans.errors import MemoryForecastError
from daskmeans.runtime import resources
from daskmeans.runtime.client import threads_per_process
from daskmeans.runtime.memory import COPIES


def apply_bytes(decisions: int, group: int) -> int:
    """Bytes of one task that rewrites a file, and of all decisions, which take some.

    `group` bytes of rows are there as they lie in the file, as they are read, as far as they are kept, and as they are
    written.

    Examples
    --------
    >>> apply_bytes(48_000_000, 0)
    96000000
    """
    return 2 * decisions + (2 + COPIES) * group


def check_apply(decisions: int, where: str, client: Client | None) -> int | None:
    """Bytes that each task has beside the decisions; of these, each process needs all.

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
    """Refuse to rewrite `group` bytes of rows at a time in a task that has less memory than that takes.

    Raises
    ------
    MemoryForecastError
    """
    need = apply_bytes(0, group)
    if have is not None and need > have:
        raise MemoryForecastError(
            f"rewriting {format_bytes(group)} of rows takes {format_bytes(need)}, and a task has {format_bytes(have)} "
            "beside the decisions",
            where=where,
            remedy="give workers a higher --memory-limit or fewer --threads-per-worker, or write the file with smaller "
            "row groups",
        )

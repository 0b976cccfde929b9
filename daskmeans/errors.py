"""What can go wrong, as a tree.

::

    DaskmeansError
    ├── UsageError        the call cannot work as it was given              exit status 2
    │   ├── NotFoundError     a path that does not exist, or is not what it should be
    │   ├── OutputError       an output that is in the way, or inside its own input
    │   └── MissingExtraError a package of an extra that is not installed
    └── RunError          the work itself met something it cannot pass      exit status 1
        ├── DataError         a file or a row that is not what it should be
        ├── MemoryForecastError  a step that would not fit
        ├── DiskError         an output that does not fit on its disk
        └── ClusterError      a scheduler that cannot be reached, or was lost

Every message says what was found, where, what was expected and how to mend it. A traceback is for our mistakes,
never for a user's.
"""

from __future__ import annotations

__all__ = [
    "ClusterError",
    "ClusterSizeWarning",
    "DaskmeansError",
    "DataError",
    "DiskError",
    "MemoryForecastError",
    "MissingExtraError",
    "NotFoundError",
    "OutputError",
    "PrecisionWarning",
    "RunError",
    "UsageError",
]


class DaskmeansError(Exception):
    """Root of all errors that daskmeans raises on purpose.

    Parameters
    ----------
    found : str
        What was met, in one sentence without a full stop.
    where : str, optional
        File, row or column, or the option concerned.
    expected : str, optional
        What would have been right.
    remedy : str, optional
        What the reader can do now.

    Examples
    --------
    >>> print(DaskmeansError("the vector holds NaN", where="a.parquet, row 3", remedy="repair the row"))
    a.parquet, row 3: the vector holds NaN
      remedy: repair the row
    """

    exit_status = 1

    def __init__(self, found: str, where: str = "", expected: str = "", remedy: str = "") -> None:
        # All arguments go to Exception, so that pickling between workers keeps them.
        super().__init__(found, where, expected, remedy)
        self.found, self.where, self.expected, self.remedy = found, where, expected, remedy

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.found}" if self.where else self.found]
        lines += [f"  expected: {self.expected}"] if self.expected else []
        lines += [f"  remedy: {self.remedy}"] if self.remedy else []
        return "\n".join(lines)


class UsageError(DaskmeansError, ValueError):
    """The call cannot work as it was given."""

    exit_status = 2


class NotFoundError(UsageError):
    """A path that does not exist, or is not what it should be."""


class OutputError(UsageError):
    """An output that is in the way, unfinished, or inside its own input."""


class MissingExtraError(UsageError, ImportError):
    """A package of an extra that is not installed.

    Parameters
    ----------
    package : str
        The import name that failed.
    extra : str
        The extra that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed",
            remedy=f'pip install "daskmeans[{extra}]"',
        )
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.package, self.extra)


class RunError(DaskmeansError, RuntimeError):
    """The work itself met something it cannot pass."""


class DataError(RunError, ValueError):
    """A file or a row that is not what it should be."""


class MemoryForecastError(RunError):
    """A step that would not fit into the memory it is given."""


class DiskError(RunError):
    """An output that does not fit on its disk."""


class ClusterError(RunError):
    """A scheduler that cannot be reached, or was lost."""


class ClusterSizeWarning(UserWarning):
    """A cluster that has more rows than asked for, and cannot be split."""


class ConvergenceWarning(UserWarning):
    """A fit that was ended by the number of updates it was allowed, before it converged."""


class PrecisionWarning(UserWarning):
    """Rows that differ by less than float32, in which they are compared, can tell."""

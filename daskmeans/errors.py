"""The exception tree.

::

    DaskmeansError
    ├── UsageError               the call cannot work as given                       exit status 2
    │   ├── NotFoundError        a path does not exist, or is of the wrong kind
    │   ├── OutputError          an output exists already, or lies inside its own input
    │   └── MissingExtraError    a package of an extra is not installed
    └── RunError                 the work failed                                     exit status 1
        ├── DataError            a file or a row is invalid
        ├── MemoryForecastError  a step would not fit into memory
        ├── DiskError            an output does not fit on its disk
        └── ClusterError         a scheduler or its workers cannot be reached, or were lost

Every message says what was found, where, what was expected and how to fix it. Tracebacks are for bugs in daskmeans,
never for a user's mistake.
"""

from __future__ import annotations

__all__ = [
    "ClusterError",
    "ClusterSizeWarning",
    "ConvergenceWarning",
    "DaskmeansError",
    "DataError",
    "DiskError",
    "MemoryForecastError",
    "MissingExtraError",
    "NotFoundError",
    "OutputError",
    "PrecisionWarning",
    "RunError",
    "ScalingWarning",
    "UsageError",
]


class DaskmeansError(Exception):
    """Base class of all errors that daskmeans raises on purpose.

    Parameters
    ----------
    found : str
        What was found, in one sentence without a full stop.
    where : str, optional
        The file, row, column or option concerned.
    expected : str, optional
        What would have been valid.
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
    """The call cannot work as given."""

    exit_status = 2


class NotFoundError(UsageError):
    """A path does not exist, or is of the wrong kind."""


class OutputError(UsageError):
    """An output exists already, is unfinished, or lies inside its own input."""


class MissingExtraError(UsageError, ImportError):
    """A package of an extra is not installed.

    Parameters
    ----------
    package : str
        Import name of the missing package.
    extra : str
        The extra that installs it.
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
    """The work failed."""


class DataError(RunError, ValueError):
    """A file or a row is invalid."""


class MemoryForecastError(RunError):
    """A step would not fit into the memory it is given."""


class DiskError(RunError):
    """An output does not fit on its disk."""


class ClusterError(RunError):
    """A scheduler or its workers cannot be reached, or were lost."""


class ClusterSizeWarning(UserWarning):
    """A cluster has more rows than allowed, and cannot be split."""


class ConvergenceWarning(UserWarning):
    """A fit reached its maximum number of updates before it converged, or found fewer clusters than asked for."""


class PrecisionWarning(UserWarning):
    """Rows differ by less than float32, in which they are compared, can resolve."""


class ScalingWarning(UserWarning):
    """Rows are scaled to unit length although much of what tells them apart is their length."""

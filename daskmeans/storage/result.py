"""Results of steps: the path of the output and its figures, also as a table for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from upath import UPath


def html_table(caption: str, figures: Mapping[str, Any]) -> str:
    """Return `figures` by name as an HTML table.

    Examples
    --------
    >>> html_table("a < b", {"rows": 12000})
    '<table><caption>a &lt; b</caption><tr><th>rows</th><td>12,000</td></tr></table>'
    """
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(_shown(each))}</td></tr>" for name, each in figures.items())
    return f"<table><caption>{escape(caption)}</caption>{rows}</table>"


def _shown(figure: Any) -> str:
    return f"{figure:,}" if isinstance(figure, int) and not isinstance(figure, bool) else str(figure)


class Result:
    """An output in the directory `path`, with figures to show."""

    path: UPath

    def figures(self) -> Mapping[str, Any]:
        """The figures to show, by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self.figures().items())})"

    def _repr_html_(self) -> str:
        return html_table(f"{type(self).__name__}: {self.path}", self.figures())


@dataclass(frozen=True, eq=False, repr=False)
class StepResult(Result, Mapping[str, Any]):
    """The result of a step: a mapping of its figures, equal to any mapping with the same figures.

    Attributes
    ----------
    path : UPath
        The output directory.
    facts : dict
        The figures by name.

    Examples
    --------
    >>> counts = StepResult(UPath("kept"), {"rows": 12000, "kept": 9000})
    >>> counts["kept"], counts == {"rows": 12000, "kept": 9000}
    (9000, True)
    >>> counts
    StepResult(rows=12000, kept=9000)
    """

    path: UPath
    facts: dict[str, Any]

    def figures(self) -> Mapping[str, Any]:
        return self.facts

    def __getitem__(self, name: str) -> Any:
        return self.facts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)

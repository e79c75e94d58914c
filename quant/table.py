"""A table without a look: what the command line, a page or a file then draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """A title, column names and rows of ready-made text, each as long as `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: a row of {len(row)} cells for {len(self.columns)} columns")

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A Table from any sequences."""
    return Table(title, tuple(columns), tuple(tuple(row) for row in rows))


def number(value: float | None, digits: int) -> str:
    """A fixed number of digits, or a dash where there is nothing to show."""
    return "–" if value is None else f"{value:.{digits}f}"

"""Tables as data, from which terminal, CSV, Markdown and page are written, so that all say the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Cell:
    """A value and how it is shown."""

    value: float | str | None = None
    text: str = ""
    error: float | None = None
    "Standard error."
    mark: Literal["", "best", "differs"] = ""


@dataclass(frozen=True)
class Column:
    """What stands in a column; text is aligned to the left, numbers to the right."""

    title: str
    unit: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    label: str
    cells: list[Cell]
    starts_group: bool = False
    "A rule stands above it."


@dataclass(frozen=True)
class Table:
    """A table of one kind of facts."""

    name: str
    "As the CSV calls it."
    columns: list[Column]
    rows: list[Row]
    stub: str = "run"
    "Title of the labels."
    notes: list[str] = field(default_factory=list)


def number(value: float | None, pattern: str) -> Cell:
    """A number shown by a format such as `,.4f`; empty where there is none."""
    return Cell() if value is None else Cell(value, format(value, pattern))


def significant(value: float | None, digits: int = 3) -> Cell:
    """A number of any size with so many significant digits, without an exponent where it can be read so."""
    if value is None:
        return Cell()
    if value == 0:
        return Cell(value, "0")
    if not 1e-5 <= abs(value) < 1e9:
        return Cell(value, f"{value:.{digits - 1}e}")
    before = math.floor(math.log10(abs(value))) + 1
    return Cell(value, f"{value:,.{max(0, digits - before)}f}")


def words(text: str) -> Cell:
    """A cell of text."""
    return Cell(text, text)


def without_empty(table: Table) -> Table:
    """A table without the columns that no row has a value for."""
    kept = [place for place in range(len(table.columns)) if any(row.cells[place].text for row in table.rows)]
    rows = [replace(row, cells=[row.cells[place] for place in kept]) for row in table.rows]
    return replace(table, columns=[table.columns[place] for place in kept], rows=rows)


def with_best(cells: Sequence[Cell], better: Better) -> list[Cell]:
    """The cells with the best of two or more marked; of equal ones as they are shown, all."""
    numbers = [cell.value for cell in cells if isinstance(cell.value, int | float) and cell.value == cell.value]
    if len(numbers) < 2:
        return list(cells)
    best = min(numbers) if better == "lower" else max(numbers)
    shown = next(cell.text for cell in cells if cell.value == best)
    if all(cell.text == shown for cell in cells if cell.text):
        return list(cells)
    return [replace(cell, mark="best") if cell.text == shown else cell for cell in cells]


def mark_columns(rows: Sequence[Row], better: dict[int, Better]) -> list[Row]:
    """Mark the best of each of these columns over all rows."""
    columns = [list(column) for column in zip(*(row.cells for row in rows), strict=True)]
    for place, which in better.items():
        columns[place] = with_best(columns[place], which)
    return [replace(row, cells=list(cells)) for row, cells in zip(rows, zip(*columns, strict=True), strict=True)]

"""Tables as CSV, as Markdown and as text for a terminal."""

import csv
import io
from collections.abc import Iterable, Sequence

from retlab.comparison.tables import Cell, Column, Table
from retlab.drawing import shortened

WIDTH = 100
"""Columns of a terminal."""

_LONGEST_LABEL = 44


def to_csv(tables: Iterable[Table]) -> str:
    """A line for each value of all tables: table, row, column, value at full precision, unit."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value", "unit"])
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell.value is not None:
                    writer.writerow([table.name, row.label, column.title, plain(cell), column.unit])
                if cell.error is not None:
                    writer.writerow([table.name, row.label, f"{column.title} ±", repr(cell.error), column.unit])
    return file.getvalue()


def plain(cell: Cell) -> str:
    """A cell's value at full precision, as the CSV has it."""
    return repr(cell.value) if isinstance(cell.value, float) else str(cell.value)


def to_markdown(table: Table) -> str:
    """A table of GitHub's Markdown; the best values are bold, what differs from the baseline's is italic."""
    units = [f"{column.title} ({column.unit})" if column.unit else column.title for column in table.columns]
    rules = ["---", *("---" if column.is_text else "---:" for column in table.columns)]
    lines = [[table.stub, *units], rules, *([row.label, *map(_emphasised, row.cells)] for row in table.rows)]
    text = "\n".join("| " + " | ".join(map(_on_one_line, line)) + " |" for line in lines)
    return "\n\n".join([text, *table.notes])


def _emphasised(cell: Cell) -> str:
    around = {"best": "**", "differs": "*", "": ""}[cell.mark]
    return f"{around}{cell.text}{around}" if cell.text else ""


def _on_one_line(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def to_terminal(table: Table, width: int = WIDTH) -> str:
    """A table for a terminal, with * behind what is best or differs; columns that do not fit follow below."""
    label_width = min(max(len(table.stub), *(len(row.label) for row in table.rows)), _LONGEST_LABEL)
    widths = [_width(table, place) for place in range(len(table.columns))]
    blocks = _blocks(widths, width - label_width)
    return "\n\n".join(_block(table, places, widths, label_width) for places in blocks)


def _width(table: Table, place: int) -> int:
    """Characters of a column, with a gap before it and a place for the mark behind it."""
    column = table.columns[place]
    return 2 + max(len(_title(column)), len(column.unit), *(len(row.cells[place].text) for row in table.rows))


def _title(column: Column) -> str:
    return shortened(column.title, _LONGEST_LABEL)


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns that go beside each other."""
    blocks: list[list[int]] = [[]]
    for place, width in enumerate(widths):
        if blocks[-1] and sum(widths[one] for one in blocks[-1]) + width > room:
            blocks.append([])
        blocks[-1].append(place)
    return blocks


def _block(table: Table, places: Sequence[int], widths: Sequence[int], label_width: int) -> str:
    columns = [table.columns[place] for place in places]

    def line(label: str, texts: Sequence[str]) -> str:
        name = shortened(label, label_width)
        cells = [_aligned(text, table.columns[place], widths[place]) for text, place in zip(texts, places, strict=True)]
        return "".join([name.ljust(label_width), *cells]).rstrip()

    rule = "-" * (label_width + sum(widths[place] for place in places))
    lines = [line(table.stub, [f"{_title(column)} " for column in columns])]
    if any(column.unit for column in columns):
        lines.append(line("", [f"{column.unit} " for column in columns]))
    lines.append(rule)
    for row in table.rows:
        cells = [row.cells[place] for place in places]
        # Columns that follow below are not those of every row.
        if places[0] and not any(cell.text for cell in cells):
            continue
        lines += [rule] if row.starts_group else []
        lines.append(line(row.label, [f"{cell.text}{'*' if cell.mark else ' '}" for cell in cells]))
    return "\n".join(lines)


def _aligned(text: str, column: Column, width: int) -> str:
    return f"  {text}".ljust(width)[:width] if column.is_text else text.rjust(width)

"""Tables: marks, digits, and the three ways to write them."""

import csv

import pytest

from retlab.comparison.tables import Cell, Column, Row, Table, number, significant, with_best, without_empty, words
from retlab.comparison.writing import WIDTH, to_csv, to_markdown, to_terminal


def marks(cells: list[Cell]) -> list[str]:
    return [cell.mark for cell in cells]


def test_the_best_is_marked_and_what_looks_like_it() -> None:
    cells = [number(value, ".2f") for value in (1.234, 1.231, 2.0, None)]
    assert marks(with_best(cells, "lower")) == ["best", "best", "", ""]
    assert marks(with_best(cells, "higher")) == ["", "", "best", ""]
    assert marks(with_best([number(1.0, ".1f"), Cell()], "lower")) == ["", ""], "alone it is not better than anything"
    assert marks(with_best([number(1.01, ".1f"), number(1.02, ".1f")], "lower")) == ["", ""], "they look the same"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00071234, "0.000712"), (0.0, "0"), (1.23456, "1.23"), (1234.5, "1,234"), (1.5e-9, "1.50e-09"), (25.04, "25.0"),
     (-0.5, "-0.500"), (3e12, "3.00e+12")],
)  # fmt: skip
def test_significant_digits(value: float, text: str) -> None:
    assert significant(value).text == text


def table(columns: int = 3) -> Table:
    titles = [Column(f"column {place}", "unit" if place % 2 else "") for place in range(columns)]
    values = [[line + place / 7 for place in range(columns)] for line in range(2)]
    cells = [[Cell(value, f"{value:.3f}", mark="best" if line else "") for value in values[line]] for line in range(2)]
    return Table("numbers", titles, [Row(f"row {line}", cells[line]) for line in range(2)], notes=["A note."])


def test_csv_has_every_value_at_full_precision() -> None:
    made = table()
    made.rows[0].cells[0] = Cell(1 / 3, "0.3333", 0.0123456789)
    rows = list(
        csv.DictReader(
            to_csv([made, Table("words", [Column("c", is_text=True)], [Row("r", [words("a, b")])])]).splitlines()
        )
    )
    found = {(row["table"], row["row"], row["column"]): row["value"] for row in rows}
    assert float(found["numbers", "row 1", "column 2"]) == 1 + 2 / 7
    assert found["numbers", "row 0", "column 0 ±"] == "0.0123456789"
    assert found["words", "r", "c"] == "a, b"
    assert len(rows) == 8


def test_markdown_is_a_table() -> None:
    lines = to_markdown(table()).splitlines()
    assert lines[0] == "| run | column 0 | column 1 (unit) | column 2 |"
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[3] == "| row 1 | **1.000** | **1.143** | **1.286** |"
    assert lines[-1] == "A note."


def test_a_wide_table_goes_on_below_and_digits_stand_below_each_other() -> None:
    lines = to_terminal(table(20)).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert sum(line.startswith("row 0") for line in lines) == 3
    first, second = (next(line for line in lines if line.startswith(f"row {place}")) for place in (0, 1))
    assert first.index("0.143") + 5 == second.index("1.143") + 5
    assert second[second.index("1.143") + 5] == "*"
    long = Table("t", [Column("c")], [Row("a" * 80, [number(1.0, ".1f")])])
    assert max(map(len, to_terminal(long).splitlines())) <= WIDTH


def test_empty_columns_are_left_out() -> None:
    made = Table("t", [Column("a"), Column("b")], [Row("r", [Cell(), number(1.0, ".1f")]), Row("s", [Cell(), Cell()])])
    assert [column.title for column in without_empty(made).columns] == ["b"]

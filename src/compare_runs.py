"""Put evaluated runs side by side: as text, as CSV and Markdown, and as one HTML page with plots.

    python src/compare_runs.py RUN_FOLDER [RUN_FOLDER ...] [--baseline RUN_FOLDER] [--output FOLDER] [--json]

The first run is what the others are compared with, unless --baseline names another. With --output a folder gets the
page (index.html), comparison.csv, comparison.md and the plots; with --json the numbers are printed for programs.
"""

import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import retlab.script_start  # noqa: F401
from retlab.command import Parser, run_command
from retlab.comparison.report import Comparison, compare
from retlab.comparison.runs import read_runs
from retlab.comparison.terminal import to_text
from retlab.errors import UserError
from retlab.section import shown_path


def main() -> None:
    """Print the comparison and write the page."""
    parser = Parser("%(prog)s RUN_FOLDER [RUN_FOLDER ...] [--baseline RUN_FOLDER] [--output FOLDER] [--json]")
    parser.add_argument("runs", metavar="RUN_FOLDER", type=Path, nargs="*", help="a run folder with results.json")
    parser.add_argument("--baseline", metavar="RUN_FOLDER", type=Path, help="what the others are compared with")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="write page, CSV, Markdown and plots there")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON in place of the tables")
    options, unknown = parser.parse_known_intermixed_args()
    parser.refuse_unknown(unknown, ["RUN_FOLDER"])
    _compare(options.runs, options.baseline, options.output, options.json)


def _compare(folders: list[Path], baseline: Path | None, output: Path | None, as_json: bool) -> None:
    if not folders:
        raise UserError("command line: RUN_FOLDER is missing; name evaluated runs, such as runs/quickstart-retnet")
    if output is not None:
        from retlab.comparison.page import refuse_foreign

        refuse_foreign(output)
    first = folders[0] if baseline is None else baseline
    others = [folder for folder in folders if folder.resolve() != first.resolve()]
    # The baseline stands first, also where it is not among the runs.
    if len(others) < len(folders) - 1:
        raise UserError(f"{shown_path(first.resolve())} is named twice; name each run once")
    runs = read_runs([first, *others])
    comparison = compare(runs, runs[0])
    if as_json:
        print(json.dumps(_as_json(comparison), indent=2, ensure_ascii=False))
    else:
        print(to_text(comparison))
    if output is not None:
        from retlab.comparison.page import write_page

        page = write_page(comparison, output)[-1]
        print(f"\nThe page: {shown_path(page.resolve())}", file=sys.stderr if as_json else sys.stdout)


def _as_json(comparison: Comparison) -> dict[str, Any]:
    """Every table as rows of named values, and the notes."""
    tables = {
        table.name: [
            {
                table.stub: row.label,
                **{
                    f"{column.title.strip()} ({column.unit})" if column.unit else column.title: _known(cell.value)
                    for column, cell in zip(table.columns, row.cells, strict=True)
                },
            }
            for row in table.rows
        ]
        for table in comparison.tables()
    }
    notes = [note for section in comparison.sections for note in section.notes]
    samples = [{"prompt": prompt, "continuations": dict(texts)} for prompt, texts in comparison.samples]
    runs = {run.name: str(run.folder) for run in comparison.runs}
    return {"baseline": comparison.baseline.name, "runs": runs, "tables": tables, "notes": notes, "samples": samples}


def _known(value: float | str | None) -> float | str | None:
    """A value as JSON has it, which knows no infinite numbers."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    # Into `head` or a pager that is left, the table ends as that of any other command does.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    run_command(main, "run the same command again")

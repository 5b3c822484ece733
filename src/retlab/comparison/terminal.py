"""The comparison as text for a terminal of 100 columns."""

import textwrap
from collections.abc import Iterator

from retlab.comparison.contents import power_methods
from retlab.comparison.report import Comparison
from retlab.comparison.tables import Table
from retlab.comparison.writing import WIDTH, to_terminal
from retlab.progress import visible
from retlab.section import shown_path

SAMPLE_LINES = 16
_SHOWN = ("difference from the baseline", "tasks", "latency")


def to_text(comparison: Comparison) -> str:
    """Tables, notes, samples of the first prompt, and places."""
    parts = [to_terminal(comparison.sections[0].tables[0]), _notes(comparison)]
    for name in _SHOWN:
        table = comparison.table(name)
        if table is not None:
            parts += [to_terminal(table), _wrapped(table.notes)]
    parts += [_samples(comparison), "\n".join(_places(comparison))]
    return "\n\n".join(part for part in parts if part)


def _notes(comparison: Comparison) -> str:
    table: Table = comparison.sections[0].tables[0]
    notes = [*table.notes, *(note for section in comparison.sections for note in section.notes)]
    if any(cell.mark for row in table.rows for cell in row.cells):
        notes.insert(0, "* the better of them.")
    return _wrapped([*notes, *(f"Power: {method}." for method in power_methods(comparison.runs))])


def _wrapped(notes: list[str]) -> str:
    return "\n".join(textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in notes)


def _samples(comparison: Comparison) -> str:
    """What each run wrote after the first prompt of the first run that has one."""
    if not comparison.samples:
        return ""
    prompt, texts = comparison.samples[0]
    blocks = [f"From the prompt {prompt!r}:"]
    for name, text in texts:
        written = "no sample of this prompt" if text is None else prompt + text
        blocks.append(f"{name}\n" + "\n".join(f"  | {line}".rstrip() for line in _lines(written)))
    return "\n\n".join(blocks)


def _lines(text: str) -> list[str]:
    """Lines that a terminal shows as they are: nothing that moves the cursor, nothing too long."""
    width = WIDTH - len("  | ")
    lines = [
        line[start : start + width]
        for line in visible(text).split("\n")
        for start in range(0, max(len(line), 1), width)
    ]
    return lines if len(lines) <= SAMPLE_LINES else [*lines[:SAMPLE_LINES], "..."]


def _places(comparison: Comparison) -> Iterator[str]:
    yield "Where everything lies:"
    for run in comparison.runs:
        yield f"  {shown_path(run.folder)}/"
        if (run.folder / "model").is_dir():
            yield "    model/  the trained model, for AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)"
        found = ("results.json", "results.csv", "metrics.csv", "emissions.csv", "evaluation")
        names = [name for name in found if (run.folder / name).exists()]
        yield "    " + "  ".join(f"{name}/" if name == "evaluation" else name for name in names)

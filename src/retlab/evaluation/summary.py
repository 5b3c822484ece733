"""The table that puts evaluated runs side by side, as text for a terminal of 100 columns."""

import csv
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retlab.artifacts import read_json
from retlab.emissions_rows import read_rows
from retlab.errors import UserError
from retlab.section import script, shown_path
from retlab.yaml_file import shown

WIDTH = 100
SAMPLE_LINES = 16

_REFERENCE_NAMES = {
    "uniform": "uniform guess",
    "unigram": "unigram counts",
    "bigram": "bigram counts",
    "gzip": "gzip -9",
    "xz": "xz",
}
_HEADER = (
    ("", ""),
    ("parameters", ""),
    ("test loss", "nats/token"),
    ("perplexity", ""),
    ("bits per", "byte"),
    ("training", "tokens/s"),
    ("energy", "kWh"),
    ("emissions", "kg CO2e"),
)


@dataclass(frozen=True)
class Run:
    """What an evaluated run folder says."""

    name: str
    folder: Path
    results: dict[str, Any]
    samples: list[dict[str, Any]]
    tokens_per_second: float | None
    emissions: list[dict[str, Any]]


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: it holds no results.
    """
    folder = folder.resolve()
    results, samples = read_json(folder / "results.json"), read_json(folder / "evaluation" / "samples" / "samples.json")
    if not isinstance(results, dict) or not {"model", "settings", "test"} <= results.keys():
        what = "is not evaluated (there is no whole results.json in it)" if folder.is_dir() else "is no run folder"
        raise UserError(f"{shown_path(folder)} {what}; run {script('evaluate_model')} with its configuration first")
    speed = _tokens_per_second(folder / "metrics.csv")
    return Run(folder.name, folder, results, samples or [], speed, read_rows(folder))


def _tokens_per_second(metrics: Path) -> float | None:
    """Training speed over the whole run, without validation and saving."""
    if not metrics.is_file():
        return None
    with open(metrics, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("seconds") and row.get("tokens")]
    if not rows or float(rows[-1]["seconds"]) <= 0:
        return None
    return float(rows[-1]["tokens"]) / float(rows[-1]["seconds"])


def summary(runs: list[Run]) -> str:
    """Table, samples of the same prompt, and places of any number of runs."""
    if len({run.name for run in runs}) < len(runs):
        runs = [replace(run, name=f"{run.folder.parent.name}/{run.folder.name}") for run in runs]
    parts = [_table(runs), _notes(runs), _samples(runs), _places(runs)]
    return "\n\n".join(part for part in parts if part)


def _table(runs: list[Run]) -> str:
    lines = [_run_cells(run) for run in runs]
    points: dict[str, dict[str, float]] = next(
        (run.results["reference_points"] for run in runs if "reference_points" in run.results), {}
    )
    references = [_reference_cells(name, numbers) for name, numbers in points.items()]
    titles = [[title for title, _ in _HEADER], [unit for _, unit in _HEADER]]
    columns = list(zip(*titles, *lines, *references, strict=True))
    widths = [max(map(len, column)) for column in columns]
    gap = 2
    widths[0] = max(12, min(widths[0], WIDTH - sum(widths[1:]) - gap * (len(widths) - 1)))
    rule = "-" * (sum(widths) + gap * (len(widths) - 1))

    def line(cells: list[str]) -> str:
        name = cells[0] if len(cells[0]) <= widths[0] else cells[0][: widths[0] - 3] + "..."
        right = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return (" " * gap).join([name.ljust(widths[0]), *right]).rstrip()

    blocks = [[line(cells) for cells in group] for group in (titles, lines, references) if group]
    return f"\n{rule}\n".join("\n".join(block) for block in blocks)


def _run_cells(run: Run) -> list[str]:
    test = run.results["test"]
    return [
        run.name,
        f"{run.results['model']['parameters']:,}",
        *_test_cells(test),
        f"{run.tokens_per_second:,.0f}" if run.tokens_per_second else "",
        *(_amount(sum(row[key] for row in run.emissions)) if run.emissions else ""
          for key in ("energy_kwh", "emissions_kg_co2e")),
    ]  # fmt: skip


def _reference_cells(name: str, numbers: dict[str, float]) -> list[str]:
    return [_REFERENCE_NAMES.get(name, name), "", *_test_cells(numbers), "", "", ""]


def _test_cells(numbers: dict[str, float]) -> list[str]:
    perplexity = numbers.get("perplexity")
    return [
        f"{numbers['loss']:.4f}" if "loss" in numbers else "",
        "" if perplexity is None else f"{perplexity:,.2f}" if perplexity < 1e6 else f"{perplexity:.2e}",
        f"{numbers['bits_per_byte']:.4f}",
    ]


def _amount(value: float) -> str:
    return f"{value:.5f}" if value < 1 else f"{value:,.3f}"


def _notes(runs: list[Run]) -> str:
    first = runs[0].results["test"]
    text = f"Loss and bits per byte: {first['documents']:,} test documents, {first['bytes']:,} bytes"
    notes = [f"{text}, {first['tokens']:,} tokens with each end of text."]
    notes += [note for run in runs[1:] for note in _reservations(runs[0], run)]
    methods = dict.fromkeys(row["power_method"] for run in runs for row in run.emissions)
    if methods:
        notes.append(
            "Energy and emissions: every attempt of every stage that ran for the run; data that runs share is counted"
            " where it was made."
        )
        notes += [f"Power: {method}." for method in methods]
    return "\n".join(textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in notes)


def _reservations(first: Run, run: Run) -> Iterator[str]:
    """What keeps the numbers of a run from being compared with those of the first."""
    before, now = first.results, run.results
    if now["settings"].get("test_text_sha256") != before["settings"].get("test_text_sha256"):
        yield f"{run.name} was tested on other text ({now['test']['bytes']:,} bytes): do not compare it."
        return
    if now["test"]["tokens"] != before["test"]["tokens"]:
        yield f"{run.name} has another tokenizer: compare bits per byte, not loss and perplexity."
    elif now.get("reference_points", before.get("reference_points")) != before.get("reference_points"):
        yield f"{run.name} was trained on other text: the unigram and bigram counts are those of {first.name}."
    for key in ("sequence_length", "packing", "reset_at_documents"):
        if now["settings"][key] != before["settings"][key]:
            yield (
                f"{run.name} was evaluated with data.{key} {shown(now['settings'][key])}, {first.name} with"
                f" {shown(before['settings'][key])}: their tokens saw other context."
            )


def _samples(runs: list[Run]) -> str:
    """What each run wrote after the first prompt of the first run that has one."""
    prompt = next((sample["prompt"] for run in runs for sample in run.samples), None)
    if prompt is None:
        return ""
    blocks = [f"From the prompt {prompt!r}:"]
    for run in runs:
        sample = next((sample for sample in run.samples if sample["prompt"] == prompt), None)
        text = "no sample of this prompt" if sample is None else prompt + sample["continuation"]
        blocks.append(f"{run.name}\n" + "\n".join(f"  | {line}".rstrip() for line in _visible_lines(text)))
    return "\n\n".join(blocks)


def _visible_lines(text: str) -> list[str]:
    """Lines that a terminal shows as they are: nothing that moves the cursor, nothing too long."""
    plain = text.replace("\r\n", "\n").expandtabs(4)
    plain = "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in plain)
    width = WIDTH - len("  | ")
    lines = [line[start : start + width] for line in plain.split("\n") for start in range(0, max(len(line), 1), width)]
    return lines if len(lines) <= SAMPLE_LINES else [*lines[:SAMPLE_LINES], "..."]


def _places(runs: list[Run]) -> str:
    lines = ["Where everything lies:"]
    for run in runs:
        folder = shown_path(run.folder)
        lines += [
            f"  {folder}/",
            "    model/  the trained model, for AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)",
            "    results.json  results.csv  metrics.csv  emissions.csv  evaluation/",
        ]
    return "\n".join(lines)

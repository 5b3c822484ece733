"""What run folders say of themselves, read without torch. Whatever a run lacks is None or empty."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from retlab.artifacts import read_json, read_manifest
from retlab.emissions_rows import read_rows
from retlab.errors import UserError
from retlab.evaluation.latency.rows import LatencyRow
from retlab.section import script, shown_path


class DocumentLosses(NamedTuple):
    """Of each test document, in file order: hash of its text, sum of -log p in nats, targets, UTF-8 bytes."""

    sha256: list[str]
    nats: list[float]
    tokens: list[int]
    bytes: list[int]


@dataclass(frozen=True)
class Run:
    """An evaluated run folder."""

    name: str
    folder: Path
    results: dict[str, Any]
    "results.json."
    config: dict[str, Any] = field(default_factory=dict)
    "What decides it of the resolved configuration, by dotted key."
    trained: dict[str, Any] = field(default_factory=dict)
    "Manifest of the training."
    metrics: list[dict[str, float]] = field(default_factory=list)
    "Lines of metrics.csv; empty cells are left out."
    emissions: list[dict[str, Any]] = field(default_factory=list)
    "Rows of all attempts of all stages."
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def test(self) -> dict[str, Any]:
        """Numbers of the test split."""
        return dict(self.results.get("test", {}))

    @property
    def settings(self) -> dict[str, Any]:
        """What the test numbers were made with."""
        return dict(self.results.get("settings", {}))

    @property
    def tokens_per_second(self) -> float | None:
        """Training speed over the whole run, without validation and saving."""
        timed = [line for line in self.metrics if "seconds" in line and "tokens" in line]
        return timed[-1]["tokens"] / timed[-1]["seconds"] if timed and timed[-1]["seconds"] > 0 else None

    def total(self, column: str, *stages: str) -> float | None:
        """Sum over all attempts of these stages, or of all; None where none of them ran for this run."""
        found = [row[column] for row in self.emissions if not stages or row["stage"].split()[0] in stages]
        return sum(found) if found else None

    @cached_property
    def documents(self) -> DocumentLosses | None:
        """Losses of the test documents."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self.folder / "evaluation" / "perplexity" / "document_losses.parquet").to_pydict()
            return DocumentLosses(*(table[column] for column in DocumentLosses._fields))
        except (OSError, pa.ArrowException, KeyError):
            return None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; those of the same name are told apart by the folders around them.

    Raises:
        UserError: one of them is no evaluated run, or is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    twice = [folder for number, folder in enumerate(resolved) if folder in resolved[:number]]
    if twice:
        raise UserError(f"{shown_path(twice[0])} is named twice; name each run once")
    runs = [read_run(folder) for folder in resolved]
    return [replace(run, name=name) for run, name in zip(runs, _short_names(resolved), strict=True)]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of the paths, as long as it takes for each to be another."""
    names: list[str] = []
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = [str(Path(*folder.parts[-parts:])) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: it holds no results.
    """
    folder = folder.resolve()
    results = read_json(folder / "results.json")
    if not isinstance(results, dict) or not isinstance(results.get("model"), dict):
        what = "is not evaluated (there is no whole results.json in it)" if folder.is_dir() else "is no run folder"
        raise UserError(f"{shown_path(folder)} {what}; run {script('evaluate_model')} with its configuration first")
    strange = _strange_part(results)
    if strange is not None:
        raise UserError(
            f"{strange} in {shown_path(folder / 'results.json')} is not what this version of RetLab writes; run"
            f" {script('evaluate_model')} with its configuration and --force"
        )
    return Run(
        folder.name,
        folder,
        results,
        _what_it_is(dict(_flat(_read_yaml(folder / "config.yaml")))),
        read_manifest(folder / "model") or {},
        list(_read_metrics(folder / "metrics.csv")),
        read_rows(folder),
        list(_read_samples(folder / "evaluation" / "samples" / "samples.json")),
    )


_NUMBERS = {
    "model": (),
    "settings": (),
    "reference_points": (),
    "test": ("loss", "perplexity", "bits_per_byte", "documents", "tokens", "bytes"),
}
"""Mappings of results.json, with the numbers that must be there where the mapping is."""

_ROWS = {
    "loss_by_position": {"first_position", "last_position", "loss", "standard_error"},
    "tasks": {"task", "metric", "value"},
    "latency": {field.name for field in fields(LatencyRow)},
}
"""Tables of results.json with what each of their rows has."""


def _strange_part(results: dict[str, Any]) -> str | None:
    """What is not as `write_results` leaves it: of another version, another program, or edited by hand."""
    for name, numbers in _NUMBERS.items():
        part = results.get(name)
        if name in results and not (
            isinstance(part, dict) and all(isinstance(part.get(key), int | float) for key in numbers)
        ):
            return name
    if not isinstance(results["model"].get("parameters"), int | None):
        return "model"
    for name, keys in _ROWS.items():
        rows = results.get(name, [])
        if not (isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= keys for row in rows)):
            return name
    return None


def _what_it_is(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that decide what a run is: not how it was measured, which may have changed and is told with the numbers.

    Of another model the experiment beside which it was measured decides nothing.
    """
    if config.get("evaluate.model") is not None:
        return {"evaluate.model": config["evaluate.model"]}
    return {key: value for key, value in config.items() if not key.startswith(("evaluate.", "generate."))}


def _read_samples(file: Path) -> Iterator[dict[str, Any]]:
    samples = read_json(file)
    for sample in samples if isinstance(samples, list) else []:
        if isinstance(sample, dict) and all(isinstance(sample.get(key), str) for key in ("prompt", "continuation")):
            yield sample


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return values if isinstance(values, dict) else {}


def _flat(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _read_metrics(file: Path) -> Iterator[dict[str, float]]:
    """The lines of a training's metrics; one that a kill cut short is left out."""
    try:
        with open(file, encoding="utf-8", newline="") as opened:
            lines = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error):
        return
    for line in lines:
        if None in line or None in line.values():
            continue
        try:
            yield {key: float(cell) for key, cell in line.items() if cell}
        except ValueError:
            continue

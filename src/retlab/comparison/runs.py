"""What run folders say of themselves, read without torch. Whatever a run lacks is None or empty."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from retlab.artifacts import read_json, read_manifest
from retlab.emissions_rows import read_rows
from retlab.errors import UserError
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
    "The resolved configuration, by dotted key."
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

    @property
    def training_energy_kwh(self) -> float | None:
        """Energy of all attempts at the training."""
        found = [row["energy_kwh"] for row in self.emissions if row["stage"] == "train_model"]
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
    """Read run folders; those of the same name are told apart by the folder around them.

    Raises:
        UserError: one of them is no evaluated run, or is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    twice = [folder for number, folder in enumerate(resolved) if folder in resolved[:number]]
    if twice:
        raise UserError(f"{shown_path(twice[0])} is named twice; name each run once")
    runs = [read_run(folder) for folder in resolved]
    if len({run.name for run in runs}) < len(runs):
        return [replace(run, name=f"{run.folder.parent.name}/{run.folder.name}") for run in runs]
    return runs


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
    samples = read_json(folder / "evaluation" / "samples" / "samples.json")
    return Run(
        folder.name,
        folder,
        results,
        dict(_flat(_read_yaml(folder / "config.yaml"))),
        read_manifest(folder / "model") or {},
        list(_read_metrics(folder / "metrics.csv")),
        read_rows(folder),
        samples if isinstance(samples, list) else [],
    )


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

"""results.json and results.csv of a run folder: what all its measurements found, put together."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from retlab.artifacts import read_json, read_manifest, write_atomic
from retlab.evaluation.settings import Measurement

UNITS = {
    "loss": "nats/token",
    "perplexity": "1",
    "bits_per_byte": "bits/byte",
    "parameters": "1",
    "vocab_size": "tokens",
    "documents": "1",
    "tokens": "tokens",
    "bytes": "bytes",
    "train_tokens": "tokens",
}
"""Unit of every number of the model, the test split and the reference points."""

_TABLES = {"loss_by_position": "perplexity", "tasks": "tasks", "latency": "latency"}
"""Tables (<name>.csv) that results.json holds, each with the measurement that leaves it."""


def measurement_folder(run_folder: Path, measurement: Measurement) -> Path:
    """Where a measurement leaves what it found."""
    return run_folder / "evaluation" / measurement


def write_results(run_folder: Path, subject: dict[str, Any]) -> dict[str, Any]:
    """Put the measurements of a run folder together and return results.json.

    Args:
        run_folder: holds `evaluation/`.
        subject: `inputs` and `sources` of the model that a measurement's manifest must name to count; what was measured
            of an earlier model is left out.
    """
    results: dict[str, Any] = {}
    for measurement in get_args(Measurement):
        folder = measurement_folder(run_folder, measurement)
        manifest = read_manifest(folder)
        if manifest is None or not all(manifest[group].items() >= subject[group].items() for group in subject):
            continue
        results.setdefault("model", manifest["report"]["model"])
        results |= read_json(folder / "results.json") or {}
        for table, owner in _TABLES.items():
            if owner == measurement:
                results[table] = _read_table(folder / f"{table}.csv")
    if results:
        _write(run_folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        _write(run_folder / "results.csv", results_table(results))
    return results


def _write(file: Path, text: str) -> None:
    """Leave a file as it is, if that is what it says: a start that measures nothing changes nothing."""
    if not file.is_file() or file.read_bytes() != text.encode():
        write_atomic(file, text)


def _read_table(file: Path) -> list[dict[str, Any]]:
    with open(file, encoding="utf-8", newline="") as opened:
        return [{key: _value(cell) for key, cell in row.items()} for row in csv.DictReader(opened)]


def _value(cell: str) -> str | int | float | None:
    if cell == "":
        return None
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def results_table(results: dict[str, Any]) -> str:
    """results.csv: a line per number, with what it describes, the split, the metric, the value and the unit."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["subject", "split", "metric", "value", "unit"])
    writer.writerows(_numbers(results))
    return table.getvalue()


def _numbers(results: dict[str, Any]) -> Iterator[Sequence[str]]:
    for metric, value in results["model"].items():
        if metric in UNITS:
            yield "model", "", metric, repr(value), UNITS[metric]
    measured = {"model": results["test"]} if "test" in results else {}
    for subject, numbers in {**measured, **results.get("reference_points", {})}.items():
        for metric, value in numbers.items():
            yield subject, "test", metric, repr(value), UNITS[metric]

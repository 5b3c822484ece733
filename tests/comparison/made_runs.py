"""Run folders as the stages leave them, with made numbers."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from retlab.emissions_rows import COLUMNS, claim_row_file, write_row

METHOD = "cpu estimated from its load and a constant TDP of 16 W; ram estimated from its size"
EVIL = 'path):\n\treturn \x1b[31m<script>alert("x")</script>\u202e' + "x" * 300
DOCUMENTS = 40


def write_run(folder: Path, worse: float = 0.0, tokens: int = 25, text: str = "text", **config: Any) -> Path:
    """A whole run; `worse` is added to the loss of every token, `tokens` are those of a document."""
    folder.mkdir(parents=True)
    sizes = np.full(DOCUMENTS, 100)
    nats = tokens * (4 + worse + np.linspace(-1, 1, DOCUMENTS) ** 3)
    _write_documents(folder, nats, tokens, sizes, text)
    loss = float(nats.sum() / (tokens * DOCUMENTS))
    results: dict[str, Any] = {
        "model": {"architecture": "retnet", "parameters": 1_234_567, "vocab_size": 2048},
        "settings": {
            "test_text_sha256": text, "sequence_length": 256, "packing": "packed", "reset_at_documents": True,
            "carry_state": False, "form": "auto", "precision": "float32", "device": "cpu",
        },
        "test": {
            "loss": loss, "perplexity": float(np.exp(loss)),
            "bits_per_byte": float(nats.sum() / np.log(2) / sizes.sum()),
            "documents": DOCUMENTS, "tokens": tokens * DOCUMENTS, "bytes": int(sizes.sum()),
        },
        "reference_points": {
            "uniform": {"loss": 7.62, "perplexity": 2048.0, "bits_per_byte": 3.66},
            "bigram": {"loss": 3.9, "perplexity": 49.4, "bits_per_byte": 1.875, "train_tokens": 9000},
            "xz": {"bits_per_byte": 1.388},
        },
        "loss_by_position": [
            {"first_position": first, "last_position": 2 * first, "tokens": 9, "loss": 5 - 1e-3 * first + worse,
             "standard_error": 0.01 if first > 1 else None} for first in (1, 3, 9)
        ],
        "tasks": list(_tasks(folder.name, worse)),
        "latency": list(_latency(folder.name, worse)),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"name": folder.name, "train": {"learning_rate": 0.003}, **config})
    )
    samples = folder / "evaluation" / "samples"
    samples.mkdir(parents=True)
    (samples / "samples.json").write_text(json.dumps([{"prompt": "def read(", "continuation": EVIL, "seed": 0}]))
    _write_training(folder, worse)
    return folder


def _write_documents(folder: Path, nats: np.ndarray, tokens: int, sizes: np.ndarray, text: str) -> None:
    names = [hashlib.sha256(f"{text} {number}".encode()).hexdigest() for number in range(len(nats))]
    table = pa.table({"document": range(len(nats)), "sha256": names, "nats": nats,
                      "tokens": np.full(len(nats), tokens), "bytes": sizes})  # fmt: skip
    place = folder / "evaluation" / "perplexity"
    place.mkdir(parents=True)
    pq.write_table(table, place / "document_losses.parquet")


def _write_training(folder: Path, worse: float) -> None:
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["step", "tokens", "loss", "validation_loss", "seconds", "peak_memory_bytes"])
    for step in range(10, 110, 10):
        writer.writerow(
            [
                step,
                100 * step,
                6 - step / 50 + worse,
                5.5 - step / 60 + worse if step % 50 == 0 else "",
                step / 4,
                2**28,
            ]
        )
    (folder / "metrics.csv").write_text(lines.getvalue())
    report = {"parameters": 1_234_567, "steps": 100, "tokens": 10_000, "flops_per_token": 7.4e6}
    manifest = {"outputs": {}, "report": report, "versions": {"torch": "2.13.0"}, "commit": "c" * 40, "threads": 2}
    (folder / "model").mkdir()
    (folder / "model" / "manifest.json").write_text(json.dumps(manifest))
    for energy, stage in ((0.5, "train_model"), (0.25, "train_model"), (0.125, "evaluate_model perplexity")):
        file, attempt = claim_row_file(folder, stage)
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"stage": stage, "attempt": attempt, "status": "complete"}
        numbers = {"energy_kwh": energy, "emissions_kg_co2e": energy / 4, "duration_seconds": 60.0}
        write_row(file, row | numbers | {"power_method": METHOD, "cpu_model": "a CPU"})


def _tasks(name: str, worse: float) -> Any:
    for task, metric, value, error in (
        ("choice", "acc", 0.5 - worse / 10, 0.0123), ("choice", "acc_norm", 0.25, 0.02),
        ("rolling", "bits_per_byte", 1.9 + worse, None),
    ):  # fmt: skip
        yield {"task": task, "version": 1, "shots": 0, "metric": metric, "filter": "none", "value": value,
               "standard_error": error, "samples": 100, "model": name, "date": "2026-01-01"}  # fmt: skip


def _latency(name: str, worse: float) -> Any:
    times = ("prefill_median_s", "prefill_p95_s", "decode_median_s", "decode_p95_s")
    for context in (256, 4096):
        for method in ("recurrent", "no cache"):
            fits = method == "recurrent" or context == 256
            seconds = 0.004 * (1 + worse) * (context / 256 if method == "no cache" else 1)
            yield {
                "model": name, "method": method, "device": "cpu", "precision": "float32", "batch_size": 1,
                "context": context, "new_tokens": 8, "trials": 5,
                **dict.fromkeys(times, seconds if fits else None),
                "peak_memory_bytes": 2**28 if fits else None,
                "state_bytes_per_sequence": 2**16 if method == "recurrent" else None,
                "status": "measured" if fits else "4,096 tokens do not fit in memory",
            }  # fmt: skip

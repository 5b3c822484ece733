"""Training in one process and in several at the same batch per process: the stage's own training, DDP and FSDP."""

import contextlib
import csv
import dataclasses
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retlab.artifacts import write_atomic
from retlab.benchmark.conditions import busy, conditions
from retlab.benchmark.plan import Device, Plan, Shape, Subject
from retlab.benchmark.processes import Failed, Send, answers
from retlab.benchmark.report import say, table, to_csv
from retlab.benchmark.row import RETLAB, Row
from retlab.data.settings import DataSection
from retlab.data.shards import shard_schema
from retlab.section import shown_path
from retlab.training.hardware import Hardware
from retlab.training.request import TrainingRequest

LAPS = 4
"""Lines of metrics that are timed, after one that is not; each begins and ends with nothing left on the GPU."""

EXPLANATION = (
    "Steps of train_model through its loader, at the same batch per process: batch is that of all of them, and tokens/s"
    " are those of all, the median of some lines of metrics.csv. Peak memory is one process's; processes on a CPU share"
    " its threads out."
)

_STEPS_OF_A_LAP: dict[Device, int] = {"cuda": 10, "cpu": 3}
_MODEL_SEED = 0


class Variant(NamedTuple):
    """How many processes train, and what joins them."""

    processes: int
    strategy: str

    def named(self, device: Device) -> str:
        """As the table calls it."""
        what = "GPU" if device == "cuda" else "CPU process"
        if self.processes == 1:
            return f"training, 1 {what}"
        return f"training, {self.processes} {what}{'s' if device == 'cuda' else 'es'}, {self.strategy}"


class _Measured(Exception):
    """Enough steps are timed: ends a training that nobody wants the result of."""


def several_rows(plan: Plan, device: Device, devices: int) -> Iterator[Row]:
    """The rows of the first model, shape by shape: one process, then `devices` with DDP and with FSDP."""
    for shape in plan.several:
        one: Row | None = None
        for variant in (Variant(1, "auto"), Variant(devices, "ddp"), Variant(devices, "fsdp")):
            with tempfile.TemporaryDirectory(prefix="retlab-benchmark-") as folder:
                request = _request(plan, device, shape, variant, Path(folder))
                row = _row(plan, device, shape, variant, list(answers(_train, request.model_dump_json())))
            if one and one.tokens_per_second and row.tokens_per_second:
                ratio = row.tokens_per_second / one.tokens_per_second
                row = dataclasses.replace(row, remark=f"{ratio:.3f} x the tokens/s of one")
            one = one or row
            yield row


def run_several(plan: Plan, hardware: Hardware, folder: Path, command: str) -> None:
    """Measure, show each result and the table, and leave it as devices.csv and devices.md in a folder."""
    rows: list[Row] = []
    alone = str(dataclasses.replace(hardware, processes=1))
    warnings = busy()
    header = "\n".join(f"- {line}" for line in conditions(alone, [], command) + warnings)
    for line in warnings:
        say(line)
    folder.mkdir(parents=True, exist_ok=True)
    for row in several_rows(plan, hardware.device, hardware.processes):
        rows.append(row)
        rate = f"{row.tokens_per_second:,.0f} tokens/s" if row.tokens_per_second else ""
        say(f"{row.measurement}, {row.batch} x {row.tokens:,}: {', '.join(filter(None, (rate, row.remark)))}")
        write_atomic(folder / "devices.csv", to_csv(rows))
        report = f"# Training in one process and in several\n\n{header}\n\n{table(rows)}\n\n{EXPLANATION}\n"
        write_atomic(folder / "devices.md", report)
    print(table(rows))
    say(f"the table: {shown_path(folder / 'devices.md')}, numbers: devices.csv beside it")


def _row(plan: Plan, device: Device, shape: Shape, variant: Variant, found: list[Any]) -> Row:
    """The median of the timed lines of metrics.csv, or why there are none."""
    subject = plan.subjects[0]
    batch = shape.batch * variant.processes
    row = Row(variant.named(device), subject.architecture, RETLAB, batch=batch, tokens=shape.tokens)
    answer = found[0] if found else Failed("its process ended without an answer")
    if isinstance(answer, Failed):
        return dataclasses.replace(row, remark=answer.reason)
    laps: list[dict[str, str]] = answer
    rate = statistics.median(float(lap["tokens_per_second"]) for lap in laps)
    return dataclasses.replace(
        row,
        tokens_per_second=rate,
        milliseconds=1000 * batch * shape.tokens / rate,
        peak_memory_gib=int(laps[-1]["peak_memory_bytes"]) / 2**30,
    )


def _train(send: Send, request: str) -> None:
    """Send the timed lines of a training's metrics.csv; runs in a process of its own."""
    from retlab.training.trainer import train

    training = TrainingRequest.model_validate_json(request)
    metrics = training.run_folder / "metrics.csv"

    def enough() -> bool:
        with open(metrics, newline="") as file:
            lines = list(csv.DictReader(file))
        if len(lines) > LAPS:
            send(lines[1 : LAPS + 1])
            raise _Measured
        return False

    with contextlib.suppress(_Measured):
        train(training, say=lambda _line: None, stop_requested=enough)


def _request(plan: Plan, device: Device, shape: Shape, variant: Variant, folder: Path) -> TrainingRequest:
    """A training without end on random tokens; `shape` is the batch per process and the window."""
    from retlab.models import config_from_section

    subject = plan.subjects[0]
    config = config_from_section(subject.model, subject.vocab_size)
    steps = _STEPS_OF_A_LAP[device]
    train = subject.train.model_copy(
        update={
            "device": device, "devices": variant.processes, "strategy": variant.strategy, "max_tokens": None,
            "max_epochs": None, "max_steps": 10_000, "batch_size": shape.batch * variant.processes,
            "micro_batch_size": shape.batch, "log_every_steps": steps, "validate_every_steps": 10_000,
            "checkpoint_every_steps": None, "checkpoint_every_minutes": None, "init_from": None,
        }
    )  # fmt: skip
    for split, windows in (("train", 4 * train.batch_size), ("validation", train.batch_size)):
        _write_tokens(folder / split, subject, windows, shape.tokens)
    return TrainingRequest(
        seed=_MODEL_SEED,
        data=DataSection(
            sequence_length=shape.tokens,
            reset_at_documents=plan.reset_at_documents,
            loader_workers=plan.loader_workers,
        ),
        train=train,
        model={"architecture": config.architecture, **config.get_params()},
        eos_id=0,
        pad_id=0,
        train_shards=folder / "train",
        validation_shards=folder / "validation",
        tokenizer_folder=folder,
        run_folder=folder / f"{variant.processes}-{variant.strategy}",
        identity={},
    )


def _write_tokens(folder: Path, subject: Subject, windows: int, length: int) -> None:
    """Documents of random tokens, each as long as a window."""
    schema = shard_schema(subject.vocab_size)
    ids = np.random.default_rng(0).integers(1, subject.vocab_size, size=(windows + 1, length))
    counts = [length] * len(ids)
    arrays = [
        pa.array(column, type=field.type) for column, field in zip((list(ids), counts, counts), schema, strict=True)
    ]
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(arrays, schema=schema), folder / "part-00000.parquet")

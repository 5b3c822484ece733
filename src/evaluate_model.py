"""Stage 6: measure the trained model: perplexity, samples, tasks of lm-eval, latency.

    python src/evaluate_model.py CONFIG [key.path=value ...] [--force] [--verify] [--json]

Reads runs/<name>/model, or the model that evaluate.model names. Each measurement of evaluate.measure is up to date by
itself, in runs/<name>/evaluation/<measurement>; results.json and results.csv in runs/<name> hold the numbers of all.
Results of another model are in runs/<name>/other_models/<its name>. With --json results.json is also printed.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.data.settings import SPLITS
from retlab.evaluation.results import measurement_folder, write_results
from retlab.evaluation.settings import Measurement
from retlab.stage import Stage
from retlab.subject import Subject, find_subject

if TYPE_CHECKING:
    from retlab.evaluation.trained_model import TrainedModel


def add_options(parser: argparse.ArgumentParser) -> None:
    """The option of this script alone."""
    parser.add_argument("--json", action="store_true", help="print results.json; all else goes to standard error")


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Take every measurement that `evaluate.measure` lists, and put the results together."""
    as_json = getattr(command.options, "json", False)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        subject = find_subject(config)
        for measurement in config.evaluate.measure:
            _measure(subject, measurement, command)
        results = write_results(subject.config.run_folder, subject.identity())
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))


def _measure(subject: Subject, measurement: Measurement, command: StageCommand) -> None:
    config = subject.config
    stage = Stage(
        "evaluate_model",
        config,
        command,
        part=measurement,
        settings=_SETTINGS[measurement](config),
        inputs=[*subject.inputs, *_data_of(config, measurement)],
        sources=subject.sources,
        output=measurement_folder(config.run_folder, measurement),
    )

    def build(folder: Path) -> dict[str, Any]:
        trained = subject.load()
        return {"model": trained.describe(), **_WORK[measurement](trained, config, folder, stage.say)}

    stage.run(build)


def _evaluate_settings(config: ExperimentConfig, *names: str) -> dict[str, Any]:
    values = config.evaluate.model_dump(mode="json", include={"device", "precision", "form", *names})
    return {f"evaluate.{key}": value for key, value in values.items()}


def _perplexity_settings(config: ExperimentConfig) -> dict[str, Any]:
    # The batch size changes no result.
    windows = {f"data.{key}": getattr(config.data, key) for key in ("sequence_length", "packing", "reset_at_documents")}
    return {**_evaluate_settings(config, "reference_points", "carry_state"), **windows}


def _samples_settings(config: ExperimentConfig) -> dict[str, Any]:
    generate = {f"generate.{key}": value for key, value in config.generate.dump().items()}
    return {**_evaluate_settings(config), **generate}


_SETTINGS: dict[Measurement, Callable[[ExperimentConfig], dict[str, Any]]] = {
    "perplexity": _perplexity_settings,
    "samples": _samples_settings,
    "tasks": lambda config: _evaluate_settings(config, "tasks", "carry_state"),
    "latency": lambda config: _evaluate_settings(config, "latency"),
}
"""What decides a measurement, beside the model."""


def _data_of(config: ExperimentConfig, measurement: Measurement) -> list[Path]:
    """The folders of data that a measurement reads."""
    if measurement != "perplexity":
        return []
    if config.evaluate.model is not None:
        return [config.data.splits_folder]
    splits = [name for name in SPLITS if name == "test" or (name == "train" and config.evaluate.reference_points)]
    return [config.data.splits_folder, *(config.data.shards_folder(name) for name in splits)]


Say = Callable[[str], None]


def _perplexity(trained: "TrainedModel", config: ExperimentConfig, folder: Path, say: Say) -> dict[str, Any]:
    from retlab.evaluation.scoring import measure_perplexity

    test = measure_perplexity(trained, config.evaluate, config.data, folder, say)
    say(
        f"test loss {test['loss']:.4f} nats/token, perplexity {test['perplexity']:.2f},"
        f" {test['bits_per_byte']:.4f} bits/byte"
    )
    return {"test": test}


def _samples(trained: "TrainedModel", config: ExperimentConfig, folder: Path, say: Say) -> dict[str, Any]:
    from retlab.evaluation.samples import measure_samples

    return measure_samples(trained, config.generate, folder, say)


def _latency(trained: "TrainedModel", config: ExperimentConfig, folder: Path, say: Say) -> dict[str, Any]:
    from retlab.evaluation.latency.measure import measure_latency

    return measure_latency(trained, config.evaluate.latency, folder, say, config.name)


_WORK: dict[Measurement, Callable[["TrainedModel", ExperimentConfig, Path, Say], dict[str, Any]]] = {
    "perplexity": _perplexity,
    "samples": _samples,
    "latency": _latency,
}
"""What each measurement does: it fills the folder and returns its report, plain deterministic values."""


if __name__ == "__main__":
    run_stage(main, configure=add_options)

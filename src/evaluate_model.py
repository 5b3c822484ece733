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

import retlab.script_start  # noqa: F401
from retlab.artifacts import read_manifest
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.data.settings import SPLITS
from retlab.errors import UserError
from retlab.evaluation.harness.local_files import task_sources
from retlab.evaluation.harness.outcome import by_reason, remaining
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
        stages = {measurement: _stage(subject, measurement, command) for measurement in config.evaluate.measure}
        if "tasks" in stages:
            _check_tasks(stages["tasks"])
        for measurement, stage in stages.items():
            _measure(subject, measurement, stage)
        results = write_results(subject.config.run_folder, subject.identity())
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    if "tasks" in stages:
        _refuse_missing_tasks(stages["tasks"])


def _stage(subject: Subject, measurement: Measurement, command: StageCommand) -> Stage:
    config = subject.config
    return Stage(
        "evaluate_model",
        config,
        command,
        part=measurement,
        settings=_SETTINGS[measurement](config),
        inputs=[*subject.inputs, *_data_of(config, measurement)],
        sources=subject.sources | (task_sources(config.evaluate.tasks) if measurement == "tasks" else {}),
        output=measurement_folder(config.run_folder, measurement),
        **_WAYS.get(measurement, {}),
    )


def _measure(subject: Subject, measurement: Measurement, stage: Stage) -> None:
    def build(folder: Path) -> dict[str, Any]:
        trained = subject.load()
        return {"model": trained.describe(), **_WORK[measurement](trained, subject.config, folder, stage.say)}

    stage.run(build)


def _check_tasks(stage: Stage) -> None:
    """Refuse names of tasks that there are not before anything is measured."""
    if all(read_manifest(folder) for folder in stage.inputs) and stage.has_work():
        from retlab.evaluation.harness.task_names import plan_tasks

        plan_tasks(stage.config.evaluate.tasks, stage.say)


def _refuse_missing_tasks(stage: Stage) -> None:
    """Tasks that were asked for by name and could not be measured are an error, once the others' results are there."""
    manifest = read_manifest(stage.output)
    failed = manifest["report"]["failed"] if manifest else {}
    if failed:
        raise UserError(
            f"evaluate.tasks.names: not measured, while all others are: {'; '.join(by_reason(failed))} (mend that, and"
            " the same command measures what is missing)"
        )


# Every task is kept as soon as it is measured, whatever else is asked for the next time.
_WAYS: dict[Measurement, dict[str, Any]] = {
    "tasks": {"continues": True, "remaining": remaining, "volatile_files": ["tasks.csv", "*.json"]},
}
"""How a measurement's stage differs from that of the others."""


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


def _tasks(trained: "TrainedModel", config: ExperimentConfig, folder: Path, say: Say) -> dict[str, Any]:
    from retlab.evaluation.harness.run import measure_tasks

    return measure_tasks(trained, config.evaluate, folder, say, config.name)


def _latency(trained: "TrainedModel", config: ExperimentConfig, folder: Path, say: Say) -> dict[str, Any]:
    from retlab.evaluation.latency.measure import measure_latency

    return measure_latency(trained, config.evaluate.latency, folder, say, config.name)


_WORK: dict[Measurement, Callable[["TrainedModel", ExperimentConfig, Path, Say], dict[str, Any]]] = {
    "perplexity": _perplexity,
    "samples": _samples,
    "tasks": _tasks,
    "latency": _latency,
}
"""What each measurement does: it fills the folder and returns its report, plain deterministic values."""


if __name__ == "__main__":
    run_stage(main, configure=add_options)

"""One trial: train, keep the best checkpoint's model, and measure it on the test split."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retlab import artifacts, provenance
from retlab.config import ExperimentConfig, dump_config
from retlab.config_model import vocabulary_size
from retlab.errors import NotFinite
from retlab.memory import memory_errors
from retlab.storage import storage_errors
from retlab.sweep.grid import Trial
from retlab.sweep.results import TrialResult, read_result, write_result
from retlab.upstream import train_settings

ENERGY = "energy.json"
"""What interrupted attempts at a trial used, until its result holds it."""


@dataclass(frozen=True)
class Energy:
    """What one or several attempts at a trial used, and how that was found."""

    kwh: float | None = None
    kg: float | None = None
    method: str = "not measured"

    def after(self, earlier: "Energy") -> "Energy":
        """With what earlier attempts used."""
        if self.kwh is None or self.kg is None or earlier.kwh is None or earlier.kg is None:
            return self
        return Energy(self.kwh + earlier.kwh, self.kg + earlier.kg, self.method)

    def keep(self, folder: Path) -> None:
        """Leave it for the attempt that comes to the result."""
        if self.kwh is not None and folder.is_dir():
            artifacts.write_json(folder / ENERGY, {"kwh": self.kwh, "kg": self.kg})


def earlier_energy(folder: Path) -> Energy:
    """What the attempts at a trial used that came to no result."""
    kept = artifacts.read_json(folder / ENERGY)
    return Energy(kept["kwh"], kept["kg"]) if isinstance(kept, dict) else Energy()


def run_trial(trial: Trial, *, say: Callable[[str], None], stop_requested: Callable[[], bool]) -> TrialResult:
    """Run a trial to its result, or go on with it where it was interrupted; `finish` writes the result.

    The caller holds the lock of the trial's folder, whose parent is there.

    Args:
        trial: what to train.
        say: prints a line for the trial's log.
        stop_requested: becomes true when the training should save and leave.

    Raises:
        StorageFailed: its files cannot be written, which no other trial would do better.
        UserError: the trial cannot be run; OutOfMemory where it does not fit.
        Interrupted: `stop_requested` became true; the work is saved.
    """
    with storage_errors(trial.folder.parent), memory_errors(_too_large):
        return _run(trial, say, stop_requested)


def _run(trial: Trial, say: Callable[[str], None], stop_requested: Callable[[], bool]) -> TrialResult:
    started, clock = datetime.now(UTC), time.monotonic()
    trial.folder.mkdir(exist_ok=True)
    artifacts.write_atomic(trial.folder / "config.yaml", dump_config(trial.config))
    try:
        numbers = _train_and_test(trial, say, stop_requested)
    except NotFinite as error:
        # Of a trial that has its result no checkpoint is kept.
        say(error.what)
        numbers = {"status": "diverged", "message": error.what, "steps": error.step, "tokens": error.tokens}
    seconds = time.monotonic() - clock
    numbers = {"training_seconds": seconds, "tokens_per_second": 0.0, **numbers}
    return TrialResult(
        trial=trial.id,
        architecture=trial.architecture,
        seed=trial.seed,
        parameters=trial.parameters,
        seconds=round(seconds, 3),
        device=_device(),
        host=os.uname().nodename,
        started=started.isoformat(timespec="seconds"),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=provenance.versions(),
        commit=provenance.commit(),
        **numbers,
    )


def _too_large() -> tuple[str, str]:
    return "the trial", "lower train.micro_batch_size, or grid_search.workers where others run beside it"


def finish(trial: Trial, result: TrialResult, energy: Energy) -> None:
    """Write the result with the energy of all attempts, then drop what only an unfinished trial needs."""
    measured = {"energy_kwh": energy.kwh, "emissions_kg": energy.kg, "energy_method": energy.method}
    write_result(trial.folder, result.model_copy(update=measured))
    drop_leftovers(trial.folder)


def drop_leftovers(folder: Path) -> None:
    """Remove what only an unfinished trial needs; of a killed removal the rest."""
    if read_result(folder) is not None:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / ENERGY).unlink(missing_ok=True)


def _train_and_test(trial: Trial, say: Callable[[str], None], stop_requested: Callable[[], bool]) -> dict[str, Any]:
    from retlab.training.export import export_best
    from retlab.training.inputs import request_for
    from retlab.training.trainer import train

    config, folder = trial.config, trial.folder
    assert config.tokenizer.folder is not None
    vocabulary = vocabulary_size(config)
    assert vocabulary is not None
    inputs = [config.data.shards_folder("train"), config.data.shards_folder("validation"), config.tokenizer.folder]
    names = ("train shards", "validation shards", "tokenizer")
    identity = {name: artifacts.fingerprint(path) for name, path in zip(names, inputs, strict=True)}
    request = request_for(
        config.seed, config.data, config.model, config.train, config.tokenizer.folder, folder,
        vocab_size=vocabulary, identity=train_settings(config) | identity,
    )  # fmt: skip
    trained = train(request, say=say, stop_requested=stop_requested)
    partial = folder / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    export_best(request, trained, partial)
    shutil.rmtree(folder / "model", ignore_errors=True)
    partial.rename(folder / "model")
    report = trained.report()
    return {
        "status": "finished",
        "validation_loss": report["best_validation_loss"],
        **{key: report[key] for key in ("steps", "tokens", "best_step")},
        **trained.speed(),
        "validation_seconds": trained.validation_seconds,
        **_test(config, folder / "model"),
    }


def _test(config: ExperimentConfig, model: Path) -> dict[str, float]:
    from retlab.evaluation.perplexity import rates, score_documents
    from retlab.evaluation.trained_model import load_trained_model

    trained = load_trained_model(config.evaluate, model)
    losses = score_documents(trained, config.data, config.data.shards_folder("test"), config.evaluate.batch_size)
    found = rates(float(losses.nats.sum()), int(losses.targets.sum()), int(losses.bytes.sum()))
    return {"test_loss": found["loss"], "test_bits_per_byte": found["bits_per_byte"]}


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"

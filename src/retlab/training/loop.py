"""What happens between the optimizer steps: validation, metrics, checkpoints, early stopping, signals."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytorch_lightning as pl

from retlab.data.loader import SequentialLoader, TokenLoader
from retlab.errors import NotFinite, UserError
from retlab.progress import Progress
from retlab.training.checkpoints import CheckpointStore
from retlab.training.metrics import MetricsFile, Stopwatch, model_flops_utilization, peak_memory_bytes
from retlab.training.module import Batch, TrainingModule
from retlab.training.settings import TrainSection
from retlab.training.state import TrainingState


class StepBatches(Iterable[list[Batch]]):
    """The micro-batches of each optimizer step from `first` up to `total`.

    It has no length on purpose: Lightning would skip a training with none left, whose last validation may be missing.
    """

    def __init__(self, loader: TokenLoader, first: int, total: int) -> None:
        self._loader, self._first, self._total = loader, first, total

    def __iter__(self) -> Iterator[list[Batch]]:
        self._loader.seek(self._first)
        batches = iter(self._loader)
        for _ in range(self._first, self._total):
            yield list(islice(batches, self._loader.micro_batches))


@dataclass(frozen=True)
class LoopFacts:
    """What the loop must know and does not decide."""

    total_steps: int
    steps_per_epoch: int
    flops_per_token: float
    identity: dict[str, Any]
    "What a checkpoint says about the training that it belongs to."


class TrainingLoop(pl.Callback):
    """Decides after each optimizer step what is due; the same in every process.

    The step at which a signal arrives is finished and saved. A validation that a signal interrupts is saved as
    unfinished and is the first thing that the resumed training does.
    """

    def __init__(
        self,
        train: TrainSection,
        facts: LoopFacts,
        batches: TokenLoader,
        validation: SequentialLoader,
        store: CheckpointStore,
        metrics: MetricsFile,
        start_bar: Callable[[], Progress],
        stop_requested: Callable[[], bool],
        checkpoint: dict[str, Any] | None,
    ) -> None:
        self.train, self.facts, self.batches, self.validation = train, facts, batches, validation
        self.store, self.metrics, self.start_bar, self.stop_requested = store, metrics, start_bar, stop_requested
        self.interrupted = False
        self.first_step = checkpoint["step"] if checkpoint else 0
        self._checkpoint = checkpoint
        self._last_save = time.monotonic()
        self._watch = Stopwatch(0.0)
        self._lap_tokens = 0
        self._validations: list[float] = []

    @property
    def validation_seconds(self) -> float | None:
        """Mean time of a validation of this attempt, with the saving of its checkpoint; None before the first."""
        return sum(self._validations) / len(self._validations) if self._validations else None

    def on_fit_start(self, _trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Join the processes and go back to the checkpoint; wrappers and optimizer exist by now."""
        assert isinstance(module, TrainingModule)
        module.agreement.join()
        if self._checkpoint is not None:
            module.load_weights(self._checkpoint)
            module.state = TrainingState.of(self._checkpoint)
            self._checkpoint = None
        self._watch = Stopwatch(module.state.training_seconds)
        self._lap_tokens = module.state.tokens
        if module.agreement.rank == 0:
            self.metrics.resume(module.state.metrics_bytes)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Make up for what a signal kept the last attempt from finishing."""
        assert isinstance(module, TrainingModule)
        self.interrupted = self._is_stopping(module)
        self.bar = self.start_bar()
        if module.state.unfinished and not self.interrupted:
            self.interrupted = self._validate(trainer, module) is None
            if not self.interrupted:
                self._save(module)
        trainer.should_stop = self.interrupted or module.state.stopped_early
        self._watch.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Do what is due after this optimizer step."""
        assert isinstance(module, TrainingModule)
        state, train, last = module.state, self.train, module.state.step == self.facts.total_steps
        self.bar.advance(1)
        stop, timed = module.agreement.any(self.stop_requested(), self._minutes_passed())
        validates = state.step % train.validate_every_steps == 0 or last
        logs = state.step % train.log_every_steps == 0
        saves = last or stop or timed or _divides(train.checkpoint_every_steps, state.step)
        if not (validates or logs or saves):
            return
        module.read_losses()
        self._watch.stop()
        started = time.monotonic()
        state.unfinished = validates
        if validates and not stop:
            improved = self._validate(trainer, module)
            stop = improved is None
            saves = saves or stop or state.stopped_early or bool(improved)
        elif logs and not validates:
            self._write_row(trainer, module, None)
        if saves:
            self._save(module)
        if validates:
            self._validations.append(time.monotonic() - started)
        self.interrupted = stop
        trainer.should_stop = stop or last or state.stopped_early
        self._watch.start()

    def _is_stopping(self, module: TrainingModule) -> bool:
        return module.agreement.any(self.stop_requested())[0]

    def _minutes_passed(self) -> bool:
        minutes = self.train.checkpoint_every_minutes
        return minutes is not None and time.monotonic() - self._last_save >= 60 * minutes

    def _validate(self, trainer: pl.Trainer, module: TrainingModule) -> bool | None:
        """Validate, write the line of metrics, and say whether this is among the best; None where interrupted."""
        state, train = module.state, self.train
        batches = islice(self.validation, train.validate_batches)
        loss = module.validation_loss(batches, lambda: self._is_stopping(module))
        if loss is None:
            return None
        if not math.isfinite(loss):
            raise NotFinite(
                f"the validation loss became {loss} after step {state.step}", "lower train.learning_rate",
                state.step, state.tokens,
            )  # fmt: skip
        is_gain = not state.best or loss < state.best[0][0]
        state.best = sorted([*state.best, [loss, state.step]])[: train.keep_best]
        state.validations_without_gain = 0 if is_gain else state.validations_without_gain + 1
        patience = train.early_stopping_patience
        state.stopped_early = patience is not None and state.validations_without_gain >= patience
        state.unfinished = False
        self._write_row(trainer, module, loss)
        return [loss, state.step] in state.best

    def _write_row(self, trainer: pl.Trainer, module: TrainingModule, validation_loss: float | None) -> None:
        state, facts = module.state, self.facts
        seconds = self._watch.lap()
        speed = (state.tokens - self._lap_tokens) / seconds if seconds > 0 else None
        self._lap_tokens = state.tokens
        row = {
            "step": state.step,
            "epoch": state.step / facts.steps_per_epoch,
            "tokens": state.tokens,
            "loss": state.interval_loss / state.interval_tokens if state.interval_tokens else None,
            "validation_loss": validation_loss,
            "learning_rate": state.learning_rate,
            "gradient_norm": state.gradient_norm,
            "seconds": round(self._watch.total, 3),
            "tokens_per_second": speed and round(speed, 1),
            "model_flops_utilization": speed
            and model_flops_utilization(
                speed, facts.flops_per_token, module.device, module.bf16, module.agreement.size
            ),
            "peak_memory_bytes": peak_memory_bytes(module.device),
        }
        if row["loss"] is not None:
            shown = f"loss {row['loss']:.3f}"
            best = f", best validation loss {state.best[0][0]:.3f}" if state.best else ""
            self.bar.note(shown + best)
        state.interval_loss, state.interval_tokens = 0.0, 0
        if module.agreement.rank == 0:
            self.metrics.append(row)
        numbers = {key: value for key, value in row.items() if value is not None and key != "step"}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=state.step)

    def _save(self, module: TrainingModule) -> None:
        """Write a checkpoint from the first process; all of them fail where it fails."""
        state = module.state
        weights, failure = module.weights(), None
        state.training_seconds = self._watch.total
        if module.agreement.rank == 0:
            state.metrics_bytes = self.metrics.sync()
            position = {**self.batches.state_dict(), "step": state.step}
            try:
                self.store.save({**self.facts.identity, **state.plain(), "position": position, **weights})
            except UserError as error:
                failure = error
        if module.agreement.any(failure is not None)[0]:
            raise failure or UserError("the first process could not save its checkpoint")
        self._last_save = time.monotonic()


def _divides(interval: int | None, step: int) -> bool:
    return interval is not None and step % interval == 0

"""Trains a model: puts loader, module, loop and Lightning's Trainer together."""

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from retlab.data.loader import SequentialLoader, TokenLoader
from retlab.data.shards import open_shards
from retlab.errors import Interrupted, UserError
from retlab.models import build_model
from retlab.models.causal_lm import CausalLM
from retlab.models.configuration import CONFIGS, ModelConfig
from retlab.models.counting import flops_per_token
from retlab.models.fields import ModelFields
from retlab.progress import Progress, progress
from retlab.training.checkpoints import CheckpointStore
from retlab.training.hardware import Hardware, choose_hardware, set_threads
from retlab.training.initial_weights import load_initial_weights
from retlab.training.loop import LoopFacts, StepBatches, TrainingLoop
from retlab.training.metrics import MetricsFile
from retlab.training.module import TrainingModule, TrainingState
from retlab.training.optimizer import freeze_parameters
from retlab.training.processes import helper_processes, is_helper
from retlab.training.request import TrainingRequest
from retlab.training.run_folder import prepare_run_folder


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training leaves."""

    state: TrainingState
    parameters: int

    @property
    def best_step(self) -> int:
        """Step of the checkpoint with the lowest validation loss."""
        return int(self.state.best[0][1])

    def report(self) -> dict[str, Any]:
        """The deterministic numbers for the manifest."""
        return {
            "parameters": self.parameters,
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "best_validation_loss": self.state.best[0][0],
            "best_step": self.best_step,
            "stopped_early": self.state.stopped_early,
        }

    def speed(self) -> dict[str, float]:
        """What differs from run to run: seconds in training steps, over all attempts, and tokens per second."""
        seconds = self.state.training_seconds
        return {"training_seconds": round(seconds, 3), "tokens_per_second": round(self.state.tokens / seconds, 1)}


def train(
    request: TrainingRequest,
    *,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
    on_start: Callable[[], None] = lambda: None,
) -> TrainingResult:
    """Train to the end, or from the last checkpoint to the end.

    Args:
        request: what to train.
        say: prints a line for people.
        stop_requested: becomes true when the training should save and leave.
        on_start: called once the run folder is this training's.

    Raises:
        UserError: the configuration, the data or the machine does not allow it.
        Interrupted: `stop_requested` became true; the work is saved.
    """
    section = request.train
    set_threads(section)
    hardware = choose_hardware(section)
    if is_helper():
        return _train(request, hardware, CheckpointStore(_checkpoints(request)).last(), say, stop_requested)
    model_config(request)
    checkpoint = prepare_run_folder(request, say)
    on_start()
    with helper_processes(section.devices - 1, request.model_dump_json()):
        return _train(request, hardware, checkpoint, say, stop_requested)


def model_config(request: TrainingRequest) -> ModelConfig:
    """The configuration of the model to train. Raises UserError where its values do not fit."""
    values = dict(request.model)
    try:
        return CONFIGS[values.pop("architecture")](**values)
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def new_model(request: TrainingRequest) -> CausalLM:
    """The model with its initial weights, which depend on the seed alone."""
    torch.manual_seed(request.seed)
    return build_model(model_config(request))


def _checkpoints(request: TrainingRequest) -> Path:
    return request.run_folder / "checkpoints"


def _train(
    request: TrainingRequest,
    hardware: Hardware,
    checkpoint: dict[str, Any] | None,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> TrainingResult:
    section = request.train
    batches, validation = _loaders(request)
    total_steps = _total_steps(request, batches)
    model = new_model(request)
    if section.init_from is not None and checkpoint is None:
        load_initial_weights(model, section.init_from)
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    freeze_parameters(model, section.parameter_groups)
    module = TrainingModule(
        model,
        section,
        seed=request.seed,
        total_steps=total_steps,
        bf16=hardware.bf16,
        compiled=hardware.compiled,
        # Padding stands behind the text, where causal mixers do not look; only packed documents need keeping apart.
        uses_segments=request.data.packing == "packed" and request.data.reset_at_documents,
    )
    assert isinstance(model.config, ModelFields)
    facts = LoopFacts(
        total_steps,
        batches.steps_per_epoch,
        flops_per_token(model.config, request.data.sequence_length),
        {
            "identity": request.identity,
            "model_config": request.model,
            "threads": torch.get_num_threads(),
            "precision": "bf16" if hardware.bf16 else "float32",
        },
    )
    done = 0
    if checkpoint is not None:
        done = checkpoint["step"]
        batches.load_state_dict(checkpoint["position"])
        say(f"continuing after step {done:,}")
        if checkpoint["threads"] != torch.get_num_threads():
            say(
                f"{torch.get_num_threads()} threads now, {checkpoint['threads']} before: the result may differ in"
                " its last digits"
            )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"{parameters:,} parameters, {total_steps:,} steps of {section.batch_size} windows of"
        f" {request.data.sequence_length} tokens, {batches.steps_per_epoch:,} steps an epoch; {hardware}"
    )
    with contextlib.ExitStack() as stack:
        loop = TrainingLoop(
            section, facts, batches, validation, CheckpointStore(_checkpoints(request)),
            MetricsFile(request.run_folder / "metrics.csv"), lambda: stack.enter_context(_progress(total_steps, done)),
            stop_requested, checkpoint,
        )  # fmt: skip
        _fit(request, hardware, module, loop, StepBatches(batches, done, total_steps))
    if loop.interrupted:
        raise Interrupted(f"saved after step {module.state.step:,} of {total_steps:,}")
    return TrainingResult(module.state, parameters)


def _loaders(request: TrainingRequest) -> tuple[TokenLoader, SequentialLoader]:
    """Batches of this process to train on and to validate on."""
    section, rank = request.train, int(os.environ.get("LOCAL_RANK", "0"))
    micro = section.micro_batch_size or section.batch_size // section.devices
    shared: dict[str, Any] = {
        "eos_id": request.eos_id, "pad_id": request.pad_id, "rank": rank, "world_size": section.devices,
    }  # fmt: skip
    batches = TokenLoader(
        request.data, request.train_shards, global_batch_size=section.batch_size, micro_batch_size=micro,
        seed=request.seed, **shared,
    )  # fmt: skip
    validation = SequentialLoader(request.data, request.validation_shards, batch_size=micro, **shared)
    if validation.targets < request.data.sequence_length:
        raise UserError(
            f"the validation split in {request.validation_shards} holds {validation.targets} tokens, less than one"
            f" window of data.sequence_length {request.data.sequence_length}; shorten the window or get more text"
        )
    return batches, validation


def _total_steps(request: TrainingRequest, batches: TokenLoader) -> int:
    section = request.train
    if section.max_steps is not None:
        return section.max_steps
    if section.max_tokens is not None:
        length = request.data.sequence_length
        if request.data.packing == "padded":
            length = open_shards(request.train_shards, length).targets.sum() / batches.windows_per_epoch
        return math.ceil(section.max_tokens / (length * section.batch_size))
    return max(1, math.ceil((section.max_epochs or 1) * batches.steps_per_epoch))


def _fit(
    request: TrainingRequest, hardware: Hardware, module: TrainingModule, loop: TrainingLoop, batches: StepBatches
) -> None:
    with _quiet_lightning():
        trainer = pl.Trainer(
            accelerator="gpu" if hardware.device == "cuda" else "cpu",
            devices=request.train.devices,
            strategy=_strategy(request),
            # Keeps Lightning from Slurm's own launcher and requeueing: stages handle their signals themselves.
            plugins=[LightningEnvironment()],
            max_epochs=1,
            limit_val_batches=0,
            logger=_loggers(request, loop),
            callbacks=[loop],
            default_root_dir=request.run_folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        _keep_signals(trainer)
        try:
            trainer.fit(module, train_dataloaders=batches)
        finally:
            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()


def _strategy(request: TrainingRequest) -> Strategy | str:
    processes = request.train.devices
    if processes == 1:
        return "auto"
    if request.train.strategy == "fsdp":
        return ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1)
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


def _keep_signals(trainer: pl.Trainer) -> None:
    """Leave signals to the stage: Lightning's handler raises in the middle of a step, and in several processes it
    waits for the device before every step to ask for signals.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def _loggers(request: TrainingRequest, loop: TrainingLoop) -> list[Logger]:
    if is_helper():
        return []
    section, folder, loggers = request.train, request.run_folder, list[Logger]()
    if section.tensorboard:
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version="", purge_step=loop.first_step + 1))
    if section.wandb is not None:
        try:
            loggers.append(WandbLogger(project=section.wandb, name=folder.name, save_dir=folder))
        except ModuleNotFoundError:
            raise UserError(
                "train.wandb needs the wandb package: run `pip install wandb`, or set the key to null"
            ) from None
    return loggers


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hide Lightning's tips, and what it and torch warn of that is on purpose here or not for users."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for name in ("pytorch_lightning", "lightning_fabric", "torch"):
            warnings.filterwarnings("ignore", module=name)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _progress(total: int, done: int) -> contextlib.AbstractContextManager[Progress]:
    return contextlib.nullcontext(_Silent()) if is_helper() else progress("train", total, "step", done)


class _Silent:
    """Progress of a helper process, which nobody watches."""

    def advance(self, amount: float = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass

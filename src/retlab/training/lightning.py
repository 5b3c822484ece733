"""Lightning's Trainer, as quiet and as far out of the way as this training wants it."""

import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch.distributed.device_mesh import init_device_mesh

from retlab.errors import UserError
from retlab.training.data_parallel import DataParallel
from retlab.training.hardware import Hardware
from retlab.training.loop import StepBatches, TrainingLoop
from retlab.training.module import TrainingModule
from retlab.training.processes import is_helper
from retlab.training.request import TrainingRequest


def fit(
    request: TrainingRequest, hardware: Hardware, module: TrainingModule, loop: TrainingLoop, batches: StepBatches
) -> None:
    """Run the steps of `batches`; every batch is one optimizer step, and `loop` decides when it ends."""
    uncollected = _Uncollected()
    with _quiet_lightning():
        trainer = pl.Trainer(
            accelerator="gpu" if hardware.device == "cuda" else "cpu",
            devices=request.train.devices or 1,
            num_nodes=request.train.num_nodes or 1,
            strategy=_strategy(request),
            # Keeps Lightning from Slurm's own launcher and requeueing: stages handle their signals themselves.
            plugins=[LightningEnvironment()],
            max_epochs=1,
            limit_val_batches=0,
            logger=_loggers(request, loop),
            callbacks=[loop, _Abort(), uncollected],
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
            uncollected.end()
            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()


class _FullySharded(ModelParallelStrategy):
    """Lightning's processes, as for FSDP, on a mesh that has no second dimension.

    Lightning adds one for tensor parallelism; torch 2.11 splits NCCL's communicator for it, which ended a process that
    had trained on several GPUs before with a segmentation fault.
    """

    def setup_environment(self) -> None:
        """Join the processes, and have the module find their mesh."""
        super(ModelParallelStrategy, self).setup_environment()
        self._setup_distributed()
        device = self.root_device.type
        self._device_mesh = init_device_mesh(device, (self.world_size,), mesh_dim_names=("data_parallel",))
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh


class _Abort(pl.Callback):
    """Gives up the connections between GPUs as soon as this process fails.

    NCCL's orderly end waits for the other processes, and they may wait for this one; so may what is queued on the GPU.
    """

    def on_exception(self, _trainer: pl.Trainer, module: pl.LightningModule, _exception: BaseException) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_backend() == "nccl":
            assert isinstance(module, TrainingModule)
            module.agreement.leave()
            dist.distributed_c10d._abort_process_group()


class _Uncollected(pl.Callback):
    """Leaves what the first step has left behind out of garbage collections: compilers and libraries hold about a
    million objects, and looking through them takes as long as a step, during which a GPU waits.

    A process that trains many models has left the libraries out already, and gets each model's memory back.
    """

    def __init__(self) -> None:
        self._freezes = gc.get_freeze_count() == 0

    def on_train_batch_end(self, *inputs: Any) -> None:
        *_, batch_idx = inputs
        if batch_idx == 0:
            gc.collect()
            if self._freezes:
                gc.freeze()

    def end(self) -> None:
        """Collect everything again."""
        if self._freezes:
            gc.unfreeze()


def _strategy(request: TrainingRequest) -> Strategy | str:
    if request.train.processes == 1:
        return "auto"
    if request.train.strategy == "fsdp":
        return _FullySharded()
    return DataParallel()


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

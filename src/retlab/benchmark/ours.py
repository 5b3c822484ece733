"""RetLab as a contestant: the steps that `train_model` runs, through Lightning, from the same parts."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import nn

from retlab.benchmark.contestant import Contestant, StepTimes
from retlab.benchmark.plan import Shape
from retlab.benchmark.row import RETLAB
from retlab.data.loader import TokenLoader
from retlab.data.settings import DataSection
from retlab.measuring import Marks
from retlab.models import build_model
from retlab.models.causal_lm import CausalLM
from retlab.models.engines import forget, settle
from retlab.training.lightning import fit
from retlab.training.loop import StepBatches, TrainingLoop
from retlab.training.module import Batch, TrainingModule
from retlab.training.optimizer import freeze_parameters
from retlab.training.request import TrainingRequest
from retlab.training.scored import recompute_activations


class RetLab(Contestant):
    """Our model of the subject's architecture."""

    name = RETLAB
    becomes_faster = True

    def build(self) -> CausalLM:
        torch.manual_seed(0)
        return build_model(self.config)

    def start_afresh(self, model: nn.Module) -> None:
        forget(model)

    def settle(self, model: nn.Module, generate: Callable[[], object]) -> None:
        settle(model, generate)

    def training_times(self, shape: Shape, steps: int) -> StepTimes:
        batch = [self._random_batch(shape)]

        def times(**train: Any) -> StepTimes:
            return self._fit(shape, cast(StepBatches, itertools.repeat(batch, steps)), uses_segments=False, **train)

        whole = times()
        # What is replayed as one has no parts; the kernels of the forward part are the same when they are launched.
        return whole if whole.forwards else StepTimes(whole.steps, times(cuda_graphs="off").forwards)

    def loader_times(self, shape: Shape, loader: TokenLoader, warmup: int, timed: int) -> tuple[StepTimes, StepTimes]:
        """Steps on batches of the loader, and on one constant batch of it, in one training.

        Half of the constant steps come before those of the loader and half after them, so that a machine that becomes
        slower or faster in the meantime favours neither.
        """
        half = -(-timed // 2)

        def batches() -> Iterator[list[Batch]]:
            loaded = iter(StepBatches(loader, 0, timed + 1))
            constant = next(loaded)
            yield from itertools.repeat(constant, warmup + half)
            yield from loaded
            yield from itertools.repeat(constant, half)

        times = self._fit(shape, cast(StepBatches, batches()), loader.section.reset_at_documents)
        loaded, start = times.part(warmup + half, warmup + half + timed), warmup + half + timed
        before, after = times.part(warmup, warmup + half), times.part(start)
        return loaded, StepTimes(before.steps + after.steps)

    def _random_batch(self, shape: Shape) -> dict[str, Any]:
        ids = self.random_ids(Shape(shape.batch, shape.tokens + 1))
        return {
            "input_ids": ids[:, :-1].contiguous(),
            "targets": ids[:, 1:].contiguous(),
            "segment_ids": torch.zeros(shape, dtype=torch.int64),
            "loss_mask": torch.ones(shape, dtype=torch.bool),
            "sample_ids": torch.arange(shape.batch),
        }

    def _fit(self, shape: Shape, batches: StepBatches, uses_segments: bool, **train_keys: Any) -> StepTimes:
        """Train on these batches as the stage does, without validation and checkpoints."""
        sizes = {"batch_size": shape.batch, "micro_batch_size": shape.batch, "device": self.hardware.device}
        train = self.subject.train.model_copy(update=sizes | train_keys)
        model = self.build()
        if train.gradient_checkpointing:
            recompute_activations(model)
        freeze_parameters(model, train.parameter_groups)
        module = TrainingModule(
            model,
            train,
            seed=0,
            total_steps=10_000,
            bf16=self.hardware.bf16,
            compiled=self.compiled,
            uses_segments=uses_segments,
        )
        clock = _Clock(self.device, train.log_every_steps)
        with tempfile.TemporaryDirectory() as folder:
            request = TrainingRequest(
                seed=0, data=DataSection(sequence_length=shape.tokens), train=train, model={}, eos_id=0, pad_id=0,
                train_shards=Path(folder), validation_shards=Path(folder), tokenizer_folder=Path(folder),
                run_folder=Path(folder), identity={},
            )  # fmt: skip
            # Lightning asks no more of the loop than of any callback.
            fit(request, self.hardware, module, cast(TrainingLoop, clock), batches)
        return clock.times()


class _Clock(pl.Callback):
    """In the place of the training loop: takes the moments of each step, and reads the losses as often as that does."""

    def __init__(self, device: torch.device, read_every: int) -> None:
        self._steps, self._parts, self._read_every = Marks(device), Marks(device), read_every
        self._in_parts = True

    def times(self) -> StepTimes:
        """Every step, and the forward parts if all steps had one."""
        return StepTimes(self._steps.gaps(), self._parts.gaps()[::2] if self._in_parts else [])

    def on_train_batch_start(self, _trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if cast(TrainingModule, module).state.step == 0:
            self._steps.mark()
        self._parts.mark()

    def on_before_backward(self, *_: Any) -> None:
        self._parts.mark()

    def on_train_batch_end(self, _trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self._steps.mark()
        module = cast(TrainingModule, module)
        self._in_parts = self._in_parts and module.recorded == 0
        if module.state.step % self._read_every == 0:
            module.read_losses()

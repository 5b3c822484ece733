"""The Lightning module: one training batch is one optimizer step, with all its micro-batches."""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from retlab.errors import NotFinite
from retlab.models.causal_lm import CausalLM
from retlab.training.compiling import compile_parts
from retlab.training.data_parallel import DataParallel, GradientSums
from retlab.training.objectives import OBJECTIVES, SummedLoss, count_tokens
from retlab.training.optimizer import ShardwiseAdamW, build_optimizer, set_learning_rate
from retlab.training.passes import RecordedPasses
from retlab.training.processes import Agreement
from retlab.training.schedules import learning_rate_factor
from retlab.training.scored import Scored, shard
from retlab.training.settings import TrainSection
from retlab.training.state import TrainingState

Batch = Mapping[str, Any]


class _Unread(NamedTuple):
    """A step whose loss is still on the device."""

    step: int
    tokens: int
    losses: Tensor
    "float64 [micro-batches], this process's share."
    norm: Tensor
    sample_ids: list[list[int]]


class TrainingModule(pl.LightningModule):
    """Computes gradients, steps and validation losses; `TrainingLoop` decides when what is done.

    The gradient is that of the sum of the losses over the number of tokens of the whole global batch, over all
    processes and micro-batches, so neither of them changes it.
    """

    def __init__(
        self,
        model: CausalLM,
        train: TrainSection,
        *,
        seed: int,
        total_steps: int,
        bf16: bool,
        compiled: bool,
        uses_segments: bool,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.scored = Scored(model, OBJECTIVES[train.objective.name]())
        self.train_section, self.seed, self.total_steps = train, seed, total_steps
        self.bf16, self.uses_segments = bf16, uses_segments
        self.agreement = Agreement()
        self.state = TrainingState()
        self.compiled = compiled
        self._passes: RecordedPasses | None = None
        self._sums: GradientSums | None = None
        self._unread: list[_Unread] = []

    @property
    def model(self) -> CausalLM:
        """The model without wrappers."""
        return self.scored.model

    def configure_model(self) -> None:
        """Compile, and shard under FSDP; called once the processes know each other."""
        if self.compiled:
            compile_parts(self.scored)
        if self.train_section.strategy == "fsdp" and self.trainer.world_size > 1:
            assert self.device_mesh is not None
            shard(self.scored, self.device_mesh["data_parallel"])

    def on_train_start(self) -> None:
        """Have passes recorded on GPUs, but under FSDP, whose passes wait for other processes in many places."""
        parameters = list(self.scored.parameters())
        if isinstance(self.trainer.strategy, DataParallel):
            self._sums = GradientSums(parameters, self.device, self.trainer.num_nodes)
        records = self.train_section.cuda_graphs == "auto" and self.device.type == "cuda"
        if records and not isinstance(self.scored, FSDPModule):
            self._passes = RecordedPasses(self._pass, parameters, self.device)

    def on_train_end(self) -> None:
        """Give the memory of the recordings back."""
        self._passes = None
        if self._sums is not None:
            self._sums.end()
            self._sums = None

    @property
    def recorded(self) -> int:
        """Kinds of passes that are replayed as CUDA graphs."""
        return 0 if self._passes is None else self._passes.recorded

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.train_section)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002
        # The step counts tokens on the CPU first and moves one micro-batch at a time.
        return batch

    def training_step(self, batch: list[Batch], batch_idx: int) -> None:  # noqa: ARG002
        state, agreement = self.state, self.agreement
        counts = [int(count_tokens(micro)) for micro in batch]
        tokens = round(agreement.sum([float(sum(counts))])[0])
        # FSDP averages gradients over the processes, but the loss is a sum over them.
        scale = (agreement.size if isinstance(self.scored, FSDPModule) else 1) / max(tokens, 1)
        losses = []
        for index, micro in enumerate(batch):
            seed_device(self.device, random_seed(self.seed, state.step, index, agreement.rank))
            losses.append(self._gradients_of(micro, scale, is_last=index == len(batch) - 1))
        if self._sums is not None:
            self._sums.sum()
        norm = self._optimizer_step()
        ids = [[window for window in micro["sample_ids"].tolist() if window >= 0] for micro in batch]
        self._unread.append(_Unread(state.step + 1, tokens, torch.stack(losses), norm, ids))
        state.step += 1
        state.tokens += tokens

    def _gradients_of(self, micro: Batch, scale: float, is_last: bool) -> Tensor:
        """The loss () in float64 of a micro-batch, whose gradients are added to the parameters'."""
        inputs = self._inputs(micro)
        if isinstance(self.scored, FSDPModule):
            self.scored.set_requires_gradient_sync(is_last)
        if self._passes is not None:
            return self._passes.run(inputs, scale)
        return self._pass(self._moved(inputs), torch.full((), scale, device=self.device)).double()

    def _pass(self, inputs: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        loss = self._losses(inputs).loss
        with contextlib.nullcontext() if self._sums is None else self._sums.marking():
            self.manual_backward(loss * scale)
        return loss.detach()

    def _losses(self, inputs: Mapping[str, Tensor]) -> SummedLoss:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.scored(inputs)

    def _inputs(self, micro: Batch) -> dict[str, Tensor]:
        """What the objective needs of a batch, where a copy to the device waits for nothing.

        From pageable memory a copy waits until the GPU has done all that it was asked for, and the GPU then waits for
        what the host asks next.
        """
        keys = ("input_ids", "targets", "loss_mask") + (("segment_ids",) if self.uses_segments else ())
        return {key: micro[key].pin_memory() if self.device.type == "cuda" else micro[key] for key in keys}

    def _moved(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: values.to(self.device, non_blocking=True) for key, values in inputs.items()}

    def _lightning_optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def _optimizer(self) -> ShardwiseAdamW:
        optimizer = self._lightning_optimizer().optimizer
        assert isinstance(optimizer, ShardwiseAdamW)
        return optimizer

    def _optimizer_step(self) -> Tensor:
        """Clip, step and clear; returns the norm of the gradient before clipping."""
        optimizer = self._optimizer()
        norm = nn.utils.get_total_norm(optimizer.gradients(), foreach=True)
        if isinstance(self.scored, FSDPModule):
            squares = norm.double().square()
            dist.all_reduce(squares)
            norm = squares.sqrt().to(norm.dtype)
        if self.train_section.gradient_clip_norm is not None:
            optimizer.clip(norm, self.train_section.gradient_clip_norm)
        factor = learning_rate_factor(self.train_section.schedule, self.state.step, self.total_steps)
        set_learning_rate(optimizer, factor)
        self.state.learning_rate = max(group["lr"] for group in optimizer.param_groups)
        self._lightning_optimizer().step()
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def read_losses(self) -> None:
        """Fetch the losses of the steps since the last call and add them to the state.

        Raises:
            NotFinite: a loss or a gradient is not finite; names the step and the windows.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        own = torch.stack([entry.losses.sum() for entry in unread])
        norms = torch.stack([entry.norm.double() for entry in unread]).tolist()
        totals = self.agreement.sum(own.tolist())
        for entry, total, norm in zip(unread, totals, norms, strict=True):
            if not (math.isfinite(total) and math.isfinite(norm)):
                raise NotFinite(
                    self._not_finite(entry, total, norm), "lower train.learning_rate or look at that text",
                    entry.step, self.state.tokens,
                )  # fmt: skip
            self.state.interval_loss += total
            self.state.interval_tokens += entry.tokens
            self.state.gradient_norm = norm

    def _not_finite(self, entry: _Unread, total: float, norm: float) -> str:
        bad = [not math.isfinite(value) for value in entry.losses.tolist()]
        ids = [window for ids, is_bad in zip(entry.sample_ids, bad, strict=True) for window in ids if is_bad]
        found = [window for part in self.agreement.gather(ids) for window in part]
        if not found:
            parts = self.agreement.gather([window for ids in entry.sample_ids for window in ids])
            found = [window for part in parts for window in part]
        what = f"the loss became {total}" if not math.isfinite(total) else f"the norm of the gradient became {norm}"
        shown = ", ".join(map(str, found[:64])) + (", ..." if len(found) > 64 else "")
        return f"{what} at step {entry.step}, in the batch with the windows {shown} of its epoch"

    @torch.no_grad()
    def validation_loss(self, batches: Iterable[Batch], is_stopping: Callable[[], bool]) -> float | None:
        """Mean loss per token in nats over batches whose number all processes share.

        `is_stopping` is asked before each batch and must answer the same in all processes; None is returned then.
        """
        self.scored.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        tokens = 0
        interrupted = False
        for batch in batches:
            interrupted = is_stopping()
            if interrupted:
                break
            tokens += int(count_tokens(batch))
            total += self._losses(self._moved(self._inputs(batch))).loss.double()
        self.scored.train()
        loss, count = self.agreement.sum([total.item(), float(tokens)])
        return None if interrupted else loss / count

    def weights(self) -> dict[str, Any]:
        """Weights and optimizer state by parameter name, whole and on the CPU; complete in the first process."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        optimizer = self._optimizer()
        return {
            "model": get_model_state_dict(self.model, options=options),
            "optimizer": get_optimizer_state_dict(self.model, optimizer, options=options),
        }

    def load_weights(self, checkpoint: dict[str, Any]) -> None:
        """Put back what `weights` returned."""
        options = StateDictOptions(full_state_dict=True)
        optimizer = self._optimizer()
        set_model_state_dict(self.model, checkpoint["model"], options=options)
        set_optimizer_state_dict(self.model, optimizer, checkpoint["optimizer"], options=options)


def random_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """Seed of the randomness of one micro-batch, such as dropout: the same in a resumed run."""
    drawn = np.random.SeedSequence([seed, step, micro_batch, rank]).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the random numbers of one device; `torch.manual_seed` seeds all kinds of devices, in milliseconds."""
    generator = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    generator.manual_seed(seed)

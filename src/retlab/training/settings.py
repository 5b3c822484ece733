"""The `train` section of the configuration."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from retlab.section import Section

_Beta = Annotated[float, Field(ge=0, lt=1)]
_FinalRatio = Annotated[
    float, Field(ge=0, le=1, description="Learning rate of the last step as a share of the highest.")
]


class _Warmup(Section):
    warmup_steps: int = Field(default=0, ge=0)
    "Steps over which the learning rate rises linearly from 0."


class CosineSchedule(_Warmup):
    """Warm-up, then half a cosine down to the final learning rate."""

    name: Literal["cosine"] = "cosine"
    "Shape of the learning rate: constant, cosine, warmup_stable_decay or step."
    final_ratio: _FinalRatio = 0.1


class WarmupStableDecaySchedule(_Warmup):
    """Warm-up, a constant stretch, then a linear decay to the final learning rate."""

    name: Literal["warmup_stable_decay"]
    "Shape of the learning rate."
    decay_steps: int = Field(ge=1)
    "Steps of the decay at the end."
    final_ratio: _FinalRatio = 0.0


class StepSchedule(_Warmup):
    """Warm-up, then times gamma every step_size steps."""

    name: Literal["step"]
    "Shape of the learning rate."
    step_size: int = Field(ge=1)
    "Optimizer steps between two reductions."
    gamma: float = Field(default=0.85, gt=0, le=1)
    "Factor of a reduction."


class ConstantSchedule(_Warmup):
    """Warm-up, then constant."""

    name: Literal["constant"]
    "Shape of the learning rate."


Schedule = Annotated[
    CosineSchedule | WarmupStableDecaySchedule | StepSchedule | ConstantSchedule, Field(discriminator="name")
]


class NextTokenObjective(Section):
    """Cross entropy of the next token."""

    name: Literal["next_token"] = "next_token"
    "What is minimised: the cross entropy of the next token."


class ParameterGroup(Section):
    """Parameters whose name matches get their own learning rate or weight decay, or are frozen."""

    match: str = Field(min_length=1)
    "Regular expression searched in the parameter's name; the first group that matches counts."
    learning_rate: float | None = Field(default=None, gt=0)
    "Highest learning rate of the group; null is train.learning_rate."
    weight_decay: float | None = Field(default=None, ge=0)
    "Weight decay of the group; null is the usual rule."
    frozen: bool = False
    "Leave these parameters as they are."

    @field_validator("match")
    @classmethod
    def _is_an_expression(cls, match: str) -> str:
        try:
            re.compile(match)
        except re.error as error:
            raise ValueError(f"must be a regular expression, but {error}") from None
        return match


class TrainSection(Section):
    """How the model is trained."""

    max_steps: int | None = Field(default=None, ge=1)
    "Length in optimizer steps; set at most one of max_steps, max_tokens and max_epochs."
    max_tokens: int | None = Field(default=None, ge=1)
    "Length in training tokens, rounded up to whole steps."
    max_epochs: float | None = Field(default=None, gt=0)
    "Length in passes over the train split, rounded up to whole steps; with none of the three set it is 1."
    batch_size: int = Field(default=32, ge=1)
    "Windows per optimizer step, over all processes and accumulation."
    micro_batch_size: int | None = Field(default=None, ge=1)
    "Windows per forward pass and process; null is batch_size over the number of processes. Less accumulates."
    learning_rate: float = Field(default=1e-3, gt=0)
    "Highest learning rate."
    schedule: Schedule = CosineSchedule()
    "Course of the learning rate."
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    "AdamW's decay rates of the two moments."
    epsilon: float = Field(default=1e-8, gt=0)
    "AdamW's epsilon."
    weight_decay: float = Field(default=0.1, ge=0)
    "AdamW's weight decay; not applied to norms, biases, embeddings and recurrence parameters."
    gradient_clip_norm: float | None = Field(default=1.0, gt=0)
    "Highest norm of the gradient; null does not clip."
    parameter_groups: list[ParameterGroup] = []
    "Other learning rates, weight decays or frozen parameters by name."
    objective: NextTokenObjective = NextTokenObjective()
    "What is minimised."
    init_from: str | None = None
    "Start from the weights of a model folder or hub model; null starts anew."
    device: Literal["auto", "cpu", "cuda"] = "auto"
    "Where to train; auto takes a GPU where there is one."
    devices: int | None = Field(default=None, ge=1)
    "Processes on each machine, one per GPU or, on a CPU, joined by gloo; null takes the GPUs of a Slurm job, else 1."
    num_nodes: int | None = Field(default=None, ge=1)
    "Machines; null takes those that srun starts the training on, else 1."
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    "How several processes share the work; auto is ddp."
    precision: Literal["auto", "float32", "bf16"] = "auto"
    "auto: bf16 on GPUs that have it, else float32."
    threads: int | None = Field(default=None, ge=1)
    "CPU threads of each process; null leaves torch's choice."
    compile: Literal["auto", "on", "off"] = "auto"
    "torch.compile; auto compiles on a GPU."
    cuda_graphs: Literal["auto", "off"] = "auto"
    "auto: passes are recorded and replayed as CUDA graphs, on GPUs with memory to spare and not under fsdp."
    gradient_checkpointing: bool = False
    "Recompute activations in the backward pass: less memory, more time."
    validate_every_steps: int = Field(default=500, ge=1)
    "Optimizer steps between two validations; the last step is always validated."
    validate_batches: int | None = Field(default=None, ge=1)
    "Micro-batches of one validation; null takes the whole split."
    early_stopping_patience: int | None = Field(default=None, ge=1)
    "Stop after so many validations without a better loss; null never stops early."
    checkpoint_every_steps: int | None = Field(default=500, ge=1)
    "Optimizer steps between two checkpoints; null for none by steps."
    checkpoint_every_minutes: float | None = Field(default=None, gt=0)
    "Minutes between two checkpoints; null for none by time."
    keep_best: int = Field(default=1, ge=1)
    "Checkpoints kept for their validation loss, beside the last one."
    log_every_steps: int = Field(default=10, ge=1)
    "Optimizer steps between two lines of metrics."
    tensorboard: bool = True
    "Also log to TensorBoard."
    wandb: str | None = None
    "Also log to this Weights & Biases project; needs the wandb package."

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        keys = [key for key in ("max_steps", "max_tokens", "max_epochs") if getattr(self, key) is not None]
        if len(keys) > 1:
            raise ValueError(f"found {' and '.join(keys)}; set at most one of max_steps, max_tokens and max_epochs")
        return self

    @property
    def processes(self) -> int:
        """Processes over all machines; where the section does not say, one."""
        return (self.devices or 1) * (self.num_nodes or 1)

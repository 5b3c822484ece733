"""What every implementation, ours and others', has to offer to be measured."""

import contextlib
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import torch
from torch import nn

from retlab.benchmark.plan import Shape, Subject
from retlab.measuring import Marks
from retlab.models import config_from_section
from retlab.training.hardware import Hardware

if TYPE_CHECKING:
    # Imports transformers, which takes seconds and only some of the processes need.
    from retlab.models.configuration import ModelConfig


class StepTimes(NamedTuple):
    """Seconds of each training step, from the end of the one before, and of forward parts with the loss."""

    steps: list[float]
    forwards: list[float] = []

    @classmethod
    def of(cls, marks: Marks) -> Self:
        """From a moment before the first step, then one after the forward part and one at the end of each."""
        gaps = marks.gaps()
        forwards = gaps[::2]
        return cls([sum(pair) for pair in zip(forwards, gaps[1::2], strict=True)], forwards)

    def part(self, start: int, stop: int | None = None) -> Self:
        """The steps from `start` up to `stop`."""
        return type(self)(self.steps[start:stop], self.forwards[start:stop])

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.steps)

    @property
    def mean_step(self) -> float:
        """Mean seconds of a step."""
        return statistics.mean(self.steps)

    @property
    def forward(self) -> float:
        """Median seconds of the forward part."""
        return statistics.median(self.forwards)


class Contestant(ABC):
    """One implementation of one model on one device, with random weights.

    The constructor imports what it needs and raises ImportError where that does not work.
    """

    name: ClassVar[str]
    has_generate: ClassVar[bool] = True
    becomes_faster: ClassVar[bool] = False
    "Whether `generate()` records or compiles a shape once it was used often enough; see `settle`."

    def __init__(self, subject: Subject, hardware: Hardware, mode: str) -> None:
        self.subject, self.hardware, self.compiled = subject, hardware, mode == "compiled"
        self.config: ModelConfig = config_from_section(subject.model, subject.vocab_size)
        self.device = torch.device("cuda:0" if hardware.device == "cuda" else "cpu")

    @abstractmethod
    def build(self) -> nn.Module:
        """A new model in float32."""

    @abstractmethod
    def training_times(self, shape: Shape, steps: int) -> StepTimes:
        """Train on constant random tokens: forward, cross entropy, backward, fused AdamW."""

    def generator(self) -> nn.Module:
        """The model ready for `generate()`: on the device, in bf16 where training takes bf16."""
        with self.device:
            model = self.build()
        return model.to(torch.bfloat16 if self.hardware.bf16 else torch.float32).eval()

    def start_afresh(self, model: nn.Module) -> None:
        """Have the next `generate()` be as slow as the first of its shape; for those which become faster."""
        raise NotImplementedError

    def settle(self, model: nn.Module, generate: Callable[[], object]) -> None:
        """Call `generate` until it will not become faster any more; for those which become faster."""
        raise NotImplementedError

    def random_ids(self, shape: Shape) -> torch.Tensor:
        """Random token ids [batch, tokens] on the CPU."""
        return torch.randint(0, self.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context of the forward pass in training."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.hardware.bf16)

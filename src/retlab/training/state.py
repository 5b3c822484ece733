"""What a training remembers from step to step beside weights and optimizer."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class TrainingState:
    """Everything that a checkpoint holds beside weights, optimizer and position: plain values."""

    step: int = 0
    "Optimizer steps done."
    tokens: int = 0
    "Tokens trained on."
    unfinished: bool = False
    "The validation and the line of metrics of `step` are still to be done."
    best: list[list[float]] = field(default_factory=list)
    "Validation losses and steps of the checkpoints to keep, best first."
    validations_without_gain: int = 0
    "Validations since the best one."
    stopped_early: bool = False
    "Early stopping ended the training."
    interval_loss: float = 0.0
    "Sum of the losses since the last line of metrics, in nats."
    interval_tokens: int = 0
    "Tokens in that sum."
    learning_rate: float = 0.0
    "Highest learning rate of any group in the last step."
    gradient_norm: float = 0.0
    "Norm of the gradient in the last step, before clipping."
    training_seconds: float = 0.0
    "Time in training steps over all attempts."
    metrics_bytes: int = 0
    "Length of metrics.csv."

    @classmethod
    def of(cls, values: dict[str, Any]) -> "TrainingState":
        """The state in a checkpoint."""
        return cls(**{item.name: values[item.name] for item in fields(cls)})

    def plain(self) -> dict[str, Any]:
        """The values for a checkpoint."""
        return asdict(self)

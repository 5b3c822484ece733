"""What the benchmark measures: models, shapes and patience, by device or from a configuration."""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from retlab.config import ExperimentConfig
from retlab.config_model import resolve_model, vocabulary_size
from retlab.models.settings import ModelSettings
from retlab.training.settings import TrainSection

Device = Literal["cpu", "cuda"]


class Shape(NamedTuple):
    """Rows and tokens of each of them."""

    batch: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.tokens:,}"


@dataclass(frozen=True)
class Subject:
    """One model to measure: its sizes, and how it is trained."""

    model: ModelSettings
    train: TrainSection
    vocab_size: int
    training: tuple[Shape, ...] | None = None
    "Its own shapes of training steps; None takes those of the plan."
    generation: tuple[Shape, ...] | None = None
    "Its own contexts; None takes those of the plan."

    @property
    def architecture(self) -> str:
        """The model's architecture, which decides who else has it."""
        return self.model.architecture


@dataclass(frozen=True)
class Plan:
    """Everything that is to be measured in one run."""

    subjects: tuple[Subject, ...]
    training: tuple[Shape, ...]
    "Shapes of training steps; the first also shows the loader."
    generation: tuple[Shape, ...]
    "Rows and tokens of context before the tokens that are generated."
    several: tuple[Shape, ...]
    "Shapes of each process's training steps, where one process is compared with several."
    text_bytes: int
    "Text for the rates of tokeniser and loader."
    warmup_steps: int
    "Training steps that are not counted."
    timed_steps: int
    "Training steps whose median counts."
    seconds: float
    "About how long one generation should take to be timed well."
    most_new_tokens: int
    "Longest generation that is timed."
    loader_workers: int = 0
    "As `data.loader_workers`."
    reset_at_documents: bool = True
    "As `data.reset_at_documents`."


_ON_A_GPU: dict[str, Any] = {"warmup_steps": 4, "timed_steps": 12, "seconds": 0.5, "most_new_tokens": 1024}
_ON_A_CPU: dict[str, Any] = {"warmup_steps": 2, "timed_steps": 6, "seconds": 0.1, "most_new_tokens": 32}


def default_plan(device: Device, train: TrainSection) -> Plan:
    """The sizes that others were measured with on an H100, or small ones for a CPU."""
    if device == "cuda":
        sizes = {"vocab_size": 32_000, "hidden_size": 1024, "num_hidden_layers": 12}
        models = [
            {**sizes, "architecture": "retnet", "num_attention_heads": 4, "chunk_size": 256},
            {**sizes, "architecture": "transformer", "num_attention_heads": 16, "intermediate_size": 2816,
             "tie_word_embeddings": True},
        ]  # fmt: skip
        retnet, transformer = _subjects(models, train)
        # Attention is compiled for every context, so that it gets the two that say most.
        transformer = replace(transformer, training=(Shape(8, 2048),), generation=(Shape(1, 2048), Shape(16, 8192)))
        long = {**models[1], "architecture": "longnet", "segment_lengths": [1024, 2048, 4096]}
        return Plan(
            (retnet, transformer, _longnet(long, train, (Shape(4, 8192), Shape(1, 32768)), ())),
            training=(Shape(8, 2048), Shape(2, 8192)),
            generation=(Shape(1, 256), Shape(1, 8192), Shape(1, 16384), Shape(16, 8192)),
            # The second is as much as a GPU of this size is given to do at once.
            several=(Shape(8, 2048), Shape(32, 2048)),
            text_bytes=4_000_000,
            **_ON_A_GPU,
        )
    sizes = {"vocab_size": 2048, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    models = [
        {**sizes, "architecture": "retnet", "chunk_size": 64},
        {**sizes, "architecture": "transformer", "intermediate_size": 352, "tie_word_embeddings": True},
    ]
    long = {**models[1], "architecture": "longnet", "segment_lengths": [64, 128, 256]}
    return Plan(
        (*_subjects(models, train), _longnet(long, train, (Shape(2, 512), Shape(1, 1024)), ())),
        training=(Shape(4, 256), Shape(1, 1024)),
        generation=(Shape(1, 32), Shape(1, 256), Shape(4, 256)),
        several=(Shape(4, 256),),
        text_bytes=2_000_000,
        **_ON_A_CPU,
    )


def plan_of(config: ExperimentConfig, device: Device) -> Plan:
    """The model, window and micro-batch of a configuration, contexts around its window, on one device.

    Raises:
        UserError: what `model.match_parameters_of` names does not exist.
    """
    config = resolve_model(config)
    train, tokens = config.train, config.data.sequence_length
    micro = train.micro_batch_size or max(1, train.batch_size // train.processes)
    vocab_size = vocabulary_size(config) or config.tokenizer.vocab_size
    contexts = dict.fromkeys((max(1, tokens // 4), tokens, 4 * tokens))
    small = device == "cpu"
    return Plan(
        (Subject(config.model, _alone(train), vocab_size),),
        training=(Shape(micro, tokens),),
        generation=_shapes((1, 4 if small else 16), tuple(contexts)),
        several=(Shape(micro, tokens),),
        text_bytes=2_000_000 if small else 8_000_000,
        loader_workers=config.data.loader_workers,
        reset_at_documents=config.data.reset_at_documents,
        **(_ON_A_CPU if small else _ON_A_GPU),
    )


def _subjects(models: list[dict[str, Any]], train: TrainSection) -> tuple[Subject, ...]:
    settings = [ExperimentConfig.model_validate({"model": model}).model for model in models]
    return tuple(Subject(model, _alone(train), model.vocab_size or 0) for model in settings)


def _longnet(
    model: dict[str, Any], train: TrainSection, training: tuple[Shape, ...], generation: tuple[Shape, ...]
) -> Subject:
    """LongNet in steps of as many tokens each, whose cost must not depend on the length."""
    (subject,) = _subjects([{**model, "dilation_ratios": [1, 2, 4]}], train)
    return replace(subject, training=training, generation=generation)


def _alone(train: TrainSection) -> TrainSection:
    """Training in one process that logs nowhere."""
    return train.model_copy(
        update={"devices": 1, "num_nodes": 1, "strategy": "auto", "tensorboard": False, "wandb": None}
    )


def _shapes(batches: tuple[int, ...], contexts: tuple[int, ...]) -> tuple[Shape, ...]:
    return tuple(Shape(batch, context) for batch in batches for context in contexts)

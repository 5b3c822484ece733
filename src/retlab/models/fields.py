"""What describes a model: one definition, from which the YAML schema and the saved `config.json` are both made."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args, get_origin


def _field(default: Any, doc: str, **bounds: float) -> Any:
    """A dataclass field with its one-line description and bounds (ge, gt, le, lt)."""
    return field(default=default, metadata={"doc": doc, "bounds": bounds})


class Problem(NamedTuple):
    """Something that cannot be: the keys whose values take part, the one to mend first, and one sentence."""

    keys: tuple[tuple[str | int, ...], ...]
    sentence: str


@dataclass
class ModelFields:
    """What every architecture has."""

    vocab_size: int = _field(32_000, "Number of token ids.", ge=1)
    hidden_size: int = _field(256, "Width of the residual stream.", ge=2)
    num_hidden_layers: int = _field(4, "How many times the list of blocks is stacked.", ge=1)
    max_position_embeddings: int = _field(
        2048, "Longest context that users of the model should give it; no weight depends on it.", ge=1
    )
    tie_word_embeddings: bool = _field(False, "Use the embedding matrix as output projection.")
    rms_norm_eps: float = _field(1e-6, "Epsilon of every RMS norm.", gt=0, lt=1)
    dropout: float = _field(0.0, "Dropout of the embeddings and of what each block adds.", ge=0, lt=1)

    def check(self) -> None:
        """Raise a ValueError with one sentence about the first value that cannot be."""
        for problem in self.problems():
            raise ValueError(problem.sentence)

    def problems(self) -> Iterator[Problem]:
        """Everything that cannot be: single values first, then how they fit each other, which asks for right types."""
        for item in fields(self.fields_class()):
            try:
                check_value(item.name, getattr(self, item.name), item.type, item.metadata["bounds"])
            except ValueError as error:
                yield Problem(((item.name,),), str(error))

    def complete(self) -> None:
        """Replace the defaults that follow from other fields by their values."""
        for name in ("value_size", "intermediate_size"):
            if name in self.fields_class().__dataclass_fields__ and getattr(self, name) is None:
                setattr(self, name, 2 * self.hidden_size)

    @classmethod
    def fields_class(cls) -> type["ModelFields"]:
        """The dataclass of this module that a configuration class is made from."""
        return next((base for base in cls.__mro__ if base in FIELDS.values()), ModelFields)

    def block_list(self) -> list[dict[str, Any]]:
        """The blocks of one layer, each the name of a mixer with its settings."""
        raise NotImplementedError


@dataclass
class RetNetFields(ModelFields):
    """Retention and a gated linear unit per layer."""

    num_attention_heads: int = _field(4, "Retention heads; head h decays by 1 - 2^(-5-h) per token.", ge=1)
    value_size: int | None = _field(None, "Width of the values over all heads; null is twice hidden_size.", ge=1)
    intermediate_size: int | None = _field(
        None, "Width inside the feed-forward block; null is twice hidden_size.", ge=1
    )
    hidden_act: Literal["gelu", "silu", "relu"] = _field("gelu", "Activation of the feed-forward block.")
    activation_dropout: float = _field(0.0, "Dropout inside the feed-forward block.", ge=0, lt=1)
    chunk_size: int = _field(
        128, "Tokens per chunk, for speed alone: 64 suits a CPU, 256 a GPU and long windows.", ge=1
    )
    torchscale_normalizer: bool = _field(
        False, "TorchScale's own normaliser, for its checkpoints: parallel form only, no cache."
    )
    retention_kernel: Literal["auto", "torch", "fla"] = _field(
        "auto", "What retention runs on: torch is PyTorch, fla flash-linear-attention; auto takes the faster one."
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _head_problems(self.hidden_size, self.num_attention_heads)
        # Twice a width that the heads divide, where none is given.
        if self.value_size is not None and self.value_size % self.num_attention_heads:
            yield Problem(
                (("value_size",), ("num_attention_heads",)),
                f"num_attention_heads ({self.num_attention_heads}) must divide value_size ({self.value_size}).",
            )

    def block_list(self) -> list[dict[str, Any]]:
        retention = {
            "name": "retention",
            "num_heads": self.num_attention_heads,
            "value_size": self.value_size,
            "chunk_size": self.chunk_size,
            "norm_eps": self.rms_norm_eps,
            "torchscale_normalizer": self.torchscale_normalizer,
        }
        return [retention, _glu(self)]


@dataclass
class TransformerFields(ModelFields):
    """Softmax attention with rotary positions, and the same gated linear unit and norms as the RetNet."""

    num_attention_heads: int = _field(4, "Attention heads.", ge=1)
    intermediate_size: int | None = _field(
        None, "Width inside the feed-forward block; null is twice hidden_size.", ge=1
    )
    hidden_act: Literal["gelu", "silu", "relu"] = _field("gelu", "Activation of the feed-forward block.")
    activation_dropout: float = _field(0.0, "Dropout inside the feed-forward block.", ge=0, lt=1)
    attention_dropout: float = _field(0.0, "Dropout of the attention weights.", ge=0, lt=1)
    rope_theta: float = _field(10_000.0, "Base of the rotary positions' wavelengths.", gt=1)
    attention_kernel: Literal["auto", "sdpa", "flash_attn"] = _field(
        "auto", "What attention runs on: sdpa is PyTorch's own; auto takes flash-attn where it runs and is faster."
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _head_problems(self.hidden_size, self.num_attention_heads)

    def block_list(self) -> list[dict[str, Any]]:
        attention = {
            "name": "attention",
            "num_heads": self.num_attention_heads,
            "rope_theta": self.rope_theta,
            "dropout": self.attention_dropout,
        }
        return [attention, _glu(self)]


@dataclass
class LongNetFields(ModelFields):
    """Dilated attention with rotary positions, and the same gated linear unit and norms as the RetNet."""

    num_attention_heads: int = _field(4, "Attention heads; of a segment, head h keeps the tokens h mod ratio.", ge=1)
    segment_lengths: list[int] = field(
        default_factory=lambda: [64, 256, 1024],
        metadata={"doc": "Tokens per segment of every branch, increasing; nothing is read further back.", "bounds": {}},
    )
    dilation_ratios: list[int] = field(
        default_factory=lambda: [1, 2, 4],
        metadata={"doc": "For every segment length, of how many tokens a head keeps one.", "bounds": {}},
    )
    intermediate_size: int | None = _field(
        None, "Width inside the feed-forward block; null is twice hidden_size.", ge=1
    )
    hidden_act: Literal["gelu", "silu", "relu"] = _field("gelu", "Activation of the feed-forward block.")
    activation_dropout: float = _field(0.0, "Dropout inside the feed-forward block.", ge=0, lt=1)
    rope_theta: float = _field(10_000.0, "Base of the rotary positions' wavelengths.", gt=1)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _head_problems(self.hidden_size, self.num_attention_heads)

    def block_list(self) -> list[dict[str, Any]]:
        attention = {
            "name": "dilated_attention",
            "num_heads": self.num_attention_heads,
            "segment_lengths": self.segment_lengths,
            "dilation_ratios": self.dilation_ratios,
            "rope_theta": self.rope_theta,
        }
        return [attention, _glu(self)]


def _example_blocks() -> list[dict[str, Any]]:
    return [
        {"name": "retention", "num_heads": 4},
        {"name": "glu", "intermediate_size": 512},
        {"name": "attention", "num_heads": 4},
        {"name": "glu", "intermediate_size": 512},
    ]


@dataclass
class HybridFields(ModelFields):
    """Any list of blocks."""

    blocks: list[dict[str, Any]] = field(
        default_factory=_example_blocks,
        metadata={"doc": "Blocks of one layer: each a mixer's name with its settings.", "bounds": {}},
    )
    attention_kernel: Literal["auto", "sdpa", "flash_attn"] = _field(
        "auto", "What attention runs on: sdpa is PyTorch's own; auto takes flash-attn where it runs and is faster."
    )
    retention_kernel: Literal["auto", "torch", "fla"] = _field(
        "auto", "What retention runs on: torch is PyTorch, fla flash-linear-attention; auto takes the faster one."
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if not isinstance(self.blocks, list) or not self.blocks:
            message = "blocks must list at least one mixer, such as {name: retention, num_heads: 4}."
            yield Problem((("blocks",),), message)
            return
        for number, block in enumerate(self.blocks):
            if not isinstance(block, dict) or "name" not in block:
                message = f"Every entry of blocks needs the name of a mixer, but one is {block!r}."
                yield Problem((("blocks", number),), message)

    def block_list(self) -> list[dict[str, Any]]:
        norm = {"norm_eps": self.rms_norm_eps}
        return [{**norm, **block} if block["name"] == "retention" else block for block in self.blocks]


FIELDS: dict[str, type[ModelFields]] = {
    "retnet": RetNetFields,
    "transformer": TransformerFields,
    "longnet": LongNetFields,
    "hybrid": HybridFields,
}
"""The architectures by name."""


def _head_problems(hidden_size: int, num_heads: int) -> Iterator[Problem]:
    """Heads must divide the width into even head widths, as rotary positions need."""
    keys = (("num_attention_heads",), ("hidden_size",))
    if num_heads < 1 or hidden_size % num_heads:
        yield Problem(keys, f"num_attention_heads ({num_heads}) must divide hidden_size ({hidden_size}).")
    elif hidden_size // num_heads % 2:
        yield Problem(
            keys,
            f"hidden_size / num_attention_heads is {hidden_size // num_heads}, an odd head width, but rotary positions "
            "turn pairs of channels: choose values that give an even one.",
        )


def _glu(model: RetNetFields | TransformerFields | LongNetFields) -> dict[str, Any]:
    return {
        "name": "glu",
        "intermediate_size": model.intermediate_size,
        "activation": model.hidden_act,
        "dropout": model.activation_dropout,
    }


def check_value(name: str, value: Any, kind: Any, bounds: dict[str, float]) -> None:
    """One value against its type and bounds, for configurations that come without the YAML schema's checks."""
    if get_origin(kind) in (list, tuple):
        if get_args(kind)[0] is int and not (
            isinstance(value, list | tuple) and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
        ):
            raise ValueError(f"{name} must be a list of whole numbers, not {value!r}.")
        return
    choices = getattr(kind, "__args__", ())
    if kind is bool or (choices and isinstance(choices[0], str)):
        allowed = (True, False) if kind is bool else choices
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}.")
        return
    if (value is None and type(None) in choices) or not (kind in (int, float) or int in choices):
        return
    numeric = (int, float) if kind is float else (int,)
    if not isinstance(value, numeric) or isinstance(value, bool):
        raise ValueError(f"{name} must be a {'number' if kind is float else 'whole number'}, not {value!r}.")
    tests = {
        "ge": ("at least", value >= bounds.get("ge", value)),
        "gt": ("above", value > bounds.get("gt", value - 1)),
        "lt": ("below", value < bounds.get("lt", value + 1)),
    }
    for bound, limit in bounds.items():
        words, holds = tests[bound]
        if not holds:
            raise ValueError(f"{name} must be {words} {limit:g}, not {value:g}.")

"""The model card of an exported model: README.md with what is known of its data, training, loss and energy."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from retlab.models.configuration import ModelConfig
from retlab.models.counting import count_parameters

_ARCHITECTURES = {
    "retnet": (
        "RetNet",
        "a RetNet ([Sun et al. 2023](https://arxiv.org/abs/2307.08621)): multi-scale retention in place of attention,"
        " so that a generated token costs the same time and memory at any length",
    ),
    "transformer": (
        "Transformer",
        "a Transformer with rotary positions ([Su et al. 2021](https://arxiv.org/abs/2104.09864))",
    ),
    "longnet": (
        "LongNet",
        "a LongNet ([Ding et al. 2023](https://arxiv.org/abs/2307.02486)): dilated attention with rotary positions, so"
        " that a generated token costs the same time and memory at any length beyond the longest segment",
    ),
    "hybrid": ("hybrid", "a stack of different blocks, which `blocks` in `config.json` lists"),
}


@dataclass(frozen=True, kw_only=True)
class ModelCardFacts:
    """What a training knows about its model; the card leaves out what is None.

    Losses are in nats per token, energies in kWh, emissions in kg of CO2 equivalents.
    """

    name: str | None = None
    data_source: str | None = None
    train_documents: int | None = None
    train_tokens: int | None = None
    train_bytes: int | None = None
    validation_documents: int | None = None
    validation_tokens: int | None = None
    tokenizer: str | None = None
    bytes_per_token: float | None = None
    steps: int | None = None
    seen_tokens: int | None = None
    sequence_length: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    precision: str | None = None
    seed: int | None = None
    exported_step: int | None = None
    validation_loss: float | None = None
    energy_kwh: float | None = None
    emissions_kg: float | None = None
    country: str | None = None
    power_method: str | None = None


def model_card(config: ModelConfig, facts: ModelCardFacts) -> str:
    """The text of README.md: the Hub's front matter, then one section per part of what is known."""
    short, description = _ARCHITECTURES[config.architecture]
    sections = [
        _FRONT_MATTER.format(architecture=config.architecture),
        f"# {facts.name or short}\n\nA causal language model trained with RetLab: {description}.",
        _LOADING,
        _table("Model", _model_rows(config)),
        _table("Data", _data_rows(facts)),
        _table("Training", _training_rows(facts)),
        _table("Energy and emissions", _energy_rows(facts)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


_FRONT_MATTER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- retlab
- {architecture}
---"""

_LOADING = """## How to load

With torch and transformers alone (the modelling code is in `modeling_retlab.py`), from inside this folder; elsewhere
`folder` is its path, or its name on the Hub:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
prompt = tokenizer("The", return_tensors="pt")
output = model.generate(**prompt, max_new_tokens=40, do_sample=True, top_p=0.9)
print(tokenizer.decode(output[0]))
```

To share it as it is, this card included (`push_to_hub` of a loaded model uploads a card without content):

```bash
hf upload USER/NAME .
```"""


def _model_rows(config: ModelConfig) -> Iterable[tuple[str, str | None]]:
    count = count_parameters(config)
    yield "Parameters", f"{count.total:,} ({count.embedding:,} of them in embedding and output projection)"
    names = {
        "num_hidden_layers": "Layers",
        "hidden_size": "Width",
        "num_attention_heads": "Heads",
        "value_size": "Width of the values",
        "intermediate_size": "Width of the feed-forward blocks",
        "segment_lengths": "Segment lengths",
        "dilation_ratios": "Dilation ratios",
        "vocab_size": "Vocabulary",
        "max_position_embeddings": "Context",
    }
    values = config.get_params()
    for name, label in names.items():
        value = values.get(name)
        yield label, ", ".join(f"{one:,}" for one in value) if isinstance(value, list | tuple) else _number(value)


def _data_rows(facts: ModelCardFacts) -> Iterable[tuple[str, str | None]]:
    yield "Source", facts.data_source
    yield "Train split", _sizes(facts.train_documents, facts.train_tokens, facts.train_bytes)
    yield "Validation split", _sizes(facts.validation_documents, facts.validation_tokens, None)
    yield "Tokenizer", facts.tokenizer
    yield "Bytes per token", _number(facts.bytes_per_token)


def _training_rows(facts: ModelCardFacts) -> Iterable[tuple[str, str | None]]:
    yield "Optimizer steps", _number(facts.steps)
    yield "Tokens seen", _number(facts.seen_tokens)
    yield "Tokens per window", _number(facts.sequence_length)
    yield "Windows per step", _number(facts.batch_size)
    yield "Highest learning rate", _number(facts.learning_rate)
    yield "Precision", facts.precision
    yield "Seed", None if facts.seed is None else str(facts.seed)
    yield "Weights of step", _number(facts.exported_step)
    loss = facts.validation_loss
    yield (
        "Validation loss",
        None if loss is None else f"{loss:.4f} nats per token (perplexity {math.exp(min(loss, 700)):,.2f})",
    )


def _energy_rows(facts: ModelCardFacts) -> Iterable[tuple[str, str | None]]:
    yield "Energy of all stages so far", None if facts.energy_kwh is None else f"{facts.energy_kwh:.3g} kWh"
    yield "Emissions", None if facts.emissions_kg is None else f"{facts.emissions_kg:.3g} kg CO2e"
    if facts.energy_kwh is not None or facts.emissions_kg is not None:
        yield "Electricity of", facts.country
        yield "How power was found", facts.power_method


def _table(title: str, rows: Iterable[tuple[str, str | None]]) -> str:
    """A section with a line for each row that has a value; nothing where none has."""
    lines = [f"| {label} | {value.replace('|', '&#124;')} |" for label, value in rows if value]
    return "\n".join([f"## {title}\n", "| | |", "|---|---|", *lines]) if lines else ""


def _sizes(documents: int | None, tokens: int | None, size: int | None) -> str | None:
    parts = [f"{count:,} {unit}" for count, unit in ((documents, "documents"), (tokens, "tokens")) if count is not None]
    return ", ".join([*parts, f"{size:,} bytes"] if size is not None else parts) or None


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

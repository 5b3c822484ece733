"""What the model section leaves to other parts of the experiment: its vocabulary and a matched size."""

import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any

from retlab.artifacts import read_json
from retlab.config import ExperimentConfig, load_config
from retlab.errors import UserError
from retlab.section import absolute, portable


def vocabulary_size(config: ExperimentConfig) -> int | None:
    """Rows of the model's embedding; None while an existing tokenizer has not been taken over yet.

    A trained tokenizer may stay below `tokenizer.vocab_size` on little text; the model does not depend on that.
    """
    if config.model.vocab_size is not None:
        return int(config.model.vocab_size)
    if config.tokenizer.from_pretrained is None:
        return config.tokenizer.vocab_size
    assert config.tokenizer.folder is not None
    tokenizer = read_json(config.tokenizer.folder / "tokenizer.json")
    if tokenizer is None:
        return None
    # A Unigram model lists its tokens in the order of their ids.
    vocabulary = tokenizer["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return max([*ids, *(token["id"] for token in tokenizer["added_tokens"])]) + 1


def resolve_model(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with `model.match_parameters_of` replaced by the feed-forward width that it asks for.

    Raises:
        UserError: what it names does not exist, or no width comes within 1 %.
    """
    reference, vocabulary = config.model.match_parameters_of, vocabulary_size(config)
    if reference is None or vocabulary is None:
        return config
    from retlab.models.counting import match_intermediate_size, with_intermediate_size

    fields = config.model.to_fields(vocabulary)
    try:
        width = match_intermediate_size(fields, _parameters_of(absolute(reference)))
    except ValueError as error:
        raise UserError(f"model.match_parameters_of: {error}") from None
    model = config.model.with_fields(with_intermediate_size(fields, width))
    return config.model_copy(update={"model": model})


def known_model(config: ExperimentConfig) -> dict[str, Any]:
    """`architecture` and the fields of the model's configuration, without those that are not known yet."""
    vocabulary = vocabulary_size(config)
    fields = config.model.to_fields(vocabulary or 1)
    fields.complete()
    values = {"architecture": config.model.architecture, **dataclasses.asdict(fields)}
    unknown = set() if vocabulary else {"vocab_size"}
    if config.model.match_parameters_of is not None:
        unknown |= {"intermediate_size", "blocks"}
    return {key: value for key, value in values.items() if key not in unknown}


def _parameters_of(path: Path) -> int:
    """Parameters of the model that a configuration, run folder or model folder describes."""
    weights = [file for folder in (path / "model", path) for file in sorted(folder.glob("*.safetensors"))]
    if weights:
        return sum(_parameters_in(file) for file in weights if file.parent == weights[0].parent)
    file = path / "config.yaml" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"model.match_parameters_of: {portable(path)} is no configuration, run folder or model folder; name one"
        )
    other = load_config(file)
    vocabulary = vocabulary_size(other)
    if other.model.match_parameters_of is not None or vocabulary is None:
        raise UserError(
            f"model.match_parameters_of: {portable(file)} does not have a size of its own yet; train it first"
            " and name its run folder"
        )
    from retlab.models.counting import count_parameters

    return count_parameters(other.model.to_fields(vocabulary)).total


def _parameters_in(file: Path) -> int:
    """Numbers in a safetensors file, read from its header (an 8-byte length, then JSON)."""
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")

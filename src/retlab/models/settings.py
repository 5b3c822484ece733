"""The `model` section of the YAML file, generated from the same fields as the Hugging Face configurations."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, create_model, model_validator

from retlab.models.fields import FIELDS, HybridFields, LongNetFields, ModelFields, Problem
from retlab.section import Section, relation_errors

_MATCH = (
    "A configuration, run folder or model folder: intermediate_size becomes the width that brings the number of "
    "parameters within 1 % of that model's."
)


class ModelSettings(Section):
    """What the sections of all architectures share beside the fields of their model."""

    fields_class: ClassVar[type[ModelFields]]
    architecture: str
    if TYPE_CHECKING:
        # Made by `_section` for every architecture.
        vocab_size: int | None
        max_position_embeddings: int
        match_parameters_of: str | None

    def model_fields_as_dict(self) -> dict[str, Any]:
        """The fields that the model's own configuration takes; a vocab_size of None is left out."""
        values = {name: getattr(self, name) for name in self.fields_class.__dataclass_fields__}
        if values["vocab_size"] is None:
            del values["vocab_size"]
        return values

    def to_fields(self, vocab_size: int) -> ModelFields:
        """The fields of the model, with this vocabulary where the section names none of its own."""
        return self.fields_class(**{"vocab_size": vocab_size, **self.model_fields_as_dict()})

    def with_fields(self, fields: ModelFields) -> Self:
        """The section with the sizes of `fields` in place of a model to match."""
        values = {name: getattr(fields, name) for name in self.fields_class.__dataclass_fields__}
        del values["vocab_size"]
        return self.model_copy(update={**values, "match_parameters_of": None})

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = self.fields_class(**self.model_fields_as_dict())
        problems = [*fields.problems(), *_mixer_problems(fields)]
        if problems:
            raise relation_errors(type(self).__name__, problems)
        return self


def _mixer_problems(fields: ModelFields) -> Iterator[Problem]:
    """What only the mixers know of their settings; PyTorch, which they need, loads where it matters alone."""
    if isinstance(fields, LongNetFields):
        from retlab.mixers.dilated_attention import branch_misfits

        lists = fields.segment_lengths, fields.dilation_ratios
        for names, sentence in branch_misfits(*lists, fields.num_attention_heads):
            yield Problem(tuple((name.replace("num_heads", "num_attention_heads"),) for name in names), sentence)
    elif isinstance(fields, HybridFields):
        from retlab.models.body import block_problems

        yield from block_problems(fields.hidden_size, fields.blocks)


def _schema_entry(item: dataclasses.Field[Any]) -> tuple[Any, Any]:
    kind, description = item.type, item.metadata["doc"]
    if item.name == "vocab_size":
        return int | None, Field(default=None, description=f"{description} Null is the tokenizer's.", ge=1)
    if item.default_factory is not dataclasses.MISSING:
        return kind, Field(default_factory=item.default_factory, description=description)
    return kind, Field(default=item.default, description=description, **item.metadata["bounds"])


def _section(name: str, architecture: str, doc: str) -> type[ModelSettings]:
    """The section of one architecture: its name as discriminator, then the fields of its model."""
    fields_class = FIELDS[architecture]
    entries: dict[str, Any] = {
        "architecture": (
            Literal[architecture],
            Field(default=architecture, description="Which model: retnet, transformer, longnet or hybrid."),
        )
    }
    entries |= {item.name: _schema_entry(item) for item in dataclasses.fields(fields_class)}
    entries["match_parameters_of"] = (str | None, Field(default=None, description=_MATCH))
    section = create_model(name, __base__=ModelSettings, __doc__=doc, __module__=__name__, **entries)
    section.fields_class = fields_class
    return section


RetNetSection = _section("RetNetSection", "retnet", "A RetNet.")
TransformerSection = _section("TransformerSection", "transformer", "A Transformer.")
LongNetSection = _section("LongNetSection", "longnet", "A LongNet.")
HybridSection = _section("HybridSection", "hybrid", "A model of any blocks.")

if TYPE_CHECKING:
    ModelSection = ModelSettings
else:
    ModelSection = Annotated[
        RetNetSection | TransformerSection | LongNetSection | HybridSection, Field(discriminator="architecture")
    ]
"""The `model` section: one of the four, told apart by `architecture`."""

"""The template configuration and the JSON schema, both generated from the sections."""

import json
import textwrap
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo

from retlab.config import ExperimentConfig
from retlab.section import Section

_HEADER = """\
# Every key of a RetLab configuration with its default. Copy this file to configs/user_configs/mine.yaml, keep
# what you change and delete the rest: a key that is left out has its default.
# Each key can be overridden on the command line: bash scripts/05_train_model.sh CONFIG train.learning_rate=3e-4
# Relative paths start at the folder of the RetLab checkout.
# yaml-language-server: $schema=SCHEMA
"""


def render_template(schema: str = "schema.json") -> str:
    """The text of configs/template_config.yaml: every key, its default and one line of why.

    Args:
        schema: path of the JSON schema, for editors that complete keys.
    """
    return _HEADER.replace("SCHEMA", schema) + "\n" + "\n".join(_section(ExperimentConfig(), 0)) + "\n"


def render_schema() -> str:
    """The JSON schema of a configuration file, for editors."""
    return json.dumps(ExperimentConfig.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def _section(section: Section, depth: int) -> list[str]:
    lines: list[str] = []
    values = section.dump()
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if depth == 0 and isinstance(value, Section):
            lines.append("")
        lines += _comment(str(field.description), depth)
        if isinstance(value, Section):
            lines += [f"{'  ' * depth}{name}:", *_section(value, depth + 1), *_variants(value, field, depth + 1)]
        else:
            lines.append(f"{'  ' * depth}{name}: {_inline(values[name])}")
            lines += _items(field, depth)
    return lines


def _comment(text: str, depth: int) -> list[str]:
    return textwrap.wrap(text, 118, initial_indent="  " * depth + "# ", subsequent_indent="  " * depth + "#   ")


def _inline(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def _variants(chosen: Section, field: FieldInfo, depth: int) -> list[str]:
    """Keys of the other variants of a union, as comments."""
    lines: list[str] = []
    variants = _sections(field.annotation)
    for variant in variants if len(variants) > 1 else []:
        if variant is type(chosen):
            continue
        tag = next(key for key in ("architecture", "name") if key in variant.model_fields)
        extra = {key: one for key, one in variant.model_fields.items() if key not in type(chosen).model_fields}
        value = get_args(variant.model_fields[tag].annotation)[0]
        lines += _comment(f"With {tag}: {value}{', also' if extra else ', no other keys.'}", depth)
        lines += [line for key, one in extra.items() for line in _described(key, one, depth)]
    return lines


def _described(key: str, field: FieldInfo, depth: int) -> list[str]:
    default = "required" if field.is_required() else _inline(field.get_default(call_default_factory=True))
    return _comment(f"  {key}: {default} - {field.description}", depth)


def _items(field: FieldInfo, depth: int) -> list[str]:
    """Keys of the sections that a list may hold, as comments."""
    lines: list[str] = []
    for section in _sections(field.annotation):
        lines += _comment("Each item:", depth)
        lines += [line for key, one in section.model_fields.items() for line in _described(key, one, depth)]
    return lines


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]

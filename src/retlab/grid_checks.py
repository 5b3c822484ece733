"""What can be wrong with `grid_search.axes` and `exclude` before any point is looked at."""

import difflib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError

from retlab.config_errors import (
    WORDS_FOR_NOTHING,
    Problem,
    choice,
    explain,
    misread_values,
    sections_at,
    tag_values,
)
from retlab.yaml_file import KeyPath, shown

if TYPE_CHECKING:
    from retlab.config import ExperimentConfig

_DATA_KEYS = ("sequence_length", "packing", "reset_at_documents")
_ONE_PROCESS = "a trial of a sweep takes one GPU or process; grid_search.workers is the trials at a time"
_ELSEWHERE = {
    "seed": "the seeds of a sweep are grid_search.seeds",
    "model.architecture": "the architectures of a sweep are grid_search.architectures",
    "model.match_parameters_of": "sizes are matched by grid_search.match_parameters",
    "train.devices": _ONE_PROCESS,
    "train.num_nodes": _ONE_PROCESS,
    "train.strategy": _ONE_PROCESS,
}


def grid_errors(config: "ExperimentConfig") -> Iterator[Problem]:
    """Everything that is wrong with axes and rules, as key path and sentence."""
    section, valid = config.grid_search, axis_keys(config)
    # What a mistyped axis is called, so that no rule is told to follow the mistake.
    known = {*valid, *_ELSEWHERE}
    meant = {key if key in known else _nearest(key, valid)[0]: values for key, values in section.axes.items()}
    for key, values in section.axes.items():
        path = ("grid_search", "axes", key)
        if key not in valid:
            yield Problem(path, _no_axis(key, valid, section.architectures))
        elif not values:
            yield Problem(path, "found []; must be a list of one value or more")
        else:
            yield from (
                Problem(path, f"the value {shown(value)} stands here twice; keep one") for value in _twice(values)
            )
            yield from (Problem(path, message) for value in values for message in _wrong_values(config, key, value))
    for name in ("architectures", "seeds"):
        yield from (
            Problem(("grid_search", name), f"{shown(value)} stands here twice; keep one")
            for value in _twice(getattr(section, name))
        )
    for number, rule in enumerate(section.exclude):
        yield from _rule_errors(("grid_search", "exclude", number), rule, meant)


def axis_keys(config: "ExperimentConfig") -> list[str]:
    """Dotted keys that may be axes: of the models that are compared, of training, and how windows are cut."""
    root = type(config)
    models = [
        one.model_fields
        for name in config.grid_search.architectures
        for one in sections_at(root, ("model", name))
        if name in _tags(one)
    ]
    keys = [f"model.{key}" for fields in models for key in fields]
    keys += [f"train.{key}" for key in type(config.train).model_fields]
    keys += [f"train.schedule.{key}" for one in sections_at(root, ("train", "schedule")) for key in one.model_fields]
    keys += [f"data.{key}" for key in _DATA_KEYS]
    return [key for key in dict.fromkeys(keys) if key not in _ELSEWHERE]


def _wrong_values(config: "ExperimentConfig", key: str, value: Any) -> list[str]:
    """What is wrong with a value of an axis by itself, whatever the others are."""
    # Told of the whole file.
    if value in WORDS_FOR_NOTHING:
        return []
    root, (*outer, name) = type(config), key.split(".")
    sections = [one for one in sections_at(root, outer) if name in one.model_fields]
    if outer == ["model"]:
        sections = [one for one in sections if set(_tags(one)) & set(config.grid_search.architectures)] or sections
    if name == "name":
        # It chooses among the sections; which other keys the chosen one needs is seen at the points.
        names = [tag for one in sections for tag in tag_values(one)]
        return [] if value in names else [choice(value, names)]
    section, location = sections[0], (*outer, *tag_values(sections[0])[:1], name)
    values: Any = value
    for step in reversed(key.split(".")):
        values = {step: values}
    misread = list(misread_values(values, root).values())
    if misread:
        return misread
    field = section.model_fields[name]
    kind: Any = Annotated[field.annotation, field]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"found {shown(value)}; must be a finite number"]
    try:
        taken = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        errors = [{**one, "loc": (*location, *one["loc"])} for one in error.errors(include_url=False)]
        return [problem.message for problem in explain(errors, values, root)]
    if isinstance(value, str) and isinstance(taken, int | float):
        return [f"found the text {shown(value)}; write it without quotes"]
    return []


def _tags(section: Any) -> list[str]:
    return [section.model_fields["architecture"].default]


def _twice(values: list[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if values[:index].count(value) == 1]


def _no_axis(key: str, valid: list[str], architectures: list[Any]) -> str:
    if key in _ELSEWHERE:
        return f"this is no axis; {_ELSEWHERE[key]}"
    close = _nearest(key, valid)
    if key.startswith("data."):
        return f"this is no axis: all trials share one text, split and tokenizer; the nearest is '{close[0]}'"
    among = f" of {', '.join(architectures)}" if key.startswith("model.") else ""
    return f"this is no key{among} that an axis can vary; the nearest valid key is '{close[0]}'"


def _nearest(key: str, valid: list[str]) -> list[str]:
    """The valid keys that it may be meant for, the best first."""
    last = key.split(".")[-1]
    return [name for name in valid if name.split(".")[-1] == last] or difflib.get_close_matches(
        key, valid, n=1, cutoff=0.0
    )


def _rule_errors(path: KeyPath, rule: dict[str, Any], axes: dict[str, list[Any]]) -> Iterator[Problem]:
    if not rule:
        yield Problem(path, "the rule is empty and would leave out every point; name axes and their values")
    for key, wanted in rule.items():
        if key not in axes:
            close = _nearest(key, list(axes))
            hint = f"; the nearest is '{close[0]}'" if close else ""
            yield Problem((*path, key), f"this is no axis of the grid{hint}")
            continue
        if wanted == []:
            yield Problem((*path, key), "found []; must be a value of the axis, or a list of them")
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if value not in axes[key]:
                yield Problem((*path, key), f"found {shown(value)}; the axis has the values {shown(axes[key])}")

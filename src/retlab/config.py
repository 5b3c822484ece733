"""The whole configuration of an experiment: load a YAML file, override, check, dump."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from retlab import yaml_file
from retlab.config_checks import cross_section_errors
from retlab.data.settings import DataSection, TokenizerSection
from retlab.emissions import EmissionsSection
from retlab.errors import UserError
from retlab.evaluation.settings import EvaluateSection, GenerateSection
from retlab.models.settings import ModelSection, RetNetSection
from retlab.section import ProjectPath, Section, absolute
from retlab.training.settings import TrainSection


class ExperimentConfig(Section):
    """One experiment: everything that its stages need to know."""

    name: str = Field(default="experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    "Name of the experiment; its run folder is <output_dir>/<name>."
    seed: int = Field(default=0, ge=0)
    "Seed of the weights, of dropout and of the order of the training windows."
    output_dir: ProjectPath = Path("runs")
    "Folder of the run folders."
    data: DataSection = DataSection()
    "Text, splits and batches."
    tokenizer: TokenizerSection = TokenizerSection()
    "Tokenizer."
    model: ModelSection = RetNetSection.model_validate({})
    "Model."
    train: TrainSection = TrainSection()
    "Training."
    evaluate: EvaluateSection = EvaluateSection()
    "Evaluation."
    generate: GenerateSection = GenerateSection()
    "Samples."
    emissions: EmissionsSection = EmissionsSection()
    "Energy and emissions."

    @property
    def run_folder(self) -> Path:
        """Folder of everything that belongs to this experiment alone."""
        return self.output_dir / self.name


def load_config(file: Path | str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read, override, validate and complete a configuration.

    Precedence: default, file, override. Null folders are filled in from the experiment's name.

    Raises:
        UserError: everything that is wrong, a line each: file, line, key, value, what is allowed, nearest key.
    """
    file = Path(file)
    try:
        values, lines, duplicates = yaml_file.read(file)
    except yaml_file.YamlError as error:
        raise UserError(_located(file, error.line, error.message)) from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(_located(file, 1, f"the file must hold a mapping of sections, not a {type(values).__name__}"))
    problems = [_located(file, error.line, error.message) for error in duplicates]
    overridden: dict[yaml_file.KeyPath, str] = {}
    for argument in overrides:
        try:
            path, value = yaml_file.split_override(argument)
            yaml_file.set_value(values, path, value)
            overridden[path] = argument
        except yaml_file.YamlError as error:
            problems.append(f"command line: {error.message}")
    if ("model", "architecture") in overridden:
        _leave_other_architecture(values["model"], overridden)
    _fill_in_variants(values, ExperimentConfig)
    source = _Source(file, lines, overridden)
    problems += _null_words(values, source)
    config, invalid = _validate(values)
    problems += [source.sentence(path, message) for path, message in invalid]
    if config is None:
        # The sections that are right by themselves are still checked against each other.
        wrong = {path[0] for path, _ in invalid if path}
        config, _ = _validate({key: value for key, value in values.items() if key not in wrong})
    if config is not None:
        config = _complete(config)
        known = {path for path, _ in invalid}
        found = [error for error in cross_section_errors(config) if error[0] not in known]
        problems += [source.sentence(path, message) for path, message in found]
    if problems or config is None:
        raise UserError("\n".join(problems))
    return config


def dump_config(config: ExperimentConfig) -> str:
    """The configuration as YAML text; loading it gives the same configuration."""
    return yaml.safe_dump(config.dump(), sort_keys=False, allow_unicode=True, width=100)


def _complete(config: ExperimentConfig) -> ExperimentConfig:
    """Fill in what depends on the name: the folders of data, tokens and tokenizer."""
    folder = config.data.folder or absolute(f"data/{config.name}")
    tokens_folder = config.data.tokens_folder or folder / "tokens"
    data = config.data.model_copy(update={"folder": folder, "tokens_folder": tokens_folder})
    tokenizer = config.tokenizer.model_copy(update={"folder": config.tokenizer.folder or folder / "tokenizer"})
    return config.model_copy(update={"data": data, "tokenizer": tokenizer})


def _fill_in_variants(values: dict[str, Any], section: type[BaseModel]) -> None:
    """Name the default variant where the file gives keys of a union without saying of which."""
    for name, field in section.model_fields.items():
        here, variants = values.get(name), _sections_in(field.annotation)
        if not isinstance(here, dict):
            continue
        if len(variants) > 1 and isinstance(field.default, Section):
            tag = next(key for key in ("architecture", "name") if key in type(field.default).model_fields)
            here.setdefault(tag, getattr(field.default, tag))
        for variant in variants:
            _fill_in_variants(here, variant)


def _leave_other_architecture(model: dict[str, Any], overridden: dict[yaml_file.KeyPath, str]) -> None:
    """Drop the file's keys of the architecture that the command line replaced by another."""
    sections = {_tag_values(section)[0]: section.model_fields for section in _sections_in(ModelSection)}
    own = sections.get(model["architecture"], {})
    foreign = {key for fields in sections.values() for key in fields} - own.keys()
    for key in [key for key in model if key in foreign and own and ("model", key) not in overridden]:
        del model[key]


def _located(file: Path, line: int | None, message: str) -> str:
    return f"{file}:{line}: {message}" if line else f"{file}: {message}"


class _Source:
    """Where a value came from: a line of the file or an override."""

    def __init__(self, file: Path, lines: dict[yaml_file.KeyPath, int], overridden: dict[yaml_file.KeyPath, str]):
        self.file, self.lines, self.overridden = file, lines, overridden

    def sentence(self, path: yaml_file.KeyPath, message: str) -> str:
        shown = f"{'.'.join(map(str, path))}: {message}" if path else message
        below = [argument for key, argument in self.overridden.items() if path and key[: len(path)] == path]
        if below:
            return f"command line ({', '.join(below)}): {shown}"
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                return f"command line ({self.overridden[path[:length]]}): {shown}"
            if path[:length] in self.lines:
                return _located(self.file, self.lines[path[:length]], shown)
        return _located(self.file, None, shown)


def _null_words(values: Any, source: _Source) -> list[str]:
    return [
        source.sentence(path, f"found the text {text!r}; write null (without quotes) for no value")
        for path, text in yaml_file.strings(values)
        if text in ("None", "none", "null", "Null", "NULL", "~")
    ]


def _validate(values: dict[str, Any]) -> tuple[ExperimentConfig | None, list[tuple[yaml_file.KeyPath, str]]]:
    try:
        return ExperimentConfig.model_validate(values), []
    except ValidationError as error:
        return None, [_explain(dict(item), values) for item in error.errors(include_url=False)]


def _explain(error: dict[str, Any], values: Any) -> tuple[yaml_file.KeyPath, str]:
    """Key path and sentence of one pydantic error; a union's tag in its location is left out."""
    path: list[str | int] = []
    here, section, value = values, ExperimentConfig, None
    for step in error["loc"]:
        in_mapping = isinstance(here, dict) and step in here
        if in_mapping or (isinstance(here, list) and isinstance(step, int) and step < len(here)):
            path.append(step)
            here = value = here[step]
        elif error["type"] == "missing" and step == error["loc"][-1]:
            path.append(step)
    if error["type"] == "extra_forbidden":
        return tuple(path), _unknown_key(tuple(map(str, path)), _section_at(section, error["loc"][:-1]))
    if error["type"] == "missing":
        return tuple(path), "this key is required here"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = error["ctx"]
        tag = str(context["discriminator"]).strip("'")
        found = f"found {context['tag']!r}" if "tag" in context else "the key is missing"
        expected = str(context.get("expected_tags", "")) or _tags(_section_at(section, error["loc"]), tag)
        return (*path, tag), f"{found}; allowed are {expected}{_nearest_value(context.get('tag'), expected)}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] == "value_error" and isinstance(value, dict):
        return tuple(path), message
    return tuple(path), f"found {value!r}; {message}{_nearest_value(value, message)}"


def _nearest_value(value: Any, allowed: str) -> str:
    choices = [part.strip("', ") for part in allowed.replace(" or ", ",").split(",")]
    close = difflib.get_close_matches(str(value), [choice.split("'")[-1] for choice in choices], n=1)
    return f" (did you mean {close[0]!r}?)" if isinstance(value, str) and close else ""


def _unknown_key(path: tuple[str, ...], sections: list[type[BaseModel]]) -> str:
    key = path[-1]
    valid = sorted({name for section in sections for name in section.model_fields})
    if ".".join(path) in _all_keys(ExperimentConfig):
        return f"this key belongs to another variant of {path[-2]}. Allowed here: {', '.join(valid)}"
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if close:
        return f"unknown key; did you mean {close[0]!r}? Allowed here: {', '.join(valid)}"
    elsewhere = [name for name in _all_keys(ExperimentConfig) if name.split(".")[-1] == key]
    close = elsewhere or difflib.get_close_matches(key, _all_keys(ExperimentConfig), n=1, cutoff=0.0)
    return f"unknown key; the nearest valid key is {close[0]!r}. Allowed here: {', '.join(valid)}"


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]


def _section_at(section: type[BaseModel], location: Sequence[str | int]) -> list[type[BaseModel]]:
    """The section classes that a location of a pydantic error can mean."""
    found = [section]
    for step in location:
        fields = [one.model_fields[str(step)].annotation for one in found if str(step) in one.model_fields]
        if fields:
            found = [part for annotation in fields for part in _sections_in(annotation)]
        else:
            found = [one for one in found if step in _tag_values(one)] or found
    return found


def _tag_values(section: type[BaseModel]) -> list[Any]:
    tags = [section.model_fields[key] for key in ("name", "architecture") if key in section.model_fields]
    return [value for field in tags for value in get_args(field.annotation)]


def _tags(sections: list[type[BaseModel]], tag: str) -> str:
    return ", ".join(repr(v) for one in sections if tag in one.model_fields for v in _tag_values(one))


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for part in _sections_in(field.annotation):
            keys += _all_keys(part, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))

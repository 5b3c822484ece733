"""What is wrong with a configuration, in sentences: key path, what was found, what is allowed, the nearest key."""

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from retlab.section import RELATION
from retlab.yaml_file import KeyPath, leaves, shown


class Problem(NamedTuple):
    """Something wrong with a configuration: where it is told, and one sentence."""

    path: KeyPath
    message: str
    keys: tuple[KeyPath, ...] = ()
    "Of values that do not fit each other: the keys of all of them."
    is_unknown_key: bool = False


# What a value must be, by pydantic's type of error; braces hold pydantic's context of the error.
_ALLOWED = {
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must consist of letters a-z, digits and . _ - alone, and begin with a letter or digit",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list, such as [first, second]",
    "tuple_type": "must be a list, such as [first, second]",
    "too_short": "must be a list of {min_length} or more",
    "too_long": "must be a list of {max_length} items",
    "path_type": "must be a path",
}
_SECTION_TYPES = ("model_type", "model_attributes_type", "dict_type")

# Names of 301r_retnet's configuration that have another name here.
_OLD_NAMES = {
    "embed_dim": "model.hidden_size",
    "layers": "model.num_hidden_layers",
    "heads": "model.num_attention_heads",
    "ffn_dim": "model.intermediate_size",
    "value_embed_dim": "model.value_size",
    "seq_len": "data.sequence_length",
    "segment_length": "model.segment_lengths",
    "dilated_ratio": "model.dilation_ratios",
    "model_type": "model.architecture",
    "dataset_name": "data.source",
    "dataset_subset": "data.source",
    "dataset_feature": "data.text_column",
    "raw_dataset_path": "data.folder",
    "tokenized_dataset_path": "data.tokens_folder",
    "tokenizer_path": "tokenizer.folder",
    "models_path": "output_dir",
    "model_label": "name",
    "accumulate_grad_batches": "train.micro_batch_size",
    "epochs": "train.max_epochs",
    "gradient_clip_val": "train.gradient_clip_norm",
    "early_stopping": "train.early_stopping_patience",
    "every_n_train_steps": "train.checkpoint_every_steps",
    "every_n_hours": "train.checkpoint_every_minutes",
    "save_top_k": "train.keep_best",
    "val_check_interval": "train.validate_every_steps",
    "num_devices": "train.devices",
    "gpus": "train.devices",
    "nodes": "train.num_nodes",
    "num_workers": "data.loader_workers",
    "rand_seed": "seed",
    "input_starting_strings": "generate.prompts",
    "gen_len": "generate.max_new_tokens",
    "CO2_outfile": "emissions.enabled",
}


def explain(errors: Sequence[dict[str, Any]], values: Any, root: type[BaseModel]) -> list[Problem]:
    """Each of pydantic's errors as a problem: one for each place, and each relation for itself."""
    found: dict[KeyPath, list[str]] = {}
    relations: list[Problem] = []
    unknown: set[KeyPath] = set()
    for error in errors:
        if error["type"] == RELATION:
            relations.append(_relation(error, values))
        # Keys that are no text are said by the reader of the file.
        elif error["type"] != "invalid_key":
            path, message = _explain(error, values, root)
            found.setdefault(path, []).append(message)
            unknown |= {path} if error["type"] == "extra_forbidden" else set()
    # Of a value that may be one or a list, only what is wrong with an item of the list is told.
    inner = {path[:-1] for path in found if path and isinstance(path[-1], int)}
    single = [
        Problem(path, _either(messages), is_unknown_key=path in unknown)
        for path, messages in found.items()
        if path not in inner
    ]
    return [*single, *dict.fromkeys(relations)]


def _relation(error: dict[str, Any], values: Any) -> Problem:
    """Told at the first of its keys that the file has, or that belongs to an item of a list which it has."""
    section = known_part(error["loc"], values)
    keys = tuple((*section, *key) for key in error["ctx"]["keys"])
    places = [place for key in keys if len(place := known_part(key, values)) > len(section)]
    return Problem(next(iter(places), section), error["ctx"]["sentence"], keys)


def known_part(path: Sequence[str | int], values: Any) -> KeyPath:
    """The steps of a path that nested values have."""
    found: list[str | int] = []
    here: Any = values
    for step in path:
        in_list = isinstance(here, list) and isinstance(step, int) and step < len(here)
        if in_list or (isinstance(here, dict) and step in here):
            found.append(step)
            here = here[step]
    return tuple(found)


WORDS_FOR_NOTHING = ("None", "none", "null", "Null", "NULL", "~")


def misread_values(values: Any, root: type[BaseModel]) -> dict[KeyPath, str]:
    """What pydantic would take for something else: words for nothing are text to it, and true is 1."""
    found: dict[KeyPath, str] = {}
    for path, value in leaves(values):
        if isinstance(value, str) and value in WORDS_FOR_NOTHING:
            found[path] = f"found the text '{value}'; write null (without quotes) for no value"
        elif isinstance(value, bool):
            if _kinds(root, path) & {int, float, int | None, float | None}:
                found[path] = f"found {shown(value)}; must be a number"
        elif value == "" and str | None in _kinds(root, path):
            found[path] = "found ''; write null for no value"
    return found


def _kinds(root: type[BaseModel], path: KeyPath) -> set[Any]:
    """The types of the fields that a key path can mean."""
    fields = [one.model_fields.get(str(path[-1])) for one in sections_at(root, path[:-1])]
    return {field.annotation for field in fields if field}


def _either(messages: list[str]) -> str:
    first, *others = dict.fromkeys(messages)
    first = first.removesuffix("; put it in quotes") if others else first
    return " or ".join([first, *(other.split("; must be ", 1)[-1] for other in others)])


def _explain(error: dict[str, Any], values: Any, root: type[BaseModel]) -> tuple[KeyPath, str]:
    """One error; a union's tag in its location is left out of the key path."""
    path: list[str | int] = []
    here = value = values
    for step in error["loc"]:
        in_mapping = isinstance(here, dict) and step in here
        if in_mapping or (isinstance(here, list) and isinstance(step, int) and step < len(here)):
            path.append(step)
            here = value = here[step]
        elif error["type"] == "missing" and step == error["loc"][-1] and isinstance(here, dict):
            path.append(step)
    kind = error["type"]
    if kind == "extra_forbidden":
        return tuple(path), _unknown_key(tuple(map(str, path)), sections_at(root, error["loc"][:-1]), root)
    if kind == "missing":
        length = error["loc"][-1]
        return tuple(path), "this key is required here" if isinstance(here, dict) else (
            f"found {shown(value)}; must be a list of {int(length) + 1} items"
        )
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(error["ctx"]["discriminator"]).strip("'")
        choices = _tags(sections_at(root, error["loc"]), tag)
        return (*path, tag), choice(value.get(tag), choices)
    if kind == "literal_error":
        found, choices = _choices(error["loc"], value, root)
        return tuple(path), choice(found, choices)
    if kind in _SECTION_TYPES:
        what = "nothing" if value is None else shown(value)
        keys = list(dict.fromkeys(name for one in sections_at(root, error["loc"]) for name in one.model_fields))
        example = f", such as {keys[0]}: ..." if keys else ""
        return tuple(path), f"found {what}; must be keys with values, indented below it{example}"
    message = error["msg"].removeprefix("Value error, ")
    if kind in _ALLOWED:
        limits = {
            name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in error.get("ctx", {}).items()
        }
        quotes = kind == "string_type" and isinstance(value, int | float | dict)
        message = _ALLOWED[kind].format(**limits) + ("; put it in quotes" if quotes else "")
    if kind == "value_error" and (isinstance(value, dict) or message.startswith(f"found {shown(value)}")):
        return tuple(path), message
    return tuple(path), f"found {shown(value)}; {message}"


def _choices(location: Sequence[str | int], value: Any, root: type[BaseModel]) -> tuple[Any, list[str]]:
    """What is not among the choices at the location of an error, and the choices."""
    steps = [str(step) for step in location if not isinstance(step, int)]
    if steps[-1] == "[key]":
        *outer, name, value, _ = steps
        fields = [one.model_fields[name].annotation for one in sections_at(root, outer) if name in one.model_fields]
        return value, [str(choice) for kind in fields for choice in get_args(get_args(kind)[0])]
    # An item of a list has its field's choices.
    *outer, name = steps
    return value, [choice for one in sections_at(root, outer) for choice in _literals(one.model_fields, name)]


def choice(value: Any, choices: Sequence[str]) -> str:
    """That a value is none of those that are allowed."""
    close = difflib.get_close_matches(str(value).lower(), choices, n=1)
    hint = f" (did you mean '{close[0]}'?)" if isinstance(value, str) and close else ""
    return f"found {shown(value)}; allowed are {', '.join(map(shown, choices))}{hint}"


def _unknown_key(path: tuple[str, ...], sections: list[type[BaseModel]], root: type[BaseModel]) -> str:
    key, everywhere = path[-1], _all_keys(root)
    valid = sorted({name for section in sections for name in section.model_fields})
    allowed = f"Allowed here: {', '.join(valid)}"
    if "." in key and key in everywhere:
        outer, _, inner = key.rpartition(".")
        return f"keys are nested in a file; write {inner}: indented below {outer}:"
    if ".".join(path) in everywhere:
        owners = [name for one in sections_at(root, path[:-1]) if key in one.model_fields for name in tag_values(one)]
        return f"this key belongs to {', '.join(owners)} alone. {allowed}"
    if key in _OLD_NAMES and key not in valid:
        return f"unknown key; this is 301r_retnet's name for '{_OLD_NAMES[key]}'. {allowed}"
    elsewhere = [name for name in everywhere if name.split(".")[-1] == key]
    close = [name for name in valid if len(key) > 2 and name.startswith(key.lower())]
    close = close or difflib.get_close_matches(key.lower(), valid, n=1, cutoff=0.6)
    if close and not elsewhere:
        return f"unknown key; did you mean '{close[0]}'? {allowed}"
    close = elsewhere or difflib.get_close_matches(key, everywhere, n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(key, valid, n=1, cutoff=0.0) or everywhere
    return f"unknown key; the nearest valid key is '{close[0]}'. {allowed}"


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The section classes that a type of a field names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


def sections_at(section: type[BaseModel], location: Sequence[str | int]) -> list[type[BaseModel]]:
    """The section classes that a location of a pydantic error can mean."""
    found = [section]
    for step in location:
        fields = [one.model_fields[str(step)].annotation for one in found if str(step) in one.model_fields]
        if fields:
            found = [part for annotation in fields for part in sections_in(annotation)]
        else:
            found = [one for one in found if step in tag_values(one)] or found
    return found


def tag_values(section: type[BaseModel]) -> list[str]:
    """The names by which a variant of a union is chosen."""
    return [value for tag in ("name", "architecture") for value in _literals(section.model_fields, tag)]


def _literals(fields: Any, key: str) -> list[str]:
    return [str(value) for value in _plain_arguments(fields[key].annotation)] if key in fields else []


def _plain_arguments(annotation: Any) -> list[Any]:
    """The values of a Literal, also of the items of a list."""
    if get_origin(annotation) is list:
        return _plain_arguments(*get_args(annotation))
    return list(get_args(annotation))


def _tags(sections: list[type[BaseModel]], tag: str) -> list[str]:
    return [value for one in sections for value in _literals(one.model_fields, tag)]


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for part in sections_in(field.annotation):
            keys += _all_keys(part, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))

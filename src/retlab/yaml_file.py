"""Read a YAML file with the line of every key, and apply `key.path=value` overrides to it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which 1e-4 is a number as in YAML 1.2 and JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


class YamlError(Exception):
    """The text is no usable YAML. `line` counts from 1, `message` is one sentence."""

    def __init__(self, line: int | None, message: str) -> None:
        super().__init__(message)
        self.line, self.message = line, message


def _walk(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], duplicates: list[YamlError]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if str(key.value) in seen:
                where = ".".join(map(str, (*path, key.value)))
                duplicates.append(YamlError(line, f"{where}: the key stands here a second time; keep one"))
            seen.add(str(key.value))
            lines[(*path, key.value)] = line
            _walk(value, (*path, key.value), lines, duplicates)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines, duplicates)


def parse(text: str) -> tuple[Any, dict[KeyPath, int], list[YamlError]]:
    """The values of a YAML text, the line of every key path, and its duplicate keys. Raises YamlError."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else None, f"not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError(None, f"not YAML: {str(error).splitlines()[0]}") from None
    lines: dict[KeyPath, int] = {}
    duplicates: list[YamlError] = []
    if node is not None:
        _walk(node, (), lines, duplicates)
    return values, lines, duplicates


def read(file: Path) -> tuple[Any, dict[KeyPath, int], list[YamlError]]:
    """`parse` of a file. Raises YamlError for a missing, unreadable or non-text file too."""
    try:
        return parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise YamlError(None, "no such file") from None
    except IsADirectoryError:
        raise YamlError(None, "this is a folder, not a YAML file") from None
    except UnicodeDecodeError as error:
        raise YamlError(None, f"not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise YamlError(None, f"cannot be read: {error.strerror}") from None


def split_override(argument: str) -> tuple[KeyPath, Any]:
    """`a.b.0=value` or `a.b[0]=value` as key path and YAML value. Raises YamlError."""
    key, separator, text = argument.partition("=")
    steps = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")
    if not separator or not all(steps):
        raise YamlError(None, f"'{argument}' is not of the form key.path=value")
    try:
        value, _, _ = parse(text)
    except YamlError as error:
        raise YamlError(None, f"{key}: the value {text!r} is {error.message}") from None
    return tuple(int(step) if step.isdigit() else step for step in steps), value


def set_value(values: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Put one override into the mapping, in place; missing sections are made. Raises YamlError."""
    here: Any = values
    for depth, step in enumerate(path):
        shown, last = ".".join(map(str, path[: depth + 1])), depth == len(path) - 1
        if isinstance(here, list):
            if not isinstance(step, int) or step >= len(here):
                raise YamlError(None, f"{shown}: the list has {len(here)} items, numbered from 0")
        elif not isinstance(here, dict):
            raise YamlError(None, f"{shown}: {'.'.join(map(str, path[:depth]))} is a plain value and has no keys")
        elif not last and here.get(step) is None:
            here[step] = {}
        if last:
            here[step] = value
        else:
            here = here[step]


def strings(values: Any, path: KeyPath = ()) -> Iterable[tuple[KeyPath, str]]:
    """Every string in nested mappings and lists, with its key path."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from strings(value, (*path, key))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from strings(value, (*path, index))
    elif isinstance(values, str):
        yield path, values

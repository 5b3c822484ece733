"""Read a YAML file with the line of every key, and apply `key.path=value` overrides to it."""

import copy
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the plain values of YAML 1.2 and JSON.

    1e-4 is a number, `on`, `yes` and 2026-01-31 are text, 1:30 is no count of seconds.
    """

    yaml_implicit_resolvers = {
        first: [entry for entry in entries if entry[0].split(":")[-1] in ("null", "merge")]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_NUMBER_STARTS = list("-+.0123456789")
for _tag, _pattern, _starts in (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", _NUMBER_STARTS),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?", _NUMBER_STARTS),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", _NUMBER_STARTS),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _starts)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which puts into quotes whatever this loader or PyYAML's own would not read as text."""


for _first, _entries in _Loader.yaml_implicit_resolvers.items():
    for _tag, _expression in _entries:
        _Dumper.add_implicit_resolver(_tag, _expression, [_first])


# What the parser says, and what a person who wrote the file needs to hear.
_PLAINER = {
    r"found character '\\t'": "a tab stands here, but YAML takes spaces alone; replace it with spaces",
    r"found character '(.)'": "a plain value cannot begin with {0}; put it in quotes",
    r"mapping values are not allowed": "a colon where none can be; indent the line like its neighbours,"
    " or put a text with ': ' in quotes",
    r"could not find expected ':'": "a key without a colon; write key: value",
    r"unexpected end of stream": "what is opened here is never closed; add the missing quotation mark or bracket",
    r"expected '?[,<].*but got '<stream end>'": "what is opened here is never closed; add the missing bracket",
    r"determine a constructor": "tags (words that begin with !) are not understood; delete it",
    r"found undefined alias": "the alias (*) stands for nothing; write the value itself",
    r"another document": "a second document begins here (---); keep one",
    r"unhashable key": "a key must be plain text",
}


class YamlError(Exception):
    """The text is no usable YAML. `line` counts from 1, `message` is one sentence."""

    def __init__(self, line: int | None, message: str) -> None:
        super().__init__(message)
        self.line, self.message = line, message


def _walk(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], problems: list[YamlError]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            where = ".".join(map(str, (*path, name)))
            if name in seen:
                problems.append(YamlError(line, f"{where}: the key stands here a second time; keep one"))
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                problems.append(YamlError(line, f"{where or 'null'}: this is no name of a key; correct or delete it"))
            seen.add(name)
            lines[(*path, name)] = line
            _walk(value, (*path, name), lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines, problems)


def parse(text: str) -> tuple[Any, dict[KeyPath, int], list[YamlError]]:
    """The values of a YAML text, the line of every key path, and its unusable keys. Raises YamlError."""
    values, lines, problems = _parsed(text)
    return copy.deepcopy(values), dict(lines), list(problems)


# A grid reads one file again for every point, with the same few overrides.
@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> tuple[Any, dict[KeyPath, int], list[YamlError]]:
    lines: dict[KeyPath, int] = {}
    problems: list[YamlError] = []
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
        if node is not None:
            _walk(node, (), lines, problems)
    except yaml.MarkedYAMLError as error:
        raise _plain_error(error) from None
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError(None, f"not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise YamlError(None, "not YAML: nested too deeply, or an alias (*) inside of what it stands for") from None
    return values, lines, problems


def _plain_error(error: yaml.MarkedYAMLError) -> YamlError:
    mark, said = error.problem_mark or error.context_mark, str(error.problem or error.context)
    for pattern, message in _PLAINER.items():
        found = re.search(pattern, said)
        if found:
            # An unclosed bracket is found at the end and stands where it was opened.
            mark = error.context_mark or mark if "never closed" in message else mark
            said = message.format(*found.groups())
            break
    return YamlError(mark.line + 1 if mark else None, f"not YAML: {said}")


def dump(value: Any) -> str:
    """A value as YAML text that `parse` reads as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def shown(value: Any) -> str:
    """A value in one line as a YAML file has it: null, true, [1, 2], and text in quotes. Long ones are cut."""
    if isinstance(value, str):
        text = f"'{value}'".replace("\n", "\\n")
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
        text = text.removesuffix("\n...\n").strip()
    return text if len(text) <= 80 else text[:77] + "..."


def read(file: Path) -> tuple[Any, dict[KeyPath, int], list[YamlError]]:
    """`parse` of a file. Raises YamlError for a missing, unreadable or non-text file too."""
    try:
        return parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise YamlError(None, "there is no such file; name the YAML file of an experiment") from None
    except IsADirectoryError:
        raise YamlError(None, "this is a folder, not a YAML file") from None
    except UnicodeDecodeError:
        raise YamlError(None, "not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise YamlError(None, f"this file cannot be read ({error.strerror}); mend that or name another") from None


def split_override(argument: str) -> tuple[KeyPath, Any]:
    """`a.b.0=value` or `a.b[0]=value` as key path and YAML value. Raises YamlError."""
    key, separator, text = argument.partition("=")
    steps = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")
    if not separator or not all(steps):
        raise YamlError(None, f"'{argument}' is not of the form key.path=value")
    try:
        value, _, _ = parse(text)
    except YamlError as error:
        raise YamlError(None, f"{key}: the value {shown(text)} is {error.message}") from None
    return tuple(int(step) if step.isdigit() else step for step in steps), value


def set_value(values: dict[str, Any], path: KeyPath, value: Any, defaults: Any) -> None:
    """Put one override into the mapping, in place; missing sections are made. Raises YamlError.

    Args:
        values: what the file holds.
        path: where to.
        value: what to put there.
        defaults: nested like `values`: the lists whose items an override can reach although the file has them not.
    """
    here: Any = values
    for depth, step in enumerate(path):
        where, last = ".".join(map(str, path[:depth])), depth == len(path) - 1
        if isinstance(here, list):
            if not isinstance(step, int) or step >= len(here):
                items = f"has the items {', '.join(f'{where}.{index}' for index in range(len(here)))}"
                items = items if here else f"is empty; give it as a whole: {where}=[...]"
                raise YamlError(None, f"{where}.{step}: there is no such item; the list {items}")
        elif not isinstance(here, dict):
            raise YamlError(None, f"{where}.{step}: {where} is {shown(here)} and has no keys")
        else:
            step = str(step)
            defaults = defaults.get(step) if isinstance(defaults, dict) else None
            if not last and here.get(step) is None:
                here[step] = copy.copy(defaults) if isinstance(defaults, list) else {}
        if last:
            here[step] = value
        else:
            here = here[step]


def leaves(values: Any, path: KeyPath = ()) -> Iterable[tuple[KeyPath, Any]]:
    """Every plain value in nested mappings and lists, with its key path."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from leaves(value, (*path, index))
    else:
        yield path, values

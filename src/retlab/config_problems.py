"""Everything that is wrong with a configuration, in one go: a mistake hides no other that is known without it."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from retlab.config_errors import Problem, explain, known_part, misread_values
from retlab.yaml_file import KeyPath

Root = TypeVar("Root", bound=BaseModel)


def find_problems(
    values: dict[str, Any], root: type[Root], relations: Callable[[Root], Iterable[Problem]]
) -> tuple[Root, list[Problem]]:
    """What nested values give, and all that is wrong with them; with problems, the first of the two is of no use.

    Wrong values are taken out, which leaves their defaults, until the rest can be read. What then does not fit each
    other is wrong too, unless one of the values that were taken out takes part in it.

    Args:
        values: what the file holds, with the overrides.
        root: the whole configuration.
        relations: what no section can see alone.
    """
    found = [Problem(path, message) for path, message in misread_values(values, root).items()]
    doubtful = {problem.path for problem in found}
    incomplete: set[KeyPath] = set()
    rest, whole, wrong = values, True, set(doubtful)
    while True:
        config, problems = _validate(rest, root)
        if config is not None:
            problems = [Problem(*one) for one in relations(config)]
        incomplete |= {one.path[:-1] for one in problems if one.is_unknown_key}
        for one in problems:
            if one.keys:
                known = not any(_is_doubtful(key, doubtful, incomplete, values) for key in one.keys)
            else:
                # Without what was taken out, required keys are missing and sums are others.
                known = one.path not in doubtful and (whole or not _touches(one.path, doubtful))
            found += [one] if known else []
        if config is not None:
            return config, found
        wrong |= {key for one in problems for key in (one.keys or (one.path,))}
        rest, removed = _without(rest, wrong)
        doubtful |= wrong | removed
        whole, wrong = False, set()


def _is_doubtful(key: KeyPath, doubtful: set[KeyPath], incomplete: set[KeyPath], values: dict[str, Any]) -> bool:
    """Whether the value of a key is not known: it is wrong, or a misspelt key beside it may stand for it."""
    there = known_part(key, values)
    return _touches(key, doubtful) or (there != key and there in incomplete)


def _touches(path: KeyPath, others: set[KeyPath]) -> bool:
    """Whether a path lies in or around one of the others."""
    return any(path[: len(other)] == other[: len(path)] for other in others)


def _without(values: dict[str, Any], wrong: set[KeyPath]) -> tuple[dict[str, Any], set[KeyPath]]:
    """The values without what these paths lead to, and the paths that were taken out.

    For an item that is its list, for a missing key its section, and everything where there is nothing of it.
    """
    rest = copy.deepcopy(values)
    removed: set[KeyPath] = set()
    for path in sorted(wrong, key=len):
        if any(path[: len(one)] == one for one in removed):
            continue
        path = path[: next((depth for depth, step in enumerate(path) if isinstance(step, int)), len(path))]
        while path and known_part(path, rest) != path:
            path = path[:-1]
        if path:
            here: Any = rest
            for step in path[:-1]:
                here = here[step]
            del here[path[-1]]
            removed.add(path)
    return (rest, removed) if removed else ({}, {()})


def _validate(values: dict[str, Any], root: type[Root]) -> tuple[Root | None, list[Problem]]:
    try:
        return root.model_validate(values), []
    except ValidationError as error:
        return None, explain([dict(item) for item in error.errors(include_url=False)], values, root)

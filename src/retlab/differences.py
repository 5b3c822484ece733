"""What changed between two sets of plain values, in words."""

from collections.abc import Iterator
from typing import Any

from retlab.yaml_file import shown

LONGEST_SHOWN = 60


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """`key.path: old -> new` for every plain value that differs, in the order of the keys.

    Values that are too long to read, such as hashes, are not shown.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif _are_blocks(before) and _are_blocks(now):
        if len(before) == len(now):
            for number, pair in enumerate(zip(before, now, strict=True)):
                yield from differences(*pair, f"{path}.{number}")
        else:
            yield from differences([block["name"] for block in before], [block["name"] for block in now], path)
    elif before != now:
        old, new = shown(before), shown(now)
        yield f"{path}: {old} -> {new}" if max(len(old), len(new)) <= LONGEST_SHOWN else f"{path}: changed"


def _are_blocks(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) and "name" in entry for entry in value)

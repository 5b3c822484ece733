"""What local_wino.yaml asks for: a sentence has a gap `_`, and both fillings are scored by the text behind it."""

from typing import Any


def answer(doc: dict[str, Any]) -> int:
    """The number of the right filling."""
    return int(doc["answer"]) - 1


def after_the_gap(doc: dict[str, Any]) -> str:
    """The text that is scored."""
    return str(doc["sentence"].split("_", 1)[1]).strip()


def beginnings(doc: dict[str, Any]) -> list[str]:
    """The sentence up to the gap with each filling."""
    before = doc["sentence"].split("_", 1)[0]
    return [before + doc["option1"], before + doc["option2"]]

"""Whether the Hugging Face Hub can be reached: found out once, so that no task waits for it in vain."""

import contextlib
from collections.abc import Iterator
from typing import Any

import datasets
import evaluate
from huggingface_hub import constants, get_session

_SECONDS = 5.0
_SWITCHES: list[tuple[Any, str]] = [
    (constants, "HF_HUB_OFFLINE"),
    (datasets.config, "HF_HUB_OFFLINE"),
    (evaluate.config, "HF_EVALUATE_OFFLINE"),
]


def hub_is_reachable() -> bool:
    """Ask the Hub, through the client's own settings for proxies and mirrors."""
    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:
        # The client has its own errors for every way not to get there.
        return False
    return True


@contextlib.contextmanager
def without_hub(really: bool) -> Iterator[None]:
    """Have the libraries take what is in their caches and refuse the rest at once, where that is so."""
    before = [(module, name, getattr(module, name)) for module, name in _SWITCHES] if really else []
    for module, name, _ in before:
        setattr(module, name, True)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)

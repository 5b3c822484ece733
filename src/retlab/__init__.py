"""RetLab: what is lost, and what is won, when softmax attention is replaced by something cheaper."""

import importlib
from typing import Any

_HOMES = {
    "RetNetConfig": "retlab.models.configuration",
    "DecoderConfig": "retlab.models.configuration",
    "LongNetConfig": "retlab.models.configuration",
    "HybridConfig": "retlab.models.configuration",
    "RetNetModelHF": "retlab.models.causal_lm",
    "TransformerModelHF": "retlab.models.causal_lm",
    "LongNetModelHF": "retlab.models.causal_lm",
    "HybridModelHF": "retlab.models.causal_lm",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that `import retlab` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'retlab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

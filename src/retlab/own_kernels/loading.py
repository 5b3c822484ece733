"""Triton and its language, for RetLab's own kernels; None where torch is not built for a GPU, which brings it along.

Where Triton's interpreter was loaded before, which runs kernels on a CPU, they are there too. Elsewhere they would be
of no use, and not free: some versions of Triton report memory at the end of a program that has any.
"""

import importlib
import sys
from typing import Any

import torch


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_is_wanted = bool(torch.version.cuda or torch.version.hip) or "triton.runtime.interpreter" in sys.modules
triton: Any = _load("triton") if _is_wanted else None
tl: Any = _load("triton.language") if _is_wanted else None

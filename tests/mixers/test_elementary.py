"""The functions of which a first call from several threads at once may be of low accuracy.

The race itself shows in a few of a hundred processes, and on a busy machine in none; so what is tested is that none of
these functions is first called on a tensor that threads share out.
"""

import importlib
from typing import Any

import pytest
import torch
from tests.models.small import small_ids, small_model
from torch.utils._python_dispatch import TorchDispatchMode

from retlab import mixers
from retlab.models.causal_lm import MODELS
from retlab.training.objectives import NextToken

# What PyTorch lets oneMKL compute, as seen below autograd.
LAZY = {
    "acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2", "sin",
    "sqrt", "tan", "tanh",
}  # fmt: skip


class _Watch(TorchDispatchMode):
    """Notes the functions of `LAZY` that are called, with dtypes: of one number on a CPU, and of more."""

    def __init__(self) -> None:
        super().__init__()
        self.of_one: set[tuple[str, torch.dtype]] = set()
        self.of_many: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0].rstrip("_")
        if name in LAZY:
            x = args[0]
            (self.of_one if x.numel() == 1 and x.device.type == "cpu" else self.of_many).add((name, x.dtype))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def prepared() -> set[tuple[str, torch.dtype]]:
    """What importing the mixers calls, on a machine whose default is another device."""
    with torch.device("meta"), _Watch() as watch:
        importlib.reload(mixers)
    assert not watch.of_many
    return watch.of_one


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("with_documents", [False, True])
def test_a_training_step_calls_only_what_the_import_has_prepared(architecture, with_documents, prepared) -> None:
    model, ids = small_model(architecture).train(), small_ids(2, 200)
    batch = {"input_ids": ids, "targets": ids, "loss_mask": torch.ones_like(ids, dtype=torch.bool)}
    if with_documents:
        batch["segment_ids"] = torch.arange(200).expand(2, 200) // 70
    with _Watch() as watch:
        NextToken()(model, batch).loss.backward()
    assert {"sin", "cos"} <= {name for name, _ in watch.of_many}
    assert watch.of_many <= prepared


def test_what_composed_functions_call_is_prepared_too(prepared) -> None:
    """logsumexp, of dilated attention, is one operation from outside."""
    assert {(name, dtype) for name in ("exp", "log") for dtype in (torch.float32, torch.float64)} <= prepared

"""The comparison of a training in several processes with the same one in one, for CPUs and GPUs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import make_request
from tests.training.test_trainer import last, rows, run

TIED = {"architecture": "transformer", "tie_word_embeddings": True, "value_size": None}
"""Overrides that make the small RetNet of these tests a Transformer whose embedding is its output projection."""

CLIP = 0.5


def assert_several_train_as_one(
    folder: Path, strategy: str, packing: str, model: dict[str, Any], devices: int = 2, **train: Any
) -> list[str]:
    """Twenty steps of one global batch in micro-batches of two windows, clipped; returns what the several said.

    All losses agree to 1e-5. The norms of the gradients and AdamW's moments are looked at too, because AdamW and
    clipping would hide a wrong scale.
    """
    name = "-".join([packing, *map(str, model.values()), *map(str, train.values())])
    settings = {
        "max_steps": 20, "log_every_steps": 1, "validate_every_steps": 10, "packing": packing, "micro_batch_size": 2,
        "gradient_clip_norm": CLIP, "precision": "float32", **train,
    }  # fmt: skip
    one = make_request(folder, f"{name}-1", model, **settings)
    several = make_request(folder, f"{name}-{strategy}", model, devices=devices, strategy=strategy, **settings)
    for request in (one, several):
        for key in [key for key, value in request.model.items() if value is None]:
            del request.model[key]
    if not one.run_folder.exists():
        run(one)
    said: list[str] = []
    run(several, say=said.append)
    assert len(rows(several.run_folder)) == 20
    assert max(float(row["gradient_norm"]) for row in rows(several.run_folder)) > CLIP
    for left, right in zip(rows(one.run_folder), rows(several.run_folder), strict=True):
        for column, tolerance in (("loss", 1e-5), ("validation_loss", 1e-5), ("gradient_norm", 1e-4)):
            assert float(left[column] or 0) == pytest.approx(float(right[column] or 0), rel=tolerance), column
    left, right = last(one), last(several)
    for key, weight in left["model"].items():
        torch.testing.assert_close(weight, right["model"][key], rtol=1e-4, atol=1e-5)
    for key, state in left["optimizer"]["state"].items():
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[moment], right["optimizer"]["state"][key][moment], rtol=1e-3, atol=1e-6)
    return said

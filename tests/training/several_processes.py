"""The comparison of a training in two processes with the same one in one, for CPUs and GPUs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import make_request
from tests.training.test_trainer import last, rows, run

TIED = {"architecture": "transformer", "tie_word_embeddings": True, "value_size": None}
"""Overrides that make the small RetNet of these tests a Transformer whose embedding is its output projection."""

CLIP = 0.5


def assert_two_train_as_one(
    folder: Path, strategy: str, packing: str, model: dict[str, Any], **train: Any
) -> list[str]:
    """Twenty steps of one global batch, in two and four micro-batches a process, clipped; returns what the two said.

    All losses agree to 1e-5. The norms of the gradients are looked at too, because AdamW and clipping would hide a
    wrong scale.
    """
    name = "-".join([packing, *map(str, model.values()), *map(str, train.values())])
    settings = {
        "max_steps": 20, "log_every_steps": 1, "validate_every_steps": 10, "packing": packing, "micro_batch_size": 2,
        "gradient_clip_norm": CLIP, "precision": "float32", **train,
    }  # fmt: skip
    one = make_request(folder, f"{name}-1", model, **settings)
    two = make_request(folder, f"{name}-{strategy}", model, devices=2, strategy=strategy, **settings)
    for request in (one, two):
        for key in [key for key, value in request.model.items() if value is None]:
            del request.model[key]
    if not one.run_folder.exists():
        run(one)
    said: list[str] = []
    run(two, say=said.append)
    assert len(rows(two.run_folder)) == 20
    assert max(float(row["gradient_norm"]) for row in rows(two.run_folder)) > CLIP
    for left, right in zip(rows(one.run_folder), rows(two.run_folder), strict=True):
        for column, tolerance in (("loss", 1e-5), ("validation_loss", 1e-5), ("gradient_norm", 1e-4)):
            assert float(left[column] or 0) == pytest.approx(float(right[column] or 0), rel=tolerance), column
    for key, weight in last(one)["model"].items():
        torch.testing.assert_close(weight, last(two)["model"][key], rtol=1e-4, atol=1e-5)
    return said

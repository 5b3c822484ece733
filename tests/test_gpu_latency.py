"""Latency and memory on a GPU: steps that have become as fast as they will, and a length that does not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; test_latency.py runs on a CPU"),
]


@pytest.mark.parametrize("architecture", ["retnet", "transformer"])
def test_trials_are_of_settled_steps(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retlab.evaluation.latency import measure
    from retlab.evaluation.latency.rows import read_rows
    from retlab.evaluation.settings import LatencySection
    from retlab.evaluation.trained_model import TrainedModel
    from retlab.models import static_steps
    from retlab.models.causal_lm import MODELS
    from retlab.models.engines import steps_of

    monkeypatch.setattr(static_steps, "COMPILE_AFTER", 12)
    monkeypatch.setattr(static_steps, "COMPILE_PIECES_AFTER", 6)
    trial, settled = measure._Bench._trial, list[bool]()

    def watched(bench: Any, cell: Any, number: int) -> None:
        trial(bench, cell, number)
        if cell.method != "no cache":
            settled.append(all(step.is_settled for step in steps_of(bench.model)))

    monkeypatch.setattr(measure._Bench, "_trial", watched)
    torch.manual_seed(0)
    model = MODELS[architecture](vocab_size=512, hidden_size=128, num_hidden_layers=2, num_attention_heads=4).eval()
    device = torch.device("cuda")
    # Of a million rows no GPU has room for the states.
    section = LatencySection(contexts=[64, 2048], batch_sizes=[1, 2**20], trials=2, new_tokens=8)
    trained = TrainedModel(
        model.to(device), PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast), device, True, tmp_path
    )
    measure.measure_latency(trained, section, tmp_path)
    rows = read_rows(tmp_path / "latency.csv")
    assert [row.is_measured for row in rows if row.batch_size == 1] == [True] * 4
    assert any("does not fit" in row.status for row in rows if row.context == 2048)
    assert settled
    assert all(settled)
    weights = sum(weight.nbytes for weight in model.parameters()) // 2
    assert all((row.peak_memory_bytes or 0) > weights for row in rows if row.is_measured)
    assert {row.precision for row in rows} == {"bf16"}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert next(model.parameters()).is_cuda

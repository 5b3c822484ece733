"""Training steps as CUDA graphs: the bits of launched ones, also when a training is stopped and resumed."""

import gc
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from tests.training.conftest import make_request, write_splits
from tests.training.test_trainer import assert_same_training, last, rows, run

from retlab.errors import Interrupted, OutOfMemory
from retlab.training import passes
from retlab.training.module import TrainingModule
from retlab.training.request import TrainingRequest

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; test_passes.py has what it can"),
]

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96,
    "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
LONGNET = {"segment_lengths": [4, 8], "dilation_ratios": [1, 2]}


@pytest.fixture(autouse=True)
def _settled_compilations(tmp_path, monkeypatch) -> None:
    """The compiler tunes by measuring, and may choose otherwise in the second of two trainings, beside other work.

    torch 2.11 measures even anew what it chose before, where a reduction got a smaller block on the way
    (pytorch/pytorch#189121). In the deterministic mode nothing is measured; the variable is for a second process.
    """
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("TORCHINDUCTOR_DETERMINISTIC", "1")
    monkeypatch.setattr(torch._inductor.config, "deterministic", True)


@pytest.fixture
def replayed(monkeypatch) -> list[int]:
    """How many kinds of passes every training had recorded when it ended."""
    found: list[int] = []
    end = TrainingModule.on_train_end

    def note(self) -> None:
        found.append(self.recorded)
        end(self)

    monkeypatch.setattr(TrainingModule, "on_train_end", note)
    return found


def on_gpu(
    splits: Path, name: str, model: dict[str, Any] | None = None, apart: bool = True, **train
) -> TrainingRequest:
    train = {"device": "cuda", "max_steps": 14, "micro_batch_size": 4} | train
    request = make_request(splits, name, **train)
    model = {"architecture": "retnet", "retention_kernel": "torch", **SIZES} | (model or {})
    if model["architecture"] != "retnet":
        del model["retention_kernel"]
    data = request.data.model_copy(update={"reset_at_documents": apart})
    return request.model_copy(update={"model": model, "data": data})


@pytest.mark.parametrize("compiling", ["on", "off"])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("architecture", ["retnet", "transformer", "longnet"])
def test_recorded_steps_are_launched_ones_bit_for_bit(
    splits, tmp_path, replayed, caplog, architecture, apart, compiling
) -> None:
    model = {"architecture": architecture, **(LONGNET if architecture == "longnet" else {})}
    launched, recorded = (
        on_gpu(splits, str(tmp_path / name), model, apart, cuda_graphs=name, compile=compiling)
        for name in ("off", "auto")
    )
    run(launched)
    run(recorded)
    assert replayed == [0, 2], caplog.text
    assert_same_training(launched, recorded)


@pytest.mark.parametrize("train", [{}, {"gradient_checkpointing": True}, {"precision": "float32"}])
def test_dropout_draws_the_same_numbers(splits, tmp_path, replayed, train) -> None:
    model = {"dropout": 0.1, "activation_dropout": 0.1}
    launched, recorded = (
        on_gpu(splits, str(tmp_path / name), model, cuda_graphs=name, **train) for name in ("off", "auto")
    )
    run(launched)
    run(recorded)
    assert replayed[0] == 0
    assert_same_training(launched, recorded)


@pytest.mark.parametrize("calls", [2, 6, 11, 22])
def test_a_stop_at_any_moment_resumes_to_the_same_bits(splits, tmp_path, replayed, calls) -> None:
    """A training that goes on launches its first passes again, where the undisturbed one replayed them."""
    reference, request = (on_gpu(splits, str(tmp_path / name), {"dropout": 0.1}) for name in ("reference", "stopped"))
    run(reference)
    asked = itertools.count(1)
    with pytest.raises(Interrupted, match="saved after step"):
        run(request, stop=lambda: next(asked) >= calls)
    run(request)
    assert replayed[0] == 2
    assert_same_training(reference, request)


def test_frozen_parameters_and_uneven_micro_batches(splits, tmp_path, replayed) -> None:
    train = {"batch_size": 7, "micro_batch_size": 3, "parameter_groups": [{"match": "embed_tokens", "frozen": True}]}
    launched, recorded = (
        on_gpu(splits, str(tmp_path / name), cuda_graphs=name, max_steps=10, **train) for name in ("off", "auto")
    )
    run(launched)
    run(recorded)
    assert replayed[0] == 0
    assert replayed[1] >= 2
    assert_same_training(launched, recorded)


def test_a_pass_that_waits_for_the_gpu_is_launched_on_with_the_same_random_numbers(
    splits, tmp_path, replayed, monkeypatch, caplog
) -> None:
    model = {"dropout": 0.1}
    launched, refused = (on_gpu(splits, str(tmp_path / name), model, cuda_graphs=name) for name in ("off", "auto"))
    run(launched)
    backward = TrainingModule.manual_backward

    def wait(self, loss) -> None:
        backward(self, loss)
        if self.state.step >= 4:
            loss.item()

    monkeypatch.setattr(TrainingModule, "manual_backward", wait)
    monkeypatch.setattr(passes, "WARM_PASSES", 5)
    run(refused)
    assert replayed == [0, 0]
    assert "training goes on without CUDA graphs" in caplog.text
    assert_same_training(launched, refused)


def test_without_free_memory_the_training_goes_on_launched(splits, tmp_path, replayed, monkeypatch, caplog) -> None:
    monkeypatch.setattr(passes.torch.cuda, "mem_get_info", lambda _device: (0, 1))
    request = on_gpu(splits, str(tmp_path / "full"))
    run(request)
    assert replayed == [0]
    assert "training goes on without CUDA graphs" in caplog.text
    assert last(request)["step"] == 14
    assert float(rows(request.run_folder)[-1]["loss"]) > 0


TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")


@TWO_GPUS
@pytest.mark.parametrize("compiling", ["on", "off"])
@pytest.mark.parametrize("sizes", [{}, {"micro_batch_size": 1}, {"batch_size": 6, "micro_batch_size": 2}], ids=str)
def test_recorded_steps_of_two_gpus_are_launched_ones_bit_for_bit(splits, tmp_path, replayed, sizes, compiling) -> None:
    """The first micro-batch of a step and further ones are kinds of their own, and so is a smaller last one."""
    train = {"devices": 2, "max_steps": 30, "compile": compiling} | sizes
    launched, recorded = (
        on_gpu(splits, str(tmp_path / name), {"dropout": 0.1}, cuda_graphs=name, **train) for name in ("off", "auto")
    )
    run(launched)
    run(recorded)
    assert replayed[0] == 0
    assert replayed[1] >= (1 if not sizes else 2)
    assert_same_training(launched, recorded)


@TWO_GPUS
def test_two_gpus_resume_to_the_same_bits(splits, tmp_path, replayed) -> None:
    """Not compiled: one validation of ten differed by a float32's last bit then, and no weight did."""
    reference, request = (
        on_gpu(splits, str(tmp_path / name), devices=2, max_steps=40, compile="off")
        for name in ("reference", "stopped")
    )
    run(reference)
    asked = itertools.count(1)
    with pytest.raises(Interrupted, match="saved after step"):
        run(request, stop=lambda: next(asked) >= 20)
    run(request)
    assert replayed[0] >= 1
    assert_same_training(reference, request)


@TWO_GPUS
def test_a_process_without_free_memory_launches_what_the_other_replays(splits, tmp_path, replayed, monkeypatch) -> None:
    launched, mixed = (on_gpu(splits, str(tmp_path / name), devices=2, max_steps=30) for name in ("off", "mixed"))
    run(launched.model_copy(update={"train": launched.train.model_copy(update={"cuda_graphs": "off"})}))
    # In this process alone; the second one is a child with its own modules.
    monkeypatch.setattr(passes.torch.cuda, "mem_get_info", lambda _device: (0, 1))
    run(mixed)
    assert replayed == [0, 0]
    assert_same_training(launched, mixed)


def test_out_of_memory_is_a_sentence_and_a_smaller_micro_batch_goes_on(tmp_path) -> None:
    """The allocator is held to half a GiB, of which 64 windows of this model need more than all, and 4 a fraction."""
    write_splits(tmp_path, documents=4000)

    def request(windows: int) -> TrainingRequest:
        made = on_gpu(
            tmp_path, "run", {"hidden_size": 128, "num_hidden_layers": 12}, max_steps=10, batch_size=64,
            micro_batch_size=windows, compile="off",
        )  # fmt: skip
        return made.model_copy(update={"data": made.data.model_copy(update={"sequence_length": 256})})

    asked = itertools.count(1)
    with pytest.raises(Interrupted, match="saved after step"):
        run(request(4), stop=lambda: next(asked) >= 8)
    step = last(request(4))["step"]
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**29 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(
            OutOfMemory, match="of 64 windows of 256 tokens .* lower train.micro_batch_size to 32 or less"
        ):
            run(request(64))
        assert last(request(4))["step"] == step
        said: list[str] = []
        run(request(4), say=said.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said[0] == f"continuing after step {step}"
    assert last(request(4))["step"] == 10

"""Out of memory in a training: one sentence, the last checkpoint stays, a smaller micro-batch goes on from it.

Models that no memory holds are refused before they are built.

There is no GPU here: the error that PyTorch raises for one is raised in its place.
"""

import os
import sys

import psutil
import pytest
import torch
from tests.training.conftest import make_request
from tests.training.test_trainer import last, rows, run

from retlab.errors import OutOfMemory, UserError
from retlab.training import out_of_memory
from retlab.training.checkpoints import CheckpointStore
from retlab.training.hardware import Hardware
from retlab.training.module import TrainingModule
from retlab.training.out_of_memory import TRAINED_BYTES, check_model_fits
from retlab.training.trainer import model_config, new_model

ADVICE = "lower model.hidden_size, model.num_hidden_layers or the model's other sizes"
ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def fail_in(monkeypatch: pytest.MonkeyPatch, method: str, step: int, largest: int, training: bool = True) -> None:
    """Have a method of the module run out of memory in this step, with micro-batches above `largest` windows."""
    original = getattr(TrainingModule, method)

    def limited(self, *args):
        micro = self.train_section.micro_batch_size
        if self.state.step + training == step and micro > largest and self.scored.training == training:
            raise ERROR
        return original(self, *args)

    monkeypatch.setattr(TrainingModule, method, limited)


def sentence_of(request) -> str:
    with pytest.raises(UserError) as caught:
        run(request)
    return str(caught.value)


@pytest.mark.parametrize("method", ["_losses", "manual_backward", "_optimizer_step"])
def test_a_smaller_micro_batch_goes_on_from_the_last_checkpoint(splits, tmp_path, monkeypatch, method):
    folder = str(tmp_path / "small")
    undisturbed = make_request(splits, str(tmp_path / "undisturbed"), micro_batch_size=4)
    run(undisturbed)
    fail_in(monkeypatch, method, step=8, largest=2)
    found = sentence_of(make_request(splits, folder, micro_batch_size=4))
    assert found == (
        "out of memory: a micro-batch of 4 windows of 16 tokens in step 8 does not fit the GPU; lower"
        " train.micro_batch_size to 2 or less (a step keeps its batch), or set train.gradient_checkpointing to true, or"
        " lower data.sequence_length or the model's sizes (which starts another training); the checkpoint of step 6 is"
        " kept, and the training goes on from it"
    )
    said: list[str] = []
    smaller = make_request(splits, folder, micro_batch_size=2)
    run(smaller, say=said.append)
    assert said[0] == "continuing after step 6"
    assert not (tmp_path / "small.1").exists()
    assert [row["step"] for row in rows(smaller.run_folder)] == [row["step"] for row in rows(undisturbed.run_folder)]
    for name, weight in last(undisturbed)["model"].items():
        torch.testing.assert_close(weight, last(smaller)["model"][name], rtol=1e-4, atol=1e-5)


def test_in_validation_and_before_the_first_checkpoint(splits, tmp_path, monkeypatch):
    fail_in(monkeypatch, "_losses", step=5, largest=2, training=False)
    found = sentence_of(make_request(splits, str(tmp_path / "validation"), micro_batch_size=4))
    assert "in the validation after step 5 does not fit" in found
    assert "the checkpoint of step 3 is kept" in found
    fail_in(monkeypatch, "_losses", step=1, largest=0)
    found = sentence_of(make_request(splits, str(tmp_path / "start"), micro_batch_size=1, gradient_checkpointing=True))
    assert "a micro-batch of 1 window of 16 tokens in step 1" in found
    assert found.endswith(
        "does not fit the GPU; lower data.sequence_length or the model's sizes (which starts another training)"
    )
    assert "gradient_checkpointing" not in found
    assert not CheckpointStore(tmp_path / "start" / "checkpoints").steps()


def test_the_advised_micro_batch_divides_the_batch(splits, tmp_path, monkeypatch):
    fail_in(monkeypatch, "_losses", step=1, largest=4)
    found = sentence_of(make_request(splits, str(tmp_path / "odd"), batch_size=9, micro_batch_size=9))
    assert "lower train.micro_batch_size to 3 or less" in found


def test_memory_of_the_machine_itself(splits, tmp_path, monkeypatch):
    """PyTorch's own error: no machine has the memory for this tensor."""
    losses = TrainingModule._losses

    def limited(self, micro):
        if self.state.step == 4:
            torch.empty(2**52, dtype=torch.uint8)
        return losses(self, micro)

    monkeypatch.setattr(TrainingModule, "_losses", limited)
    found = sentence_of(make_request(splits, str(tmp_path / "machine")))
    assert "in step 5 does not fit this machine's" in found
    assert "the checkpoint of step 3 is kept" in found


# Stands in for the memory of one process's GPU.
FULL_FROM_STEP_6 = """
import torch
backward_of = torch.Tensor.backward

def backward(self, *args, **kwargs):
    backward.calls += 1
    if backward.calls > 10:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return backward_of(self, *args, **kwargs)

backward.calls = 0
torch.Tensor.backward = backward
"""


@pytest.mark.component
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_processes_out_of_memory_ends_both_with_the_sentence(splits, tmp_path, monkeypatch, rank):
    request = make_request(splits, str(tmp_path / "pair"), devices=2, micro_batch_size=2)
    before = set(psutil.Process().children())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    if rank == 0:
        monkeypatch.setattr(torch.Tensor, "backward", torch.Tensor.backward)
        exec(FULL_FROM_STEP_6, {})
    else:
        # Python imports a module of this name when it starts; only the second process starts now.
        (tmp_path / "sitecustomize.py").write_text(FULL_FROM_STEP_6)
    found = sentence_of(request)
    assert "out of memory: a micro-batch of 2 windows of 16 tokens in step 6 does not fit the GPU" in found
    assert set(psutil.Process().children()) <= before, "the helper has ended"
    assert CheckpointStore(request.run_folder / "checkpoints").steps()[-1] == 5


@pytest.mark.parametrize(
    "model",
    [
        {"hidden_size": 10**8},
        {"hidden_size": 2**16, "num_hidden_layers": 100},
        {"num_hidden_layers": 10**12},
        {"intermediate_size": 10**15},
        {"hidden_size": 2**62},
    ],
)
def test_what_no_machine_holds_is_refused_at_once(splits, tmp_path, model):
    request = make_request(splits, "none", {"value_size": None, **model}).model_copy(
        update={"run_folder": tmp_path / "run"}
    )
    with pytest.raises(OutOfMemory) as caught:
        run(request)
    assert str(caught.value).startswith("out of memory: ")
    assert str(caught.value).endswith(f"; {ADVICE}")
    assert not request.run_folder.exists()


def test_what_breaks_off_while_the_model_is_built_is_a_sentence(splits, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("retlab.training.trainer.build_model", full)
    request = make_request(splits, "full").model_copy(update={"run_folder": tmp_path / "run"})
    with pytest.raises(OutOfMemory, match="^out of memory: the model does not fit this machine's .* GiB; lower model"):
        run(request)


@pytest.mark.parametrize(
    ("device", "strategy", "processes", "parts"),
    [("cpu", "ddp", 1, 1), ("cpu", "ddp", 2, 2), ("cuda", "ddp", 4, 1), ("cuda", "fsdp", 2, 0.5)],
)
def test_weights_gradients_and_moments_are_counted(splits, monkeypatch, device, strategy, processes, parts):
    """Of every process on a CPU, and of one on its GPU, which FSDP gives a share alone."""
    request = make_request(splits)
    needed = parts * TRAINED_BYTES * sum(weight.numel() for weight in new_model(request).parameters())
    limited = "machine" if device == "cpu" else "gpu"
    memory = {"machine": 2**60, "gpu": 2**60, limited: needed}
    monkeypatch.setattr(out_of_memory, "size_of_memory", memory.get)
    monkeypatch.setattr(out_of_memory, "described_memory", lambda where: f"the {where}")
    hardware = Hardware(device, processes, 1, bf16=False, compiled=False, strategy=strategy)
    check_model_fits(model_config(request), request.train, hardware)
    memory[limited] = needed - 1
    with pytest.raises(OutOfMemory, match=f"the {limited} cannot hold the .* GiB that a model of"):
        check_model_fits(model_config(request), request.train, hardware)

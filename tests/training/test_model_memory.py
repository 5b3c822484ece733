"""Models that no memory holds are refused before they are built."""

import pytest
from tests.training.conftest import make_request

from retlab.errors import OutOfMemory
from retlab.training import model_memory
from retlab.training.hardware import Hardware
from retlab.training.model_memory import TRAINED_BYTES, check_model_fits
from retlab.training.trainer import model_config, new_model, train

ADVICE = "lower model.hidden_size, model.num_hidden_layers or the model's other sizes"


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
        train(request, say=lambda _line: None, stop_requested=lambda: False)
    assert str(caught.value).startswith("out of memory: ")
    assert str(caught.value).endswith(f"; {ADVICE}")
    assert not request.run_folder.exists()


def test_what_breaks_off_while_the_model_is_built_is_a_sentence(splits, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("retlab.training.trainer.build_model", full)
    request = make_request(splits, "full").model_copy(update={"run_folder": tmp_path / "run"})
    with pytest.raises(OutOfMemory, match="^out of memory: the model does not fit this machine's .* GiB; lower model"):
        train(request, say=lambda _line: None, stop_requested=lambda: False)


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
    monkeypatch.setattr(model_memory, "size_of_memory", memory.get)
    monkeypatch.setattr(model_memory, "described_memory", lambda where: f"the {where}")
    hardware = Hardware(device, processes, 1, bf16=False, compiled=False, strategy=strategy)
    check_model_fits(model_config(request), request.train, hardware)
    memory[limited] = needed - 1
    with pytest.raises(OutOfMemory, match=f"the {limited} cannot hold the .* GiB that a model of"):
        check_model_fits(model_config(request), request.train, hardware)

"""Trainings on kernels of other packages, which stand-ins in plain PyTorch take the place of on a CPU."""

import importlib
import itertools

import pytest
import torch
from tests.stand_ins.kernel_packages import hide_packages, use_stand_ins
from tests.training.conftest import make_request
from tests.training.test_trainer import last, rows, run

from retlab.data.settings import DataSection
from retlab.errors import Interrupted, UserError
from retlab.mixers import Attention, Retention
from retlab.models import kernel_choice
from retlab.models.settings import RetNetSection
from retlab.training import kernels as training_kernels
from retlab.training.request import TrainingRequest, deciding_settings, model_differences
from retlab.training.settings import TrainSection
from retlab.training.trainer import new_model

TRANSFORMER = {
    "architecture": "transformer", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 32, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
KERNELS = {"retnet": ("retention_kernel", "fla", "torch"), "transformer": ("attention_kernel", "flash_attn", "sdpa")}


def request_of(splits, run: str, architecture: str, kernel: str, apart: bool = False, **train) -> TrainingRequest:
    request = make_request(splits, run, **train)
    model = TRANSFORMER if architecture == "transformer" else request.model
    data = request.data.model_copy(update={"reset_at_documents": apart})
    return request.model_copy(update={"data": data, "model": model | {KERNELS[architecture][0]: kernel}})


@pytest.fixture
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_ins(monkeypatch)
    monkeypatch.setattr(kernel_choice, "KERNEL_DEVICES", ("cpu",))
    monkeypatch.setattr(kernel_choice, "KERNEL_DTYPES", (torch.float32,))


@pytest.mark.usefixtures("_on_cpu")
@pytest.mark.parametrize("architecture", KERNELS)
def test_a_training_on_a_kernel_is_that_of_the_plain_form(splits, tmp_path, monkeypatch, architecture):
    key, fast, plain = KERNELS[architecture]
    said: list[str] = []
    one = request_of(splits, str(tmp_path / "plain"), architecture, plain)
    other = request_of(splits, str(tmp_path / "fast"), architecture, fast)
    run(one, say=said.append)
    assert any("PyTorch" in line and line.endswith("(as configured)") for line in said)
    calls = []
    name = {"fla": "fla.ops.simple_gla.chunk_simple_gla", "flash_attn": "flash_attn.flash_attn_func"}[fast]
    module, function = name.rsplit(".", 1)
    original = getattr(__import__(module, fromlist=[function]), function)
    monkeypatch.setattr(name, lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    said.clear()
    run(other, say=said.append)
    title = {"fla": "flash-linear-attention 0.6.0", "flash_attn": "flash-attn 2.8.3"}[fast]
    assert any(line.endswith(f"{title} (as configured)") for line in said), said
    assert len(calls) > 2 * 12
    for left, right in zip(rows(one.run_folder), rows(other.run_folder), strict=True):
        assert float(left["loss"]) == pytest.approx(float(right["loss"]), rel=1e-5)
    for key, weight in last(one)["model"].items():
        torch.testing.assert_close(weight, last(other)["model"][key], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_on_cpu")
def test_another_kernel_goes_on_with_the_training_and_says_so(splits, tmp_path):
    folder, asked = str(tmp_path / "run"), itertools.count(1)
    with pytest.raises(Interrupted):
        run(request_of(splits, folder, "transformer", "flash_attn"), stop=lambda: next(asked) > 5)
    said: list[str] = []
    run(request_of(splits, folder, "transformer", "sdpa"), say=said.append)
    assert said[0].startswith("continuing after step")
    assert said[1].startswith(
        "so far on CPU, 1 thread, float32, attention on flash-attn, now on CPU, 1 thread, float32:"
    )


def test_the_kernel_is_no_part_of_what_is_trained():
    model = RetNetSection.model_validate({"retention_kernel": "fla"})
    settings = deciding_settings(0, DataSection(), model, TrainSection())
    assert "model.chunk_size" in settings
    assert not [key for key in settings if "kernel" in key]
    assert not model_differences({"retention_kernel": "fla", "hidden_size": 8}, {"retention_kernel": "torch"})


def test_a_kernel_that_cannot_run_is_refused_before_the_run_folder_is_touched(splits, tmp_path, monkeypatch):
    hide_packages(monkeypatch)
    for architecture, (key, fast, _) in KERNELS.items():
        request = request_of(splits, str(tmp_path / architecture), architecture, fast)
        with pytest.raises(UserError, match=f"model.{key} is {fast}, but .* needs a GPU, and it is not installed"):
            run(request)
        assert not request.run_folder.exists()


@pytest.mark.usefixtures("_on_cpu")
def test_documents_kept_apart_refuse_a_kernel_and_packing_by_padding_does_not(splits, tmp_path):
    request = request_of(splits, str(tmp_path / "apart"), "transformer", "flash_attn", apart=True)
    with pytest.raises(
        UserError, match="documents of a row; .*data.reset_at_documents false, or set it to auto or sdpa"
    ):
        run(request)
    padded = request.model_copy(update={"data": request.data.model_copy(update={"packing": "padded"})})
    said: list[str] = []
    run(padded, say=said.append)
    assert "attention: flash-attn 2.8.3 (as configured)" in said


@pytest.mark.usefixtures("_on_cpu")
def test_a_kernel_that_fails_when_it_is_measured_is_not_taken_under_auto(splits, tmp_path, monkeypatch):
    def unknown(*_args, **_kwargs):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    importlib.import_module("flash_attn")
    monkeypatch.setattr("flash_attn.flash_attn_func", unknown)
    monkeypatch.setattr(training_kernels, "_milliseconds", lambda work: work())
    said: list[str] = []
    run(request_of(splits, str(tmp_path / "run"), "transformer", "auto", max_steps=1), say=said.append)
    assert any("(flash-attn failed when it was measured here: FlashAttention only supports" in line for line in said)


@pytest.mark.usefixtures("_on_cpu")
@pytest.mark.parametrize("architecture", KERNELS)
def test_auto_measures_and_hands_its_choice_to_the_model(splits, tmp_path, monkeypatch, architecture):
    kind, name = {"retnet": (Retention, "retention"), "transformer": (Attention, "attention")}[architecture]
    times, calls = iter([1.0, 2.0]), []

    def milliseconds(work) -> float:
        work()
        calls.clear()
        return next(times)

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    module = {"retnet": "fla.ops.simple_gla", "transformer": "flash_attn"}[architecture]
    function = {"retnet": "chunk_simple_gla", "transformer": "flash_attn_func"}[architecture]
    original = getattr(importlib.import_module(module), function)
    monkeypatch.setattr(f"{module}.{function}", counted)

    monkeypatch.setattr(training_kernels, "_milliseconds", milliseconds)
    request = request_of(splits, str(tmp_path / "auto"), architecture, "auto", max_steps=1)
    said: list[str] = []
    run(request, say=said.append)
    assert len(calls) > 2
    assert any("(measured here: 1.00 ms a layer, PyTorch's 2.00)" in line for line in said), said
    assert name in last(request)["hardware"]
    assert not any(module.kernel for module in new_model(request).modules() if isinstance(module, kind))
    # What is saved says auto: the measurement belongs to this machine.
    assert last(request)["model_config"][KERNELS[architecture][0]] == "auto"


@pytest.mark.usefixtures("_on_cpu")
@pytest.mark.parametrize("architecture", KERNELS)
def test_a_training_goes_on_with_what_it_has_chosen_by_measuring(splits, tmp_path, monkeypatch, architecture):
    """Another measurement would fall out otherwise, and the training would not be the undisturbed one."""
    times, asked = iter([1.0, 2.0]), itertools.count(1)
    monkeypatch.setattr(training_kernels, "_milliseconds", lambda _work: next(times))
    request = request_of(splits, str(tmp_path / "auto"), architecture, "auto")
    with pytest.raises(Interrupted):
        run(request, stop=lambda: next(asked) > 5)
    said: list[str] = []
    run(request, say=said.append)
    assert next(times, None) is None
    name = {"retnet": "flash-linear-attention", "transformer": "flash-attn"}[architecture]
    assert any(name in line and line.endswith("(as this training began)") for line in said), said
    assert not any(line.startswith("so far on") for line in said)

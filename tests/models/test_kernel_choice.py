"""What mixers run on, and the line that says it; the packages are stand-ins in plain PyTorch."""

import copy

import pytest
import torch
from tests.models.small import small_ids, small_model
from tests.stand_ins.kernel_packages import hide_packages, use_stand_ins

from retlab.errors import UserError
from retlab.mixers import MIXERS, kernels
from retlab.models import kernel_choice
from retlab.models.causal_lm import MODELS
from retlab.models.counting import body_without_weights
from retlab.models.fields import FIELDS
from retlab.models.kernel_choice import KernelUse, choose_kernels

GPU = KernelUse("cuda", torch.bfloat16, 512, documents=False, compiled=True)
SIZES = {"hidden_size": 64, "num_hidden_layers": 1}
NAMED = {"transformer": {"attention_kernel": "flash_attn"}, "retnet": {"retention_kernel": "fla"}}


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_ins(monkeypatch)
    monkeypatch.setattr(kernel_choice, "KERNEL_DEVICES", ("cuda",))
    monkeypatch.setattr(kernel_choice, "KERNEL_DTYPES", (torch.bfloat16,))


def lines(architecture: str, use: KernelUse, timing=None, refuse=True, **fields) -> list[str]:
    model = FIELDS[architecture](**SIZES, **fields)
    return [choice.line for choice in choose_kernels(body_without_weights(model), model, use, timing, refuse)]


def test_named_kernels_are_taken_where_they_can_run():
    assert lines("transformer", GPU, **NAMED["transformer"])[0] == "attention: flash-attn 2.8.3 (as configured)"
    expected = "retention: chunkwise, flash-linear-attention 0.6.0 (as configured)"
    assert lines("retnet", GPU, **NAMED["retnet"])[0] == expected
    both = lines("hybrid", GPU, **NAMED["transformer"], **NAMED["retnet"])
    assert [line.split(":")[0] for line in both] == ["retention", "attention", "glu"]
    assert all("as configured" in line for line in both[:2])


@pytest.mark.parametrize(
    ("change", "fields", "reason"),
    [
        ({"device": "cpu"}, {}, "needs a GPU"),
        ({"dtype": torch.float32}, {}, "computes in bf16 and not in float32"),
        ({"documents": True}, {}, "would wait for the GPU to find the documents of a row"),
        (
            {},
            {"hidden_size": 1024, "num_attention_heads": 2},
            "takes heads of at most 256 channels, and these have 512",
        ),
    ],
)
@pytest.mark.parametrize("architecture", NAMED)
def test_what_a_kernel_cannot_do_is_said_under_auto_and_refused_by_name(architecture, change, fields, reason):
    use, fields = GPU._replace(**change), {**SIZES, **fields}
    named = NAMED[architecture]
    (key, value), plain = next(iter(named.items())), {"transformer": "sdpa", "retnet": "torch"}[architecture]
    title = {"transformer": "flash-attn", "retnet": "flash-linear-attention"}[architecture]
    model = FIELDS[architecture](**fields)
    found = choose_kernels(body_without_weights(model), model, use, timing=lambda *_: (1.0, 9.0))
    assert [choice.kernel for choice in found] == [None, None]
    assert found[0].line.endswith(f"({title} {reason})")
    model = FIELDS[architecture](**fields, **named)
    with pytest.raises(UserError) as caught:
        choose_kernels(body_without_weights(model), model, use)
    sentence = str(caught.value)
    assert sentence.startswith(f"model.{key} is {value}, but {title} {reason}; ")
    assert sentence.endswith(f", or set it to auto or {plain}")
    told = choose_kernels(body_without_weights(model), model, use, refuse=False)[0]
    assert told.kernel is None
    assert told.line.endswith(f"({value} is configured, but {title} {reason})")


def test_all_that_are_refused_are_named():
    with pytest.raises(UserError) as caught:
        lines("hybrid", GPU._replace(device="cpu"), **NAMED["transformer"], **NAMED["retnet"])
    starts = [line.split(",")[0] for line in str(caught.value).splitlines()]
    assert starts == ["model.retention_kernel is fla", "model.attention_kernel is flash_attn"]


@pytest.mark.parametrize("architecture", NAMED)
def test_a_missing_package_is_said_with_how_to_install_it(monkeypatch, architecture):
    hide_packages(monkeypatch)
    with pytest.raises(UserError, match=r"is not installed; install it with pip install flash.*, or set it to auto or"):
        lines(architecture, GPU, **NAMED[architecture])
    with pytest.raises(UserError, match="needs a GPU, and it is not installed; train on one and install it with pip"):
        lines(architecture, GPU._replace(device="cpu"), **NAMED[architecture])
    assert lines(architecture, GPU)[0].endswith("is not installed)")


def test_torchscales_normaliser_has_no_kernel():
    with pytest.raises(UserError, match="does not compute TorchScale's normaliser"):
        lines("retnet", GPU, retention_kernel="fla", torchscale_normalizer=True)
    found = lines("retnet", GPU._replace(device="cpu"), torchscale_normalizer=True)[0]
    assert found.startswith("retention: parallel form with TorchScale's normaliser, compiled PyTorch")


def test_auto_takes_the_faster_one_and_says_the_numbers(monkeypatch):
    plain = "attention: PyTorch's scaled dot product attention"
    cases = {
        (1.0, 2.0): "attention: flash-attn 2.8.3 (measured here: 1.00 ms a layer, PyTorch's 2.00)",
        (2.0, 1.0): f"{plain} (measured here: 1.00 ms a layer, flash-attn 2.00)",
        # Too near to tell.
        (0.97, 1.0): f"{plain} (measured here: 1.00 ms a layer, flash-attn 0.97)",
    }
    for times, expected in cases.items():
        assert lines("transformer", GPU, timing=lambda *_, times=times: times)[0] == expected
    monkeypatch.setattr("flash_attn.__version__", "2.6.3")
    assert "flash-attn before 2.7 interrupts compiled code" in lines("transformer", GPU, lambda *_: (1.0, 2.0))[0]
    assert "flash-attn 2.6.3 (measured" in lines("transformer", GPU._replace(compiled=False), lambda *_: (1.0, 2.0))[0]


def test_retention_stays_in_compiled_pytorch_and_is_measured_without():
    def never(*_):
        raise AssertionError

    expected = "retention: chunkwise, chunks of 128 tokens, compiled PyTorch (faster than flash-linear-attention"
    assert lines("retnet", GPU, never)[0].startswith(expected)
    found = lines("retnet", GPU._replace(compiled=False), lambda *_: (1.0, 2.0))[0]
    assert (
        found == "retention: chunkwise, flash-linear-attention 0.6.0 (measured here: 1.00 ms a layer, PyTorch's 2.00)"
    )


def test_the_line_tells_form_mask_and_branches():
    cpu = GPU._replace(device="cpu", compiled=False)
    assert lines("retnet", cpu._replace(tokens=128))[0].startswith("retention: parallel form, PyTorch (")
    assert lines("retnet", cpu, chunk_size=64)[0].startswith("retention: chunkwise, chunks of 64 tokens, PyTorch (")
    masked = lines("transformer", cpu._replace(documents=True))[0]
    assert masked.startswith(
        "attention: PyTorch's scaled dot product attention with a mask that keeps documents apart ("
    )
    found = lines("longnet", cpu, segment_lengths=[8, 32], dilation_ratios=[1, 2])
    assert found[0].startswith("dilated attention: segments/ratios 8/1 + 32/2, PyTorch (")
    assert found[1].startswith("glu: ")
    assert all(len(line) < 160 and "\n" not in line for line in found)


@pytest.mark.parametrize("architecture", FIELDS)
def test_every_mixer_has_its_line(architecture):
    model = FIELDS[architecture](**SIZES)
    body = body_without_weights(model)
    there = {name for name, kind in MIXERS.items() if any(type(module) is kind for module in body.modules())}
    assert {choice.mixer for choice in choose_kernels(body, model, GPU)} == there


@pytest.mark.parametrize("architecture", [*NAMED, "hybrid"])
def test_models_that_differ_in_the_kernel_alone_load_each_others_weights(tmp_path, architecture):
    named = NAMED.get(architecture, NAMED["transformer"] | NAMED["retnet"])
    plain, fast = small_model(architecture), small_model(architecture, seed=1, **named)
    assert any(getattr(module, "kernel", None) for module in fast.modules())
    ids = small_ids()
    plain.save_pretrained(tmp_path / "plain")
    config = copy.deepcopy(fast.config)
    loaded = MODELS[architecture].from_pretrained(tmp_path / "plain", config=config).eval()
    assert any(getattr(module, "kernel", None) for module in loaded.modules())
    torch.testing.assert_close(loaded(ids).logits, plain(ids).logits)
    written = loaded.generate(ids[:, :7], max_new_tokens=20, do_sample=False)
    assert torch.equal(written, plain.generate(ids[:, :7], max_new_tokens=20, do_sample=False))
    loaded.save_pretrained(tmp_path / "fast")
    for key, value in named.items():
        assert getattr(MODELS[architecture].from_pretrained(tmp_path / "fast").config, key) == value


@pytest.mark.parametrize("architecture", NAMED)
def test_a_saved_model_whose_kernel_is_missing_computes_in_the_plain_form_and_warns(
    monkeypatch, tmp_path, architecture
):
    model = small_model(architecture, **NAMED[architecture])
    model.save_pretrained(tmp_path)
    hide_packages(monkeypatch)
    seen: list[str] = []
    monkeypatch.setattr("retlab.models.causal_lm.logger.warning_once", seen.append)
    loaded = MODELS[architecture].from_pretrained(tmp_path).eval()
    assert len(seen) == 1
    assert "is not installed; running on PyTorch: install it with pip install" in seen[0]
    torch.testing.assert_close(loaded(small_ids()).logits, model(small_ids()).logits)


def test_blocks_under_torch_compile_run_on_the_kernel(monkeypatch):
    """flash-attn's own function is opaque to the compiler, the stand-in is not: this shows the call alone."""
    plain, fast = small_model("transformer"), small_model("transformer", **NAMED["transformer"])
    monkeypatch.setattr(kernels, "KERNEL_DEVICES", ("cpu",))
    for block in fast.body.blocks:
        block.compile(dynamic=False, backend="aot_eager")
    torch.testing.assert_close(fast(small_ids()).logits, plain(small_ids()).logits)

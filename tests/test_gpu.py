"""What only a GPU can show; the same tests run on a CPU elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retlab.section import PROJECT_ROOT
from tests.conftest import TINY, environment

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; its CPU counterparts run here"),
]


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def _model(architecture: str, **sizes: int):
    from retlab.models.causal_lm import MODELS

    sizes = {"vocab_size": 256, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4} | sizes
    torch.manual_seed(0)
    return MODELS[architecture](**sizes).eval()


@pytest.mark.parametrize("length", [100, 1000])
def test_the_forms_of_retention_agree_on_a_gpu_and_with_the_cpu(length: int) -> None:
    model = _model("retnet")
    ids = torch.randint(0, 256, (2, length))
    with torch.no_grad():
        expected = model(ids).logits
        model.cuda()
        for form in ("parallel", "chunkwise", "recurrent"):
            model.set_form(form)
            assert _error(model(ids.cuda()).logits.cpu(), expected) < 1e-5, form


@pytest.mark.parametrize("architecture", ["retnet", "transformer", "longnet"])
def test_bf16_is_near_float32_and_positions_hold(architecture: str) -> None:
    model = _model(architecture).cuda()
    ids = torch.randint(0, 256, (2, 1500), device="cuda")
    with torch.no_grad():
        expected = model(ids).logits
        found = model.bfloat16()(ids).logits
    assert _error(found, expected) < 5e-2


@pytest.mark.parametrize("architecture", ["retnet", "transformer", "longnet"])
def test_generate_with_and_without_cache_writes_the_same_on_a_gpu(architecture: str) -> None:
    model = _model(architecture).cuda()
    ids = torch.randint(0, 256, (3, 70), device="cuda")
    plain = model.generate(ids, max_new_tokens=40, do_sample=False, use_cache=False)
    cached = model.generate(ids, max_new_tokens=40, do_sample=False, use_cache=True)
    assert torch.equal(plain, cached)


def test_ids_beyond_the_vocabulary_are_a_sentence_and_the_gpu_goes_on() -> None:
    model, ids = _model("retnet").cuda(), torch.full((2, 30), 256, device="cuda")
    for wrong in (ids, ids - 257):
        with pytest.raises(ValueError, match="vocabulary has 256 tokens"):
            model(wrong)
    assert model(ids - 1).logits.isfinite().all()


@pytest.mark.parametrize("architecture", ["retnet", "transformer", "longnet"])
def test_compiled_training_step_equals_the_eager_one(architecture: str) -> None:
    model = _model(architecture).cuda()
    ids = torch.randint(0, 256, (4, 512), device="cuda")
    segments = (torch.arange(512, device="cuda") // 200).expand(4, -1)

    def gradients(function) -> list[torch.Tensor]:
        model.zero_grad()
        function(ids, segment_ids=segments).logits.float().logsumexp(-1).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    eager, compiled = gradients(model), gradients(torch.compile(model))
    assert max(_error(b, a) for a, b in zip(eager, compiled, strict=True)) < 1e-4


def test_longnets_flash_attention_is_near_float64_in_outputs_and_gradients() -> None:
    from retlab.mixers.dilated_attention import dilated_attention
    from retlab.mixers.dilated_slots import Branch
    from retlab.mixers.whole_segments import has_flash

    branches = [Branch(256, 1), Branch(500, 3), Branch(2048, 8)]
    torch.manual_seed(0)
    inputs = [torch.randn(2, 6, 1500, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    weight = torch.randn(2, 6, 1500, 64, device="cuda", dtype=torch.bfloat16)
    assert has_flash(inputs[0])

    def results(function, dtype: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (x.to(dtype).requires_grad_() for x in inputs)
        out = function(q, k, v, branches)[0]
        return [out, *torch.autograd.grad(out, (q, k, v), weight.to(dtype))]

    # In float64 there is no flash attention on a GPU, and the plain form runs.
    expected = results(dilated_attention, torch.float64)
    for function in (dilated_attention, torch.compile(dilated_attention, dynamic=False)):
        for mine, wanted in zip(results(function, torch.bfloat16), expected, strict=True):
            assert _error(mine, wanted) < 3e-2


def test_the_memory_of_longnet_grows_linearly_up_to_32768_tokens() -> None:
    model = _model("longnet", num_hidden_layers=1).cuda().train()
    peaks = []
    for length in (8192, 32_768):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(torch.randint(0, 256, (1, length), device="cuda")).logits.float().logsumexp(-1).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 4.5 * peaks[0]


@pytest.mark.parametrize("architecture", ["retnet", "transformer", "longnet"])
def test_the_pipeline_trains_and_evaluates_on_a_gpu(architecture: str, tmp_path: Path) -> None:
    words = [f"data.folder={tmp_path}/data", f"output_dir={tmp_path}/runs", *TINY, "train.max_steps=60"]
    words += [f"model.architecture={architecture}", "train.device=cuda", "emissions.enabled=false"]
    losses = {}
    for precision in ("bf16", "float32"):
        script = str(PROJECT_ROOT / "scripts" / "run_pipeline.sh")
        config = str(PROJECT_ROOT / "configs" / "quickstart.yaml")
        command = ["bash", script, config, *words, "evaluate.device=cuda", f"evaluate.precision={precision}"]
        answer = subprocess.run(
            command, capture_output=True, text=True, env=environment() | {"VIRTUAL_ENV": sys.prefix}
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        results = json.loads((tmp_path / "runs" / "quickstart-retnet" / "results.json").read_text())
        losses[precision] = results["test"]["loss"]
    assert abs(losses["bf16"] / losses["float32"] - 1) < 1e-2

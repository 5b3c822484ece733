"""Kernels on a GPU, our own and those of other packages, and a GPU that really runs out of memory.

`pytest tests/test_gpu_kernels.py -rs`; each kernel needs its package (flash-attn, flash-linear-attention) beside it.
"""

import copy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from retlab.artifacts import sha256_file
from retlab.mixers import Attention, Mixer, Retention
from retlab.mixers.kernels import KERNELS, package_obstacle, use_kernel
from retlab.mixers.retention_forms import retention_step
from retlab.mixers.rotary import RetNetFrequencies, rotation
from retlab.models.body import Block
from retlab.own_kernels.retention_step import kernel_can_step
from retlab.own_kernels.trial import try_own_kernels
from retlab.section import PROJECT_ROOT
from tests.conftest import TINY, environment
from tests.mixers.oracles import Calls

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; its CPU counterparts run here"),
]

WIDTH, HEADS = 256, 2
LENGTHS = [2, 7, 64, 129, 500, 1024]
SETTINGS = {
    "retnet": ["model.architecture=retnet", "model.retention_kernel=fla"],
    "transformer": ["model.architecture=transformer", "model.attention_kernel=flash_attn"],
}


@pytest.fixture(params=list(KERNELS))
def name(request: pytest.FixtureRequest) -> str:
    obstacle = package_obstacle(KERNELS[request.param])
    if obstacle is not None:
        pytest.skip(obstacle.reason)
    return request.param


def pair(name: str, **settings) -> tuple[Mixer, Mixer, Calls]:
    """A mixer in its plain form in float32, its bfloat16 copy on the kernel, and the count of the kernel's calls."""
    torch.manual_seed(0)
    kinds = {"attention": Attention, "retention": Retention}
    plain = kinds[name](WIDTH, num_heads=HEADS, **settings).cuda()
    fast = copy.deepcopy(plain).bfloat16()
    assert use_kernel(fast, KERNELS[name]) is None
    fast.kernel = calls = Calls(fast.kernel)
    return plain, fast, calls


def results(mixer: Mixer, tokens: int, segment_ids=None, state=None) -> dict[str, torch.Tensor]:
    """Outputs, the state's tensors, and the gradients of a fixed weighting of both, in float64."""
    generator = torch.Generator().manual_seed(tokens)
    dtype = next(mixer.parameters()).dtype
    hidden = torch.randn(2, tokens, WIDTH, generator=generator).to("cuda", dtype).requires_grad_()
    turn = rotation(torch.arange(tokens, device="cuda")[None], mixer.frequencies)
    out, state = mixer(hidden, turn, segment_ids, state)
    floats = [tensor for tensor in (out, *state) if tensor.is_floating_point()]
    weights = [torch.randn(x.shape, generator=generator).to("cuda", x.dtype) for x in floats]
    mixer.zero_grad()
    sum((x * weight).sum() for x, weight in zip(floats, weights, strict=True)).backward()
    gradients = {key: parameter.grad for key, parameter in mixer.named_parameters()}
    found = {str(number): x for number, x in enumerate(floats)} | {"hidden": hidden.grad} | gradients
    return {key: tensor.detach().double() for key, tensor in found.items()}


def errors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    return {key: float((found[key] - x).norm() / x.norm()) for key, x in expected.items()}


@pytest.mark.parametrize("tokens", LENGTHS)
def test_outputs_states_and_gradients_are_those_of_the_plain_form(name: str, tokens: int) -> None:
    """Against the plain form in float32, a kernel is no further off than the plain form in bfloat16, twice over."""
    plain, fast, calls = pair(name)
    expected, found = results(plain, tokens), results(fast, tokens)
    half = copy.deepcopy(fast)
    half.kernel = None
    allowed = errors(results(half, tokens), expected)
    assert calls.count == 1
    for key, error in errors(found, expected).items():
        assert error < 2 * allowed[key] + 5e-3, (key, error, allowed[key])


def test_a_state_from_an_earlier_piece_is_read(name: str) -> None:
    plain, fast, calls = pair(name)
    hidden = torch.randn(2, 200, WIDTH, device="cuda")
    turn = rotation(torch.arange(200, device="cuda")[None], plain.frequencies)
    with torch.no_grad():
        whole, last = plain(hidden, turn)
        state, outs = None, []
        for start, end in ((0, 77), (77, 78), (78, 200)):
            piece = type(turn)(*(x[:, start:end] for x in turn))
            out, state = fast(hidden[:, start:end].bfloat16(), piece, None, state)
            outs.append(out)
    assert float((torch.cat(outs, dim=1) - whole).norm() / whole.norm()) < 2e-2
    assert float((state[0] - last[0]).norm() / last[0].norm()) < 2e-2
    assert calls.count == (2 if name == "retention" else 1)


def test_padding_and_documents_take_the_plain_form(name: str) -> None:
    _, fast, calls = pair(name)
    segment_ids = torch.tensor([[0] * 30 + [1] * 34, [-1] * 10 + [0] * 54], device="cuda")
    found = results(fast, 64, segment_ids)
    fast.kernel = None
    expected = results(fast, 64, segment_ids)
    assert calls.count == 0
    assert max(errors(found, expected).values()) < 1e-2


def test_float32_takes_the_plain_form(name: str) -> None:
    plain, fast, calls = pair(name)
    plain.kernel = fast.kernel
    found = results(plain, 100)
    plain.kernel = None
    assert max(errors(found, results(plain, 100)).values()) < 1e-4
    assert calls.count == 0


@pytest.mark.parametrize("width", [24, 40, 512])
def test_narrow_odd_and_the_widest_heads(name: str, width: int) -> None:
    torch.manual_seed(0)
    kinds = {"attention": Attention, "retention": Retention}
    plain = kinds[name](width, num_heads=2).cuda().bfloat16()
    fast = copy.deepcopy(plain)
    assert use_kernel(fast, KERNELS[name]) is None
    hidden = torch.randn(2, 150, width, device="cuda", dtype=torch.bfloat16)
    turn = rotation(torch.arange(150, device="cuda")[None], plain.frequencies)
    expected, found = plain(hidden, turn)[0], fast(hidden, turn)[0]
    assert float((found.float() - expected.float()).norm() / expected.float().norm()) < 2e-2


def test_compiled_blocks_run_on_the_kernel(name: str) -> None:
    plain, fast, _ = pair(name)
    fast.kernel = fast.kernel.function
    expected = results(plain, 256)
    fast.compile(dynamic=False)
    found = errors(results(fast, 256), expected)
    assert max(found.values()) < 5e-2, found


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(PROJECT_ROOT / "scripts" / script), str(PROJECT_ROOT / "configs/quickstart.yaml"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment() | {"VIRTUAL_ENV": sys.prefix}, check=False
    )


def words_of(folder: Path) -> list[str]:
    words = [word for word in TINY if not word.startswith(("train.micro_batch_size", "train.max_steps"))]
    words += [f"data.folder={folder}/data", f"output_dir={folder}/runs", "emissions.enabled=false"]
    return [*words, "train.max_steps=12", "train.device=cuda", "train.checkpoint_every_steps=2"]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("sizes", [(1, 4, 256, 512), (3, 2, 20, 33), (2, 1, 64, 128), (1, 3, 1024, 7), (2, 1, 2, 3)])
def test_one_token_on_our_kernel_is_the_plain_step(sizes: tuple[int, ...], compiled: bool) -> None:
    """Several tokens in a row, against the plain form in float64."""
    batch, heads, keys, values = sizes
    torch.manual_seed(0)
    memory = torch.randn(batch, heads, values, keys).cuda().mT
    plain, decay = memory.double().contiguous(), torch.rand(heads, 1, 1).cuda()
    try_own_kernels(memory.device)
    assert kernel_can_step(memory)
    assert not kernel_can_step(plain.float())
    address, step = memory.data_ptr(), torch.compile(retention_step, fullgraph=True) if compiled else retention_step
    for position in range(3):
        widths = [heads * keys, heads * keys, heads * values]
        parts = torch.randn(batch, 1, 2 * heads * keys + heads * values).cuda().split(widths, dim=-1)
        positions = torch.arange(batch, device="cuda")[:, None] * 5 + position
        turn = rotation(positions, RetNetFrequencies(keys))
        out = step(*parts, turn, decay, 0.3, memory)
        expected = retention_step(*(part.double() for part in parts), turn, decay.double(), 0.3, plain)
        assert out.shape == expected.shape
        assert torch.allclose(out.double(), expected, rtol=1e-5, atol=1e-4)
        assert torch.allclose(memory.double(), plain, rtol=1e-5, atol=1e-5)
    assert memory.data_ptr() == address


BLOCKS = {
    "retention": {"name": "retention", "num_heads": 2, "value_size": 480},
    "gelu": {"name": "glu", "intermediate_size": 176},
    "silu": {"name": "glu", "intermediate_size": 1024, "activation": "silu"},
}


@pytest.mark.parametrize("rows", [1, 2, 16])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_of_few_rows_is_the_block(kind: str, rows: int) -> None:
    """Three tokens in a row in bfloat16, against the plain block in float32 with the same weights."""
    torch.manual_seed(0)
    block = Block(WIDTH, BLOCKS[kind], norm_eps=1e-6, dropout=0.0).cuda().bfloat16().eval()
    torch.nn.init.normal_(block.norm.weight)
    plain = copy.deepcopy(block).float()
    hidden = torch.randn(3, rows, 1, WIDTH, device="cuda").bfloat16()
    try_own_kernels(hidden.device)
    memories, slot = [], torch.zeros((), dtype=torch.int64, device="cuda")
    for each in (block, plain):
        each.mixer.prepare_weights()
        memories.append(each.mixer.reserve(each.mixer.empty_state(rows, each.norm.weight), 1))
    assert block.mixer.fuses(hidden[0], block.norm, memories[0])
    assert not plain.mixer.fuses(hidden[0].float(), plain.norm, memories[1])
    for position, token in enumerate(hidden):
        positions = torch.arange(rows, device="cuda")[:, None] + 5 * position
        turn = None if block.mixer.frequencies is None else rotation(positions, block.mixer.frequencies)
        with torch.no_grad():
            found = block.advance(token, turn, memories[0], slot)
            expected = plain.advance(token.float(), turn, memories[1], slot)
        assert found.dtype == torch.bfloat16
        assert float((found - expected).abs().max() / expected.abs().max()) < 2e-2
    for mine, exact in zip(*(block.mixer.changing(memory) for memory in memories), strict=True):
        assert float((mine - exact).abs().max() / exact.abs().max()) < 2e-2


@pytest.mark.parametrize("architecture", SETTINGS)
def test_the_pipeline_on_a_kernel_by_name_or_its_sentence(architecture: str, tmp_path: Path) -> None:
    kernel = {"retnet": KERNELS["retention"], "transformer": KERNELS["attention"]}[architecture]
    words = [*words_of(tmp_path), *SETTINGS[architecture], "train.precision=bf16", "data.reset_at_documents=false"]
    answer = run("run_pipeline.sh", *words)
    obstacle = package_obstacle(kernel)
    if obstacle is not None:
        assert answer.returncode == 2, answer.stdout + answer.stderr
        assert obstacle.reason in answer.stderr
        assert "Traceback" not in answer.stderr
        assert not (tmp_path / "runs").exists()
    else:
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert f"{kernel.title} " in answer.stdout
        assert "(as configured)" in answer.stdout
    # Under `auto` it trains wherever it can, and says on what; anew, because a kernel changes nothing but the speed.
    words = [*(word for word in words if "_kernel=" not in word), f"output_dir={tmp_path}/auto"]
    answer = run("run_pipeline.sh", *words)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    line = {"retnet": "retention: ", "transformer": "attention: "}[architecture]
    assert f"[train_model] {line}" in answer.stdout
    print(*[found for found in answer.stdout.splitlines() if line in found], sep="\n")


def test_a_gpu_that_runs_out_of_memory_keeps_the_checkpoint_and_the_training_goes_on(tmp_path: Path) -> None:
    """A million tokens in a micro-batch need more than a GPU has; interrupted before, the training goes on after."""
    words = [word for word in words_of(tmp_path) if not word.startswith(("data.max_bytes", "data.sequence_length"))]
    words = [word for word in words if not word.startswith(("model.hidden_size", "model.num_"))]
    words += ["data.max_bytes=16000000", "data.sequence_length=16384", "model.max_position_embeddings=16384"]
    words += ["model.hidden_size=1024", "model.num_hidden_layers=12", "train.batch_size=64", "train.max_steps=3"]
    words += ["train.validate_every_steps=100", "train.validate_batches=1", "train.checkpoint_every_steps=1"]
    for script in ("01_download_data", "02_split_data", "03_train_tokenizer", "04_tokenize_data"):
        answer = run(f"{script}.sh", *words)
        assert answer.returncode == 0, answer.stdout + answer.stderr
    stage = [sys.executable, str(PROJECT_ROOT / "src/train_model.py"), str(PROJECT_ROOT / "configs/quickstart.yaml")]
    with subprocess.Popen([*stage, *words, "train.micro_batch_size=2"], env=environment()) as process:
        checkpoints = tmp_path / "runs" / "quickstart-retnet" / "checkpoints"
        while process.poll() is None and not list(checkpoints.glob("step-*.pt")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 75
    before = {file.name: sha256_file(file) for file in checkpoints.iterdir()}

    answer = run("05_train_model.sh", *words, "train.micro_batch_size=64")
    print(answer.stderr)
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    assert "out of memory: a micro-batch of 64 windows of 16,384 tokens in step " in answer.stderr
    assert " GiB of this " in answer.stderr
    assert "lower train.micro_batch_size to 32 or less" in answer.stderr
    assert " is kept, and the training goes on from it" in answer.stderr
    assert {file.name: sha256_file(file) for file in checkpoints.iterdir()} == before

    answer = run("05_train_model.sh", *words, "train.micro_batch_size=2")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "continuing after step " in answer.stdout

"""The kernels of one token of a few rows, run by Triton's interpreter, against the plain forms in float64.

What a GPU makes of them is in `tests/test_gpu_kernels.py`; here they are compiled for GPUs that are not there.
"""

import os
import subprocess
import sys

import pytest
import torch
from tests.interpreted import interpret
from torch import nn
from torch.nn import functional as F

from retlab.mixers.gated_norm import gated_norm
from retlab.mixers.glu import ACTIVATIONS
from retlab.mixers.retention_forms import retention_step
from retlab.mixers.rotary import RetNetFrequencies, RopeFrequencies, rotation, turns_of
from retlab.own_kernels import few_rows, likeliest
from retlab.own_kernels.few_rows import Tile, added_product, gated_norm_of_one_token, normed_product
from retlab.own_kernels.likeliest import kernel_choose
from retlab.own_kernels.retention_step import kernel_step
from retlab.own_kernels.rotation import kernel_rotation
from retlab.section import PROJECT_ROOT

ROWS = (1, 2, 16)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch) -> None:
    interpret(monkeypatch)
    torch.manual_seed(0)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)


def a_norm(width: int) -> nn.RMSNorm:
    norm = nn.RMSNorm(width, eps=1e-6)
    nn.init.normal_(norm.weight)
    return norm


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("width", "features"), [(64, 48), (48, 7), (32, 1)])
def test_a_product_of_the_norm(rows: int, width: int, features: int) -> None:
    norm, weight, hidden = a_norm(width), torch.randn(features, width), torch.randn(rows, 1, width)
    # A row of large and one of tiny numbers, of which the norm makes the same size.
    hidden[0] *= 100
    hidden[-1] /= 100
    normed = F.rms_norm(hidden.double(), (width,), norm.weight.double(), 1e-6)
    close(normed_product(hidden, norm, weight), normed @ weight.double().T)
    out = torch.full((rows, features), 7.0)
    normed_product(hidden, norm, weight, out=out)
    close(out, (normed @ weight.double().T)[:, 0])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gated_linear_unit(rows: int, activation: str) -> None:
    norm, weight, hidden = a_norm(32), torch.randn(2 * 21, 32), torch.randn(rows, 1, 32)
    inner, gate = (F.rms_norm(hidden.double(), (32,), norm.weight.double(), 1e-6) @ weight.double().T).chunk(2, -1)
    found = normed_product(hidden, norm, weight, activation)
    close(found, ACTIVATIONS[activation](inner) * gate)


@pytest.mark.parametrize("rows", ROWS)
def test_a_product_that_is_added(rows: int) -> None:
    x, weight, residual = torch.randn(rows, 1, 48), torch.randn(10, 48), torch.randn(rows, 1, 10)
    close(added_product(x, weight, residual), residual.double() + x.double() @ weight.double().T)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("tile", [Tile(4, 16, 1, 1), Tile(16, 16, 4, 3), Tile(8, 32, 2, 2)])
def test_every_tile_gives_the_same(rows: int, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps over the width, the last of which may be wider than what is left."""
    monkeypatch.setattr(few_rows, "tile_for", lambda *_: tile)
    width = 48 if rows == 1 else 64
    norm, weight, hidden = a_norm(width), torch.randn(20, width), torch.randn(rows, 1, width)
    inner, gate = (F.rms_norm(hidden.double(), (width,), norm.weight.double(), 1e-6) @ weight.double().T).chunk(2, -1)
    close(normed_product(hidden, norm, weight, "gelu"), F.gelu(inner) * gate)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [4, 24])
def test_the_gated_norm_of_rows_that_lie_apart(rows: int, width: int) -> None:
    x = torch.randn(rows, 3, 1, width) * torch.tensor([1e-2, 1.0, 1e2])[:, None, None]
    gate = torch.randn(rows, 1, 5 * width)[..., width : 4 * width]
    expected = gated_norm(x.double().transpose(1, 2), gate.double(), 1e-6)
    close(gated_norm_of_one_token(x, gate, 1e-6), expected)


@pytest.mark.parametrize("frequencies", [RetNetFrequencies(6), RopeFrequencies(16, 10_000.0)])
def test_the_rotation_of_one_token(frequencies) -> None:
    """Far positions too, of which float32 would not know the angle; a view of positions whose rows lie apart."""
    positions = torch.tensor([[0, 3], [5, 1], [9, 123_456_789], [2, -4]])[:, 1:]
    found = kernel_rotation(positions, turns_of(frequencies, positions.device))
    for mine, plain in zip(found, rotation(positions, frequencies), strict=True):
        assert mine.shape == plain.shape
        assert torch.allclose(mine, plain, atol=3e-7)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sizes", [(1, 4, 8, 16), (3, 2, 6, 5), (2, 3, 2, 1)])
def test_a_step_of_retention(sizes: tuple[int, ...], shared: bool) -> None:
    """Three tokens in a row, of parts of wider rows, whose positions are one row's for all or every row's own."""
    batch, heads, keys, values = sizes
    memory = torch.randn(batch, heads, values, keys).mT
    plain, decay = memory.double().contiguous(), torch.rand(heads, 1, 1)
    for position in range(3):
        parts = torch.randn(batch, 1, heads * (2 * keys + values) + 3).split(
            [heads * keys] * 2 + [heads * values, 3], -1
        )
        positions = torch.arange(1 if shared else batch)[:, None] * 5 + position
        turn = rotation(positions, RetNetFrequencies(keys))
        out = kernel_step(*parts[:3], turn, decay, 0.3, memory)
        close(out, retention_step(*(part.double() for part in parts[:3]), turn, decay.double(), 0.3, plain))
        close(memory, plain)


def test_what_the_kernels_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of tensors of a CPU, on which the kernels are said to run."""
    runs, capability = True, (9, 0)
    monkeypatch.setattr(few_rows, "own_kernels_run", lambda _: runs)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)

    def bf16(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16)

    def linear(*shape: int, bias: bool = False) -> nn.Linear:
        return nn.Linear(*shape, bias=bias, dtype=torch.bfloat16)

    norm, fits = a_norm(32).bfloat16(), few_rows.fits_few_rows
    assert fits(bf16(16, 1, 32), norm, bf16(7, 32), linear(48, 32))
    assert not fits(bf16(17, 1, 32), norm)
    assert not fits(bf16(1, 2, 32), norm)
    assert not fits(bf16(1, 1, 24), a_norm(24).bfloat16())
    assert not fits(bf16(1, 1, 32), norm, linear(40, 32))
    assert not fits(bf16(1, 1, 32).half(), norm.half())
    norm = norm.float()
    assert not fits(bf16(1, 1, 32).float(), norm)
    assert not fits(bf16(1, 1, 32), norm)
    norm = norm.bfloat16()
    assert not fits(bf16(1, 1, 32), norm, bf16(7, 32).float())
    assert not fits(bf16(1, 1, 32), norm, bf16(32, 7).T)
    assert not fits(bf16(1, 1, 32), norm, None)
    assert not fits(bf16(1, 1, 32), norm, linear(48, 32, bias=True))
    assert not fits(bf16(1, 1, 32), nn.LayerNorm(32, dtype=torch.bfloat16))
    assert not fits(bf16(1, 1, 32), nn.RMSNorm(32, elementwise_affine=False))
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.4")
        assert not fits(bf16(1, 1, 32), norm)
    capability = (7, 5)
    assert not fits(bf16(16, 1, 32), norm)
    runs, capability = False, (9, 0)
    assert not fits(bf16(16, 1, 32), norm)


def test_the_choice_of_the_next_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of the largest, also across blocks; what has ended gets padding; numbers that are none are chosen."""
    monkeypatch.setattr(likeliest, "BLOCK", 16)
    nan, inf = float("nan"), float("inf")
    logits = torch.randn(6, 45)
    logits[0, [7, 30]] = 9.0
    logits[1, 44] = 9.0
    logits[3, [20, 33]] = nan
    logits[4] = -inf
    logits[5] = nan
    finished = torch.tensor([False, False, True, False, False, False])
    ids, ring = torch.zeros(6, 1, dtype=torch.int64), torch.full((6, 8), -7)
    ends = torch.tensor([44, 3, -1, -1])
    kernel_choose(logits, finished, torch.tensor(5), ends, ids, ring, torch.tensor(21))
    assert ids[:, 0].tolist() == [7, 44, 5, 20, 0, 0]
    assert logits[[0, 1, 3, 4, 5]].argmax(-1).tolist() == [7, 44, 20, 0, 0]
    assert finished.tolist() == [False, True, True, False, False, False]
    assert torch.equal(ring[:, 21 % 8], ids[:, 0])
    assert int((ring == -7).sum()) == 6 * 7


@pytest.mark.component
def test_the_kernels_compile_for_gpus(tmp_path) -> None:
    """Which GPU it is for does not matter to Triton: nothing is run."""
    pytest.importorskip("triton", reason="needs Triton, which exists for Linux")
    kept = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(PROJECT_ROOT / "tests" / "compile_kernels.py")]
    answer = subprocess.run(command, capture_output=True, text=True, env=kept, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "product_kernel for 80" in answer.stdout
    assert "choose_kernel for 90" in answer.stdout

"""Generation on RetLab's own kernels, by Triton's interpreter."""

import pytest
import torch
from tests.interpreted import take_kernels
from tests.models.small import small_ids, small_model
from tests.models.writing import ARCHITECTURES, check


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_on_our_kernels_it_writes_the_same(architecture: str, batch: int, monkeypatch, ours) -> None:
    """By Triton's interpreter: a GPU takes them in bfloat16."""
    launched = take_kernels(monkeypatch)
    model = small_model(architecture, pad_token_id=0)
    ids = small_ids(batch, 9)
    written = check(model, ids, max_new_tokens=7, do_sample=False)
    ends = [int(written[0, 11]), int(written[-1, 13])]
    check(model, ids, max_new_tokens=7, do_sample=False, eos_token_id=ends)
    check(model, ids, max_new_tokens=2, do_sample=True, top_k=0)
    assert len(ours) == 3
    expected = {"product_kernel", "rotation_kernel", "choose_kernel"} | ({"norm_kernel"} if batch > 1 else set())
    if architecture != "transformer":
        expected |= {"step_kernel", "gated_norm_kernel"}
    assert set(launched) == expected


def _with_biases(model) -> None:
    model.lm_head.bias = torch.nn.Parameter(torch.randn(40))


def _with_another_norm(model) -> None:
    model.body.norm = torch.nn.LayerNorm(16)


def _with_biased_blocks(model) -> None:
    for block in model.body.blocks:
        for name in ("fc1", "fc2", "q_proj", "v_proj", "out_proj"):
            linear = getattr(block.mixer, name, None)
            if linear is not None:
                linear.bias = torch.nn.Parameter(torch.randn(linear.out_features))


@pytest.mark.parametrize("changed", [_with_biases, _with_another_norm, _with_biased_blocks])
def test_what_our_kernels_do_not_know_is_not_left_out(changed, monkeypatch, ours) -> None:
    """Also where the model has written with them before."""
    launched = take_kernels(monkeypatch)
    model, ids = small_model("retnet", pad_token_id=0), small_ids(2, 9)
    check(model, ids, max_new_tokens=3, do_sample=False)
    changed(model)
    check(model, ids, max_new_tokens=6, do_sample=False)
    assert len(ours) == 2
    assert "product_kernel" in launched

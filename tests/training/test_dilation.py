"""Notes about branches are true of what the mixer computes, and nothing is said where all is well."""

from pathlib import Path

import pytest
import torch
from tests.training.conftest import MODEL, make_request
from tests.training.test_run_folder import check, command, config_of

from retlab.mixers.dilated_attention import dilated_attention
from retlab.mixers.dilated_slots import Branch
from retlab.models.fields import HybridFields, LongNetFields, RetNetFields
from retlab.training.dilation import branch_notes, dilation_notes
from retlab.training.trainer import train

TOKENS = 24


def notes(branches: list[tuple[int, int]], heads: int) -> list[str]:
    return list(branch_notes([Branch(*one) for one in branches], heads, TOKENS))


def reads(branches: list[tuple[int, int]], heads: int) -> torch.Tensor:
    """Which token's output depends on which token's value, by head: (heads, tokens, tokens)."""
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, TOKENS, TOKENS, generator=random, dtype=torch.float64) for _ in range(2))
    # Every value in a channel of its own.
    v = torch.eye(TOKENS, dtype=torch.float64).expand(1, heads, -1, -1)
    return dilated_attention(q, k, v, [Branch(*one) for one in branches])[0][0] > 0


@pytest.mark.parametrize(
    ("branches", "heads", "parts"),
    [
        ([(4, 1), (24, 2)], 4, []),
        ([(4, 1), (8, 2), (24, 4)], 4, []),
        ([(4, 1), (24, 6)], 4, ["4 heads keep 4 of every 6 tokens, and the other 2"]),
        ([(4, 1), (48, 2)], 4, ["windows have 24 tokens"]),
        ([(24, 2), (48, 4), (5, 1)], 4, ["in windows of 24 tokens it reads nothing that branch 24/2"]),
        ([(4, 2), (8, 1)], 4, ["in windows of 24 tokens it reads nothing that branch 8/1"]),
        ([(8, 1), (48, 30)], 40, ["a head keeps one token"]),
        ([(6, 6), (8, 1)], 6, ["a head keeps one token"]),
        ([(4, 2), (9, 3)], 3, ["a head is silent (its output is zero) at up to 33% of the tokens"]),
    ],
)  # fmt: skip
def test_what_is_said_is_so(branches: list[tuple[int, int]], heads: int, parts: list[str]) -> None:
    found = notes(branches, heads)
    assert len(found) == len(parts), found
    for note, part in zip(found, parts, strict=True):
        assert part in note
    both = reads(branches, heads)
    for branch in branches:
        alone, others = reads([branch], heads), [one for one in branches if one != branch]
        name = f"{branch[0]}/{branch[1]} "
        about = [note for note in found if f"attention, branch {name}" in note]
        adds = bool((both & ~reads(others, heads)).any()) if others else True
        only_itself = not bool((alone & ~torch.eye(TOKENS, dtype=torch.bool)).any())
        dropped = not bool(alone.any(dim=2).any(dim=0).all())
        assert any("reads itself alone" in note for note in about) == only_itself
        assert any("reads nothing that" in note for note in about) == (not adds and not only_itself)
        assert any("neither read nor are read" in note for note in about) == dropped
        if any("is trained as one of segment" in note for note in about):
            shorter = [(TOKENS, one[1]) if one == branch else one for one in branches]
            assert torch.equal(reads(shorter, heads), both)
    silent = (~both.any(dim=2)).double().mean(dim=1).max()
    assert any(f"up to {silent:.0%} of" in note for note in found) == bool(silent)


def test_the_mixers_of_every_architecture_are_asked() -> None:
    long = LongNetFields(hidden_size=16, num_attention_heads=2)
    assert [note.split(":")[1] for note in dilation_notes(long, 1024)] == [
        " dilated attention, branch 1024/4 (segment length/dilation ratio)"
    ]
    block = {"name": "dilated_attention", "num_heads": 2, "segment_lengths": [8], "dilation_ratios": [2]}
    assert len(dilation_notes(HybridFields(hidden_size=16, blocks=[block]), 8)) == 1
    assert dilation_notes(RetNetFields(hidden_size=16), 8) == []


def test_the_check_and_the_training_say_it(splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = "note: dilated attention, branch 32/2 (segment length/dilation ratio): windows have 16 tokens"
    lists = ["model.architecture=longnet", "model.segment_lengths=[4, 32]", "data.sequence_length=16"]
    check()(config_of(tmp_path, *lists, "model.dilation_ratios=[1, 2]"), command())
    assert capsys.readouterr().out.startswith(note)
    check()(config_of(tmp_path, *lists, "model.dilation_ratios=[1, 1]", "data.sequence_length=32"), command())
    assert "branch 4/1" in capsys.readouterr().out
    check()(config_of(tmp_path, "model.architecture=transformer"), command())
    assert capsys.readouterr().out == ""
    request = make_request(splits, "noted", max_steps=1)
    model = {key: value for key, value in MODEL.items() if key != "value_size"}
    model |= {"architecture": "longnet", "segment_lengths": [4, 32], "dilation_ratios": [1, 2]}
    said: list[str] = []
    train(request.model_copy(update={"model": model}), say=said.append, stop_requested=lambda: False)
    assert sum(line.startswith(note) for line in said) == 1

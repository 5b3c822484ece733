import pytest
import torch

from retlab.models import build_model
from retlab.models.configuration import RetNetConfig
from retlab.training import objectives


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = RetNetConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, value_size=8, intermediate_size=8
    )
    return build_model(config)


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(11, (3, 8), generator=generator)
    mask = torch.rand(3, 7, generator=generator) > 0.3
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 2]] * 3)
    return {"input_ids": ids[:, :-1], "targets": ids[:, 1:].clone(), "loss_mask": mask, "segment_ids": segments}


def test_next_token_is_the_sum_over_counted_tokens_by_hand(model):
    batch = make_batch()
    batch["targets"][0, 0] = objectives.IGNORED
    batch["loss_mask"][0, 0] = True
    logits = model(input_ids=batch["input_ids"], segment_ids=batch["segment_ids"]).logits.detach().double()
    expected, count = 0.0, 0
    for row in range(3):
        for place in range(7):
            target = int(batch["targets"][row, place])
            if batch["loss_mask"][row, place] and target != objectives.IGNORED:
                scores = logits[row, place]
                expected += float(torch.log(torch.exp(scores).sum()) - scores[target])
                count += 1
    result = objectives.NextToken()(model, batch)
    assert int(result.tokens) == count == int(objectives.count_tokens(batch))
    assert result.loss.item() == pytest.approx(expected, rel=1e-6)


def test_pieces_change_neither_loss_nor_gradient(model, monkeypatch):
    batch = make_batch()
    results = []
    for limit in (objectives.LOGITS_AT_ONCE, 11 * 5):
        monkeypatch.setattr(objectives, "LOGITS_AT_ONCE", limit)
        model.zero_grad()
        loss = objectives.NextToken()(model, batch).loss
        loss.backward()
        results.append((loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    (whole, whole_gradients), (pieces, piece_gradients) = results
    torch.testing.assert_close(whole, pieces, rtol=1e-6, atol=0)
    for one, other in zip(whole_gradients, piece_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_masked_targets_have_no_influence(model):
    batch = make_batch()
    before = objectives.NextToken()(model, batch).loss
    batch["targets"] = torch.where(batch["loss_mask"], batch["targets"], (batch["targets"] + 1) % 11)
    assert torch.equal(objectives.NextToken()(model, batch).loss, before)

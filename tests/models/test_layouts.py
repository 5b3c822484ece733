"""What documents mean to dilated attention is prepared once for all layers: against documents on their own."""

import pytest
import torch
from tests.mixers.oracles import relative_error
from tests.models.small import small_ids

from retlab.mixers import DilatedAttention
from retlab.models.causal_lm import MODELS

TOKENS = 50
# Rows with documents that begin and end in the middle of segments, and padding before, between and behind them.
SEGMENTS = torch.tensor(
    [
        [-1] * 3 + [0] * 11 + [-1] * 2 + [0] * 9 + [1] * 1 + [2] * 17 + [-1] * 7,
        [4] * 23 + [-1] * 1 + [6] * 2 + [7] * 24,
    ]
)


def _model():
    """Three layers of two kinds of dilated attention, of which one leaves heads silent."""
    torch.manual_seed(0)
    kinds = [((4, 10, 24), (1, 2, 4)), ((6, 20), (2, 3))]
    blocks = [
        {
            "name": "dilated_attention",
            "num_heads": 4,
            "segment_lengths": list(segments),
            "dilation_ratios": list(ratios),
        }
        for segments, ratios in kinds
    ]
    return MODELS["hybrid"](vocab_size=64, hidden_size=16, num_hidden_layers=3, blocks=blocks).double()


@pytest.fixture(params=["pairs", "branches"])
def calls(request, monkeypatch):
    """How often a layout is prepared, with either way to use it."""
    monkeypatch.setattr("retlab.mixers.dilated_pairs.CHEAP_PAIRS", {"pairs": 10**9, "branches": 0}[request.param])
    found, layout = [], DilatedAttention.layout

    def counted(self, *rest):
        found.append(self.layout_kind)
        return layout(self, *rest)

    monkeypatch.setattr(DilatedAttention, "layout", counted)
    return found


def _alone(model, ids):
    """The logits of every document by itself, whose blocks share nothing."""
    model.body.layout_kinds = [None] * len(model.body.layout_kinds)
    logits = torch.zeros(*SEGMENTS.shape, 64, dtype=torch.float64)
    for row, segments in enumerate(SEGMENTS):
        for document in segments.unique().tolist():
            if document >= 0:
                places = (segments == document).nonzero()[:, 0]
                own = model(ids[row, places][None], use_cache=False).logits[0]
                logits = logits.index_put((torch.tensor(row), places), own)
    return logits


def _with_gradients(model, logits):
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = (logits * weight * (SEGMENTS >= 0)[..., None]).sum()
    return [logits * (SEGMENTS >= 0)[..., None], *torch.autograd.grad(loss, list(model.parameters()))]


def _in_pieces(model, ids):
    cache, outputs, start = model.new_cache(), [], 0
    for size in (1, 8, 17, 1, 2, 20, 1):
        piece = slice(start, start + size)
        out = model(ids[:, piece], segment_ids=SEGMENTS[:, piece], past_key_values=cache, use_cache=True)
        outputs.append(out.logits)
        start += size
    assert start == TOKENS
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("pieces", [False, True])
def test_layers_that_share_a_layout_keep_documents_apart(calls, pieces):
    ids = small_ids()[:, :TOKENS]
    model = _model()
    run = _in_pieces if pieces else (lambda model, ids: model(ids, segment_ids=SEGMENTS, use_cache=False).logits)
    actual = _with_gradients(model, run(model, ids))
    # Six blocks of two kinds.
    assert len(calls) == 2 * (7 if pieces else 1)
    assert len(set(calls)) == 2
    expected = _with_gradients(model, _alone(model, ids))
    for mine, wanted in zip(actual, expected, strict=True):
        # Positions are in float32, and a document's differ alone.
        assert relative_error(mine, wanted) < 1e-5


def test_rows_without_documents_share_one_too(calls):
    ids = small_ids()[:, :TOKENS]
    model = _model()
    shared = model(ids, use_cache=False).logits
    assert len(calls) == 2
    model.body.layout_kinds = [None] * 6
    assert (model(ids, use_cache=False).logits - shared).abs().max() < 1e-12

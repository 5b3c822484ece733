"""What is compiled of a training, and how often."""

from functools import partial

import pytest
import torch

from retlab.models.causal_lm import RetNetModelHF
from retlab.training.compiling import compile_parts
from retlab.training.objectives import NextToken
from retlab.training.scored import Scored


def test_models_of_equal_shapes_share_their_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's worker compiles once for all trials of a size; depth costs no graph either."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    ids = torch.arange(32)[None]
    counts = []
    try:
        for width, depth in ((16, 2), (16, 3), (32, 2)):
            sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": 2}
            scored = Scored(RetNetModelHF(vocab_size=64, **sizes), NextToken())
            compile_parts(scored)
            scored({"input_ids": ids, "targets": ids, "loss_mask": ids >= 0}).loss.backward()
            counts.append(len(graphs))
    finally:
        torch._dynamo.reset()
    # Retention, gated linear unit, loss; and again for another width.
    assert counts == [3, 3, 6]

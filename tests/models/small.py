"""Small models and inputs of every architecture."""

import torch

from retlab.models.causal_lm import MODELS, CausalLM

SIZES = {
    "retnet": {"num_attention_heads": 2, "intermediate_size": 20, "chunk_size": 16},
    "transformer": {"num_attention_heads": 2, "intermediate_size": 20},
    "longnet": {
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "segment_lengths": [4, 12],
        "dilation_ratios": [1, 2],
    },
    "hybrid": {
        "blocks": [
            {"name": "retention", "num_heads": 2, "chunk_size": 16},
            {"name": "glu", "intermediate_size": 20},
            {"name": "attention", "num_heads": 2},
        ]
    },
}


def small_model(architecture: str, seed: int = 0, **changes) -> CausalLM:
    """A model of 40 words and width 16, in evaluation mode, the same for the same seed."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, **SIZES[architecture], **changes}
    return MODELS[architecture](**sizes).eval()


def small_ids(batch: int = 2, tokens: int = 50, seed: int = 1) -> torch.Tensor:
    """Token ids that leave 0 to padding."""
    return torch.randint(1, 40, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def padded(ids: torch.Tensor, amounts: list[int], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask with `amounts[row]` tokens of padding more on one side of each row, cut from the row's end."""
    tokens = ids.shape[1]
    out, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, amount in enumerate(amounts):
        place = slice(amount, None) if side == "left" else slice(0, tokens - amount)
        out[row, place], mask[row, place] = ids[row, : tokens - amount], 1
    return out, mask

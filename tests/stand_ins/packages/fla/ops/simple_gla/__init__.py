"""`chunk_simple_gla` in plain PyTorch, token by token: the documented signature and layout."""

import torch


def chunk_simple_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | None = None,
    g_gamma: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """q and k (batch, tokens, heads, key width), v (batch, tokens, heads, value width), g_gamma (heads,)."""
    assert (g, cu_seqlens, kwargs) == (None, None, {})
    assert g_gamma is not None
    assert g_gamma.dtype == torch.float32
    batch, tokens, heads, width = q.shape
    scale = width**-0.5 if scale is None else scale
    memory = initial_state
    if memory is None:
        memory = torch.zeros(batch, heads, width, v.shape[-1], dtype=torch.float32, device=q.device)
    decay, outputs = g_gamma.exp()[:, None, None], []
    for t in range(tokens):
        memory = decay * memory + k[:, t, :, :, None].float() * v[:, t, :, None, :].float()
        outputs.append((scale * q[:, t, :, None, :].float() @ memory)[:, :, 0])
    return torch.stack(outputs, dim=1).to(q.dtype), memory if output_final_state else None

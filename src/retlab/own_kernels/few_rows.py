"""Products of one token of a few rows with the norms, gates and sums around them, in few Triton kernels.

A GPU reads a layer's weights in less time than it takes to begin and end the small kernels between its products. Here
bfloat16 goes into a kernel and comes out, and what it computes between is float32. Of one row, the norm of its hidden
states is part of the product that reads them; of several, whose products are left to tensor cores, it is a kernel
before it.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from .early_launch import early_launch, wait_for_inputs
from .loading import tl, triton
from .trial import own_kernels_run

MOST_ROWS = 16
"""Rows that one program takes together: those of the smallest product of a tensor core."""

DTYPE = torch.bfloat16
"""Of hidden states and weights."""

CAPABILITY = (8, 0)
"""Compute capability from which tensor cores take them."""

SMALLEST_STEP = 16
"""Channels that the widths of products are multiples of, so that whole lines of memory are read."""

product_kernel: Any = None
norm_kernel: Any = None
gated_norm_kernel: Any = None

if triton is not None:

    @triton.jit
    def activated(x, activation: tl.constexpr):  # type: ignore[no-untyped-def]
        """The activations of the gated linear unit, by name."""
        if activation == "gelu":
            x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
        elif activation == "silu":
            x = x * tl.sigmoid(x)
        else:
            tl.static_assert(activation == "relu")
            x = tl.maximum(x, 0.0)
        return x

    @triton.jit
    def with_product(total, x, weight, tall: tl.constexpr):  # type: ignore[no-untyped-def]
        """`total` and the product of x (tall, step) with weights (block, step).

        Of one row the products are added up by `summed`, and tensor cores add up those of several.
        """
        if tall == 1:
            total += x.to(tl.float32) * weight.to(tl.float32)
        else:
            total = tl.dot(x.to(weight.dtype), weight.trans(), total)
        return total

    @triton.jit
    def summed(total, tall: tl.constexpr):  # type: ignore[no-untyped-def]
        """(tall, block) of what `with_product` gave."""
        return tl.sum(total, axis=1)[None, :] if tall == 1 else total

    # The same kernel for every number of rows but one.
    @triton.jit(do_not_specialize=["rows"])
    def product_kernel(  # type: ignore[no-untyped-def]
        x, norm, weight, residual, out, eps, rows, features, width: tl.constexpr,
        normed: tl.constexpr, activation: tl.constexpr, added: tl.constexpr, early: tl.constexpr,
        tall: tl.constexpr, block: tl.constexpr, step: tl.constexpr,
    ):  # fmt: skip
        """`block` features of all rows: `added_product`, and `normed_product` of one row or of what is normed."""
        row, feature = tl.arange(0, tall), tl.program_id(0) * block + tl.arange(0, block)
        is_row, is_feature = (row < rows)[:, None], (feature < features)[:, None]
        squares = tl.zeros([tall, step], tl.float32)
        product = tl.zeros([block if tall == 1 else tall, step if tall == 1 else block], tl.float32)
        gate = product
        if tall > 1:
            # Here, because within the loop it would keep Triton from reading ahead.
            wait_for_inputs(early)
        for start in range(0, width, step):
            channel = start + tl.arange(0, step)[None, :]
            inside = channel < width
            place = weight + feature.to(tl.int64)[:, None] * width + channel
            own = tl.load(place, mask=is_feature & inside, other=0.0)
            if activation is not None:
                # The gate's weights come after all of the other's.
                others = tl.load(place + features.to(tl.int64) * width, mask=is_feature & inside, other=0.0)
            if normed:
                scale = tl.load(norm + channel, mask=inside, other=0.0).to(tl.float32)
            if tall == 1:
                wait_for_inputs(early)
            read = tl.load(x + row[:, None] * width + channel, mask=is_row & inside, other=0.0)
            if normed:
                read = read.to(tl.float32)
                squares += read * read
                # The row's own factor comes last, for one pass over the row.
                read *= scale
            product = with_product(product, read, own, tall)
            if activation is not None:
                gate = with_product(gate, read, others, tall)
        product, gate = summed(product, tall), summed(gate, tall)
        if normed:
            factor = tl.rsqrt(tl.sum(squares, axis=1) / width + eps)[:, None]
            product, gate = product * factor, gate * factor
        if activation is not None:
            product = activated(product, activation) * gate
        place, inside = row[:, None] * features + feature[None, :], is_row & (feature < features)[None, :]
        if added:
            product += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, product.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def norm_kernel(  # type: ignore[no-untyped-def]
        x, norm, out, eps, width: tl.constexpr, wide: tl.constexpr, early: tl.constexpr
    ):
        """The norm of one row."""
        channel = tl.arange(0, wide)
        inside, start = channel < width, tl.program_id(0) * width
        scale = tl.load(norm + channel, mask=inside, other=0.0).to(tl.float32)
        wait_for_inputs(early)
        read = tl.load(x + start + channel, mask=inside, other=0.0).to(tl.float32)
        read *= tl.rsqrt(tl.sum(read * read, axis=0) / width + eps) * scale
        tl.store(out + start + channel, read.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def gated_norm_kernel(  # type: ignore[no-untyped-def]
        x, gate, gate_row, out, eps, heads, width: tl.constexpr, wide: tl.constexpr, early: tl.constexpr
    ):
        """`gated_norm_of_one_token` for one head of one row."""
        row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
        channel = tl.arange(0, wide)
        inside = channel < width
        wait_for_inputs(early)
        read = tl.load(x + tl.program_id(0) * width + channel, mask=inside, other=0.0)
        opening = tl.load(gate + row * gate_row + head * width + channel, mask=inside, other=0.0).to(tl.float32)
        gated = opening * tl.sigmoid(opening) * read * tl.rsqrt(tl.sum(read * read, axis=0) / width + eps)
        tl.store(out + tl.program_id(0) * width + channel, gated.to(out.dtype.element_ty), mask=inside)


class Tile(NamedTuple):
    """How a product is shared out."""

    block: int
    "Features of a program."
    step: int
    "Channels that it reads at a time."
    warps: int
    stages: int
    "Steps of which the memory is being read at once."


def tile_for(rows: int, features: int, width: int, matrices: int) -> Tile:
    """What was fastest on an H200, or nearly so, for widths of 1,024 and 2,048, as far as the width allows it.

    `matrices` is 2 where every feature is made of two. A program needs no more than the 99 KiB that the
    multiprocessors of smaller GPUs have for it, and the registers of all.
    """
    if rows == 1:
        most = 4096 if matrices == 1 and width <= 4096 else 2048
        return Tile(4, min(most, triton.next_power_of_2(width)), 4, 1)
    if features >= 16_384:
        tile = Tile(64 // matrices, 128, 2, 3)
    elif matrices == 1 and features <= 2_048:
        tile = Tile(16, 512, 2, 4)
    else:
        tile = Tile(16, 256, 1, 4)
    return tile._replace(step=min(tile.step, width & -width))


def fits_few_rows(hidden: torch.Tensor, norm: nn.Module, *maps: torch.Tensor | nn.Module | None) -> bool:
    """Whether the kernels take hidden (rows, 1, hidden_size), its norm, and products with these maps or weights."""
    if not (own_kernels_run(hidden.device) and hidden.dtype == DTYPE and torch.version.hip is None):
        return False
    if torch.cuda.get_device_capability(hidden.device) < CAPABILITY:
        return False
    if hidden.shape[0] > MOST_ROWS or hidden.shape[1] != 1:
        return False
    weights = [norm.weight if isinstance(norm, nn.RMSNorm) else None, *map(_weight_alone, maps)]
    return all(
        x is not None and x.dtype == DTYPE and x.is_contiguous() and x.shape[-1] % SMALLEST_STEP == 0
        for x in (hidden, *weights)
    )


def _weight_alone(linear: torch.Tensor | nn.Module | None) -> torch.Tensor | None:
    """The weight of a linear map that has nothing else, or what is a weight already."""
    if isinstance(linear, nn.Linear):
        return linear.weight if linear.bias is None else None
    return linear if isinstance(linear, torch.Tensor) else None


def normed_product(
    hidden: torch.Tensor,
    norm: nn.RMSNorm,
    weight: torch.Tensor,
    activation: str | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The norm of hidden (rows, 1, width) times weight (features, width): (rows, 1, features), written to `out` if any.

    With an activation it is what a gated linear unit has before its last product: weight (2 x features, width) then
    has what is activated, and after it what that is multiplied with.
    """
    rows, _, width = hidden.shape
    features = len(weight) if activation is None else len(weight) // 2
    if rows > 1:
        normed = torch.empty_like(hidden)
        norm_kernel[(rows,)](
            hidden, norm.weight, normed, norm.eps, width=width, wide=triton.next_power_of_2(width),
            **early_launch(hidden.device),
        )  # fmt: skip
        hidden = normed
    out = hidden.new_empty(rows, 1, features) if out is None else out
    return _product(hidden, weight, out, norm=norm if rows == 1 else None, activation=activation)


def added_product(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """residual (rows, 1, features) plus x (rows, 1, width) times weight (features, width)."""
    return _product(x, weight, torch.empty_like(residual), residual=residual)


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    *,
    norm: nn.RMSNorm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    (rows, _, width), features = x.shape, out.shape[-1]
    tile = tile_for(rows, features, width, len(weight) // features)
    product_kernel[(triton.cdiv(features, tile.block),)](
        x, x if norm is None else norm.weight, weight, x if residual is None else residual, out,
        0.0 if norm is None else norm.eps, rows, features, width=width,
        normed=norm is not None, activation=activation, added=residual is not None,
        tall=1 if rows == 1 else MOST_ROWS, block=tile.block, step=tile.step,
        num_warps=tile.warps, num_stages=tile.stages, **early_launch(x.device),
    )  # fmt: skip
    return out


def gated_norm_of_one_token(x: torch.Tensor, gate: torch.Tensor, eps: float) -> torch.Tensor:
    """`gated_norm` of x (rows, heads, 1, width) float32 and gate (rows, 1, heads x width), whose rows may lie apart."""
    rows, heads, _, width = x.shape
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    gated_norm_kernel[(rows * heads,)](
        x, gate, gate.stride(0), out, eps, heads, width=width, wide=triton.next_power_of_2(width),
        **early_launch(x.device),
    )  # fmt: skip
    return out

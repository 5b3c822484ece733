"""Kernels of other packages in the place of a mixer's plain form: what each needs, and its call in our layout.

They change speed and rounding alone. Nothing here is imported before a kernel is asked for.
"""

import importlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .base import Mixer
from .retention_forms import RetentionState

KernelFunction = Callable[..., Any]

# What the kernels below compute on and in. Their float32 is missing (flash-attn) or that of TF32 (fla).
KERNEL_DEVICES = ("cuda",)
KERNEL_DTYPES = (torch.bfloat16, torch.float16)


class Kernel(NamedTuple):
    """A kernel of another package, and the setting that chooses it."""

    name: str
    setting: str
    plain: str
    """The setting's value for the plain form."""
    title: str
    package: str
    """What pip installs."""
    module: str
    """Where `function` is."""
    function: str
    oldest: tuple[int, int]
    """First version with everything that is called here."""
    keeps_graph: tuple[int, int] | None
    """First version that torch.compile compiles around without a break, if any does."""
    widest: int
    """Most channels of a head's keys."""


class Obstacle(NamedTuple):
    """Why a kernel cannot run, and what to change if it should."""

    reason: str
    remedy: str


KERNELS = {
    "attention": Kernel(
        "flash_attn", "attention_kernel", "sdpa", "flash-attn", "flash-attn --no-build-isolation",
        "flash_attn", "flash_attn_func", oldest=(2, 5), keeps_graph=(2, 7), widest=256,
    ),
    "retention": Kernel(
        "fla", "retention_kernel", "torch", "flash-linear-attention", "flash-linear-attention==0.6.0",
        "fla.ops.simple_gla", "chunk_simple_gla", oldest=(0, 6), keeps_graph=None, widest=256,
    ),
}  # fmt: skip
"""By the mixer that can run on them."""


def kernel_version(kernel: Kernel) -> tuple[int, ...]:
    """Version of the package, such as (2, 8, 3); raises what importing it raises."""
    version = str(importlib.import_module(kernel.module.partition(".")[0]).__version__)
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def package_obstacle(kernel: Kernel) -> Obstacle | None:
    """Why the package cannot be used on this machine, None where it can."""
    install = f"install it with pip install {kernel.package}"
    try:
        version = kernel_version(kernel)
        if version < kernel.oldest:
            found, needed = (".".join(map(str, numbers)) for numbers in (version, kernel.oldest))
            return Obstacle(f"{kernel.title} {found} is older than {needed}", f"pip install -U {kernel.package}")
        load_kernel(kernel)
    except ModuleNotFoundError as error:
        missing, top = error.name or kernel.module, kernel.module.partition(".")[0]
        if missing == top:
            return Obstacle(f"{kernel.title} is not installed", install)
        return Obstacle(f"{kernel.title} needs {missing}, which is not installed", f"pip install {missing}")
    except Exception as error:
        # A package built for another torch fails in its own way, with an ImportError, an OSError or a RuntimeError.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Obstacle(f"{kernel.title} is installed but cannot be imported ({lines[0]})", f"re{install}")
    return None


def load_kernel(kernel: Kernel) -> KernelFunction:
    """The kernel's function; raises what importing it raises."""
    function: KernelFunction = getattr(importlib.import_module(kernel.module), kernel.function)
    return function


def use_kernel(mixer: Mixer, kernel: Kernel) -> Obstacle | None:
    """Have a mixer run on a kernel wherever the kernel can; or leave it as it is, and say why."""
    obstacle = package_obstacle(kernel)
    if obstacle is None:
        mixer.kernel = load_kernel(kernel)
    return obstacle


def can_run(function: KernelFunction | None, x: torch.Tensor, segment_ids: torch.Tensor | None) -> bool:
    """Whether there is a kernel, and it computes on inputs such as x."""
    known = function is not None and segment_ids is None
    return known and x.device.type in KERNEL_DEVICES and x.dtype in KERNEL_DTYPES


def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float, function: KernelFunction | None
) -> torch.Tensor:
    """Causal softmax attention of q, k, v (batch, heads, tokens, head width), on flash-attn where that can run."""
    if function is None or not can_run(function, q, None):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    # flash-attn: (batch, tokens, heads, head width), scaled by the root of the head width as PyTorch's.
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out: torch.Tensor = function(q, k, v, dropout_p=dropout, causal=True)
    return out.transpose(1, 2)


def kernel_retention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    state: RetentionState | None,
    function: KernelFunction,
) -> tuple[torch.Tensor, RetentionState]:
    """`retention` of tokens that all continue one document, on flash-linear-attention's `chunk_simple_gla`.

    Its layout is (batch, tokens, heads, width), its memory (batch, heads, key width, value width) in float32, and its
    recurrence S_n = exp(g_gamma) S_(n-1) + k_n^T v_n, out_n = scale q_n S_n. Autocast does not reach into it.
    """
    q, k, v = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
    # The keys are scaled already.
    out, memory = function(
        q,
        k,
        v,
        g_gamma=log_decay.to(torch.float32),
        scale=1.0,
        initial_state=None if state is None else state.memory,
        output_final_state=True,
    )
    return out.transpose(1, 2), RetentionState(memory.to(torch.float32))

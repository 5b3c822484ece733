"""Which kernel every mixer of a model runs on and why, decided in one place and told in one line per kind of mixer."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from retlab.errors import UserError
from retlab.mixers import MIXERS, Attention, DilatedAttention, Mixer, Retention
from retlab.mixers.kernels import (
    KERNEL_DEVICES,
    KERNEL_DTYPES,
    KERNELS,
    Kernel,
    Obstacle,
    kernel_version,
    load_kernel,
    package_obstacle,
)
from retlab.models.fields import ModelFields

FASTER = 0.95
"""The share of the plain form's time that a kernel may take under `auto`: nearer ones swap places by chance."""


class KernelUse(NamedTuple):
    """What decides, beside the model, whether a kernel can run and is faster."""

    device: str
    "Type of the device."
    dtype: torch.dtype
    "Of the products."
    tokens: int
    "Of a window."
    documents: bool
    "Whether documents of a row are kept apart."
    compiled: bool
    "Whether the blocks are compiled."


class KernelChoice(NamedTuple):
    """What one kind of mixer runs on; `line` says it and why."""

    mixer: str
    kernel: Kernel | None
    line: str


Timing = Callable[[Mixer, Kernel], tuple[float, float] | str]
"""Milliseconds of one layer's core, forward and backward, on the kernel and in the plain form; or why not."""


def choose_kernels(
    body: torch.nn.Module,
    model: ModelFields,
    use: KernelUse,
    timing: Timing | None = None,
    refuse: bool = True,
    settled: Mapping[str, str] | None = None,
) -> list[KernelChoice]:
    """What each kind of mixer of a body runs on, in the order of the mixers' table.

    Args:
        body: the blocks, with or without storage behind their weights.
        model: its `attention_kernel` and `retention_kernel`, as far as it has them.
        use: the machine and the shape.
        timing: measures a kernel that could run under `auto`; without it, `auto` takes the plain form.
        refuse: whether a kernel that is asked for by name and cannot run is an error; or else told in the line.
        settled: what an earlier choice took by measuring, by the mixers' names; kept where it still can run.

    Raises:
        UserError: a kernel is asked for by name and cannot run, under `refuse`.
    """
    choices, refused = [], []
    for name, kind in MIXERS.items():
        mixers = [module for module in body.modules() if type(module) is kind]
        if not mixers:
            continue
        try:
            kernel, why = _choose(name, mixers, model, use, timing, settled)
        except KernelRefused as error:
            refused.append(error.sentence)
            kernel, why = None, error.reason
        choices.append(KernelChoice(name, kernel, f"{name.replace('_', ' ')}: {_path(mixers, kernel, use)} ({why})"))
    if refused and refuse:
        raise UserError("\n".join(refused))
    return choices


def run_on(model: torch.nn.Module, kernels: Mapping[str, str]) -> None:
    """Have the mixers of a model run on these kernels, by the mixers' names; those not named, in the plain form."""
    for name, kernel in KERNELS.items():
        function = load_kernel(kernel) if name in kernels else None
        for module in model.modules():
            if type(module) is MIXERS[name]:
                module.kernel = function


def _choose(
    name: str,
    mixers: list[Mixer],
    model: ModelFields,
    use: KernelUse,
    timing: Timing | None,
    settled: Mapping[str, str] | None,
) -> tuple[Kernel | None, str]:
    """A kernel, None for the plain form, and why."""
    kernel = KERNELS.get(name)
    if kernel is None:
        return None, "the only kernel that it has"
    asked = getattr(model, kernel.setting, "auto")
    if asked == kernel.plain:
        return None, "as configured"
    obstacle = kernel_obstacle(kernel, mixers, use)
    if asked == kernel.name:
        if obstacle is not None:
            raise KernelRefused(kernel, obstacle)
        return kernel, "as configured"
    if obstacle is not None:
        return None, obstacle.reason
    if settled is not None:
        return (kernel if name in settled else None), "as this training began"
    return _faster(kernel, mixers[0], use, timing)


class KernelRefused(Exception):
    """A kernel that is asked for by name cannot run; says why, and all that would have to change."""

    def __init__(self, kernel: Kernel, obstacle: Obstacle) -> None:
        reason, remedy = obstacle
        package = package_obstacle(kernel)
        if package is not None and package != obstacle:
            reason = f"{reason}, and {package.reason.replace(kernel.title, 'it', 1)}"
            remedy = f"{remedy} and {package.remedy}"
        self.reason = f"{kernel.name} is configured, but {reason}"
        self.sentence = (
            f"model.{kernel.setting} is {kernel.name}, but {reason}; {remedy}, or set it to auto or {kernel.plain}"
        )
        super().__init__(self.sentence)


def _faster(kernel: Kernel, mixer: Mixer, use: KernelUse, timing: Timing | None) -> tuple[Kernel | None, str]:
    """Of a kernel that can run and the plain form the faster one."""
    if use.compiled and kernel.keeps_graph is None:
        # Measured on an H100: 240,000 tokens/s in plain PyTorch, 192,000 around this kernel, which breaks the graph of
        # every layer.
        return None, f"faster than {kernel.title} under torch.compile"
    if use.compiled and kernel.keeps_graph is not None and kernel_version(kernel) < kernel.keeps_graph:
        oldest = ".".join(map(str, kernel.keeps_graph))
        return None, f"{kernel.title} before {oldest} interrupts compiled code; update it"
    if timing is None:
        return None, f"{kernel.title} is not measured here; {kernel.setting}: {kernel.name} takes it"
    times = timing(mixer, kernel)
    if isinstance(times, str):
        return None, f"{kernel.title} failed when it was measured here: {times}"
    ours, plain = times
    if ours < FASTER * plain:
        return kernel, f"measured here: {ours:.2f} ms a layer, PyTorch's {plain:.2f}"
    return None, f"measured here: {plain:.2f} ms a layer, {kernel.title} {ours:.2f}"


def kernel_obstacle(kernel: Kernel, mixers: list[Mixer], use: KernelUse) -> Obstacle | None:
    """Why these mixers cannot run on a kernel, the machine's reasons first: another package would not help."""
    if use.device not in KERNEL_DEVICES:
        return Obstacle(f"{kernel.title} needs a GPU", "train on one")
    if any(isinstance(mixer, Retention) and mixer.torchscale_normalizer for mixer in mixers):
        return Obstacle(
            f"{kernel.title} does not compute TorchScale's normaliser", "set model.torchscale_normalizer to false"
        )
    if use.dtype not in KERNEL_DTYPES:
        return Obstacle(f"{kernel.title} computes in bf16 and not in float32", "set the precision to bf16")
    width = max(_key_width(mixer) for mixer in mixers)
    if width > kernel.widest:
        return Obstacle(
            f"{kernel.title} takes heads of at most {kernel.widest} channels, and these have {width}",
            "raise model.num_attention_heads",
        )
    if use.documents:
        return Obstacle(
            f"{kernel.title} would wait for the GPU to find the documents of a row",
            "let rows be read across documents with data.reset_at_documents false",
        )
    return package_obstacle(kernel)


def _key_width(mixer: Mixer) -> int:
    assert isinstance(mixer, Attention | Retention)
    return mixer.key_width if isinstance(mixer, Retention) else mixer.head_width


def _path(mixers: list[Mixer], kernel: Kernel | None, use: KernelUse) -> str:
    """What computes, in words."""
    pytorch = "compiled PyTorch" if use.compiled else "PyTorch"
    if kernel is not None:
        form = "chunkwise, " if isinstance(mixers[0], Retention) else ""
        return f"{form}{kernel.title} {'.'.join(map(str, kernel_version(kernel)))}"
    mixer = mixers[0]
    if isinstance(mixer, Retention):
        forms = dict.fromkeys(_form(one, use.tokens) for one in mixers if isinstance(one, Retention))
        return f"{' and '.join(forms)}, {pytorch}"
    if isinstance(mixer, Attention):
        mask = " with a mask that keeps documents apart" if use.documents else ""
        return f"PyTorch's scaled dot product attention{mask}"
    if isinstance(mixer, DilatedAttention):
        branches = dict.fromkeys(
            " + ".join(f"{segment}/{ratio}" for segment, ratio in one.branches)
            for one in mixers
            if isinstance(one, DilatedAttention)
        )
        return f"segments/ratios {' and '.join(branches)}, {pytorch}"
    return f"matrix products, {pytorch}"


def _form(mixer: Retention, tokens: int) -> str:
    if mixer.torchscale_normalizer:
        return "parallel form with TorchScale's normaliser"
    form = mixer.form_for(tokens)
    return f"chunkwise, chunks of {mixer.chunk_size} tokens" if form == "chunkwise" else f"{form} form"

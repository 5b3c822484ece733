"""What `generate()` must know of a model before it goes its own way: who has a say in it, and which weights it has."""

from typing import Any

import torch
from torch import nn

from ..mixers import Mixer
from ..mixers.projections import Projection
from .body import Block, Body, Norm


def is_plain(model: Any) -> bool:
    """Whether the model computes what its classes say, with weights of its own on one device, and nobody watches."""
    if model.training or torch.compiler.is_compiling():
        return False
    device = model.lm_head.weight.device
    if torch.is_autocast_enabled(device.type) or device.type not in ("cpu", "cuda"):
        return False
    if not all(block.mixer.can_advance for block in model.body.blocks):
        return False
    modules = _modules(model)
    if any(type(weight) is not nn.Parameter or weight.device != device for weight in _weights(modules)):
        return False
    return not any(map(_is_watched, modules)) and all(map(_is_known, {type(module) for module in modules[1:]}))


def _modules(model: nn.Module) -> list[nn.Module]:
    """The model and all that it consists of: `modules()`, in a tenth of the time, for which a GPU would wait."""
    found = [model]
    for module in found:
        found += [child for child in module._modules.values() if child is not None]
    return found


def _is_known(kind: type) -> bool:
    """Whether nothing but weights decides what such a module computes: others', such as adapters, can be switched."""
    ours = issubclass(kind, (Body, Block, Mixer, Norm, Projection))
    return ours or kind.__module__.startswith("torch.nn.modules.")


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody wants to be called, or to be called instead."""
    own = vars(module)
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own or "_hf_hook" in own)


def _weights(modules: list[nn.Module]) -> list[torch.Tensor]:
    return [weight for module in modules for weight in module._parameters.values() if weight is not None]


def identity_of(model: Any) -> Any:
    """What a recording depends on beside the numbers in the weights."""
    weights = tuple((weight.data_ptr(), weight.dtype, weight.device) for weight in _weights(_modules(model)))
    forms = tuple(block.mixer.form for block in model.body.blocks)
    products = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32
    return weights, forms, products, torch.are_deterministic_algorithms_enabled()

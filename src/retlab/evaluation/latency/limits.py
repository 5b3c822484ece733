"""What keeps a context from being measured: positions that a model has no more of, and memory."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from retlab.memory import described_memory

_POSITION_NAMES = ("pos", "wpe")
"""Parts of what transformers' models call their tables of positions: embed_positions, position_embeddings, wpe."""

_MOST_OFFSET = 8
"""Rows beside the positions that tables of positions have: OPT's has two."""

_SPARE = 0.95
"""The share of the memory that is free which may be taken: the rest is for what is no tensor."""

_GROUPS = Path("/sys/fs/cgroup")


def learned_positions(model: PreTrainedModel) -> int | None:
    """How many positions the model has learned a vector for; None where positions are computed, as rotary ones are."""
    window = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(window, int):
        return None
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and any(word in name for word in _POSITION_NAMES)
    ]
    return window if any(0 <= rows - window <= _MOST_OFFSET for rows in tables) else None


def least_bytes(model: PreTrainedModel, tokens: int, in_pieces: bool) -> int:
    """Memory that so many tokens take at the least, whatever the model does: to know what need not be tried.

    Args:
        model: the model.
        tokens: of all sequences.
        in_pieces: whether the model reads them piece by piece, or has two vectors of each at once.
    """
    words: Any = model.get_input_embeddings()
    ids_and_mask = 2 * torch.int64.itemsize
    return tokens * (ids_and_mask + (0 if in_pieces else 2 * words.embedding_dim * words.weight.itemsize))


@contextlib.contextmanager
def memory_ceiling(device: torch.device) -> Iterator[None]:
    """On a CPU, have allocations beyond the memory that is free raise an error, as a GPU's do.

    Without that, Linux promises memory that it has not, and ends the process that uses it. Other systems know no such
    limit.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    ceiling = psutil.Process().memory_info().data + int(_SPARE * free_memory())
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([ceiling, *limits]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def all_memory(device: torch.device) -> int:
    """Bytes of the GPU or of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def described_room(device: torch.device) -> str:
    """The memory that there was for a cell, in words."""
    if device.type == "cuda":
        return described_memory("gpu")
    return f"the {free_memory() / 2**30:.1f} GiB that are free of {described_memory('machine')}"


def free_memory() -> int:
    """Bytes that this machine can give to this process, or its control group: a container's, or a job's of Slurm."""
    resident = psutil.Process().memory_info().rss
    return min([psutil.virtual_memory().available, *(max(0, limit - resident) for limit in _group_limits())])


def _group_limits() -> Iterator[int]:
    """Bytes that each control group around this process may have, in version 1 or 2, where there is a limit."""
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (_GROUPS / "memory", "memory.limit_in_bytes") if controllers else (_GROUPS, "memory.max")
        folder = root / path.lstrip("/")
        # A container sees its own group as the root, and may not see the path to it.
        for place in [folder, *folder.parents]:
            if place.is_relative_to(root):
                with contextlib.suppress(OSError, ValueError):
                    yield int((place / name).read_text())

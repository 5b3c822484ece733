"""Whether RetLab's own Triton kernels run on a GPU: asked once, by running one.

torch brings Triton along where it is built for GPUs, and Triton wants a C compiler, which not every machine has.
"""

import threading

import torch

from .rotation import kernel_rotation, rotation_kernel

_runs: dict[int | None, bool] = {}
_one_at_a_time = threading.Lock()


def own_kernels_run(device: torch.device) -> bool:
    """What `try_own_kernels` found; False where it was not called."""
    return device.type == "cuda" and _runs.get(device.index, False)


def try_own_kernels(device: torch.device) -> None:
    """Find out whether the kernels run on a device; where they do not, a warning says why, once for every GPU."""
    if device.type != "cuda":
        return
    with _one_at_a_time:
        if device.index not in _runs:
            _runs[device.index] = rotation_kernel is not None and _rotates(device)


def _rotates(device: torch.device) -> bool:
    try:
        with torch.cuda.device(device):
            turns = torch.zeros(2, device=device, dtype=torch.float64)
            kernel_rotation(torch.zeros(1, 1, device=device, dtype=torch.int64), turns)
    # Whatever a missing compiler, an old driver or a folder that cannot be written to makes of it.
    except Exception as error:
        # Counting parameters needs no transformers.
        from transformers.utils import logging

        reason = str(error).strip().partition("\n")[0]
        logging.get_logger(__name__).warning(f"Generation goes on without RetLab's own kernels, slower: {reason}")
        return False
    return True

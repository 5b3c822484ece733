"""Kernels of a chain that begin while the one before them ends: NVIDIA's programmatic dependent launch.

From Hopper on a kernel may be put on its multiprocessors early, read there what no kernel shortly before it writes, and
then wait for what is left of the one before it. It lets the next begin when its own wait is over, so that everything
but its predecessor has ended by then, and what it reads before it waits must be no work of that one: weights, or the
state that the last token left.
"""

from typing import Any

import torch

from .loading import tl, triton

OLDEST = (9, 0)
"""Compute capability from which there is such a launch."""

wait_for_inputs: Any = None

if triton is not None:

    @triton.jit
    def wait_for_inputs(early: tl.constexpr):  # type: ignore[no-untyped-def]
        """Go on when the kernel before has ended; nothing may be written before."""
        if early:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()


def early_launch(device: torch.device) -> dict[str, bool]:
    """What a kernel with the parameter `early` is launched with on this device."""
    # Inductor has launches of its own.
    can = not torch.compiler.is_compiling() and device.type == "cuda" and torch.version.hip is None
    if can and torch.cuda.get_device_capability(device) >= OLDEST:
        return {"early": True, "launch_pdl": True}
    return {"early": False}

"""Sine, cosine, exponential, logarithms and root on a CPU, ready before several threads ask for them at once."""

import torch

PREPARED = (torch.sin, torch.cos, torch.exp, torch.log, torch.log2, torch.log1p, torch.sqrt)
"""Those that the models compute of whole tensors, or that a function such as logsumexp computes for them."""


def prepare_elementary_functions() -> None:
    """Call each function once, from one thread.

    PyTorch lets oneMKL compute them, which chooses the code for each when it is first called. In oneMKL before 2025.0,
    which PyTorch's wheels contain, one of two threads that make this call together may run code of low accuracy, that
    one time: half of the cosines of a rotation are then off by 1e-4, and of two trainings of one configuration one goes
    another way from the first step on (https://github.com/pytorch/pytorch/issues/188792).
    """
    for dtype in (torch.float32, torch.float64):
        # On the CPU whatever the default device is; one number is never shared out to threads.
        one = torch.ones(1, dtype=dtype, device="cpu")
        for function in PREPARED:
            function(one)

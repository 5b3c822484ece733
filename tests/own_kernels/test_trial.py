"""Own kernels are tried once on each GPU."""

import contextlib

import torch
from transformers.utils import logging

from retlab.own_kernels import trial


def test_our_kernels_are_told_to_be_out_of_order_once(monkeypatch) -> None:
    """As where Triton finds no C compiler."""

    def broken(*_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(trial, "_runs", {})
    monkeypatch.setattr(trial, "rotation_kernel", object())
    monkeypatch.setattr(trial, "kernel_rotation", broken)
    # There is no GPU here.
    device, nothing = torch.device("cuda", 0), torch.ones(1)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: nothing)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    told = []
    monkeypatch.setattr(logging.get_logger(trial.__name__), "warning", told.append)
    for _ in range(2):
        trial.try_own_kernels(device)
    assert not trial.own_kernels_run(device)
    assert told == ["Generation goes on without RetLab's own kernels, slower: Failed to find C compiler."]

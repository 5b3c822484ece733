"""Which errors tell of memory, and whose."""

import errno

import pytest
import torch

from retlab.errors import UserError
from retlab.memory import exhausted_memory, memory_errors


def real_error() -> RuntimeError:
    """What PyTorch raises on a CPU where there is no memory for a tensor."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52, dtype=torch.uint8)
    return caught.value


def test_errors_of_memory_are_told_from_others():
    assert exhausted_memory(real_error()) == "machine"
    assert exhausted_memory(MemoryError()) == "machine"
    assert exhausted_memory(OSError(errno.ENOMEM, "Cannot allocate memory")) == "machine"
    assert exhausted_memory(torch.OutOfMemoryError("Tried to allocate 20.00 GiB")) == "gpu"
    assert exhausted_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ...")) == "gpu"
    caused = RuntimeError("a compiled graph failed")
    caused.__cause__ = torch.OutOfMemoryError()
    assert exhausted_memory(caused) == "gpu"
    for other in (RuntimeError("shape mismatch"), OSError(errno.ENOSPC, "No space"), ValueError("memory")):
        assert exhausted_memory(other) is None


def test_the_sentence_says_what_did_not_fit_where_and_what_to_do():
    with pytest.raises(UserError) as caught, memory_errors(lambda: ("a batch of 8 windows", "lower it to 4")):
        raise real_error()
    assert str(caught.value).startswith("out of memory: a batch of 8 windows does not fit this machine's ")
    assert str(caught.value).endswith(" GiB; lower it to 4")


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape mismatch"), memory_errors(lambda: ("a", "b")):
        raise RuntimeError("shape mismatch")


def test_the_sentence_names_the_gpu_its_memory_and_what_others_hold(monkeypatch):
    """Numbers of a stand-in for the GPU: 80 GiB, of which 30 are ours and 40 somebody else's."""
    gpu = type("Properties", (), {"total_memory": 80 * 2**30, "name": "H100"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _device: gpu)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (10 * 2**30, 80 * 2**30))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 30 * 2**30)
    with pytest.raises(UserError) as caught, memory_errors(lambda: ("a batch", "lower it")):
        raise torch.OutOfMemoryError
    found = str(caught.value)
    assert found == (
        "out of memory: a batch does not fit the 80.0 GiB of this H100, of which other programs hold 40.0 GiB; lower it"
    )

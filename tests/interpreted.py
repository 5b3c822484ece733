"""RetLab's Triton kernels run on a CPU, by Triton's interpreter."""

import contextlib
import importlib

import pytest
import torch

KERNEL_MODULES = ("own_kernels.few_rows", "own_kernels.retention_step", "own_kernels.rotation", "own_kernels.likeliest")


def load_triton() -> None:
    """Load Triton, if it is there, as it must be for its interpreter; not for the programs that tests start."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ImportError):
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton.runtime.interpreter")
        # What the interpreter would load at a first kernel, and could not later.
        importlib.import_module("triton.experimental.gluon")


def interpret(patch: pytest.MonkeyPatch) -> list[str]:
    """Have Triton's interpreter run the kernels, which then take tensors of a CPU; returns the names of those run."""
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU; tests/test_gpu_kernels.py runs")
    triton = pytest.importorskip("triton", reason="needs Triton, which exists for Linux")
    interpreter = importlib.import_module("triton.runtime.interpreter")
    launched: list[str] = []

    class Watched(interpreter.InterpretedFunction):
        def __getitem__(self, grid):
            launched.append(self.fn.__name__)
            return super().__getitem__(grid)

    for module in map(_module, KERNEL_MODULES):
        for name, value in vars(module).copy().items():
            if isinstance(value, triton.runtime.JITFunction):
                patch.setattr(module, name, Watched(value.fn))
    return launched


def take_kernels(patch: pytest.MonkeyPatch) -> list[str]:
    """Have models take the interpreted kernels, in float32 where a GPU would in bfloat16; returns those run."""
    launched = interpret(patch)

    few_rows = _module("own_kernels.few_rows")
    for name in ("own_kernels.few_rows", "own_kernels.retention_step", "mixers.rotary", "own_kernels.likeliest"):
        patch.setattr(_module(name), "own_kernels_run", lambda _: True)
    patch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    patch.setattr(few_rows, "DTYPE", torch.float32)
    patch.setattr(few_rows, "SMALLEST_STEP", 4)
    # Few programs, each of which is slow.
    tile_for = few_rows.tile_for
    patch.setattr(few_rows, "tile_for", lambda *sizes: tile_for(*sizes)._replace(block=32))
    patch.setattr(_module("own_kernels.likeliest"), "BLOCK", 32)
    return launched


def _module(name: str):
    return importlib.import_module(f"retlab.{name}")

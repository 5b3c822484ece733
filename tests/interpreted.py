"""RetLab's Triton kernels run on a CPU, by Triton's interpreter."""

import contextlib
import importlib

import pytest
import torch

KERNEL_MODULES = ("mixers.few_rows", "mixers.retention_kernel", "mixers.rotary_kernel", "models.likeliest_kernel")


def load_triton() -> None:
    """Load Triton, if it is there, as it must be for its interpreter; not for the programs that tests start."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ImportError):
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton")
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
    """Have models take the interpreted kernels wherever a GPU would in bfloat16; returns the names of those run."""
    launched = interpret(patch)

    def fits(hidden: torch.Tensor, _: int, *weights: torch.Tensor | None) -> bool:
        return hidden.shape[1] == 1 and all(weight is not None for weight in weights)

    def yes(_: object) -> bool:
        return True

    for name in ("mixers.retention", "mixers.glu", "models.static_steps"):
        patch.setattr(_module(name), "fits_few_rows", fits)
    for name in ("mixers.retention", "mixers.retention_forms"):
        patch.setattr(_module(name), "kernel_can_step", yes)
    patch.setattr(_module("mixers.rotary"), "own_kernels_run", yes)
    patch.setattr(_module("models.static_steps"), "kernel_can_choose", yes)
    return launched


def _module(name: str):
    return importlib.import_module(f"retlab.{name}")

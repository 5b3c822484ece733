"""Stand-ins for the packages of GPU kernels, importable for the time of a test."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from retlab.mixers import kernels

PACKAGES = Path(__file__).parent / "packages"
NAMES = ("flash_attn", "fla")
MODULES = ("flash_attn", "fla", "fla.ops", "fla.ops.simple_gla")


def forget_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next import of a kernel's package look for it again, and the first one after the test."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    importlib.invalidate_caches()


def hide_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages as not installed, on whatever machine."""
    forget_packages(monkeypatch)
    monkeypatch.setattr(sys, "meta_path", [_Hidden(), *sys.meta_path])


class _Hidden:
    def find_spec(self, name: str, _path: object, _target: object = None) -> None:
        if name.split(".")[0] in NAMES:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def use_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins as the installed packages, on the CPU and in float32 too."""
    forget_packages(monkeypatch)
    monkeypatch.syspath_prepend(PACKAGES)
    monkeypatch.setattr(kernels, "KERNEL_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(kernels, "KERNEL_DTYPES", (torch.bfloat16, torch.float16, torch.float32))

"""Where a result comes from: versions, commit and threads, for the manifests."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys

from retlab.section import PROJECT_ROOT

_VERSIONED = (
    *("torch", "transformers", "tokenizers", "pytorch-lightning", "safetensors"),
    *("pyarrow", "dask", "numpy", "huggingface-hub", "codecarbon"),
)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide results; asked for once in a process."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def commit() -> str | None:
    """Commit of the checkout that did the work, with + for uncommitted changes; None outside git.

    A process runs what was there when it asked first.
    """
    try:
        answer = subprocess.run(
            ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def threads() -> int:
    """CPU threads of torch where it is loaded, else those that this process may use."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else len(os.sched_getaffinity(0))

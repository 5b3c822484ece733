"""Running out of memory, a GPU's or the machine's, as one sentence."""

import contextlib
import errno
from collections.abc import Callable, Iterator

from retlab.errors import OutOfMemory

_GPU_WORDS = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Cuda failure 2")
_MACHINE_WORDS = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory", "std::bad_alloc")


@contextlib.contextmanager
def memory_errors(sentence: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Turn an error that tells of memory into an OutOfMemory.

    Args:
        sentence: what did not fit ("a batch of 8 windows"), and what to do about it.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        where = exhausted_memory(error)
        if where is None:
            raise
        what, advice = sentence()
        raise OutOfMemory(f"out of memory: {what} does not fit {described_memory(where)}; {advice}") from error


def exhausted_memory(error: BaseException | None) -> str | None:
    """Whose memory ran out, "gpu" or "machine", as far as an error or its causes tell of that."""
    import torch

    while error is not None:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _GPU_WORDS):
            return "gpu"
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return "machine"
        if isinstance(error, RuntimeError) and any(words in text for words in _MACHINE_WORDS):
            return "machine"
        error = error.__cause__
    return None


def described_memory(where: str) -> str:
    """The memory of "gpu" or "machine" in words, with its size."""
    import psutil
    import torch

    if where == "machine":
        return f"this machine's {psutil.virtual_memory().total / 2**30:.1f} GiB"
    if not torch.cuda.is_available():
        return "the GPU"
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"the {properties.total_memory / 2**30:.1f} GiB of this {properties.name}{_held_by_others()}"


def size_of_memory(where: str) -> int:
    """Bytes that the "machine" has, with what it may swap to, or this process's "gpu"."""
    if where == "machine":
        import psutil

        return int(psutil.virtual_memory().total + psutil.swap_memory().total)
    import torch

    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def _held_by_others() -> str:
    """What other programs hold of this GPU, where it is more than a tenth."""
    import torch

    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:
        return ""
    others = total - free - torch.cuda.memory_reserved()
    return f", of which other programs hold {others / 2**30:.1f} GiB" if others > total / 10 else ""

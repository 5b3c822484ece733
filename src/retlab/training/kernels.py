"""The kernels of a training: chosen before it starts, where one could be faster by measuring it on this GPU."""

import statistics
from collections.abc import Callable, Mapping

import torch

from retlab.data.settings import DataSection
from retlab.mixers import Attention, Mixer, Retention
from retlab.mixers.kernels import Kernel, causal_attention, kernel_retention, load_kernel
from retlab.mixers.retention_forms import retention, retnet_log_decay
from retlab.models.counting import body_without_weights
from retlab.models.fields import ModelFields
from retlab.models.kernel_choice import KernelChoice, KernelUse, Timing, choose_kernels
from retlab.training.hardware import Hardware
from retlab.training.settings import TrainSection

REPEATS = 10
"""Timed calls of each form, after three that are not."""


def training_kernels(
    fields: ModelFields,
    data: DataSection,
    train: TrainSection,
    hardware: Hardware,
    *,
    measure: bool,
    settled: Mapping[str, str] | None = None,
) -> list[KernelChoice]:
    """What the mixers of a training run on; `settled` is what one that goes on has run on so far.

    Raises:
        UserError: a kernel is asked for by name and cannot run here or in this training.
    """
    use = KernelUse(
        hardware.device,
        torch.bfloat16 if hardware.bf16 else torch.float32,
        data.sequence_length,
        keeps_documents_apart(data),
        hardware.compiled,
    )
    timing = _timing(micro_batch_size(train), use) if measure else None
    return choose_kernels(body_without_weights(fields), fields, use, timing, settled=settled)


def keeps_documents_apart(data: DataSection) -> bool:
    """Whether training hands the mixers the documents of a row.

    Padding stands behind the text, where causal mixers do not look; only packed documents need keeping apart.
    """
    return data.packing == "packed" and data.reset_at_documents


def micro_batch_size(train: TrainSection) -> int:
    """Windows of one process in one forward pass: as the section says, or less where that is as many passes."""
    share = -(-train.batch_size // train.processes)
    passes = -(-share // (train.micro_batch_size or share))
    return -(-share // passes)


def _timing(batch: int, use: KernelUse) -> Timing:
    def timing(mixer: Mixer, kernel: Kernel) -> tuple[float, float] | str:
        try:
            ours, plain = (_milliseconds(_core(mixer, batch, use, one)) for one in (load_kernel(kernel), None))
        except Exception as error:
            # Another package's kernel may fail in any way on a GPU that it does not know; the plain form goes on.
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
        finally:
            if use.device == "cuda":
                # The training's own peak is the one to report.
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
        return ours, plain

    return timing


def _core(mixer: Mixer, batch: int, use: KernelUse, function: Callable[..., object] | None) -> Callable[[], None]:
    """One forward and backward pass of what a kernel would replace, on random inputs."""

    assert isinstance(mixer, Attention | Retention)
    shape = (batch, mixer.num_heads, use.tokens)

    def inputs(*widths: int) -> list[torch.Tensor]:
        return [torch.randn(*shape, width, device=use.device, dtype=use.dtype, requires_grad=True) for width in widths]

    if isinstance(mixer, Attention):
        q, k, v = inputs(*[mixer.head_width] * 3)
        return lambda: causal_attention(q, k, v, mixer.dropout, function).sum().backward()
    q, k, v = inputs(mixer.key_width, mixer.key_width, mixer.value_width)
    decay, form = retnet_log_decay(mixer.num_heads, q.device), mixer.form_for(use.tokens)
    if function is None:
        return lambda: retention(q, k, v, decay, form=form, chunk_size=mixer.chunk_size)[0].sum().backward()
    return lambda: kernel_retention(q, k, v, decay, None, function)[0].sum().backward()


def _milliseconds(work: Callable[[], None]) -> float:
    """Median time of a call on the current GPU."""
    times = []
    for _ in range(3 + REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])

"""Memory that a training lacks: models that cannot fit, and what is said where it ran out."""

from typing import TYPE_CHECKING

from retlab.errors import OutOfMemory
from retlab.memory import described_memory, size_of_memory
from retlab.models.counting import count_parameters
from retlab.models.fields import ModelFields
from retlab.training.checkpoints import CheckpointStore
from retlab.training.hardware import Hardware
from retlab.training.kernels import micro_batch_size
from retlab.training.request import TrainingRequest
from retlab.training.settings import TrainSection

if TYPE_CHECKING:
    # Lightning takes seconds, and whoever asks about a model needs none of it.
    from retlab.training.module import TrainingModule

WEIGHT_BYTES = 4
"""Of a weight, which is float32 while it is trained."""

TRAINED_BYTES = 4 * WEIGHT_BYTES
"""Of a weight, its gradient and AdamW's two moments."""

_ADVICE = "lower model.hidden_size, model.num_hidden_layers or the model's other sizes"


def check_model_fits(fields: ModelFields, train: TrainSection, hardware: Hardware) -> None:
    """Refuse a model whose weights, gradients and moments alone are larger than all the memory that there is.

    What a step needs beside them is not counted, so a model that passes may still not fit.

    Raises:
        OutOfMemory: it cannot fit.
    """
    try:
        parameters = count_parameters(fields).total
    # Numbers that no tensor's size can be.
    except (RuntimeError, OverflowError, TypeError):
        raise OutOfMemory(
            f"out of memory: no machine holds a model of the sizes in the section model; {_ADVICE}"
        ) from None
    here = hardware.processes // hardware.nodes
    # Frozen weights have neither gradients nor moments.
    each = WEIGHT_BYTES if any(group.frozen for group in train.parameter_groups) else TRAINED_BYTES
    in_device = parameters * each / (hardware.processes if hardware.strategy == "fsdp" else 1)
    # Every process builds the whole model on the CPU first.
    needs = [("machine", here * max(WEIGHT_BYTES * parameters, in_device if hardware.device == "cpu" else 0))]
    needs += [("gpu", in_device)] if hardware.device == "cuda" else []
    for where, needed in needs:
        if needed > size_of_memory(where):
            what = f"the {needed / 2**30:,.1f} GiB that a model of {parameters:,} parameters needs to be trained"
            raise OutOfMemory(f"out of memory: {described_memory(where)} cannot hold {what}; {_ADVICE}")


def too_large_model() -> tuple[str, str]:
    """What ran out of memory while a model was built, and what to do."""
    return "the model", _ADVICE


def too_large_step(request: TrainingRequest, module: "TrainingModule") -> tuple[str, str]:
    """What ran out of memory in a training, and what to do."""
    section, step = request.train, module.state.step
    when = f"in step {step + 1:,}" if module.scored.training else f"in the validation after step {step:,}"
    micro, windows_each = micro_batch_size(section), section.batch_size / section.processes
    share = int(windows_each) if windows_each.is_integer() else section.batch_size
    windows = f"{micro} {'window' if micro == 1 else 'windows'} of {request.data.sequence_length:,} tokens"
    smaller = [size for size in range(1, micro // 2 + 1) if share % size == 0]
    ways = [f"lower train.micro_batch_size to {smaller[-1]} or less (a step keeps its batch)"] if smaller else []
    if not section.gradient_checkpointing:
        ways.append("set train.gradient_checkpointing to true")
    ways.append("lower data.sequence_length or the model's sizes (which starts another training)")
    saved = CheckpointStore(request.run_folder / "checkpoints").steps()
    kept = f"the checkpoint of step {saved[-1]:,} is kept, and the training goes on from it" if saved else ""
    return f"a micro-batch of {windows} {when}", "; ".join(filter(None, [", or ".join(ways), kept]))

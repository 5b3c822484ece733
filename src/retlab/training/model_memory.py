"""Whether a machine can hold a model while it is trained: asked before anything of it is built."""

from retlab.errors import OutOfMemory
from retlab.memory import described_memory, size_of_memory
from retlab.models.counting import count_parameters
from retlab.models.fields import ModelFields
from retlab.training.hardware import Hardware
from retlab.training.settings import TrainSection

WEIGHT_BYTES = 4
"""Of a weight, which is float32 while it is trained."""

TRAINED_BYTES = 4 * WEIGHT_BYTES
"""Of a weight, its gradient and AdamW's two moments."""

ADVICE = "lower model.hidden_size, model.num_hidden_layers or the model's other sizes"


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
            f"out of memory: no machine holds a model of the sizes in the section model; {ADVICE}"
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
            raise OutOfMemory(f"out of memory: {described_memory(where)} cannot hold {what}; {ADVICE}")

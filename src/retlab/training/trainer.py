"""Trains a model: puts loader, module, loop and Lightning together."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from retlab.data.loader import SequentialLoader, TokenLoader
from retlab.data.shards import open_shards
from retlab.errors import Interrupted, UserError
from retlab.memory import memory_errors
from retlab.mixers.kernels import KERNELS
from retlab.models import build_model
from retlab.models.causal_lm import CausalLM
from retlab.models.configuration import CONFIGS, ModelConfig
from retlab.models.counting import flops_per_token
from retlab.models.fields import ModelFields
from retlab.models.kernel_choice import run_on
from retlab.nodes import Nodes
from retlab.progress import Progress, progress
from retlab.section import shown_path
from retlab.training.checkpoints import CheckpointStore, load_checkpoint
from retlab.training.dilation import dilation_notes
from retlab.training.hardware import Hardware, choose_hardware, set_threads
from retlab.training.initial_weights import load_initial_weights
from retlab.training.kernels import keeps_documents_apart, micro_batch_size, training_kernels
from retlab.training.lightning import fit
from retlab.training.loop import LoopFacts, StepBatches, TrainingLoop
from retlab.training.metrics import MetricsFile
from retlab.training.module import TrainingModule
from retlab.training.optimizer import freeze_parameters
from retlab.training.out_of_memory import check_model_fits, too_large_model, too_large_step
from retlab.training.processes import Place, all_processes, is_helper, process_rank
from retlab.training.request import TrainingRequest
from retlab.training.run_folder import prepare_run_folder
from retlab.training.scored import recompute_activations
from retlab.training.state import TrainingState


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training leaves."""

    state: TrainingState
    parameters: int
    flops_per_token: float
    "Forward and backward, by count (`models.counting`)."
    validation_seconds: float | None = None
    "Mean time of a validation of the last attempt, with the saving of its checkpoint."

    @property
    def best_step(self) -> int:
        """Step of the checkpoint with the lowest validation loss."""
        return int(self.state.best[0][1])

    def report(self) -> dict[str, Any]:
        """The deterministic numbers for the manifest."""
        return {
            "parameters": self.parameters,
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "flops_per_token": self.flops_per_token,
            "best_validation_loss": self.state.best[0][0],
            "best_step": self.best_step,
            "stopped_early": self.state.stopped_early,
        }

    def speed(self) -> dict[str, float]:
        """What differs from run to run: seconds in training steps, over all attempts, and tokens per second."""
        seconds = self.state.training_seconds
        return {"training_seconds": round(seconds, 3), "tokens_per_second": round(self.state.tokens / seconds, 1)}


def train(
    request: TrainingRequest,
    *,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
    on_start: Callable[[], None] = lambda: None,
    nodes: Nodes | None = None,
) -> TrainingResult:
    """Train to the end, or from the last checkpoint to the end.

    Args:
        request: what to train.
        say: prints a line for people.
        stop_requested: becomes true when the training should save and leave.
        on_start: called once the run folder is this training's.
        nodes: the nodes that take part, of which this is the first; None for this machine alone.

    Raises:
        UserError: the configuration, the data or the machine does not allow it.
        Interrupted: `stop_requested` became true; the work is saved.
    """
    section = request.train
    set_threads(section)
    hardware = choose_hardware(section)
    fields = model_config(request)
    check_model_fits(fields, section, hardware)
    chosen = partial(training_kernels, fields, request.data, section, hardware)
    # A kernel that is refused is so before the run folder is touched.
    chosen(measure=False)
    checkpoint = prepare_run_folder(request, say)
    # Once for all processes and attempts: a measured choice could differ from one to the next.
    choices = chosen(measure=checkpoint is None, settled=checkpoint and checkpoint["kernels"])
    kernels = {choice.mixer: choice.kernel.name for choice in choices if choice.kernel is not None}
    lines = [choice.line for choice in choices] + dilation_notes(fields, request.data.sequence_length)
    request = request.model_copy(update={"kernels": kernels})
    request = request.model_copy(update={"continue_from": checkpoint and checkpoint["step"]})
    on_start()
    nodes = nodes or Nodes()
    place = Place(nodes.address, nodes=nodes.count, devices=section.processes // nodes.count)
    with all_processes(request.model_dump_json(), place, nodes.others):
        return _train(request, hardware, checkpoint, lines, say, stop_requested)


def train_as_helper(request: TrainingRequest, stop_requested: Callable[[], bool]) -> None:
    """Train as a further process of a training that a first one began with `train`.

    Raises:
        UserError: this machine cannot, or the training failed.
        Interrupted: the training was interrupted.
    """
    set_threads(request.train)
    hardware, checkpoint = choose_hardware(request.train), None
    if request.continue_from is not None:
        checkpoint = load_checkpoint(CheckpointStore(_checkpoints(request)).path(request.continue_from))
    _train(request, hardware, checkpoint, [], lambda _line: None, stop_requested)


def model_config(request: TrainingRequest) -> ModelConfig:
    """The configuration of the model to train. Raises UserError where its values do not fit."""
    values = dict(request.model)
    try:
        return CONFIGS[values.pop("architecture")](**values)
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def new_model(request: TrainingRequest) -> CausalLM:
    """The model with its initial weights, which depend on the seed alone."""
    torch.manual_seed(request.seed)
    return build_model(model_config(request))


def _checkpoints(request: TrainingRequest) -> Path:
    return request.run_folder / "checkpoints"


def _train(
    request: TrainingRequest,
    hardware: Hardware,
    checkpoint: dict[str, Any] | None,
    lines: list[str],
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> TrainingResult:
    """What every process of the training does; `lines` say what mixers run on, and what they make no use of."""
    batches, validation = _loaders(request)
    total_steps = _total_steps(request, batches)
    with memory_errors(too_large_model):
        module = _module(request, hardware, total_steps, checkpoint is None)
    done = 0
    if checkpoint is not None:
        done = checkpoint["step"]
        batches.load_state_dict(checkpoint["position"])
        say(f"continuing after step {done:,}")
        before, now = checkpoint["hardware"], _machine(request, hardware)
        if before != now:
            say(f"so far on {before}, now on {now}: the result may differ from that of one of them")
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    say(
        f"{parameters:,} parameters, {total_steps:,} steps of {request.train.batch_size} windows of"
        f" {request.data.sequence_length} tokens, {batches.steps_per_epoch:,} steps an epoch; {hardware}"
    )
    for line in lines:
        say(line)
    with contextlib.ExitStack() as stack, memory_errors(lambda: too_large_step(request, module)):
        loop = TrainingLoop(
            request.train, _facts(request, hardware, module, batches), batches, validation,
            CheckpointStore(_checkpoints(request)), MetricsFile(request.run_folder / "metrics.csv"),
            lambda: stack.enter_context(_progress(total_steps, done)), stop_requested, checkpoint,
        )  # fmt: skip
        fit(request, hardware, module, loop, StepBatches(batches, done, total_steps))
    if loop.interrupted and module.state.step == 0:
        raise Interrupted(f"before the first of {total_steps:,} steps, with nothing to save yet")
    if loop.interrupted:
        raise Interrupted(f"saved after step {module.state.step:,} of {total_steps:,}")
    return TrainingResult(module.state, parameters, loop.facts.flops_per_token, loop.validation_seconds)


def _module(request: TrainingRequest, hardware: Hardware, total_steps: int, is_new: bool) -> TrainingModule:
    """The model and its step; a new training begins with the weights of `train.init_from`."""
    section = request.train
    model = new_model(request)
    if section.init_from is not None and is_new:
        load_initial_weights(model, section.init_from)
    if section.gradient_checkpointing:
        recompute_activations(model)
    freeze_parameters(model, section.parameter_groups)
    run_on(model, request.kernels)
    return TrainingModule(
        model,
        section,
        seed=request.seed,
        total_steps=total_steps,
        bf16=hardware.bf16,
        compiled=hardware.compiled,
        uses_segments=keeps_documents_apart(request.data),
    )


def _machine(request: TrainingRequest, hardware: Hardware) -> str:
    """What a training runs on and may differ by in its last digits."""
    return str(hardware) + "".join(f", {mixer} on {KERNELS[mixer].title}" for mixer in request.kernels)


def _facts(request: TrainingRequest, hardware: Hardware, module: TrainingModule, batches: TokenLoader) -> LoopFacts:
    config = module.model.config
    assert isinstance(config, ModelFields)
    return LoopFacts(
        module.total_steps,
        batches.steps_per_epoch,
        flops_per_token(config, request.data.sequence_length),
        {
            "identity": request.identity,
            "model_config": request.model,
            "hardware": _machine(request, hardware),
            "kernels": request.kernels,
            "precision": "bf16" if hardware.bf16 else "float32",
        },
    )


def _loaders(request: TrainingRequest) -> tuple[TokenLoader, SequentialLoader]:
    """Batches of this process to train on and to validate on."""
    section, rank = request.train, process_rank(request.train.devices or 1)
    micro = micro_batch_size(section)
    shared: dict[str, Any] = {
        "eos_id": request.eos_id, "pad_id": request.pad_id, "rank": rank, "world_size": section.processes,
    }  # fmt: skip
    batches = TokenLoader(
        request.data, request.train_shards, global_batch_size=section.batch_size, micro_batch_size=micro,
        seed=request.seed, **shared,
    )  # fmt: skip
    validation = SequentialLoader(request.data, request.validation_shards, batch_size=micro, **shared)
    if validation.targets < request.data.sequence_length:
        raise UserError(
            f"the validation split in {shown_path(request.validation_shards)} holds {validation.targets:,} tokens, less"
            f" than one window of data.sequence_length {request.data.sequence_length}; shorten it or get more text"
        )
    return batches, validation


def _total_steps(request: TrainingRequest, batches: TokenLoader) -> int:
    section = request.train
    if section.max_steps is not None:
        return section.max_steps
    if section.max_tokens is not None:
        length = request.data.sequence_length
        if request.data.packing == "padded":
            length = open_shards(request.train_shards, length).targets.sum() / batches.windows_per_epoch
        return math.ceil(section.max_tokens / (length * section.batch_size))
    return max(1, math.ceil((section.max_epochs or 1) * batches.steps_per_epoch))


def _progress(total: int, done: int) -> contextlib.AbstractContextManager[Progress]:
    return contextlib.nullcontext(_Silent()) if is_helper() else progress("train", total, "step", done)


class _Silent:
    """Progress of a helper process, which nobody watches."""

    def advance(self, amount: float = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def set_total(self, total: float) -> None:
        pass

"""What a configuration asks of this machine, checked before work begins: files, packages, a GPU."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence

from retlab.config import ExperimentConfig
from retlab.config_model import vocabulary_size
from retlab.data.sources import local_state
from retlab.errors import UserError
from retlab.section import absolute, shown_path

_SMALL = 10_000_000
"""Of the width times its matrices' other sides: a model below it takes less than 2 GB to train."""


def check_machine(config: ExperimentConfig, stages: Sequence[str]) -> None:
    """Raise a UserError that names, a line each, what these stages ask for and this machine has not."""
    _raise(
        problem
        for stage in stages
        for checks in (_FILES, _REST)
        if stage in checks
        for problem in checks[stage](config)
    )


def check_files(config: ExperimentConfig, stages: Sequence[str]) -> None:
    """The same for files alone, which the machines of a cluster share, where another machine will run the stages."""
    _raise(problem for stage in stages if stage in _FILES for problem in _FILES[stage](config))


def _raise(problems: Iterable[str]) -> None:
    text = "\n".join(problems)
    if text:
        raise UserError(text)


def _source(config: ExperimentConfig) -> Iterator[str]:
    try:
        local_state(config.data)
    except UserError as error:
        yield str(error)


def _tokenizer(config: ExperimentConfig) -> Iterator[str]:
    yield from _folder("tokenizer.from_pretrained", config.tokenizer.from_pretrained, "tokenizer.json")


def _weights(config: ExperimentConfig) -> Iterator[str]:
    yield from _folder("train.init_from", config.train.init_from, "config.json")


def _training(config: ExperimentConfig) -> Iterator[str]:
    for key, wanted in (("tensorboard", config.train.tensorboard), ("wandb", config.train.wandb)):
        if wanted and importlib.util.find_spec(key) is None:
            none = "false" if wanted is True else "null"
            yield f"train.{key} needs the package {key}: install it with pip install {key}, or set the key to {none}"
    if config.train.device == "cuda":
        # Only this question needs torch.
        from retlab.training.hardware import choose_hardware

        try:
            choose_hardware(config.train)
        except UserError as error:
            yield str(error)
            return
    yield from _kernels(config)
    yield from _memory(config)


def _memory(config: ExperimentConfig) -> Iterator[str]:
    """A model that is too large for this machine; counted only where it may be, because that needs torch."""
    model = config.model.to_fields(vocabulary_size(config) or 1)
    widths = model.hidden_size + (getattr(model, "intermediate_size", None) or 0)
    size = model.hidden_size * (model.num_hidden_layers * widths + model.vocab_size)
    # A hybrid's blocks have widths of their own.
    if size < _SMALL and config.model.architecture != "hybrid":
        return
    from retlab.training.hardware import choose_hardware
    from retlab.training.out_of_memory import check_model_fits

    try:
        check_model_fits(model, config.train, choose_hardware(config.train))
    except UserError as error:
        yield str(error)


def _kernels(config: ExperimentConfig) -> Iterator[str]:
    """Kernels that are asked for by name; their choice needs torch, which takes seconds to import."""
    named = {"attention_kernel": "flash_attn", "retention_kernel": "fla"}
    if not any(getattr(config.model, key, None) == name for key, name in named.items()):
        return
    from retlab.training.hardware import choose_hardware
    from retlab.training.kernels import training_kernels

    try:
        hardware = choose_hardware(config.train)
        # No vocabulary matters to it.
        training_kernels(config.model.to_fields(1), config.data, config.train, hardware, measure=False)
    except UserError as error:
        yield str(error)


def _measured(config: ExperimentConfig) -> Iterator[str]:
    yield from _folder("evaluate.model", config.evaluate.model, "config.json")
    include = config.evaluate.tasks.include_path
    if "tasks" in config.evaluate.measure and include is not None and not include.is_dir():
        yield f"evaluate.tasks.include_path: there is no folder {shown_path(include)}; correct the path"


def _evaluation(config: ExperimentConfig) -> Iterator[str]:
    if config.evaluate.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            yield "evaluate.device is cuda, but torch sees no GPU here; set it to cpu or auto, or check the driver"


def _folder(key: str, name: str | None, file: str) -> Iterator[str]:
    """A model or tokenizer that is named by a local folder; names of the hub are looked up by the stage alone."""
    if name is None:
        return
    folder = absolute(name)
    if folder.is_dir():
        if not (folder / file).is_file():
            yield f"{key}: {shown_path(folder)} holds no {file}; name another folder"
    elif name.count("/") > 1 or name.startswith((".", "/", "~")):
        yield f"{key}: there is no folder {shown_path(folder)}; correct the path"


_Checks = dict[str, Callable[[ExperimentConfig], Iterator[str]]]
_FILES: _Checks = {
    "download_data": _source,
    "train_tokenizer": _tokenizer,
    "train_model": _weights,
    "evaluate_model": _measured,
}
_REST: _Checks = {"train_model": _training, "evaluate_model": _evaluation}

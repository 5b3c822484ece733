"""Relations between the sections of a configuration, all checked in one function before any compute."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from retlab.config_errors import Problem
from retlab.emissions import emission_errors
from retlab.grid_checks import grid_errors

if TYPE_CHECKING:
    from retlab.config import ExperimentConfig


def cross_section_errors(config: "ExperimentConfig") -> list[Problem]:
    """Everything that no section can see alone; each problem with the keys whose values take part."""
    return [*_widths(config), *_lengths(config), *_batches(config), *_emissions(config), *grid_errors(config)]


def _widths(config: "ExperimentConfig") -> Iterator[Problem]:
    model, tokenizer = config.model, config.tokenizer
    if model.vocab_size is not None and tokenizer.from_pretrained is None and model.vocab_size < tokenizer.vocab_size:
        yield Problem(
            ("model", "vocab_size"),
            f"found {model.vocab_size}, smaller than tokenizer.vocab_size {tokenizer.vocab_size};"
            " leave it null to take the tokenizer's",
            (("model", "vocab_size"), ("tokenizer", "vocab_size"), ("tokenizer", "from_pretrained")),
        )


def _lengths(config: "ExperimentConfig") -> Iterator[Problem]:
    longest, window = config.model.max_position_embeddings, config.data.sequence_length
    if longest is not None and window > longest:
        yield Problem(
            ("data", "sequence_length"),
            f"found {window}, longer than model.max_position_embeddings {longest}; raise that or shorten this",
            (("data", "sequence_length"), ("model", "max_position_embeddings")),
        )


def _batches(config: "ExperimentConfig") -> Iterator[Problem]:
    train = config.train
    # A number that Slurm gives may be any: processes then share a batch out as evenly as it goes.
    processes = train.processes if train.devices else 1
    nodes = f" times num_nodes {train.num_nodes}" if train.devices and train.num_nodes else ""
    keys = (("train", "batch_size"), ("train", "devices"), ("train", "num_nodes"))
    if train.batch_size % processes:
        yield Problem(
            ("train", "batch_size"),
            f"found {train.batch_size}, which the {processes} processes of train.devices{nodes} do not divide;"
            f" take {_nearest_multiples(train.batch_size, processes)}, or other devices",
            keys,
        )
    elif train.micro_batch_size and train.batch_size % (train.micro_batch_size * processes):
        together = train.micro_batch_size * processes
        devices = f" times devices {train.devices}" if train.devices else ""
        yield Problem(
            ("train", "batch_size"),
            f"found {train.batch_size}, no multiple of micro_batch_size {train.micro_batch_size}{devices}{nodes};"
            f" take {_nearest_multiples(train.batch_size, together)}, or another micro_batch_size",
            (*keys, ("train", "micro_batch_size")),
        )


def _nearest_multiples(number: int, divisor: int) -> str:
    """The multiples of a divisor on both sides of a number, in words."""
    below = number - number % divisor
    return f"{below} or {below + divisor}" if below else str(divisor)


def _emissions(config: "ExperimentConfig") -> Iterator[Problem]:
    for key, message in emission_errors(config.emissions):
        yield Problem(("emissions", key), message, tuple(("emissions", name) for name in ("enabled", "country", key)))

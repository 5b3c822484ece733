"""Relations between the sections of a configuration, all checked in one function before any compute."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from retlab.emissions import emission_errors
from retlab.grid_checks import grid_errors
from retlab.yaml_file import KeyPath

if TYPE_CHECKING:
    from retlab.config import ExperimentConfig

Problem = tuple[KeyPath, str]


def cross_section_errors(config: "ExperimentConfig") -> list[Problem]:
    """Everything that no section can see alone, as key path and sentence."""
    return [*_widths(config), *_lengths(config), *_batches(config), *_emissions(config), *grid_errors(config)]


def _widths(config: "ExperimentConfig") -> Iterator[Problem]:
    model, tokenizer = config.model, config.tokenizer
    if model.vocab_size is not None and tokenizer.from_pretrained is None and model.vocab_size < tokenizer.vocab_size:
        yield (
            ("model", "vocab_size"),
            f"found {model.vocab_size}, smaller than tokenizer.vocab_size {tokenizer.vocab_size};"
            " leave it null to take the tokenizer's",
        )


def _lengths(config: "ExperimentConfig") -> Iterator[Problem]:
    longest, window = config.model.max_position_embeddings, config.data.sequence_length
    if longest is not None and window > longest:
        yield (
            ("data", "sequence_length"),
            f"found {window}, longer than model.max_position_embeddings {longest}; raise that or shorten this",
        )


def _batches(config: "ExperimentConfig") -> Iterator[Problem]:
    train = config.train
    # A number that Slurm gives may be any: processes then share a batch out as evenly as it goes.
    processes = train.processes if train.devices else 1
    nodes = f" times num_nodes {train.num_nodes}" if train.devices and train.num_nodes else ""
    if train.batch_size % processes:
        yield (
            ("train", "batch_size"),
            f"found {train.batch_size}, which the {processes} processes of train.devices{nodes} do not divide",
        )
    elif train.micro_batch_size and train.batch_size % (train.micro_batch_size * processes):
        devices = f" times devices {train.devices}" if train.devices else ""
        yield (
            ("train", "batch_size"),
            f"found {train.batch_size}, no multiple of micro_batch_size {train.micro_batch_size}{devices}{nodes}",
        )


def _emissions(config: "ExperimentConfig") -> Iterator[Problem]:
    for key, message in emission_errors(config.emissions):
        yield ("emissions", key), message

"""What a chain of jobs would fail at hours after its submission, and can be seen before it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from retlab.artifacts import read_manifest
from retlab.cluster import queue
from retlab.cluster.notes import read_notes, same_job
from retlab.cluster.sbatch import given_value
from retlab.config import ExperimentConfig
from retlab.config_model import known_model
from retlab.data.settings import SplitName
from retlab.errors import UserError
from retlab.machine_checks import check_files
from retlab.section import shown_path
from retlab.training.run_folder import refuse_other_training


def check_stages(config: ExperimentConfig, stages: Sequence[str], given: Sequence[str], force: bool) -> None:
    """Look at the files that jobs will need, and at the run folder that they will write to.

    Args:
        config: the configuration, its model resolved where the stages train.
        stages: names of the stages, in the order in which they will run.
        given: the user's own words for sbatch.
        force: whether the stages do their work anew.

    Raises:
        UserError: what is missing or in the way, with the key of the configuration that names it.
    """
    check_files(config, stages)
    if "train_model" in stages and not force:
        refuse_other_training(config.run_folder, known_model(config))
    missing = list(_missing(config, stages[0]))
    if not missing or any(_is_on_its_way(config, stage, given) for _, _, stage in missing):
        return
    key, folder, first = missing[0]
    while before := list(_missing(config, first)):
        first = before[0][2]
    raise UserError(
        f"{key}: {shown_path(folder)} is missing or unfinished, and {stages[0]} needs it; submit all that is missing"
        f" with slurm/submit_pipeline.sh and --from {first}"
    )


def _missing(config: ExperimentConfig, stage: str) -> Iterator[tuple[str, Path, str]]:
    return (needed for needed in _inputs(config, stage) if read_manifest(needed[1]) is None)


def _inputs(config: ExperimentConfig, stage: str) -> Iterator[tuple[str, Path, str]]:
    """Key, folder and making stage of what a stage reads first."""
    data, tokenizer = config.data, config.tokenizer.folder
    assert tokenizer is not None
    if stage == "split_data":
        yield "data.folder", data.raw_folder, "download_data"
    if stage in ("train_tokenizer", "tokenize_data"):
        yield "data.folder", data.splits_folder, "split_data"
    if stage in ("tokenize_data", "train_model"):
        yield "tokenizer.folder", tokenizer, "train_tokenizer"
    if stage in ("train_model", "evaluate_model"):
        for split in get_args(SplitName):
            yield "data.tokens_folder", data.shards_folder(split), "tokenize_data"
    if stage == "evaluate_model":
        yield "output_dir", config.run_folder / "model", "train_model"


def _is_on_its_way(config: ExperimentConfig, stage: str, given: Sequence[str]) -> bool:
    """Whether the user said what to wait for, or a job that will make it waits or runs."""
    if given_value(given, "--dependency", "-d") is not None or given_value(given, "--begin", "-b") is not None:
        return True
    return bool(live_jobs(config, stage))


def live_jobs(config: ExperimentConfig, stage: str) -> list[int]:
    """Jobs of a stage of this experiment that wait or run, the last one last."""
    notes = read_notes(config, stage)
    found = queue.jobs([note.job for note in notes])
    return [note.job for note in notes if any(not job.is_over for job in same_job(note, found))]

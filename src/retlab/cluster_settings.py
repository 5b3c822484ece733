"""The `cluster` section of the configuration."""

from typing import Annotated, Literal

from pydantic import Field

from retlab.section import Section

_Name = Annotated[str, Field(min_length=1)]
StageName = Literal[
    "download_data", "split_data", "train_tokenizer", "tokenize_data", "train_model", "evaluate_model", "grid_search"
]


class Resources(Section):
    """What a job asks Slurm for; null leaves it to the cluster's default."""

    partition: _Name | None = None
    "Partition (sbatch --partition)."
    account: _Name | None = None
    "Account that is charged (sbatch --account)."
    qos: _Name | None = None
    "Quality of service (sbatch --qos)."
    time: _Name | None = None
    "Time limit, such as 4:00:00 or 2-00:00:00 (sbatch --time)."
    memory: _Name | None = None
    "Memory per node, such as 32G (sbatch --mem)."
    cpus: int | None = Field(default=None, ge=1)
    "CPU cores per node (sbatch --cpus-per-task)."
    gpus: _Name | int | None = None
    "GPUs per node, such as 4 or a100:4 (sbatch --gpus-per-node); asked for by training, evaluation and grid search."
    nodes: int | None = Field(default=None, ge=1)
    "Nodes of a training (sbatch --nodes); null is train.num_nodes."


class ClusterSection(Resources):
    """How jobs are submitted to Slurm; the scripts in slurm/ read it."""

    stages: dict[StageName, Resources] = {}
    "Other values for single stages, such as train_model: {time: 2-00:00:00, gpus: 4}."
    modules: list[_Name] = []
    "Environment modules that every job loads (module load)."
    environment: dict[str, str] = {}
    "Environment variables of every job."
    signal_seconds: int = Field(default=120, ge=1, le=65535)
    "Seconds before the time limit at which a job is told to save and leave (sbatch --signal)."
    max_requeues: int = Field(default=20, ge=0)
    "Times that a job that was told to leave puts itself back into the queue."
    dask: str | None = Field(default=None, min_length=1)
    "Where splitting and tokenising run: null is this machine, slurm its own jobs, else a Dask scheduler's address."
    dask_jobs: int = Field(default=4, ge=1)
    "Worker jobs of dask: slurm; each has the resources of its stage."

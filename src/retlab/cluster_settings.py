"""The `cluster` section of the configuration."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from retlab.section import Section


def _number_as_text(value: Any) -> Any:
    """Numbers are fine where Slurm or the environment takes text: time: 30, memory: 32000, OMP_NUM_THREADS: 4."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


_Name = Annotated[str, Field(min_length=1)]
_Amount = Annotated[str, BeforeValidator(_number_as_text), Field(min_length=1)]
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_NO_LIMIT = ("UNLIMITED", "INFINITE")


def _is_a_time_limit(limit: str) -> str:
    """sbatch takes some that it then reads as something else, such as 1- and -5."""
    if limit.upper() not in _NO_LIMIT and not _TIME.fullmatch(limit):
        raise ValueError(
            "must be minutes, or hours:minutes:seconds such as 4:00:00, or days-hours:minutes:seconds such as"
            " 2-00:00:00, or UNLIMITED"
        )
    return limit


_TimeLimit = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_is_a_time_limit)]
_Module = Annotated[str, Field(pattern=r"^[^\s-]\S*$")]
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
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
    time: _TimeLimit | None = None
    "Time limit, such as 4:00:00 or 2-00:00:00, or minutes (sbatch --time)."
    memory: _Amount | None = None
    "Memory per node, such as 32G (sbatch --mem)."
    cpus: int | None = Field(default=None, ge=1)
    "CPU cores per node (sbatch --cpus-per-task)."
    gpus: _Name | int | None = None
    "GPUs per node, such as 4 or a100:4 (sbatch --gpus-per-node); asked for by training, evaluation and grid search."
    nodes: int | None = Field(default=None, ge=1)
    "Nodes of a training (sbatch --nodes); null is train.num_nodes."

    @field_validator("gpus")
    @classmethod
    def _no_negative_count(cls, gpus: str | int | None) -> str | int | None:
        if isinstance(gpus, int) and gpus < 0:
            raise ValueError("must be 0 or more, or a type and a number such as a100:4")
        return gpus


class ClusterSection(Resources):
    """How jobs are submitted to Slurm; the scripts in slurm/ read it."""

    stages: dict[StageName, Resources] = {}
    "Other values for single stages, such as train_model: {time: 2-00:00:00, gpus: 4}."
    modules: list[_Module] = []
    "Environment modules that every job loads (module load)."
    environment: dict[_Variable, Annotated[str, BeforeValidator(_number_as_text)]] = {}
    "Environment variables of every job."
    signal_seconds: int = Field(default=120, ge=1, le=65535)
    "Seconds before the time limit at which a job is told to save and leave (sbatch --signal)."
    max_requeues: int = Field(default=20, ge=0)
    "Times that a job that was told to leave puts itself back into the queue."
    dask: str | None = Field(default=None, min_length=1)
    "Where splitting and tokenising run: null is this machine, slurm its own jobs, else a Dask scheduler's address."
    dask_jobs: int = Field(default=4, ge=1)
    "Worker jobs of dask: slurm; each has the resources of its stage."

    @field_validator("dask")
    @classmethod
    def _is_a_scheduler(cls, dask: str | None) -> str | None:
        if dask not in (None, "slurm") and not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://\S+:\d+", dask):
            raise ValueError("must be null, slurm, or the address of a running Dask scheduler, such as tcp://host:8786")
        return dask

    @model_validator(mode="after")
    def _told_after_the_start(self) -> "ClusterSection":
        """A job that is told to leave when it starts would come back again and again and do nothing."""
        limits = {"time": self.time} | {f"stages.{name}.time": stage.time for name, stage in self.stages.items()}
        for key, limit in limits.items():
            seconds = time_limit_seconds(limit)
            if seconds is not None and seconds <= self.signal_seconds:
                raise ValueError(
                    f"{key} {limit} is {seconds} s, and jobs are told to leave {self.signal_seconds} s before their"
                    " limit: a longer time, or a smaller signal_seconds, lets them do something"
                )
        return self


def time_limit_seconds(limit: str | None) -> int | None:
    """Seconds of a time limit as sbatch reads it; None where there is none."""
    match = _TIME.fullmatch(limit or "")
    if match is None or not any(int(number or 0) for number in match.groups()):
        return None
    days, first, second, third = (int(number or 0) for number in match.groups())
    if match[1] is not None:
        return 86400 * days + 3600 * first + 60 * second + third
    return 60 * first + second if match[4] is None else 3600 * first + 60 * second + third

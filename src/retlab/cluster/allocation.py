"""What Slurm gave the job around this process, and how it differs from what the configuration would ask for."""

import os
import re
from collections.abc import Iterator

from retlab.cluster.client import call, installed
from retlab.cluster.sbatch import USES_GPUS
from retlab.cluster_settings import Resources, time_limit_seconds
from retlab.config import ExperimentConfig


def differences(config: ExperimentConfig, stage: str) -> list[str]:
    """A line that says where this job, submitted by hand, is not what the cluster section describes; or none."""
    own = config.cluster.stages.get(stage, Resources())  # type: ignore[call-overload]
    wanted = {key: getattr(own, key) or getattr(config.cluster, key) for key in Resources.model_fields}
    wanted["nodes"] = (wanted["nodes"] or config.train.num_nodes or 1) if stage == "train_model" else None
    wanted["gpus"] = wanted["gpus"] if stage in USES_GPUS else None
    given = dict(_given())
    found = [
        f"{key} {given[key] or 'none'} and not {value}"
        for key, value in wanted.items()
        if value is not None and key in given and not _same(key, given[key], value)
    ]
    if not found:
        return []
    return [f"this job has {', '.join(found)}, which the section cluster asks for; the job's own values hold"]


def _given() -> Iterator[tuple[str, str]]:
    """What this job has, by the key of the configuration."""
    names = {
        "partition": "SLURM_JOB_PARTITION", "account": "SLURM_JOB_ACCOUNT", "qos": "SLURM_JOB_QOS",
        "cpus": "SLURM_CPUS_PER_TASK", "memory": "SLURM_MEM_PER_NODE",
    }  # fmt: skip
    for key, name in names.items():
        if name in os.environ:
            yield key, os.environ[name]
    yield "nodes", os.environ.get("SLURM_JOB_NUM_NODES", "1")
    yield "gpus", os.environ.get("SLURM_GPUS_ON_NODE", "")
    if installed("scontrol"):
        answer = call(["scontrol", "show", "job", "-o", os.environ["SLURM_JOB_ID"]])
        limit = re.search(r" TimeLimit=(\S+)", answer.stdout)
        if limit:
            yield "time", limit[1]


def _same(key: str, given: str, wanted: str | int) -> bool:
    if key == "gpus":
        return given == str(wanted).rpartition(":")[2]
    if key == "memory":
        return not given or _mebibytes(given) == _mebibytes(str(wanted))
    if key == "time":
        return time_limit_seconds(given) == time_limit_seconds(str(wanted))
    return given == str(wanted)


def _mebibytes(text: str) -> float:
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip().upper())
    return int(match[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[match[2]] if match else -1

"""How many nodes and processes a training has: as the YAML says, or as Slurm gives."""

import os
from collections.abc import Callable, Mapping

from retlab.errors import UserError
from retlab.nodes import Nodes, node_name
from retlab.slurm_step import START, current_step, gpus_on_node, job_nodes
from retlab.training.settings import TrainSection


def allocated(
    train: TrainSection, nodes: Nodes, say: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> TrainSection:
    """The section with the numbers of nodes and processes that the training gets.

    Raises:
        UserError: the section asks for other numbers than Slurm gave.
    """
    job = job_nodes(environment)
    if train.num_nodes not in (None, nodes.count):
        raise UserError(_other_nodes(train.num_nodes or 1, nodes.count, job))
    if nodes.count == 1 and (job or 1) > 1 and current_step(environment) is None:
        if train.num_nodes is not None:
            raise UserError(
                f"train.num_nodes is 1, but the job has {job} nodes; submit it with --nodes=1,"
                f" or set the key to null and start the training on all of them: {START}"
            )
        say(f"the job has {job} nodes, and this training takes one; to take all, start it with {START}")
    devices = _devices(train, nodes, environment)
    if nodes.count > 1:
        names = ", ".join([node_name(environment), *(node.name for node in nodes.others)])
        say(f"{nodes.count} nodes ({names}), {devices} {'process' if devices == 1 else 'processes'} on each")
    elif devices != (train.devices or 1):
        say(f"{devices} processes, one for each GPU of the job")
    processes = devices * nodes.count
    if train.batch_size % processes:
        say(f"a step keeps its {train.batch_size} windows: {processes} processes share them out unevenly")
    return train.model_copy(update={"devices": devices, "num_nodes": nodes.count})


def _devices(train: TrainSection, nodes: Nodes, environment: Mapping[str, str]) -> int:
    gpus = gpus_on_node(environment)
    if train.device == "cpu":
        return train.devices or 1
    counts = {node_name(environment): gpus, **{node.name: node.gpus for node in nodes.others}}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count or 0}" for name, count in counts.items())
        raise UserError(
            f"the nodes have different numbers of GPUs ({shown}), and a training takes as many on each;"
            " ask for them with --gpus-per-node"
        )
    if train.devices is not None and gpus is not None and train.devices != gpus:
        raise UserError(
            f"train.devices is {train.devices}, but Slurm gave {gpus} {'GPU' if gpus == 1 else 'GPUs'} on each node;"
            f" set the key to {gpus} (or to null, which takes what Slurm gives), or ask for"
            f" --gpus-per-node={train.devices}"
        )
    return train.devices or gpus or 1


def _other_nodes(wanted: int, count: int, job: int | None) -> str:
    if job is None:
        return (
            f"train.num_nodes is {wanted}, but this is one machine without Slurm; set it to null, or start the"
            f" training inside a job of {wanted} nodes: {START}"
        )
    if count == 1 and job == wanted:
        return (
            f"train.num_nodes is {wanted}, but this process is alone on one of the job's nodes; start it with {START}"
        )
    return (
        f"train.num_nodes is {wanted}, but Slurm gave {count} {'node' if count == 1 else 'nodes'}; set the key to"
        f" {count} (or to null, which takes what Slurm gives), or ask for --nodes={wanted}"
    )

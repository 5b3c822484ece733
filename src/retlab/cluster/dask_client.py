"""The Dask cluster on which splitting and tokenising run, as `cluster.dask` says: none, Slurm's, or a running one."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retlab.cluster_settings import ClusterSection
from retlab.data.parallel import on_cluster
from retlab.data.remote import Remote
from retlab.errors import UserError, one_line

if TYPE_CHECKING:
    from distributed import Client

SLURM = "slurm"
_CONNECT_SECONDS = 15
_WORKER_SECONDS = 60


@contextlib.contextmanager
def data_cluster(
    section: ClusterSection, stage: str, processes: int | None, logs: Path, say: Callable[[str], None]
) -> Iterator[None]:
    """Run the block's `run_tasks` where `cluster.dask` says.

    Args:
        section: the cluster's section.
        stage: name of the stage, whose resources the worker jobs get.
        processes: worker processes of a job; None is one for each of its cores.
        logs: folder of the worker jobs' logs.
        say: prints a line for people.

    Raises:
        UserError: a package is missing, Slurm refuses the jobs, no scheduler answers, or no worker comes.
    """
    if section.dask is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        if section.dask == SLURM:
            from retlab.cluster.dask_jobs import worker_jobs

            remote = stack.enter_context(worker_jobs(section, stage, processes, logs, say))
        else:
            remote = stack.enter_context(_running_cluster(section.dask, say))
        stack.enter_context(on_cluster(remote))
        yield


@contextlib.contextmanager
def _running_cluster(address: str, say: Callable[[str], None]) -> Iterator[Remote]:
    try:
        from distributed import Client
    except ImportError:
        raise UserError("cluster.dask needs the package distributed; install it with pip install distributed") from None
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"cluster.dask: no Dask scheduler answers at {address} within {_CONNECT_SECONDS} s ({_reason(error)});"
            " start one with dask scheduler and name its address, such as tcp://host:8786,"
            " or set the key to slurm or null"
        ) from None
    with client:
        _check_scheduler(client, address)
        name = f"the Dask cluster at {address}"
        absent = f"{name} has had no worker for {_WORKER_SECONDS} s; start some with dask worker {address}"
        say(f"on {name}, {len(client.nthreads())} workers; their energy is not measured")
        yield Remote(client, name, "their own logs", _Presence(client, absent).check)


def _check_scheduler(client: "Client", address: str) -> None:
    """Raise a UserError where the scheduler is of another version, which ends in errors that say nothing."""
    versions: Any = client.get_versions()
    found, own = (
        {key: versions[who]["packages"].get(key) for key in ("dask", "distributed")} for who in ("scheduler", "client")
    )
    if found != own:
        told = " and ".join(f"{key} {found[key]} there, {own[key]} here" for key in own if found[key] != own[key])
        raise UserError(
            f"cluster.dask: the scheduler at {address} has other versions: {told};"
            " start scheduler and workers in the environment that runs this stage"
        )


def _reason(error: BaseException) -> str:
    return one_line(error).rstrip(".")[:200] or type(error).__name__


class _Presence:
    """Raises a UserError when a cluster has had no worker for too long."""

    def __init__(self, client: "Client", sentence: str) -> None:
        self._client, self._sentence = client, sentence
        self._seen = time.monotonic()

    def check(self) -> None:
        """Look whether a worker is there."""
        if self._client.status not in ("running", "connecting"):
            return
        if self._client.nthreads():
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > _WORKER_SECONDS:
            raise UserError(self._sentence)

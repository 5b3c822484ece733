"""`cluster.dask: slurm`: Dask workers as Slurm jobs, watched and replaced while a stage needs them, gone after it."""

import asyncio
import contextlib
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from retlab.cluster import queue, sbatch
from retlab.cluster.client import installed
from retlab.cluster.queue import Job
from retlab.cluster_settings import ClusterSection
from retlab.data.remote import Remote
from retlab.errors import UserError
from retlab.section import PROJECT_ROOT, shown_path

if TYPE_CHECKING:
    from dask_jobqueue import SLURMCluster

_LOOK_SECONDS = 4.0
_SAY_SECONDS = 30.0
_STILLBORN = 3
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_HOPELESS = (
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "PartitionConfig",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
)
"""Reasons of waiting jobs that no waiting mends."""


@contextlib.contextmanager
def worker_jobs(
    section: ClusterSection, stage: str, processes: int | None, logs: Path, say: Callable[[str], None]
) -> Iterator[Remote]:
    """Workers in `cluster.dask_jobs` jobs of the stage's resources, from now to the end of the block."""
    _check_programs()
    import dask
    from distributed import Client

    logs.mkdir(parents=True, exist_ok=True)
    name = f"retlab-dask-{stage}-{uuid4().hex[:8]}"
    refusals: list[Exception] = []
    # A worker that is lost is no fault of its task; one that takes five with it is.
    settings = {"distributed.scheduler.allowed-failures": 5, "distributed.comm.timeouts.connect": "60s"}
    with dask.config.set(settings), contextlib.ExitStack() as stack:
        cluster = _cluster(section, stage, processes, logs, name, refusals)
        stack.callback(_close, cluster, name)
        cluster.scale(jobs=section.dask_jobs)
        client = stack.enter_context(Client(cluster, set_as_default=False))
        say(f"on {section.dask_jobs} Dask worker jobs of Slurm, named {name}; their energy is not measured")
        watch = _Watch(cluster, section.dask_jobs, name, logs, refusals, say)
        yield Remote(client, "cluster.dask: slurm", shown_path(logs), watch.check)


def _check_programs() -> None:
    missing = []
    # dask-jobqueue takes signals over when it is imported.
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    for package in ("dask_jobqueue", "distributed", "cryptography"):
        try:
            __import__(package)
        except ImportError:
            missing.append(package.replace("_", "-"))
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if missing:
        raise UserError(
            f"cluster.dask: slurm needs {' and '.join(missing)}, which this Python has not; install it with"
            f" pip install {' '.join(missing)}, or set the key to null"
        )
    if not installed():
        raise UserError(
            "cluster.dask: slurm needs sbatch, which is not installed here or not in PATH: run the stage on a login"
            " node of the cluster, or set the key to null"
        )


def _cluster(
    section: ClusterSection, stage: str, processes: int | None, logs: Path, name: str, refusals: list[Exception]
) -> "SLURMCluster":
    from dask_jobqueue import SLURMCluster
    from dask_jobqueue.slurm import SLURMJob
    from distributed.deploy.spec import ProcessInterface

    output = str(logs).replace("%", "%%")
    # The lost are replaced, and not put into the queue again.
    words = [f"--job-name={name}", f"--output={output}/dask-%j.log", "--no-requeue"]

    class WorkerJob(SLURMJob):
        async def _submit_job(self, script_filename: str) -> str:
            submit = partial(sbatch.submit, [*words, script_filename], stage=stage, cluster=section)
            return str(await asyncio.to_thread(submit))

        async def start(self) -> None:
            try:
                await super().start()
            except Exception as error:
                # The stage's own thread raises it.
                refusals.append(error)
                await ProcessInterface.start(self)

    cores = _cores(section, stage)
    processes = min(processes or cores, cores)
    return SLURMCluster(
        job_cls=WorkerJob,  # type: ignore[arg-type]
        cores=cores,
        processes=processes,
        # Memory is Slurm's to limit: Dask would pause or kill workers on its own account.
        memory="1GB",
        worker_extra_args=["--memory-limit", "0", "--no-dashboard"],
        # All that is asked for stands in the words for sbatch, which are made as for every other job.
        job_directives_skip=("#SBATCH",),
        job_script_prologue=_prologue(section, cores // processes),
        # Whoever can reach the scheduler could run code as this user; so only those who have the certificate can.
        security=True,
        shared_temp_directory=str(logs),
        scheduler_options={"dashboard": False, "dashboard_address": ":0"},
        silence_logs="critical",
    )


def _prologue(section: ClusterSection, threads: int) -> list[str]:
    """Lines of bash that make the environment of a worker."""
    variables = {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), **section.environment}
    return [
        # The signal before the time limit is for stages; a worker works to its end.
        "trap '' USR1",
        *(f"module load {shlex.quote(module)}" for module in section.modules),
        *(f"export {key}={shlex.quote(value)}" for key, value in variables.items()),
        f"export PYTHONPATH={shlex.quote(str(PROJECT_ROOT / 'src'))}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]


class _Watch:
    """Looks after the worker jobs: those that end are replaced, and what stops them from coming is said."""

    def __init__(
        self,
        cluster: "SLURMCluster",
        count: int,
        name: str,
        logs: Path,
        refusals: list[Exception],
        say: Callable[[str], None],
    ) -> None:
        self._cluster, self._count, self._name, self._logs = cluster, count, name, logs
        self._refusals, self._say = refusals, say
        self._looked = self._said = time.monotonic()
        self._connected: set[str] = set()
        self._stillborn = 0
        self._ended: list[str] = []

    def check(self) -> None:
        """Raise a UserError where no worker will come."""
        if self._refusals:
            raise self._refusals[0]
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        here = {str(worker.name) for worker in list(self._cluster.scheduler.workers.values())}
        jobs = {name: job for name, job in list(self._cluster.workers.items()) if job.job_id}
        present = {name for name in jobs if any(worker == name or worker.startswith(f"{name}-") for worker in here)}
        self._connected |= present
        try:
            found = queue.jobs([int(job.job_id) for job in jobs.values()])
        except UserError:
            # Slurm's controller may be away for a while.
            return
        queued = {str(job.id): job for job in found if job.name == self._name and not job.is_over}
        self._replace({name: job.job_id for name, job in jobs.items() if job.job_id not in queued})
        if not present:
            self._without_workers(list(queued.values()), now)

    def _replace(self, ended: dict[str, str]) -> None:
        """Submit new jobs in place of those that are gone from the queue."""
        if not ended:
            return
        self._ended += ended.values()
        self._stillborn = 0 if self._connected & set(ended) else self._stillborn + len(ended)
        if self._stillborn >= max(_STILLBORN, self._count):
            raise UserError(
                f"cluster.dask: slurm: {self._stillborn} worker jobs ended before their worker had connected;"
                f" {self._last_words()}"
            )

        async def forget() -> None:
            for name in ended:
                self._cluster.worker_spec.pop(name, None)
                self._cluster.workers.pop(name, None)

        self._cluster.sync(forget)
        self._say(f"{len(ended)} of {self._count} worker jobs ended; submitting others")
        self._cluster.scale(jobs=self._count)

    def _last_words(self) -> str:
        for job in reversed(self._ended):
            log = self._logs / f"dask-{job}.log"
            if log.is_file():
                lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-3:]
                return f"the end of {shown_path(log)}: {' | '.join(lines)}"
        return f"they left no log in {shown_path(self._logs)}, which must be on a file system that all machines share"

    def _without_workers(self, queued: list[Job], now: float) -> None:
        pending = [job for job in queued if job.state == "PENDING"]
        hopeless = next((job for job in pending if job.reason in _HOPELESS), None)
        if hopeless and len(pending) == len(queued):
            raise UserError(
                f"cluster.dask: slurm: worker job {hopeless.id} can never start: Slurm says {hopeless.reason}:"
                f" {queue.trouble(hopeless.reason)}"
            )
        if now - self._said >= _SAY_SECONDS:
            self._said = now
            reasons = {job.reason: queue.trouble(job.reason) for job in pending}
            why = "; ".join(f"{reason}: {advice}" if advice else reason for reason, advice in sorted(reasons.items()))
            jobs = f"{len(pending)} jobs are pending ({why})" if pending else "their jobs have started"
            self._say(f"waiting for Dask workers: {jobs}")


def _cores(section: ClusterSection, stage: str) -> int:
    asked = [word for word in sbatch.options(section, stage) if word.startswith("--cpus-per-task=")]
    return int(asked[-1].split("=")[1]) if asked else 1


def _close(cluster: "SLURMCluster", name: str) -> None:
    """End the worker jobs, whatever signals come meanwhile."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _SIGNALS}
    try:
        with contextlib.suppress(Exception, asyncio.CancelledError):
            cluster.close(timeout=20)
        # Those that were being submitted when the signal came. In a session of its own: Ctrl-C is not meant for it.
        with contextlib.suppress(OSError):
            subprocess.run(["scancel", f"--name={name}"], capture_output=True, start_new_session=True, timeout=30)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])

"""Independent pieces of work over Dask: on threads of this machine, or on a cluster where a stage has chosen one."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import dask
import dask.threaded
from dask.callbacks import Callback

from retlab.data.remote import Remote, run_remotely

Result = TypeVar("Result")
_remote: Remote | None = None


@contextlib.contextmanager
def on_cluster(remote: Remote | None) -> Iterator[None]:
    """Inside the block `run_tasks` uses the workers of a Dask cluster, or the threads of this machine."""
    global _remote
    before, _remote = _remote, remote
    try:
        yield
    finally:
        _remote = before


def is_remote() -> bool:
    """Whether tasks run in other processes than this one."""
    return _remote is not None


def run_tasks(
    function: Callable[..., Result],
    calls: Iterable[tuple[Any, ...]],
    workers: int | None,
    done: Callable[[Result], None],
) -> list[Result]:
    """Call a function once for each tuple of arguments and return the results in the order of the calls.

    Args:
        function: works on files alone, because it may run on another machine; there it may also run twice, even at
            the same time, where a worker was thought lost: its files are written by `written_aside`.
        calls: arguments of each call, small values only.
        workers: threads; None is one per core. A cluster has its own.
        done: told of each result as it arrives, in any order.

    Raises:
        UserError: a task's own; or no worker can do the work, and why.
    """
    if _remote is not None:
        return run_remotely(_remote, function, calls, done)

    def arrived(key: object, result: Result, graph: object, state: object, worker: object) -> None:
        del key, graph, state, worker
        done(result)

    tasks = [dask.delayed(function, pure=False)(*call) for call in calls]
    with dask.config.set({"num_workers": workers} if workers else {}), Callback(posttask=arrived):
        return list(dask.compute(*tasks, scheduler=dask.threaded.get))


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder inside another one for what tasks leave to each other, of this attempt of the stage alone."""
    scratch = Path(tempfile.mkdtemp(prefix=".scratch-", dir=folder))
    yield scratch
    # Under another name at once: a task that runs twice puts nothing more into it.
    shutil.rmtree(scratch.rename(scratch.with_suffix(".old")))


@contextlib.contextmanager
def written_aside(target: Path, scratch: Path) -> Iterator[Path]:
    """A path for a file that becomes `target`, as a whole, when the block ends well.

    A task that a cancelled attempt left running finds its scratch folder gone, and so cannot touch what a later attempt
    writes.
    """
    aside = scratch / f".{target.name}.{uuid4().hex}"
    try:
        yield aside
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise

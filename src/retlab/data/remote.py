"""Tasks on the workers of a Dask cluster: what a worker does with one, and waiting for all of them."""

import functools
import hashlib
import importlib.metadata
import itertools
import pickle
import platform
import queue
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from retlab.errors import UserError

if TYPE_CHECKING:
    from distributed import Client, Future

Result = TypeVar("Result")
_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = ("numpy", "pyarrow", "tokenizers")
_CHECK_SECONDS = 1.0
_GATHER_SECONDS = 5.0
_TASKS_PER_THREAD = 3


@dataclass(frozen=True)
class Remote:
    """A Dask cluster whose workers see the same files as this machine."""

    client: "Client"
    name: str
    "What to call it in messages."
    logs: str
    "Where its workers say what happened to them."
    check: Callable[[], None]
    "Called every second while tasks are waited for; raises UserError where no worker will do them."


@functools.cache
def identity() -> dict[str, str]:
    """What must be equal on two machines for their files to be: versions, and the code of this package."""
    code = hashlib.sha256()
    for file in sorted((_PACKAGE / "data").glob("*.py")):
        code.update(file.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, **versions, "the code of RetLab": code.hexdigest()[:12]}


def run_remotely(
    remote: Remote, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], done: Callable[[Result], None]
) -> list[Result]:
    """`parallel.run_tasks` on a cluster. Only a few tasks for each thread are submitted at a time."""
    task = _worker_task(str(_PACKAGE.parent), identity())
    arrived: queue.SimpleQueue[Future] = queue.SimpleQueue()
    numbered = enumerate(calls)
    running: dict[Any, tuple[int, Future, str]] = {}
    results: dict[int, Result] = {}
    run = uuid4().hex
    checked = -_CHECK_SECONDS
    most = 0
    try:
        while True:
            if time.monotonic() - checked >= _CHECK_SECONDS:
                remote.check()
                most = max(8, _TASKS_PER_THREAD * sum(remote.client.nthreads().values()))
                checked = time.monotonic()
            for number, call in itertools.islice(numbered, max(0, most - len(running))):
                key = f"{function.__name__.strip('_')}-{run}-{number}"
                future = remote.client.submit(task, pickle.dumps((function, call)), key=key, pure=False)
                running[key] = (number, future, _described(call))
                future.add_done_callback(arrived.put)
            if not running:
                return [results[number] for number in range(len(results))]
            try:
                future = arrived.get(timeout=_CHECK_SECONDS / 2)
            except queue.Empty:
                continue
            number, _, what = running.pop(future.key)
            results[number] = _result(remote, future, what)
            done(results[number])
    finally:
        remote.client.cancel([future for _, future, _ in running.values()], force=True)


def _described(call: tuple[Any, ...]) -> str:
    return next((str(value) for value in reversed(call) if isinstance(value, Path) and value.suffix), "its files")


def _result(remote: Remote, future: "Future", what: str) -> Any:
    from distributed.scheduler import KilledWorker

    if future.status == "cancelled":
        raise UserError(
            f"the connection to the scheduler of {remote.name} is lost; see that it runs and run the same command again"
        )
    try:
        if future.status == "error" and (error := future.exception()) is not None:
            raise error
        kind, value = _gathered(remote, future)
    except KilledWorker:
        raise UserError(
            f"{remote.name}: every worker that worked on {what} was lost, so that it is given up; their last words are"
            f" in {remote.logs}; if memory is what they lack, ask for more (cluster.memory) or fewer processes"
            " (data.dask_workers)"
        ) from None
    if kind == "problem":
        raise UserError(f"{remote.name}: {value}")
    return pickle.loads(value)


def _gathered(remote: Remote, future: "Future") -> tuple[str, Any]:
    """A task's result, which Dask computes anew where the worker that holds it is lost."""
    while True:
        try:
            kind, value = future.result(timeout=_GATHER_SECONDS)
            return kind, value
        except TimeoutError:
            # The task's own, such as a network drive's.
            if future.status == "error":
                raise
            remote.check()


def _worker_task(source: str, expected: dict[str, str]) -> Callable[[bytes], tuple[str, Any]]:
    """What a worker runs for a pickled function and its arguments.

    A nested function travels by value: neither the scheduler nor the worker needs to have RetLab on its path.
    """

    def attempt(payload: bytes) -> tuple[str, Any]:
        import importlib
        import pickle
        import socket
        import sys
        import time
        from pathlib import Path

        host = socket.gethostname()
        if source not in sys.path:
            sys.path.insert(0, source)
        try:
            found = importlib.import_module("retlab.data.remote").identity()
        except ImportError as error:
            advice = "start it in the same environment, on a file system that all machines share"
            return "problem", f"the worker on {host} cannot import what it needs from {source} ({error}); {advice}"
        for name, version in expected.items():
            if found.get(name) != version:
                advice = "start the workers anew in the same environment; other versions write other files"
                return (
                    "problem",
                    f"the worker on {host} has {name} {found.get(name)}, and here it is {version}; {advice}",
                )
        function, call = pickle.loads(payload)
        folders = {path if path.is_dir() else path.parent for path in call if isinstance(path, Path)}
        # A network file system may show a new folder late.
        for _ in range(20):
            unseen = [folder for folder in sorted(folders) if not folder.is_dir()]
            if not unseen:
                return "done", pickle.dumps(function(*call))
            time.sleep(0.25)
        advice = "put data.folder on a file system that all machines share"
        return "problem", f"the worker on {host} does not see the folder {unseen[0]}; {advice}"

    return attempt

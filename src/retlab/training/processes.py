"""The processes of one training on this machine: started beside the first, watched, and brought to agreement."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from retlab.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError

PATIENCE_SECONDS = 15.0
"""How long the first process may go on after another one failed, before it is ended."""

EXIT_LOST = 76
"""Exit code of a helper that lost its connection to another process: that one knows why."""

_ENVIRONMENT = {
    # All processes are on this machine.
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    # NCCL would end a process in its own way, with pages of text; the helpers are watched here.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
}


class Agreement:
    """Values that all processes of a training agree on, through the CPU: no GPU is waited for."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self._group: Any = None

    def join(self) -> None:
        """Find the other processes, once torch.distributed is up."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._group = dist.new_group(backend="gloo")

    def leave(self) -> None:
        """Go on alone, whatever the other processes do."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
        self.rank, self.size, self._group = 0, 1, None

    def sum(self, values: list[float]) -> list[float]:
        """Elementwise sum over the processes, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return total.tolist()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process."""
        return tuple(value > 0 for value in self.sum([float(flag) for flag in flags]))

    def gather(self, value: Any) -> list[Any]:
        """The plain values of all processes, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values


def is_helper() -> bool:
    """Whether this is a further process of a training: it trains, and says and writes nothing."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


def lost_connection(error: BaseException) -> bool:
    """Whether the error says that another process of the training is gone."""
    # gloo raises plain RuntimeErrors that name its source file.
    return dist.is_available() and (isinstance(error, dist.DistError) or "gloo" in str(error))


class _Failure(NamedTuple):
    """How a helper ended that did not train to the end."""

    rank: int
    code: int
    said: str

    def __str__(self) -> str:
        if self.code == EXIT_USER_ERROR:
            return self.said
        if self.code > 0:
            return f"process {self.rank + 1} of the training failed; the lines above say why"
        name = signal.Signals(-self.code).name
        return (
            f"process {self.rank + 1} of the training was ended by {name}"
            f"{' (out of memory?)' if name == 'SIGKILL' else ''}; checkpoints are kept: run the same command again"
            " to continue"
        )


@contextlib.contextmanager
def helper_processes(count: int, request: str) -> Iterator[None]:
    """Run `count` helpers beside this process for the time of the block, each with the request on its input.

    Lightning and torch.distributed find each other through environment variables. A helper ends when its input
    does, so none outlives this process, however that ends.

    Raises:
        UserError: a helper failed or was killed, and the block lost its connection to it.
    """
    if count == 0:
        yield
        return
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0", **_ENVIRONMENT}
    before = {key: os.environ.get(key) for key in (*shared, "LOCAL_RANK")}
    helpers = [_start({**os.environ, **shared, "LOCAL_RANK": str(rank)}, request) for rank in range(1, count + 1)]
    finished, failures = threading.Event(), list[_Failure]()
    watchers = [
        threading.Thread(target=_watch, args=(rank, helper, finished, failures), daemon=True)
        for rank, helper in enumerate(helpers, start=1)
    ]
    for watcher in watchers:
        watcher.start()
    os.environ.update(shared, LOCAL_RANK="0")
    try:
        yield
    except RuntimeError as error:
        if not lost_connection(error):
            raise
        for watcher in watchers:
            watcher.join(timeout=5)
        cause = _first(failures)
        if cause is None:
            raise
        raise UserError(str(cause)) from error
    finally:
        finished.set()
        for helper in helpers:
            assert helper.stdin is not None
            helper.stdin.close()
            helper.wait()
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def _start(environment: dict[str, str], request: str) -> "subprocess.Popen[str]":
    source = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
    helper = subprocess.Popen(
        [sys.executable, "-m", "retlab.training.helper"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        # Ctrl-C reaches the first process alone, and all agree on what follows.
        process_group=0,
    )  # fmt: skip
    assert helper.stdin is not None
    helper.stdin.write(request + "\n")
    helper.stdin.flush()
    return helper


def _watch(rank: int, helper: "subprocess.Popen[str]", finished: threading.Event, failures: list[_Failure]) -> None:
    """Wait for a helper, and end this process if it failed: this one may hang in a collective call forever."""
    assert helper.stdout is not None
    said, code = helper.stdout.read().strip(), helper.wait()
    if code in (0, EXIT_INTERRUPTED):
        return
    failures.append(_Failure(rank, code, said))
    if not finished.wait(PATIENCE_SECONDS):
        print(f"error: {_first(failures) or failures[0]}", file=sys.stderr, flush=True)
        os._exit(EXIT_USER_ERROR)


def _first(failures: list[_Failure]) -> _Failure | None:
    """The first failure that is not the consequence of another."""
    return next((failure for failure in failures if failure.code != EXIT_LOST), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

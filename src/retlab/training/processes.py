"""The processes of one training: started beside the first and on other nodes, watched, and brought to agreement."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist

from retlab.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError, one_line
from retlab.nodes import OtherNode

PATIENCE_SECONDS = 15.0
"""How long the first process may go on after another one failed, before it is ended."""

LOST_SECONDS = 12.0
"""How long a process that lost another one waits to hear why: ending takes a busy machine seconds."""

GO_ON = "checkpoints are kept: run the same command again to continue"
"""What to do after the loss of a process."""

EXIT_LOST = 76
"""Exit code of a helper that lost its connection to another process: that one knows why, if it is not its own GPU."""

_LOCAL = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""The network of processes that are all on one machine; between machines torch chooses, or who knows better."""


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


class Place(NamedTuple):
    """Where the processes of a training find each other, and which of its nodes this is."""

    address: str = "127.0.0.1"
    port: int = 0
    node: int = 0
    nodes: int = 1
    devices: int = 1
    "Processes of each node."

    def environment(self, local_rank: int) -> dict[str, str]:
        """The variables by which Lightning and torch.distributed find the other processes."""
        on_this_machine = self.nodes == 1 or self.address == "localhost" or self.address.startswith("127.")
        own = {} if self.nodes == 1 else {key: os.environ[key] for key in _LOCAL if key in os.environ}
        return {
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            "NODE_RANK": str(self.node),
            "LOCAL_RANK": str(local_rank),
            # NCCL would end a process in its own way, with pages of text; all processes are watched here.
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
            **((_LOCAL | own) if on_this_machine else {}),
        }


def process_rank(devices: int) -> int:
    """Which process of the training this is, where each node has `devices` of them."""
    return int(os.environ.get("NODE_RANK", "0")) * devices + int(os.environ.get("LOCAL_RANK", "0"))


def is_helper() -> bool:
    """Whether this is a further process of a training: it trains, and says and writes nothing."""
    return process_rank(1) != 0


def lost_connection(error: BaseException) -> bool:
    """Whether the error says that another process of the training is gone."""
    # gloo raises plain RuntimeErrors that name its source file.
    return dist.is_available() and (isinstance(error, dist.DistError) or "gloo" in str(error))


class _Failure(NamedTuple):
    """How a process ended that did not train to the end."""

    who: str
    code: int
    said: str

    def __str__(self) -> str:
        if self.code == EXIT_USER_ERROR:
            return self.said
        if self.code == EXIT_LOST:
            return f"{self.who} of the training lost its connection to the others ({self.said}); {GO_ON}"
        if self.code > 0:
            return f"{self.who} of the training failed; the lines above say why"
        how = "is gone"
        if self.code < 0:
            name = signal.Signals(-self.code).name
            how = f"was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
        return f"{self.who} of the training {how}; {GO_ON}"


@contextlib.contextmanager
def all_processes(
    request: str,
    place: Place,
    others: Sequence[OtherNode] = (),
    leave: Callable[[str], NoReturn] | None = None,
) -> Iterator[None]:
    """Run the other processes of a training for the time of the block: this node's, and those of the other nodes.

    A helper ends when its input does, and another node with its connection, so none outlives this process, however
    that ends.

    Args:
        request: what all of them train, as a line of JSON.
        place: this node. The port of a first node is chosen here.
        others: the other nodes, where this is the first.
        leave: ends this process because of a failure elsewhere while it may hang; prints the sentence if not given.

    Raises:
        UserError: another process failed or was killed, and the block lost its connection to it.
    """
    if place.node == 0:
        place = place._replace(port=_free_port())
    for node in others:
        node.connection.send({"request": request, "place": place._replace(node=node.number)})
    helpers = [_start({**os.environ, **place.environment(rank)}, request) for rank in range(1, place.devices)]
    ends = [partial(_end_of_helper, place.node * place.devices + n, one) for n, one in enumerate(helpers, start=1)]
    ends += [partial(_end_of_node, node) for node in others]
    finished, failures = threading.Event(), list[_Failure]()
    watching = [
        threading.Thread(target=_watch, args=(end, finished, failures, leave or _say_and_leave), daemon=True)
        for end in ends
    ]
    for thread in watching:
        thread.start()
    mine = place.environment(0)
    before = {key: os.environ.get(key) for key in mine}
    os.environ.update(mine)
    try:
        yield
    except RuntimeError as error:
        if not lost_connection(error):
            raise
        raise _explained(error, failures, watching, is_first_node=place.node == 0) from error
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
        [sys.executable, "-P", "-m", "retlab.training.helper"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        # Ctrl-C reaches the first process alone, and all agree on what follows.
        process_group=0,
    )  # fmt: skip
    assert helper.stdin is not None
    helper.stdin.write(request + "\n")
    helper.stdin.flush()
    return helper


def _end_of_helper(rank: int, helper: "subprocess.Popen[str]") -> _Failure | None:
    """Wait for a helper's end; how it failed, if it did."""
    assert helper.stdout is not None
    said, code = helper.stdout.read().strip(), helper.wait()
    return None if code in (0, EXIT_INTERRUPTED) else _Failure(f"process {rank + 1}", code, said)


def _end_of_node(node: OtherNode) -> _Failure | None:
    """Wait for a failure of another node, or for its silent end."""
    who = f"node {node.number + 1} ({node.name})"
    message = node.connection.receive()
    if message is None:
        return _Failure(who, 0, "")
    code, said = int(message["code"]), str(message["said"])
    return None if code in (0, EXIT_INTERRUPTED) else _Failure(who, code, f"on {node.name}: {said}")


def _watch(
    end: Callable[[], _Failure | None],
    finished: threading.Event,
    failures: list[_Failure],
    leave: Callable[[str], NoReturn],
) -> None:
    """Wait for an end, and end this process if it is a failure: this one may hang in a collective call forever."""
    failure = end()
    if failure is None:
        return
    failures.append(failure)
    if not finished.wait(PATIENCE_SECONDS):
        leave(str(_first(failures) or _of_gpus(failures) or failures[0]))


def _say_and_leave(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(EXIT_USER_ERROR)


def _reason(failures: list[_Failure], watching: Sequence[threading.Thread]) -> _Failure | None:
    """Wait for the failure behind a lost connection, as long as there is somebody who may tell it."""
    until = time.monotonic() + LOST_SECONDS
    # A thread that has seen a failure lives on beside it.
    while (
        _first(failures) is None
        and time.monotonic() < until
        and sum(map(threading.Thread.is_alive, watching)) > len(failures)
    ):
        time.sleep(0.02)
    return _first(failures)


def _first(failures: list[_Failure]) -> _Failure | None:
    """The first failure that is not the consequence of another."""
    return next((failure for failure in failures if failure.code != EXIT_LOST), None)


def _explained(
    error: RuntimeError, failures: list[_Failure], watching: Sequence[threading.Thread], is_first_node: bool
) -> Exception:
    """What to raise for a lost connection, once it is known who ended it or that nobody tells."""
    cause = _reason(failures, watching)
    if cause is None and not isinstance(error, dist.DistError):
        # What ended a connection through the host may have been one between GPUs.
        cause = _of_gpus(failures)
    if not is_first_node and (cause is None or cause.code == EXIT_LOST):
        # The first node hears of it from the one that knows.
        return dist.DistBackendError(one_line(error) if cause is None else cause.said)
    lost = f"the processes of the training lost their connection ({one_line(error)}); {GO_ON}"
    return UserError(str(cause or lost))


def _of_gpus(failures: list[_Failure]) -> _Failure | None:
    """The first lost connection that was one between GPUs, such as where one has no memory for it."""
    return next((failure for failure in failures if failure.code == EXIT_LOST and "gloo" not in failure.said), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]

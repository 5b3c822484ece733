"""The nodes of one job step: the others connect to the first one, learn what to do, and end with it.

Lines of JSON over one TCP connection for each node. A process that ends, however it ends, closes its connection, and a
machine that is gone does not answer TCP's probes; so each side knows of the other's end within a minute.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

from retlab.errors import Interrupted, UserError
from retlab.slurm_step import Step, gpus_on_node

GATHER_SECONDS = 300.0
"""How long nodes wait for each other at the start: a first import from a network drive takes minutes."""

LINGER_SECONDS = 20.0
"""How long a first node that has failed early waits for the others to come and hear of it."""

_KEPT: "list[Connection]" = []


class Connection:
    """Lines of JSON to and from another node."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._lines = connection.makefile("r", encoding="utf-8", newline="\n")

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message; a lost connection is what `receive` reports."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """The next message, or None where the connection ended or, within so many seconds, nothing sensible came."""
        try:
            self._socket.settimeout(seconds)
            message = json.loads(self._lines.readline())
            self._socket.settimeout(None)
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """End the connection."""
        self._lines.close()
        self._socket.close()


class OtherNode:
    """A node beside the first, as the first one sees it."""

    def __init__(self, connection: Connection, greeting: Mapping[str, Any]) -> None:
        self.connection = connection
        self.number, self.name, self.gpus = int(greeting["node"]), str(greeting["name"]), greeting["gpus"]


class Nodes:
    """All nodes of a stage, as its first one sees them; without a step it is the only one."""

    def __init__(self, step: Step | None = None) -> None:
        self.count = step.nodes if step else 1
        self.address = "127.0.0.1"
        self.others: list[OtherNode] = []
        self._step, self._server = step, None
        if step is not None and step.nodes > 1:
            self.address, port = meeting_place(step)
            self._server = _listen(port)

    def gather(self, seconds: float = GATHER_SECONDS) -> None:
        """Wait for the other nodes.

        Raises:
            UserError: they do not come in time, or one of them has left.
        """
        deadline = time.monotonic() + seconds
        while len(self.others) < self.count - 1:
            node = self._next(deadline - time.monotonic())
            if node is None:
                raise UserError(
                    f"{len(self.others) + 1} of the {self.count} nodes of this job step came within {seconds:.0f} s;"
                    " look at the other tasks' output, and whether the nodes reach each other"
                    " (MASTER_ADDR and MASTER_PORT name another address of the first node)"
                )
            self.others.append(node)
        self.others.sort(key=lambda node: node.number)

    def end(self) -> None:
        """Let the other nodes end, those too that are only starting; the exit code is the first one's matter."""
        with contextlib.suppress(UserError, OSError, Interrupted):
            self.gather(LINGER_SECONDS)
        for node in self.others:
            node.connection.send({"end": True})
        # The system closes them when this process is gone, so that none takes the end for a loss.
        _KEPT.extend(node.connection for node in self.others)

    def _next(self, seconds: float) -> OtherNode | None:
        assert self._step is not None
        assert self._server is not None
        deadline, known = time.monotonic() + seconds, {node.number for node in self.others}
        while (left := deadline - time.monotonic()) > 0:
            self._server.settimeout(left)
            try:
                connection = Connection(self._server.accept()[0])
            except TimeoutError:
                break
            greeting = connection.receive(seconds=10)
            if greeting and greeting.get("step") == _name(self._step) and greeting.get("node") not in known:
                return OtherNode(connection, greeting)
            # Something else that looks at ports.
            connection.close()
        return None


def join_first_node(step: Step, is_stopping: Callable[[], bool]) -> Connection:
    """Connect to the first node of this step.

    Raises:
        UserError: it cannot be reached in time.
        Interrupted: `is_stopping` became true before.
    """
    address, port = meeting_place(step)
    deadline = time.monotonic() + GATHER_SECONDS
    while True:
        if is_stopping():
            raise Interrupted("a signal came before the training")
        try:
            connection = Connection(socket.create_connection((address, port), timeout=5))
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"node {node_name()} could not reach the first node at {address}:{port} within"
                    f" {GATHER_SECONDS:.0f} s ({error.strerror or error}); MASTER_ADDR and MASTER_PORT name another"
                    " address of it"
                ) from error
            time.sleep(0.3)
            continue
        connection.send({"step": _name(step), "node": step.node, "name": node_name(), "gpus": gpus_on_node()})
        return connection


def meeting_place(step: Step, environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Address and port at which the first node waits for the others: each job step has its own port.

    Raises:
        UserError: no address of the first node is known.
    """
    job, number = (int(text) if text.isdigit() else 0 for text in (step.job, step.number))
    # Below the ports that systems give to outgoing connections.
    port = int(environment.get("MASTER_PORT") or 10_000 + (job * 101 + number) % 20_000)
    return environment.get("MASTER_ADDR") or _first_address(step), port


def node_name(environment: Mapping[str, str] = os.environ) -> str:
    """The name of this node in messages."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def _first_address(step: Step) -> str:
    """The name of the first node, or where that means nothing the address that Slurm itself uses."""
    name = next(iter(_scontrol("hostnames", step.node_list).split()), None)
    if name is not None:
        words = _scontrol("node", name).split()
        found = [word.removeprefix("NodeAddr=") for word in words if word.startswith("NodeAddr=")]
        for address in (name, *found):
            with contextlib.suppress(OSError):
                socket.getaddrinfo(address, None)
                return address
    raise UserError(
        f"the first of the nodes {step.node_list} has no address that scontrol or this machine knows;"
        " set the environment variable MASTER_ADDR to it"
    )


def _scontrol(what: str, name: str) -> str:
    try:
        answer = subprocess.run(["scontrol", "show", what, name], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"port {port} of the first node cannot be used ({error.strerror});"
            " set the environment variable MASTER_PORT to a free one"
        ) from error


def _name(step: Step) -> str:
    return f"retlab {step.job}.{step.number}"

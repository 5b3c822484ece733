"""Scripts in processes of their own that need not import torch, transformers and Lightning first.

Each process is forked from one that has imported them already, once for all tests of a worker: a start takes a tenth
of a second and not ten. It is a process as any other, to be signalled, stopped and killed; it shares nothing else
with the tests. How a stage starts from nothing is tested elsewhere, with the shell scripts.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.stand_ins.imported_libraries"])


class Script:
    """`python script words...`, with what `subprocess.Popen` has of methods; both outputs go to one file."""

    def __init__(self, script: Path, *words: str, cwd: Path | None = None, **environment: str) -> None:
        _start_server()
        descriptor, self._output = tempfile.mkstemp()
        os.close(descriptor)
        changes = (str(cwd or Path.cwd()), {**os.environ, **environment})
        ready, begun = multiprocessing.Pipe(duplex=False)
        self._process = _SERVER.Process(target=_run, args=(begun, str(script), words, self._output, *changes))
        self._process.start()
        begun.close()
        # As with Popen's start_new_session: once the object is there, its process group can be signalled.
        ready.recv_bytes()
        ready.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("script", timeout)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.exitcode is None:
            with suppress(ProcessLookupError):  # It may end in between, and the server collects what has ended.
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def so_far(self) -> str:
        """What it has printed."""
        return Path(self._output).read_text()

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """Wait for the end; what it printed."""
        self.wait(timeout)
        text = self.so_far()
        os.unlink(self._output)
        return text, None


def _start_server() -> None:
    """Start it, if it is not there, where the tests find the library, whatever is installed."""
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if known is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = known


def _run(
    begun: Connection, script: str, words: tuple[str, ...], output: str, folder: str, environment: dict[str, str]
) -> None:
    # A group of its own, as of a command in a terminal.
    os.setsid()
    begun.send_bytes(b"begun")
    begun.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv = [script, *words]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")

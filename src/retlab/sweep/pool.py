"""Long-lived worker processes that run the trials of a sweep on this machine, and what watches over them."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from retlab.errors import EXIT_INTERRUPTED, StorageFailed, UserError
from retlab.section import shown_path
from retlab.storage import storage_errors
from retlab.sweep.failures import LOG, memory_kills, of_death, of_time
from retlab.sweep.grid import Trial
from retlab.sweep.trial_list import plain
from retlab.sweep.worker import KEPT

_TICK_SECONDS = 0.5
PATIENCE_SECONDS = 300.0
"""How long trials may take to save and leave after a signal."""
_BUSY_SECONDS = 1.0
"""How long a trial that another process runs is left alone."""
_STARTS = 3
"""Workers in a row that may end before they are ready."""


class Watcher(Protocol):
    """Is told what becomes of the trials."""

    def started(self, trial: Trial) -> None:
        """A worker took it up, and no other process runs it."""

    def done(self, trial: Trial, result: dict[str, Any] | None) -> None:
        """It has this result; None of one that was not started, as another sweep had brought it to its end."""

    def failed(self, trial: Trial, kind: str, message: str) -> None:
        """It ended without a result."""

    def interrupted(self, trial: Trial) -> None:
        """It was started and left, to be continued later."""

    def busy(self, trial: Trial) -> None:
        """It was not started, as another process runs it; it is looked at again."""

    def tick(self) -> None:
        """Time passed."""


@dataclass
class _Worker:
    process: "subprocess.Popen[bytes]"
    place: int
    "Which of the workers' places: the number of its GPU, where there are several."
    ready: bool = False
    "It takes trials."
    came_up: bool = False
    trial: Trial | None = None
    taken: bool = False
    "It has begun with its trial."
    since: float = 0.0
    buffer: bytes = b""
    late: bool = False
    "It was killed for taking too long."
    memory_kills: int | None = None
    "Of the whole system, when it took up the trial."


@dataclass
class Pool:
    """Places for workers on this machine.

    Args:
        places: the environment of the worker at each place.
        timeout: seconds after which a trial is given up; None never does.
        stop_requested: becomes true when all should save and leave.
        message_folder: where workers leave what they print outside of trials.
    """

    places: list[dict[str, str]]
    timeout: float | None
    stop_requested: Callable[[], bool]
    message_folder: Path
    _workers: list[_Worker] = field(default_factory=list)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _lost_starts: int = 0
    _stopping_since: float | None = None
    _busy: deque[tuple[float, Trial]] = field(default_factory=deque)
    "Trials to be given out later, such as those that other processes run, and when."
    _given_back: Counter[str] = field(default_factory=Counter)
    "How often a worker had ended before it took a trial."
    _storage: str | None = None
    "Why no trial can write its files."

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        """End all workers; one that works is not waited for."""
        for worker in self._workers:
            assert worker.process.stdin is not None
            # One that has ended has left its last order in the pipe.
            with contextlib.suppress(BrokenPipeError):
                worker.process.stdin.close()
        for worker in self._workers:
            try:
                worker.process.wait(10)
            except subprocess.TimeoutExpired:
                _kill(worker.process)
        self._workers.clear()
        self._selector.close()

    def start(self) -> None:
        """Start a worker at every place: they load their libraries while a few of them do the first work."""
        self._fill_places(len(self.places))

    def run(self, trials: Iterable[Trial], watcher: Watcher, extra: dict[str, Any] | None = None) -> bool:
        """Run all trials; returns whether all were given to an end, and False after a signal.

        Args:
            trials: what to run, in this order.
            watcher: is told what happens.
            extra: further words of every order.

        Raises:
            StorageFailed: files cannot be written; the other trials were told to save and leave.
            UserError: no worker comes up.
        """
        waiting = deque(trials)
        while waiting or self._busy or any(worker.trial for worker in self._workers):
            if (self.stop_requested() or self._storage) and self._stopping_since is None:
                self._stopping_since = time.monotonic()
                for worker in self._workers:
                    worker.process.send_signal(signal.SIGTERM)
            if self._stopping_since is not None:
                waiting.clear()
                self._busy.clear()
                if not any(worker.trial for worker in self._workers):
                    break
            else:
                while self._busy and self._busy[0][0] < time.monotonic():
                    waiting.append(self._busy.popleft()[1])
                self._fill_places(len(waiting))
                # One that has ended keeps its place until its last words are read.
                idle = [one for one in self._workers if one.ready and one.trial is None and one.process.poll() is None]
                for worker in idle[: len(waiting)]:
                    if self._give(worker, waiting[0], extra or {}):
                        waiting.popleft()
            for key, _ in self._selector.select(_TICK_SECONDS):
                self._read(key.data, watcher)
            self._give_up_the_late()
            watcher.tick()
        if self._storage:
            raise StorageFailed(self._storage)
        return self._stopping_since is None

    def _fill_places(self, waiting: int) -> None:
        free = sum(worker.trial is None for worker in self._workers)
        taken = {worker.place for worker in self._workers}
        for place, environment in enumerate(self.places):
            if place not in taken and free < waiting:
                self._start(place, environment)
                free += 1

    def _start(self, place: int, environment: dict[str, str]) -> None:
        source = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        with open(self.message_folder / f"worker-{place}.log", "wb") as messages:
            process = subprocess.Popen(
                # Without -P what lies in the user's folder would be imported in place of libraries.
                [sys.executable, "-P", "-m", "retlab.sweep.worker"],
                env={**os.environ, "PYTHONPATH": path, **environment},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages,
                # Ctrl-C reaches the supervisor alone; what a trial starts is killed with it.
                start_new_session=True,
            )  # fmt: skip
        worker = _Worker(process, place)
        self._workers.append(worker)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)

    def _give(self, worker: _Worker, trial: Trial, extra: dict[str, Any]) -> bool:
        """Have a worker run a trial; False where it is gone."""
        if not _send(worker, {"trial": plain(trial), **extra}):
            worker.ready = False
            return False
        worker.trial, worker.taken, worker.since, worker.memory_kills = trial, False, time.monotonic(), memory_kills()
        return True

    def _read(self, worker: _Worker, watcher: Watcher) -> None:
        assert worker.process.stdout is not None
        try:
            data = os.read(worker.process.stdout.fileno(), 2**16)
        except BlockingIOError:
            return
        if not data:
            self._lost(worker, watcher)
            return
        *lines, worker.buffer = (worker.buffer + data).split(b"\n")
        for line in lines:
            self._heard(worker, json.loads(line), watcher)

    def _heard(self, worker: _Worker, report: dict[str, Any], watcher: Watcher) -> None:
        event = report.pop("event")
        if event == "ready":
            worker.ready, worker.came_up, self._lost_starts = True, True, 0
            return
        if event == "taken":
            assert worker.trial is not None
            worker.taken = True
            self._tell(watcher.started, worker.trial)
            return
        trial, worker.trial = worker.trial, None
        assert trial is not None
        if event == "storage":
            worker.ready = False
            self._storage = self._storage or report["message"]
            self._leave(worker, trial, watcher)
        elif event == "busy":
            self._busy.append((time.monotonic() + _BUSY_SECONDS, trial))
            self._tell(watcher.busy, trial)
        elif event == "interrupted":
            self._tell(watcher.interrupted, trial)
        elif event == "failed":
            worker.ready = False
            self._tell(watcher.failed, trial, report["kind"], report["message"])
        else:
            self._tell(watcher.done, trial, report.get("result", report))
        _send(worker, KEPT)

    def _tell(self, tell: Callable[..., None], trial: Trial, *what: Any) -> None:
        """Tell the watcher, whose files may be impossible to write, too."""
        try:
            with storage_errors(trial.folder.parent):
                tell(trial, *what)
        except StorageFailed as error:
            self._storage = self._storage or str(error)

    def _leave(self, worker: _Worker, trial: Trial, watcher: Watcher) -> None:
        """A trial goes on later, if its worker had begun with it."""
        if worker.taken:
            self._tell(watcher.interrupted, trial)

    def _lost(self, worker: _Worker, watcher: Watcher) -> None:
        """A worker has ended, by itself or not; another takes its place where there is work."""
        assert worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        code = worker.process.wait()
        self._workers.remove(worker)
        trial = worker.trial
        if trial is None:
            if not worker.came_up and code not in (0, EXIT_INTERRUPTED) and self._stopping_since is None:
                self._lost_starts += 1
                if self._lost_starts >= _STARTS:
                    log = self.message_folder / f"worker-{worker.place}.log"
                    said = log.read_text(errors="replace").strip().splitlines() or [f"exit code {code}"]
                    raise UserError(f"no worker comes up: {said[-1]}; the whole is in {shown_path(log)}")
            return
        if self._stopping_since is not None:
            self._leave(worker, trial, watcher)
        elif not worker.taken and self._given_back[trial.id] < _STARTS:
            # It ended after its last report, and this trial is another worker's.
            self._given_back[trial.id] += 1
            self._busy.append((time.monotonic(), trial))
        elif worker.late:
            self._tell(watcher.failed, trial, *of_time(self.timeout or 0))
        else:
            self._tell(watcher.failed, trial, *of_death(code, trial.folder / LOG, worker.memory_kills))

    def _give_up_the_late(self) -> None:
        if self._stopping_since is not None and time.monotonic() - self._stopping_since > PATIENCE_SECONDS:
            for worker in self._workers:
                _kill(worker.process)
        for worker in self._workers:
            if worker.trial and self.timeout and time.monotonic() - worker.since > self.timeout:
                # It may have reported just now, and gets no other trial.
                worker.late, worker.ready = True, False
                _kill(worker.process)


def _send(worker: _Worker, words: dict[str, Any]) -> bool:
    """Send a line; False where the worker is gone, as the end of its reports tells next."""
    assert worker.process.stdin is not None
    try:
        worker.process.stdin.write(json.dumps(words).encode() + b"\n")
        worker.process.stdin.flush()
    except BrokenPipeError:
        return False
    return True


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a worker and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()

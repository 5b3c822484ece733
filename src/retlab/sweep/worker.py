"""A process that runs trials one after another for `pool`: `python -m retlab.sweep.worker`.

Messages are lines of JSON: orders come on the standard input, reports leave on what was the standard output; all that
libraries print goes to the log of the trial. A worker ends with its input, so none outlives its supervisor.
"""

import contextlib
import gc
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from retlab import artifacts
from retlab.errors import EXIT_INTERRUPTED, Interrupted, StorageFailed, UserError
from retlab.storage import storage_errors
from retlab.sweep.failures import LOG, of_error
from retlab.sweep.grid import Trial
from retlab.sweep.results import read_failure, read_result
from retlab.sweep.trial_list import trial_of

KEPT = {"kept": True}
"""Tells a worker that what became of its trial is written down, so that its lock may go."""


class _Busy(Exception):
    """Another process runs the trial."""


def main() -> int:
    """Do what is ordered until the input ends or a signal asks to leave."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: stop.set())
    # Ctrl-C is the supervisor's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()
    _import_libraries()
    # A trial is collected when it has ended; looking through the libraries each time takes as long as a small trial.
    gc.freeze()
    _report(reports, {"event": "ready"})
    while not stop.is_set():
        try:
            order = orders.get(timeout=0.1)
        except queue.Empty:
            continue

        def deliver(report: dict[str, Any]) -> str:
            """Report what became of the trial, and wait until the supervisor has written it down."""
            _report(reports, report)
            while orders.get() != KEPT:
                pass
            return str(report["event"])

        if _run(order, stop.is_set, lambda: _report(reports, {"event": "taken"}), deliver) in ("failed", "storage"):
            # What a failure leaves behind, memory above all, ends with the process.
            return 0
    return EXIT_INTERRUPTED


def _import_libraries() -> None:
    """Load once what every trial needs."""
    import retlab.evaluation.perplexity
    import retlab.training.export
    import retlab.training.trainer  # noqa: F401
    from retlab.training.compiling import keep_graphs_of_many_models

    keep_graphs_of_many_models()


def _read_orders(orders: "queue.Queue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(1)


def _report(reports: IO[str], report: dict[str, Any]) -> None:
    reports.write(json.dumps(report) + "\n")
    reports.flush()


def _run(
    order: dict[str, Any],
    stop_requested: Callable[[], bool],
    take: Callable[[], None],
    deliver: Callable[[dict[str, Any]], str],
) -> str:
    """Do what is ordered and deliver what became of it, while the trial is locked; returns the report's event.

    `take` tells that the trial is this worker's: until then it may be another sweep's.
    """
    trial, steps = trial_of(order["trial"]), order.get("calibration_steps")
    try:
        # Its log may not be written, either.
        with storage_errors(trial.folder.parent):
            if steps is not None:
                take()
                return deliver(_attempt(trial, lambda: _calibrate(trial, steps, stop_requested)))
            with artifacts.lock(trial.folder, True, _leave_it):
                # Another sweep may have brought it to its end.
                if read_result(trial.folder) is not None or read_failure(trial.folder) is not None:
                    return deliver({"event": "done", "result": None})
                take()
                return deliver(_attempt(trial, lambda: _train(trial, stop_requested)))
    except _Busy:
        return deliver({"event": "busy"})
    except StorageFailed as error:
        # Only a trial has to be written; a calibration is a guess that can be done without.
        event = "storage" if steps is None else "failed"
        return deliver({"event": event, "kind": "error", "message": str(error)})


def _leave_it() -> None:
    raise _Busy


def _attempt(trial: Trial, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the work; what is said goes to the log of the trial."""
    trial.folder.mkdir(exist_ok=True)
    with logged(trial.folder / LOG):
        print(f"--- {datetime.now(UTC).isoformat(timespec='seconds')} process {os.getpid()}", flush=True)
        try:
            return work()
        except Interrupted as error:
            print(f"interrupted: {error}", flush=True)
            return {"event": "interrupted"}
        except StorageFailed as error:
            print(f"error: {error}", flush=True)
            raise
        except Exception as error:
            if isinstance(error, UserError):
                print(f"error: {error}", flush=True)
            else:
                traceback.print_exc()
            kind, message = of_error(error)
            return {"event": "failed", "kind": kind, "message": message}


def _train(trial: Trial, stop_requested: Callable[[], bool]) -> dict[str, Any]:
    from retlab.sweep.trial import run_trial

    return {"event": "done", "result": run_trial(trial, say=_say, stop_requested=stop_requested).dump()}


def _say(line: str) -> None:
    print(line, flush=True)


def _calibrate(trial: Trial, steps: int, stop_requested: Callable[[], bool]) -> dict[str, Any]:
    from retlab.sweep.calibration import measure

    return {"event": "calibrated", **measure(trial, steps, stop_requested)}


@contextlib.contextmanager
def logged(file: Path) -> Iterator[None]:
    """Send both outputs of the process to a file, at its end."""
    kept = [os.dup(1), os.dup(2)]
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        yield
    finally:
        # On a full disk the work has failed before, at a line of its own.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(log)


if __name__ == "__main__":
    code = main()
    gc.freeze()
    sys.exit(code)

"""One trial of a sweep as a process of its own, such as a task of a job array."""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from retlab import artifacts
from retlab.emissions import track_emissions
from retlab.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, Interrupted, StorageFailed, UserError
from retlab.storage import make_folder, storage_errors
from retlab.sweep.failures import keep_failure, memory_kills, of_death, of_error, of_time
from retlab.sweep.grid import Trial
from retlab.sweep.results import read_failure, read_result
from retlab.sweep.trial import Energy, drop_leftovers, earlier_energy, finish, run_trial

_LOOK_SECONDS = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def run_alone(
    trial: Trial,
    timeout: float | None,
    retry_failed: bool,
    stop_requested: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Run a trial to its result, unless it is there; the energy of the process is the trial's.

    The trial runs in a child of this process, which sees how it ends, also where it hangs or crashes. The child
    returns from here, too; this process ends with its exit code.

    Args:
        trial: what to run.
        timeout: seconds after which it is given up; None never does.
        retry_failed: whether to run a trial again that has failed.
        stop_requested: becomes true when it should save and leave.
        say: prints a line for people.

    Raises:
        StorageFailed: files cannot be written, which is no failure of this trial.
        UserError: the trial failed, which its folder tells, too.
        Interrupted: `stop_requested` became true; the work is saved.
        SystemExit: the child has said why.
    """
    make_folder(trial.folder.parent)
    heard, begun = os.pipe()
    alive, kept = os.pipe()
    kills, before = memory_kills(), read_failure(trial.folder)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(heard)
        os.close(kept)
        threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
        # Its lock and its result may be impossible to write, too.
        with storage_errors(trial.folder.parent):
            _run_locked(trial, retry_failed, stop_requested, say, lambda: os.write(begun, b"."))
        return
    os.close(begun)
    os.close(alive)
    code, is_late = _supervise(child, heard, timeout, stop_requested)
    has_said_why = code in (EXIT_USER_ERROR, EXIT_INTERRUPTED) or (code > 0 and read_failure(trial.folder) != before)
    if not is_late and (has_said_why or (code < 0 and stop_requested())):
        raise SystemExit(code if code > 0 else 128 - code)
    if read_result(trial.folder) is not None:
        # Also where it was killed or crashed after its work.
        return
    kind, message = of_time(timeout or 0) if is_late else of_death(code, None, kills)
    keep_failure(trial, kind, message)
    raise UserError(message)


def _end_with(alive: int) -> None:
    """End this process with the one that watches over it."""
    os.read(alive, 1)
    os._exit(1)


def _supervise(child: int, heard: int, timeout: float | None, stop_requested: Callable[[], bool]) -> tuple[int, bool]:
    """Wait for the child; its exit code, less than 0 for a signal, and whether it took too long."""
    deadline, told, is_late = None, False, False
    while True:
        # The pipe ends with the child.
        if select.select([heard], [], [], _LOOK_SECONDS)[0] and os.read(heard, 1) and timeout is not None:
            deadline = time.monotonic() + timeout
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), is_late
        if stop_requested() and not told:
            told = True
            os.kill(child, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline and not is_late:
            is_late = True
            os.kill(child, signal.SIGKILL)


def _run_locked(
    trial: Trial,
    retry_failed: bool,
    stop_requested: Callable[[], bool],
    say: Callable[[str], None],
    on_start: Callable[[], object],
) -> None:
    usual: dict[int, Any] = {}

    def waiting() -> None:
        say(f"waiting: another process runs {trial.id}")
        # Waiting for a lock goes on after a signal, unless the signal raises.
        usual.update({number: signal.signal(number, _leave) for number in _SIGNALS})
        if stop_requested():
            _leave()

    with artifacts.lock(trial.folder, True, waiting):
        for number, handler in usual.items():
            signal.signal(number, handler)
        if read_result(trial.folder) is not None:
            drop_leftovers(trial.folder)
            say(f"up to date: {trial.id}")
            return
        failure = read_failure(trial.folder)
        # What failed while this process waited has been tried again.
        if failure is not None and (usual or not retry_failed):
            raise UserError(failure.sentence)
        on_start()
        _run(trial, say, stop_requested)


def _leave(*_: object) -> None:
    raise Interrupted("another process still runs the trial")


def _run(trial: Trial, say: Callable[[str], None], stop_requested: Callable[[], bool]) -> None:
    result = measured = None
    earlier = earlier_energy(trial.folder)
    try:
        with track_emissions(trial.config.emissions, trial.folder, "trial") as measured:
            result = run_trial(trial, say=say, stop_requested=stop_requested)
    except StorageFailed:
        # No failure of this trial.
        raise
    except Exception as error:
        keep_failure(trial, *of_error(error))
        raise
    finally:
        energy = Energy()
        if measured is not None and measured.energy_kwh is not None:
            row = artifacts.read_json(measured.file) if measured.file else None
            method = row["power_method"] if row else "not known"
            energy = Energy(measured.energy_kwh, measured.emissions_kg, f"this process' share of the host's; {method}")
        energy = energy.after(earlier)
        if result is None:
            energy.keep(trial.folder)
    finish(trial, result, energy)
    loss = f"test loss {result.test_loss:.4f} nats/token" if result.test_loss is not None else result.status
    say(f"{trial.id}: {loss}")

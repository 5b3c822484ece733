"""One trial of a sweep as a process of its own, such as a task of a job array."""

import os
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from retlab import artifacts
from retlab.emissions import track_emissions
from retlab.errors import OutOfMemory, UserError
from retlab.progress import duration
from retlab.sweep.grid import Trial
from retlab.sweep.results import TrialFailure, read_result, write_failure
from retlab.sweep.trial import Energy, drop_leftovers, earlier_energy, finish, run_trial


def run_alone(
    trial: Trial, timeout: float | None, stop_requested: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Run a trial to its result, unless it is there; the energy of the process is the trial's.

    Args:
        trial: what to run.
        timeout: seconds after which it is given up; None never does.
        stop_requested: becomes true when it should save and leave.
        say: prints a line for people.

    Raises:
        UserError: the trial failed, which its folder tells, too.
        Interrupted: `stop_requested` became true; the work is saved.
    """
    trial.folder.mkdir(parents=True, exist_ok=True)
    with artifacts.lock(trial.folder, True, lambda: say(f"waiting: another process runs {trial.id}")):
        if read_result(trial.folder) is not None:
            drop_leftovers(trial.folder)
            say(f"up to date: {trial.id}")
            return
        _watch_time(trial, timeout)
        _run(trial, say, stop_requested)


def _run(trial: Trial, say: Callable[[str], None], stop_requested: Callable[[], bool]) -> None:
    result = measured = None
    earlier = earlier_energy(trial.folder)
    try:
        with track_emissions(trial.config.emissions, trial.folder, "trial") as measured:
            result = run_trial(trial, say=say, stop_requested=stop_requested)
    except UserError as error:
        _fail(trial, "out of memory" if isinstance(error, OutOfMemory) else "error", str(error))
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        _fail(trial, "error", f"{type(error).__name__}: {lines[0]}")
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


def _fail(trial: Trial, kind: str, message: str) -> None:
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    values = {"trial": trial.id, "kind": kind, "message": message, "host": os.uname().nodename, "ended": ended}
    write_failure(trial.folder, TrialFailure.model_validate(values))


def _watch_time(trial: Trial, timeout: float | None) -> None:
    """End this process when the trial takes too long: it may hang where no signal is looked at."""

    def give_up() -> None:
        message = (
            f"no result after {duration(timeout or 0)} (grid_search.trial_timeout); its last checkpoint is kept, and"
            " --retry-failed goes on from it"
        )
        _fail(trial, "timeout", message)
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(2)

    if timeout is not None:
        timer = threading.Timer(timeout, give_up)
        timer.daemon = True
        timer.start()

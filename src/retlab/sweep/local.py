"""The sweep on this machine: the trials in a pool of workers, their energy, results and one display."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from retlab.artifacts import read_json, write_json
from retlab.emissions import StageEmissions, track_emissions
from retlab.errors import UserError
from retlab.progress import Progress, counted, progress
from retlab.section import shown_path
from retlab.storage import make_folder
from retlab.sweep.energy import EnergyShares
from retlab.sweep.failures import keep_failure
from retlab.sweep.grid import Grid, Trial
from retlab.sweep.points import input_identity
from retlab.sweep.pool import Pool
from retlab.sweep.results import FAILURE, TrialResult
from retlab.sweep.table import load_libraries
from retlab.sweep.trial import Energy, drop_leftovers, earlier_energy, finish

_INTERVAL_SECONDS = 5.0
"""Longest time between two measurements of power, which trials of seconds share."""
_PATIENCE_SECONDS = 20.0
"""How long a first result waits for a first measurement of power."""


def pool_for(grid: Grid, trials: Sequence[Trial], stop_requested: Callable[[], bool]) -> Pool:
    """Workers for these trials: one per GPU, or as many on the CPU as are asked for.

    Raises:
        UserError: trials that want more than one GPU or process each.
    """
    section, folder = grid.config.grid_search, grid.folder / "workers"
    for key in ("devices", "num_nodes"):
        several = getattr(grid.config.train, key) or 1
        if several > 1:
            raise UserError(
                f"train.{key} is {several}, but a trial of a sweep takes one GPU or process; set it to 1, and"
                " grid_search.workers to the trials at a time"
            )
    make_folder(folder)
    make_folder(grid.trials_folder)
    return Pool(_places(grid, len(trials)), section.trial_timeout, stop_requested, folder)


def _places(grid: Grid, trials: int) -> list[dict[str, str]]:
    section, train = grid.config.grid_search, grid.config.train
    devices = {"train": train.device, "evaluate": grid.config.evaluate.device}
    gpus = [] if set(devices.values()) == {"cpu"} else _gpus()
    missing = [name for name, device in devices.items() if device == "cuda" and not gpus]
    if missing:
        raise UserError(
            f"{missing[0]}.device is cuda, but torch sees no GPU here; set it to cpu or auto, or check the driver"
        )
    if gpus and train.device != "cpu":
        if section.workers and section.workers > len(gpus):
            raise UserError(
                f"grid_search.workers is {section.workers}, but this machine has {counted(len(gpus), 'GPU')} and every"
                " trial takes one; lower it"
            )
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[: section.workers]][: max(1, trials)]
    cores = len(os.sched_getaffinity(0))
    workers = section.workers or max(1, cores // (train.threads or 1))
    workers = min(workers, max(1, trials))
    threads = train.threads or max(1, cores // workers)
    return [{"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}] * workers


def _gpus() -> list[str]:
    """The GPUs that this process may use, each as CUDA_VISIBLE_DEVICES names it to a worker of its own."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    names = [name.strip() for name in visible.split(",")]
    # Of parts of a GPU a process sees the first alone, and other processes the others.
    if names[0].startswith("MIG-") and torch.cuda.is_available():
        return names
    # CUDA takes what stands before the first name that is no GPU of this machine.
    return names[: torch.cuda.device_count()]


@dataclass
class Keeper:
    """Writes what becomes of the trials, and shows it."""

    shares: EnergyShares
    bar: Progress
    say: Callable[[str], None]
    counts: dict[str, int] = field(default_factory=lambda: {"running": 0, "failed": 0, "diverged": 0})
    _earlier: dict[str, tuple[Trial, Energy]] = field(default_factory=dict)
    "The running trials, with what earlier attempts at them used."
    _said_busy: bool = False
    _kept: float = field(default_factory=time.monotonic)

    def started(self, trial: Trial) -> None:
        self._earlier[trial.id] = (trial, earlier_energy(trial.folder))
        self.shares.start(trial.id)
        self._count("running", 1)

    def done(self, trial: Trial, result: dict[str, Any] | None) -> None:
        if result is not None:
            self._wait_for_power()
            energy = self._end(trial)
            found = TrialResult.model_validate(result)
            finish(trial, found, energy)
            if found.status == "diverged":
                self._count("diverged", 1)
        self.bar.advance()

    def failed(self, trial: Trial, kind: str, message: str) -> None:
        # Of a worker that ends before it has begun nothing was used.
        if trial.id in self._earlier:
            self._end(trial).keep(trial.folder)
        self.say(f"{trial.id} failed: {keep_failure(trial, kind, message).sentence}")
        self._count("failed", 1)
        self.bar.advance()

    def interrupted(self, trial: Trial) -> None:
        self._end(trial).keep(trial.folder)

    def busy(self, trial: Trial) -> None:
        if not self._said_busy:
            self._said_busy = True
            self.say(f"waiting: another process runs {trial.id}, or more of these trials; others are run meanwhile")

    def tick(self) -> None:
        self.shares.tick()
        self.bar.advance(0)
        # What a killed sweep has used is not lost.
        if time.monotonic() - self._kept > _INTERVAL_SECONDS:
            self._kept = time.monotonic()
            for trial, earlier in self._earlier.values():
                # Where that cannot be written, the trial will say so.
                with contextlib.suppress(OSError):
                    self.shares.so_far(trial.id).after(earlier).keep(trial.folder)

    def _end(self, trial: Trial) -> Energy:
        """A trial has ended: what all attempts at it used."""
        _, earlier = self._earlier.pop(trial.id)
        self._count("running", -1)
        return self.shares.end(trial.id).after(earlier)

    def _wait_for_power(self) -> None:
        """Wait for the tracker's first measurement, so that trials of seconds have their energy, too."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while self.shares.totals() is not None and self.shares.kilowatts == 0 and time.monotonic() < end:
            time.sleep(0.2)
            self.shares.tick()

    def _count(self, what: str, change: int) -> None:
        self.counts[what] += change
        self.bar.note(", ".join(f"{count} {name}" for name, count in self.counts.items() if count))


def row_of(measured: StageEmissions) -> Callable[[], dict[str, Any] | None]:
    """Reads the running totals of a tracker's row."""

    def read() -> dict[str, Any] | None:
        row = read_json(measured.file) if measured.file else None
        return row if isinstance(row, dict) else None

    return read


def forget_failures(trials: Sequence[Trial]) -> None:
    """Let failed trials be run again."""
    for trial in trials:
        (trial.folder / FAILURE).unlink(missing_ok=True)


def run_locally(
    grid: Grid, *, plan_only: bool, retry_failed: bool, stop_requested: Callable[[], bool], say: Callable[[str], None]
) -> bool:
    """Print the plan and run what is missing; returns False where a signal ended it before its end.

    Raises:
        UserError: the folder holds another sweep, or no worker comes up.
    """
    from retlab.sweep.estimate import estimate
    from retlab.sweep.plan import make_plan

    claim(grid)
    plan = make_plan(grid, retry_failed)
    for line in plan.lines():
        say(line)
    if not plan.missing:
        say("up to date: no trial is missing" if grid.trials else "no point can be run")
        return True
    for trial in plan.finished:
        drop_leftovers(trial.folder)
    try:
        workers = pool_for(grid, plan.missing, stop_requested)
    except UserError as error:
        if not plan_only:
            raise
        say(f"expected: not known here: {error}")
        return True
    emissions = grid.config.emissions
    emissions = emissions.model_copy(update={"interval_seconds": min(emissions.interval_seconds, _INTERVAL_SECONDS)})
    with (
        track_emissions(emissions, grid.config.run_folder, "grid_search") as measured,
        workers as pool,
    ):
        shares = EnergyShares(row_of(measured))
        if not plan_only:
            pool.start()
        estimate(plan, pool, lambda: _power(shares), say)
        if plan_only or stop_requested():
            return not stop_requested()
        if retry_failed:
            forget_failures(plan.missing)
        # Loaded while this process waits for trials, what the tables need keeps nobody waiting at their end.
        loading = threading.Thread(target=load_libraries, args=(len(grid.config.grid_search.architectures) > 1,))
        loading.start()
        with progress("trials", len(plan.missing), "trial") as bar:
            finished = pool.run(plan.missing, Keeper(shares, bar, say))
        # An interpreter that ends in the middle of an import may crash.
        loading.join()
        return finished


def _power(shares: EnergyShares) -> float:
    shares.tick()
    return shares.kilowatts


def claim(grid: Grid) -> None:
    """Make the sweep's folder this grid's; raise a UserError where it holds a sweep on other data.

    A changed grid keeps the folder: its tables show the trials that it has.
    """
    file, mine = grid.folder / "sweep.json", input_identity(grid.config)
    theirs = read_json(file)
    if isinstance(theirs, dict) and theirs != mine:
        changed = ", ".join(sorted(key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)))
        raise UserError(
            f"{shown_path(grid.folder)} holds a sweep on other data ({changed}), whose losses cannot stand in one table"
            " with this one's; choose another name for this experiment, or move that folder away"
        )
    if theirs is None:
        write_json(file, mine)

"""Stage 7: train and test every point of a grid with every architecture and seed, and compare them.

    python src/grid_search.py CONFIG [key.path=value ...] [--plan] [--skip-invalid] [--retry-failed]

Reads the token shards and the tokenizer; leaves a folder per trial in runs/trials, and tables and plots in
runs/<name>/grid_search. Interrupted or killed, the same command goes on with what is missing.
"""

import argparse
import shlex
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import retlab.script_start  # noqa: F401
from retlab.artifacts import lock
from retlab.command import SIGNALS, StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.errors import Interrupted, StorageFailed, UserError
from retlab.progress import counted
from retlab.section import PROJECT_ROOT, shown_path
from retlab.storage import make_folder
from retlab.sweep.grid import Grid


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this script alone."""
    parser.add_argument("--plan", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument("--skip-invalid", action="store_true", help="run the points that can be run")
    parser.add_argument("--retry-failed", action="store_true", help="run failed trials again, too")
    parser.add_argument("--table", action="store_true", help="only rebuild tables and plots from the trials")
    parser.add_argument("--trials", metavar="FILE", type=Path, help="with --task: a list of trials")
    parser.add_argument("--task", metavar="N", type=int, help="run the trial of this number, from 0, alone")


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Run a sweep, or one part of it."""
    options = command.options
    if options.task is not None or options.trials is not None:
        _run_one(config, options, _stopped_by_signals())
        return
    from retlab.sweep.plan import refuse_invalid, tell_without_inputs
    from retlab.sweep.points import make_grid

    grid = make_grid(options.config, command.overrides, plan_only=options.plan)
    if options.table:
        from retlab.sweep.local import claim

        make_folder(grid.folder)
        claim(grid)
        _tables(grid)
        return
    if grid.lacking:
        tell_without_inputs(grid, _say)
        return
    if not options.plan:
        refuse_invalid(grid, options.skip_invalid)
    if config.grid_search.engine == "slurm":
        _submit(grid, command)
        return
    _run(grid, options)


def _say(line: str) -> None:
    print(f"[grid_search] {line}", flush=True)


def _stopped_by_signals() -> Callable[[], bool]:
    """Let trials save and leave at a signal: becomes true then. Before there are trials a signal ends all at once."""
    stop = threading.Event()
    for number in SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    return stop.is_set


def _tables(grid: Grid, compares: bool = True) -> None:
    from retlab.sweep.table import write_tables

    _end_at_signals()
    # Tables have the whole width.
    write_tables(grid, partial(print, flush=True), compares=compares)


def _end_at_signals() -> None:
    """Let a signal end this process at once: each file of the tables is whole at any moment."""
    for number in SIGNALS:
        signal.signal(number, _leave)


def _leave(number: int, _frame: object) -> None:
    raise Interrupted(f"{signal.Signals(number).name} received; trials and comparisons so far are kept")


def _run(grid: Grid, options: argparse.Namespace) -> None:
    from retlab.sweep.local import run_locally

    make_folder(grid.folder)
    with lock(grid.folder, True, lambda: _say("waiting: another process runs this sweep")):
        stop_requested = _stopped_by_signals()
        finished = run_locally(grid, plan_only=options.plan, retry_failed=options.retry_failed,
                               stop_requested=stop_requested, say=_say)  # fmt: skip
        _end_at_signals()
        # One that came with or after the last trial asks for no tables that take their time.
        finished = finished and not stop_requested()
        # Before the first result there is nothing to put into tables.
        if not options.plan and (finished or _has_results(grid)):
            _tables(grid, compares=finished)
    if not finished:
        raise Interrupted("what ran is saved")
    if not options.plan:
        _tell_of_failures(grid)


def _has_results(grid: Grid) -> bool:
    from retlab.sweep.results import read_result

    return any(read_result(trial.folder) is not None for trial in grid.trials)


def _tell_of_failures(grid: Grid) -> None:
    """Raise a UserError where trials have no result: whoever waits for the sweep is to know."""
    from retlab.sweep.outcomes import read_outcomes

    statuses = [outcome.status for outcome in read_outcomes(grid).values()]
    failed, missing = statuses.count("failed"), statuses.count("missing")
    if missing:
        raise UserError(
            f"{counted(missing, 'trial')} of {len(grid.trials):,} have no result though they were run, as if somebody"
            f" had emptied {shown_path(grid.trials_folder)} meanwhile; run the same command again"
        )
    if failed:
        raise UserError(
            f"{counted(failed, 'trial')} of {len(grid.trials):,} failed, as the lines above say; log.txt in"
            f" {shown_path(grid.trials_folder)}/<trial> has all of it, and --retry-failed runs failed trials again"
        )


def _submit(grid: Grid, command: StageCommand) -> None:
    from retlab.sweep.slurm import submit_missing

    options = command.options
    submission = submit_missing(grid, _say, plan_only=options.plan, retry_failed=options.retry_failed)
    if submission is not None:
        words = shlex.join([str(options.config), *command.overrides])
        _say(f"follow it with: bash {shown_path(PROJECT_ROOT / 'slurm' / 'status.sh')} {words}")


def _run_one(config: ExperimentConfig, options: argparse.Namespace, stop_requested: Callable[[], bool]) -> None:
    from retlab.sweep.alone import run_alone
    from retlab.sweep.submissions import cancel_waiting
    from retlab.sweep.trial_list import read_trial

    if options.trials is None:
        raise UserError("command line: --task needs --trials FILE, the list that its number counts in")
    if options.task is None:
        raise UserError("command line: --trials needs --task N, the number of one of its trials, from 0")
    trial = read_trial(options.trials, options.task)
    try:
        run_alone(trial, config.grid_search.trial_timeout, options.retry_failed, stop_requested, _say)
    except StorageFailed:
        cancel_waiting(options.trials, _say)
        raise


if __name__ == "__main__":
    run_stage(main, configure=add_options)

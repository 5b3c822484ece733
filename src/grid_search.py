"""Stage 7: train and test every point of a grid with every architecture and seed, and compare them.

    python src/grid_search.py CONFIG [key.path=value ...] [--plan] [--skip-invalid] [--retry-failed]

Reads the token shards and the tokenizer; leaves a folder per trial in runs/trials, and tables and plots in
runs/<name>/grid_search. Interrupted or killed, the same command goes on with what is missing.
"""

import argparse
import signal
import threading
from pathlib import Path

from retlab.artifacts import lock, read_json
from retlab.command import SIGNALS, StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.errors import Interrupted, UserError
from retlab.sweep.grid import Grid


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this script alone."""
    parser.add_argument("--plan", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument("--skip-invalid", action="store_true", help="run the points that can be run")
    parser.add_argument("--retry-failed", action="store_true", help="run failed trials again, too")
    parser.add_argument("--table", action="store_true", help="only rebuild tables and plots from the trials")
    parser.add_argument("--trials", metavar="FILE", type=Path, help="with --task: a JSON list of trials")
    parser.add_argument("--task", metavar="N", type=int, help="run the trial of this number, from 0, alone")


def main(_config: ExperimentConfig, command: StageCommand) -> None:
    """Run a sweep, or one part of it."""
    # A grid takes seconds to make, and a signal may come before it is there.
    stop = threading.Event()
    for number in SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    from retlab.sweep.plan import refuse_invalid
    from retlab.sweep.points import make_grid

    options = command.options
    grid = make_grid(options.config, command.overrides)
    if options.task is not None:
        _run_one(grid, options, stop)
        return
    if not (options.skip_invalid or options.plan or options.table):
        refuse_invalid(grid)
    if options.table:
        _tables(grid)
        return
    _run(grid, options, stop)


def _say(line: str) -> None:
    print(f"[grid_search] {line}", flush=True)


def _tables(grid: Grid) -> None:
    from retlab.sweep.table import write_tables

    # Each file of it is whole at any moment, so a signal ends it at once.
    for number in SIGNALS:
        signal.signal(number, _leave)
    write_tables(grid, _say)


def _leave(number: int, _frame: object) -> None:
    raise Interrupted(f"{signal.Signals(number).name} received; trials and comparisons so far are kept")


def _run(grid: Grid, options: argparse.Namespace, stop: threading.Event) -> None:
    from retlab.sweep.local import run_locally

    grid.folder.mkdir(parents=True, exist_ok=True)
    with lock(grid.folder, True, lambda: _say("waiting: another process runs this sweep")):
        finished = run_locally(grid, plan_only=options.plan, retry_failed=options.retry_failed,
                               stop_requested=stop.is_set, say=_say)  # fmt: skip
        if not options.plan:
            _tables(grid)
    if not finished:
        raise Interrupted("running trials are saved")


def _run_one(grid: Grid, options: argparse.Namespace, stop: threading.Event) -> None:
    from retlab.sweep.alone import run_alone

    if options.trials is None:
        raise UserError("command line: --task needs --trials FILE, the list that its number counts in")
    wanted = _listed(options.trials, options.task)
    trial = next((one for one in grid.trials if one.id == wanted), None)
    if trial is None:
        raise UserError(f"{options.trials}: trial {wanted} is not in this grid; was the configuration changed?")
    run_alone(grid, trial, _say, stop.is_set)


def _listed(file: Path, number: int) -> str:
    trials = read_json(file)
    if not isinstance(trials, list):
        raise UserError(f"--trials: {file} is missing or no JSON list of trials; name the list that --task counts in")
    if not 0 <= number < len(trials):
        raise UserError(f"--task: there is no trial {number} in {file}, which lists {len(trials):,}; count from 0")
    return str(trials[number])


if __name__ == "__main__":
    run_stage(main, configure=add_options)

"""Submit stages to Slurm: one of them, or all of them as a chain in which each waits for the one before.

    python src/submit_jobs.py CONFIG [key=value ...] [--from train_model] [-- words for sbatch]
    python src/submit_jobs.py CONFIG --stage train_model [key=value ...] [--force] [-- words for sbatch]

What the jobs ask for comes from the section cluster of CONFIG; words after -- go to sbatch as they are, and win.
"""

import argparse
import shlex

import retlab.script_start  # noqa: F401
from retlab.cluster.checks import check_stages, live_jobs
from retlab.cluster.client import require
from retlab.cluster.sbatch import given_value
from retlab.cluster.submission import (
    PIPELINE,
    STAGES,
    Submission,
    hindrances,
    submit_chain,
)
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.config_model import resolve_model
from retlab.data.settings import SPLITS
from retlab.errors import UserError
from retlab.section import PROJECT_ROOT, SCRIPTS, shown_path

GRID_SEARCH_OPTIONS = ("plan", "skip-invalid", "retry-failed", "table")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this script alone."""
    parser.add_argument("--stage", choices=STAGES, help="submit this stage alone")
    parser.add_argument("--from", dest="first", choices=PIPELINE, help="first stage of the chain")
    for name in GRID_SEARCH_OPTIONS:
        parser.add_argument(f"--{name}", action="store_true", help="for --stage grid_search")


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Submit, and say what keeps the jobs waiting."""
    options = command.options
    _refuse_unfitting(command)
    if command.words and options.stage != "tokenize_data":
        raise UserError(f"command line: {command.words[0]} names a split, which is for tokenize_data alone")
    require("sbatch")
    if options.stage == "grid_search":
        _sweep(command)
        return
    names = [options.stage] if options.stage else PIPELINE[PIPELINE.index(options.first or PIPELINE[0]) :]
    # What a stage would refuse after hours of other jobs; the jobs' configuration stays as it was written.
    resolved = resolve_model(config) if "train_model" in names else config
    check_stages(resolved, names, command.after, command.force)
    words = [f"--{name}" for name in ("force", "verify") if getattr(command, name)]
    stages = [Submission(config, name, [*command.words, *words], command.after) for name in names]
    notes = submit_chain(stages, print)
    for line in hindrances(stages, notes):
        print(line)


def _refuse_unfitting(command: StageCommand) -> None:
    """Raise a UserError where an option says nothing about what is to be submitted: nobody may think that it holds."""
    options = command.options
    if given_value(command.after, "--array", "-a") is not None:
        raise UserError(
            "command line: --array after -- would take the place of the job arrays that RetLab makes; leave it out"
            " (grid_search.max_parallel is how many trials run at a time)"
        )
    if options.stage and options.first:
        raise UserError(f"command line: --from begins a chain of stages, and this submits {options.stage} alone")
    for name in GRID_SEARCH_OPTIONS:
        if options.stage != "grid_search" and getattr(options, name.replace("-", "_")):
            raise UserError(f"command line: --{name} is for slurm/07_grid_search.sh alone; leave it out")


def _after_the_tokens(config: ExperimentConfig, command: StageCommand) -> str:
    """How to submit a sweep after the job that is to make its last input, where one is in the queue."""
    jobs = live_jobs(config, "tokenize_data")
    if not jobs:
        return ""
    script = shown_path(PROJECT_ROOT / "slurm" / SCRIPTS["grid_search"])
    words = shlex.join([str(command.options.config), *command.overrides])
    job = jobs[-1]
    after = f"sbatch -d afterok:{job} {script} {words}"
    return f"; job {job} is in the queue to do that, and this runs the sweep after it: {after}"


def _sweep(command: StageCommand) -> None:
    """Submit the trials of a sweep that are missing as job arrays."""
    from retlab.sweep.plan import refuse_invalid, tell_without_inputs
    from retlab.sweep.points import make_grid
    from retlab.sweep.slurm import submit_missing, submit_table

    options = command.options
    grid = make_grid(options.config, command.overrides, plan_only=True)
    if grid.lacking and not options.plan:
        raise UserError(grid.lacking + _after_the_tokens(grid.config, command))
    if options.table:
        submit_table(grid, print, given=command.after)
        return
    if grid.lacking:
        tell_without_inputs(grid, print)
        return
    if not options.plan:
        refuse_invalid(grid, options.skip_invalid)
    submit_missing(grid, print, plan_only=options.plan, retry_failed=options.retry_failed, given=command.after)


if __name__ == "__main__":
    run_stage(main, words=SPLITS, configure=add_options, after="words for sbatch ...")

"""What of an experiment is done, running, waiting or failed, and what remains:

python src/show_status.py CONFIG [key=value ...]
"""

import shlex

from retlab.cluster.status import Status, stages, table, wrapped
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.errors import UserError
from retlab.progress import counted
from retlab.section import PROJECT_ROOT, SCRIPTS, shown_path


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Print a line for each stage and what remains."""
    rows, trouble = stages(config)
    notes = [trouble]
    words = shlex.join([str(command.options.config), *command.options.rest])
    lines = [remaining(rows, words, bool(config.grid_search.axes))]
    if config.grid_search.axes:
        trials, trouble = grid_search(command)
        notes.append(trouble)
        if all(row.state == "done" for row in rows if row.stage == "tokenize_data"):
            lines.append(remaining_trials(trials, words))
        rows = [*rows, trials]
    print(table(f"{config.name}: {shown_path(config.run_folder)}", rows))
    print()
    lines += [f"note: {note}" for note in dict.fromkeys(notes) if note]
    for line in "\n".join(filter(None, lines)).splitlines():
        # A command stays on one line, to be copied.
        print(line if line.startswith("bash ") else "\n".join(wrapped(line)))


def grid_search(command: StageCommand) -> tuple[Status, str | None]:
    """How far the trials of the grid are, and what keeps the queue from telling."""
    # It reads every point of the grid, which takes a second.
    from retlab.sweep.points import make_grid
    from retlab.sweep.slurm_status import sweep_status

    try:
        grid = make_grid(command.options.config, command.overrides, plan_only=True)
    except UserError as error:
        return Status("grid_search", detail=str(error).replace("\n", "; ")), None
    if grid.lacking:
        return Status("grid_search", detail=f"{counted(len(grid.trials), 'trial')}; the stages before come first"), None
    return sweep_status(grid)


def remaining(rows: list[Status], words: str, has_grid: bool) -> str:
    """What is still to do, and the command for it; `words` are the configuration and its overrides."""
    waits = list(dict.fromkeys(row.stage for row in rows if row.state in ("running", "pending")))
    left = list(dict.fromkeys(row.stage for row in rows if row.state != "done" or row.changes))
    if not left:
        return "stages 1 to 6 are done" if has_grid else "all stages are done"
    text = f"remains: {', '.join(left)}"
    missing = [stage for stage in left if stage not in waits]
    if not missing:
        return f"{text}; in the queue already"
    if waits:
        return f"{text}; in the queue: {', '.join(waits)}"
    script = shown_path(PROJECT_ROOT / "slurm" / "submit_pipeline.sh")
    first = "" if missing[0] == next(iter(SCRIPTS)) else f" --from {missing[0]}"
    return f"{text}\nbash {script} {words}{first}"


def remaining_trials(trials: Status, words: str) -> str:
    """What is to do for the sweep."""
    if trials.state in ("running", "pending"):
        return ""
    if trials.state == "done":
        return "grid_search is done"
    script = shown_path(PROJECT_ROOT / "slurm" / "07_grid_search.sh")
    return f"remains: grid_search\nbash {script} {words}"


if __name__ == "__main__":
    run_stage(main)

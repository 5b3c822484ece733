"""What of an experiment is done, running, waiting or failed, and what remains:

python src/show_status.py CONFIG [key=value ...]
"""

import shlex

from retlab.cluster.status import Status, stages, table, wrapped
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.section import PROJECT_ROOT, SCRIPTS, shown_path
from retlab.sweep.results import FAILURE, RESULT
from retlab.sweep.slurm_status import sweep_status


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Print a line for each stage and what remains."""
    rows, trouble = stages(config)
    trials = grid_search(config)
    print(table(f"{config.name}: {shown_path(config.run_folder)}", [*rows, *([trials] if trials else [])]))
    print()
    lines = [
        remaining(rows, shlex.join([str(command.options.config), *command.options.rest])),
        *([f"note: {trouble}"] if trouble else []),
    ]
    for line in "\n".join(lines).splitlines():
        # A command stays on one line, to be copied.
        print(line if line.startswith("bash ") else "\n".join(wrapped(line)))


def grid_search(config: ExperimentConfig) -> Status | None:
    """How far the trials are, where there is a grid."""
    if not config.grid_search.axes:
        return None
    status = sweep_status(config)
    if status is not None:
        return status
    folder = config.grid_search.trials_folder or config.output_dir / "trials"
    done, failed = (len(list(folder.glob(f"*/{name}"))) for name in (RESULT, FAILURE))
    detail = f"{done} trials have a result, {failed} failed; {shown_path(folder)}"
    return Status("grid_search", state="not submitted" if not done + failed else "begun", detail=detail)


def remaining(rows: list[Status], words: str) -> str:
    """What is still to do, and the command for it; `words` are the configuration and its overrides."""
    waits = list(dict.fromkeys(row.stage for row in rows if row.state in ("running", "pending")))
    left = list(dict.fromkeys(row.stage for row in rows if row.state != "done" or row.changes))
    if not left:
        return "all stages are done"
    text = f"remains: {', '.join(left)}"
    missing = [stage for stage in left if stage not in waits]
    if not missing:
        return f"{text}; in the queue already"
    if waits:
        return f"{text}; in the queue: {', '.join(waits)}"
    script = shown_path(PROJECT_ROOT / "slurm" / "submit_pipeline.sh")
    first = "" if missing[0] == next(iter(SCRIPTS)) else f" --from {missing[0]}"
    return f"{text}\nbash {script} {words}{first}"


if __name__ == "__main__":
    run_stage(main)

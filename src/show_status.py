"""What of an experiment is done, running, waiting or failed, and what remains:

python src/show_status.py CONFIG [key=value ...]
"""

import re
import shlex
from collections.abc import Iterator

import retlab.script_start  # noqa: F401
from retlab.cluster.queue import way_out
from retlab.cluster.status import Status, stages, table, wrapped
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.errors import UserError
from retlab.progress import counted
from retlab.section import PROJECT_ROOT, SCRIPTS, shown_path


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Print a line for each stage and what remains."""
    rows, trouble = stages(config)
    troubles = [trouble]
    trials = None
    if config.grid_search.axes:
        trials, trouble = grid_search(command)
        troubles.append(trouble)
    every = [*rows, *([trials] if trials else [])]
    print(table(f"{config.name}: {shown_path(config.run_folder)}", every))
    print()
    lines = [
        remaining(rows, trials, shlex.join([str(command.options.config), *command.options.rest])),
        *(f"note: {trouble}" for trouble in dict.fromkeys(troubles) if trouble),
    ]
    if any(row.is_stuck for row in every):
        lines.append(way_out(sorted(set().union(*(row.waiting for row in every)))))
    for line in "\n".join(lines).splitlines():
        # A command stays on one line, to be copied.
        print(line if line.startswith("bash ") or "scancel" in line else "\n".join(wrapped(line)))


def grid_search(command: StageCommand) -> tuple[Status, str | None]:
    """How far the trials of the grid are, and what keeps the queue from telling."""
    # It reads every point of the grid, which takes a second.
    from retlab.sweep.points import make_grid
    from retlab.sweep.status import sweep_status

    try:
        grid = make_grid(command.options.config, command.overrides, plan_only=True)
    except UserError as error:
        return Status("grid_search", detail=str(error).replace("\n", "; ")), None
    if grid.lacking:
        return Status("grid_search", detail=f"{counted(len(grid.trials), 'trial')}; the stages before come first"), None
    return sweep_status(grid)


def remaining(rows: list[Status], trials: Status | None, words: str) -> str:
    """What is still to do, and the command for it; `words` are the configuration and its overrides."""
    sweep = [trials] if trials else []
    left = list(dict.fromkeys(row.stage for row in [*rows, *sweep] if row.state != "done" or row.changes))
    if not left:
        return "all stages are done" + (", and the grid search" if trials else "")
    waits = list(dict.fromkeys(row.stage for row in [*rows, *sweep] if row.state in ("running", "pending")))
    text = f"remains: {', '.join(left)}"
    missing = [stage for stage in left if stage not in waits]
    if not missing:
        return f"{text}; in the queue or running already"
    if waits:
        text += f"; in the queue or running: {', '.join(waits)}"
    return "\n".join([text, *_commands(missing, waits, trials, words)])


def _commands(missing: list[str], waits: list[str], trials: Status | None, words: str) -> Iterator[str]:
    """What starts that which nothing waits for."""
    slurm = PROJECT_ROOT / "slurm"
    stages_missing = [stage for stage in missing if stage != "grid_search"]
    if stages_missing and not set(waits) - {"grid_search"}:
        first = "" if stages_missing[0] == next(iter(SCRIPTS)) else f" --from {stages_missing[0]}"
        yield f"bash {shown_path(slurm / 'submit_pipeline.sh')} {words}{first}"
    # The trials need what the stages up to the tokens make, and no training.
    if "grid_search" in missing and not set(missing + waits) - {"train_model", "evaluate_model", "grid_search"}:
        again = " --retry-failed" if trials and _has_failures_alone(trials) else ""
        yield f"bash {shown_path(slurm / SCRIPTS['grid_search'])} {words}{again}"


def _has_failures_alone(trials: Status) -> bool:
    """Whether nothing is left that runs without being asked for again."""
    return trials.state == "failed" and not re.search("not run yet|ended without a result", trials.detail)


if __name__ == "__main__":
    run_stage(main, makes=False)

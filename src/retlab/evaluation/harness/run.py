"""`tasks` as a measurement: every task by itself through the harness, kept as soon as it is finished."""

import hashlib
import json
import random
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate

from retlab.artifacts import fingerprint, read_manifest
from retlab.errors import StorageFailed, UserError
from retlab.evaluation.harness import results
from retlab.evaluation.harness.leaves import Leaf
from retlab.evaluation.harness.model import HarnessModel
from retlab.evaluation.harness.outcome import by_reason, some
from retlab.evaluation.harness.quiet import Quiet
from retlab.evaluation.harness.reachable import hub_is_reachable, without_hub
from retlab.evaluation.harness.task_names import Plan, plan_tasks, reason
from retlab.evaluation.settings import EvaluateSection
from retlab.evaluation.trained_model import TrainedModel
from retlab.memory import exhausted_memory
from retlab.progress import PLAIN_INTERVAL_SECONDS, counted
from retlab.storage import storage_errors

Say = Callable[[str], None]
NO_HUB = "its data are not on this machine, and the Hugging Face Hub cannot be reached from here"
_LINE = 76
"""Characters of a line behind the stage's name."""
_CUT = "exceeds model's maximum length"


@dataclass
class _Work:
    """One measurement of tasks while it goes on."""

    trained: TrainedModel
    section: EvaluateSection
    folder: Path
    say: Say
    model_name: str
    plan: Plan
    quiet: Quiet = field(default_factory=Quiet)
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    "Results by task."
    failed: dict[str, str] = field(default_factory=dict)
    "Why a task could not be measured."
    offline: bool = False
    "The hub was asked and does not answer."


def measure_tasks(
    trained: TrainedModel,
    section: EvaluateSection,
    folder: Path,
    say: Say = lambda _line: None,
    model_name: str = "",
) -> dict[str, Any]:
    """Measure a model on the tasks of `evaluate.tasks`, one after the other.

    Writes tasks.csv, not_measured.csv, and for each task <task>.json and perhaps <task>.samples.jsonl into `folder`.
    Tasks whose finished results lie there already are not run again, as long as nothing that decides them has changed;
    whatever else lies there is removed.

    Returns:
        How many tasks and samples; `failed`, the tasks asked for by name that could not be measured, each with its
        reason; `out_of_reach`, how many others wait for the hub.

    Raises:
        UserError: unknown names, a state to be carried by a model without one, or no task at all could be measured.
    """
    if section.carry_state:
        trained.with_state()
    plan = plan_tasks(section.tasks, say)
    say(_announced(plan))
    for note in dict.fromkeys(plan.notes):
        say(f"note: {note}")
    work = _Work(trained, section, folder, say, model_name, plan)
    work.failed.update(plan.refused)
    keys = _keys(work)
    _keep_finished(work, keys)
    _run_the_rest(work, keys)
    return _conclude(work)


def _announced(plan: Plan) -> str:
    names = ", ".join(plan.leaves)
    return textwrap.shorten(f"{counted(len(plan.leaves), 'task')}: {names}", _LINE, placeholder=" ...")


def _keys(work: _Work) -> dict[str, str]:
    """For every task a hash of all that decides its numbers."""
    trained = work.trained
    common = {
        "model": _identity(trained.folder),
        **work.section.tasks.model_dump(include={"num_fewshot", "limit", "seed", "batch_size"}),
        "form": work.section.form,
        "precision": trained.precision,
        "device": trained.device.type,
    }
    keys = {}
    for name, leaf in work.plan.leaves.items():
        parts = {**common, "task": leaf.definition()}
        if leaf.settings.get("output_type") in (None, "loglikelihood_rolling"):
            parts["carry_state"] = work.section.carry_state
        keys[name] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return keys


def _identity(folder: Path) -> Any:
    """What tells a model from others: its content where a stage has hashed that, else its files' sizes and times."""
    if read_manifest(folder) is not None:
        return fingerprint(folder)
    states = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return [[name, state.st_size, state.st_mtime_ns] for name, state in states]


def _keep_finished(work: _Work, keys: dict[str, str]) -> None:
    """Take over what counts of what earlier attempts left, and remove the rest."""
    logs, folder = work.section.tasks.log_samples, work.folder
    for name, key in keys.items():
        result = results.finished(folder, name, key, logs)
        if result is not None:
            work.done[name] = result
    kept = {results.result_file(folder, name).name for name in work.done}
    kept |= {results.samples_file(folder, name).name for name in work.done if logs}
    for file in folder.iterdir():
        if file.is_file() and file.name not in kept and not file.name.startswith("."):
            file.unlink()
    if work.done:
        work.say(f"{counted(len(work.done), 'task')} finished before and not run again")


def _run_the_rest(work: _Work, keys: dict[str, str]) -> None:
    left = {name: leaf for name, leaf in work.plan.leaves.items() if name not in work.done}
    if not left:
        return
    remote = any(leaf.remote for leaf in left.values())
    work.offline = remote and not hub_is_reachable()
    if work.offline:
        work.say("note: the Hugging Face Hub cannot be reached from here: only data on this machine are used")
    if work.section.tasks.batch_size == "auto":
        work.say("note: to look for the largest batch that fits takes a while for every task (batch_size: auto)")
    with work.quiet.silence():
        model = HarnessModel(work.trained, work.section, work.quiet)
    said = time.monotonic()
    for number, (name, leaf) in enumerate(left.items(), start=1):
        before = len(work.done)
        with without_hub(work.offline or not leaf.remote):
            _run(work, model, leaf, keys[name], f"{name} ({number:,} of {len(left):,})")
        if len(work.done) > before:
            said = time.monotonic()
        elif time.monotonic() - said > PLAIN_INTERVAL_SECONDS:
            said = time.monotonic()
            work.say(f"{number:,} of {counted(len(left), 'task')} looked at, {len(work.failed):,} cannot be measured")


def _run(work: _Work, model: HarnessModel, leaf: Leaf, key: str, label: str) -> None:
    """Measure one task and keep its result, or the reason why there is none."""
    model.label = label
    if leaf.remote and not work.offline:
        work.say(f"{label}: loading its data")
    work.quiet.warnings.clear()
    try:
        with work.quiet.silence():
            task = leaf.load()
            found = _evaluate(work, model, task)
            result = results.task_result(leaf.name, found)
            result |= {"model": work.model_name, "date": datetime.now(UTC).isoformat(timespec="seconds"), "key": key}
            result["warnings"] = dict(sorted(work.quiet.warnings.items()))
            samples = found["samples"][leaf.name] if work.section.tasks.log_samples else None
            with storage_errors(work.folder):
                results.write_result(work.folder, result, samples)
    except StorageFailed:
        # The next task's result would find no room either.
        raise
    except (Exception, SystemExit) as error:
        # Tasks are made of other people's files and code, which fail in any way; some end the program on import.
        work.failed[leaf.name] = _why(work, leaf, error)
        return
    work.done[leaf.name] = result
    work.say(textwrap.shorten(f"{label}: {_scores(result)}", _LINE, placeholder=" ..."))
    for line in _cautions(work, model):
        work.say(f"{leaf.name}: {line}")


def _evaluate(work: _Work, model: HarnessModel, task: Task) -> dict[str, Any]:
    """The harness's own evaluation of one task, with seeds and shots set as its command line sets them."""
    tasks = work.section.tasks
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(tasks.seed % 2**32)
    torch.manual_seed(tasks.seed)
    own = task.get_config("num_fewshot")
    # A task that says 0 itself takes no examples.
    if own is None or (tasks.num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=tasks.num_fewshot or 0)
    task.set_fewshot_seed(seed=tasks.seed)
    loaded = {"tasks": {task.task_name: task}, "groups": {}}
    return dict(evaluate(lm=model, task_dict=loaded, limit=tasks.limit, log_samples=tasks.log_samples))


def _why(work: _Work, leaf: Leaf, error: BaseException) -> str:
    """Why a task could not be measured, in a few words that do not change from one attempt to the next."""
    if exhausted_memory(error):
        return f"out of memory; lower evaluate.tasks.batch_size (now {work.section.tasks.batch_size})"
    if work.offline and leaf.remote and isinstance(error, ConnectionError | FileNotFoundError):
        return NO_HUB
    return reason(error)


def _scores(result: dict[str, Any]) -> str:
    shown = []
    for metric in result["metrics"]:
        error = metric["standard_error"]
        which = "" if metric["filter"] == "none" else f" ({metric['filter']})"
        shown.append(f"{metric['metric']}{which} {results.shown_number(metric['value'])}")
        if error is not None:
            shown[-1] += f" ± {results.shown_number(error)}"
    return ", ".join(shown)


def _cautions(work: _Work, model: HarnessModel) -> list[str]:
    """What a reader of a task's numbers should know."""
    cut = sum(count for text, count in work.quiet.warnings.items() if _CUT in text)
    window = f"the model's window of {model.max_length:,} tokens"
    if not cut:
        return []
    return [f"{counted(cut, 'request')} longer than {window}: the beginning was cut off, as the harness does"]


def _conclude(work: _Work) -> dict[str, Any]:
    """Write and show the tables; returns the report."""
    failed = dict(sorted(work.failed.items()))
    explicit = {name: why for name, why in failed.items() if name in work.plan.named or name in work.plan.refused}
    if not work.done:
        raise UserError("evaluate.tasks: none of the tasks could be measured: " + "; ".join(by_reason(failed)))
    ordered = {name: work.done[name] for name in work.plan.leaves if name in work.done}
    found = [*ordered.values(), *_groups(work, ordered)]
    results.write_table(work.folder / "tasks.csv", results.COLUMNS, results.rows(found))
    lines = [{"task": name, "reason": why} for name, why in failed.items()]
    results.write_table(work.folder / "not_measured.csv", ("task", "reason"), lines)
    work.say(f"{work.model_name or work.trained.architecture} ({work.trained.precision})\n\n{results.table(found)}\n")
    if failed:
        listed = "\n".join(textwrap.fill(line, results.WIDTH, subsequent_indent="  ") for line in by_reason(failed))
        work.say(f"{counted(len(failed), 'task')} could not be measured (not_measured.csv):\n{listed}")
    return {
        "tasks": len(ordered),
        "samples": sum(result["samples"] for result in ordered.values()),
        "failed": explicit,
        "out_of_reach": sum(why == NO_HUB for why in failed.values()),
    }


def _groups(work: _Work, measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The means of the groups that were named and whose tasks were all measured."""
    found = []
    for name, group in work.plan.groups.items():
        members = {task.task_name for task in group.get_all_tasks()}
        missing = sorted(members - measured.keys())
        if not group.has_aggregation or not members:
            continue
        if missing:
            work.say(f"note: no mean of {name}, since {some(missing)} could not be measured")
            continue
        with work.quiet.silence():
            shots = {measured[member]["shots"] for member in members}
            result = results.group_result(group, {member: measured[member] for member in members}, shots)
        dates = [measured[member]["date"] for member in members]
        found.append(result | {"model": work.model_name, "date": max(dates)})
    return found

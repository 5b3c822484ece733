"""What a finished measurement of tasks says of those that are missing from it; needs no lm-eval."""

from typing import Any

_NAMES_SHOWN = 5
_REASONS_SHOWN = 10


def some(names: list[str]) -> str:
    """All of a few names, or how many and the first."""
    if len(names) <= _NAMES_SHOWN:
        return ", ".join(names)
    return f"{len(names):,} tasks such as {', '.join(names[:3])}"


def remaining(report: dict[str, Any]) -> str | None:
    """What a measurement still lacks: tasks that were named, and those that only the way to the hub was missing for."""
    if report["failed"]:
        return f"tried again, as it could not be measured: {some(list(report['failed']))}"
    if report["out_of_reach"]:
        # Late, because it takes seconds.
        from retlab.evaluation.harness.reachable import hub_is_reachable

        if hub_is_reachable():
            return f"tried again, as the Hugging Face Hub can be reached now: {report['out_of_reach']:,} tasks"
    return None


def by_reason(failed: dict[str, str]) -> list[str]:
    """A line for every reason why tasks could not be measured, the most frequent first."""
    names: dict[str, list[str]] = {}
    for name, why in failed.items():
        # What differs between tasks alone is the task.
        names.setdefault(why.replace(name, "it"), []).append(name)
    ordered = sorted(names.items(), key=lambda entry: -len(entry[1]))
    lines = [f"{some(tasks)}: {failed[tasks[0]] if len(tasks) == 1 else why}" for why, tasks in ordered]
    if len(lines) > _REASONS_SHOWN:
        others = sum(len(tasks) for _, tasks in ordered[_REASONS_SHOWN - 1 :])
        lines[_REASONS_SHOWN - 1 :] = [f"{others:,} tasks for {len(lines) - _REASONS_SHOWN + 1} other reasons"]
    return lines

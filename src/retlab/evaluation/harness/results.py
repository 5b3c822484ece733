"""What the harness found: a file per task, tasks.csv, and the table for the terminal."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lm_eval.utils import handle_non_serializable

from retlab.artifacts import read_json, write_atomic, write_json
from retlab.drawing import shortened

COLUMNS = (
    "task", "version", "shots", "metric", "filter", "value", "standard_error", "samples", "model", "date",
)  # fmt: skip
WIDTH = 100
_LONGEST_NAME = 44


def result_file(folder: Path, task: str) -> Path:
    """Where a task's result lies; characters that no file name should have are given as %XX."""
    return folder / f"{quote(task, safe=' ')}.json"


def samples_file(folder: Path, task: str) -> Path:
    """Where every question of a task lies with its answer."""
    return result_file(folder, task).with_suffix(".samples.jsonl")


def finished(folder: Path, task: str, key: str, with_samples: bool) -> dict[str, Any] | None:
    """The result of a task that was measured in the same way before, if it is all there."""
    result = read_json(result_file(folder, task))
    if not isinstance(result, dict) or result.get("key") != key:
        return None
    return None if with_samples and not samples_file(folder, task).is_file() else result


def task_result(task: str, found: dict[str, Any]) -> dict[str, Any]:
    """A task's numbers out of what the harness returns.

    `harness` holds them as the harness names them, which its groups are computed from.
    """
    numbers = found["results"][task]
    directions = found["higher_is_better"].get(task, {})
    return {
        "task": task,
        "version": _text(found["versions"].get(task)),
        "shots": found["n-shot"].get(task),
        "samples": found["n-samples"][task]["effective"],
        "metrics": _metrics(numbers, directions),
        "harness": json.loads(json.dumps(numbers, default=handle_non_serializable)),
    }


def group_result(group: Any, results: dict[str, dict[str, Any]], shots: set[Any]) -> dict[str, Any]:
    """A group's means over its tasks, by the harness's own rule, in the form of `task_result`."""
    numbers = group.aggregate({name: result["harness"] for name, result in results.items()})
    directions: dict[str, set[bool]] = {}
    for metric in (metric for result in results.values() for metric in result["metrics"]):
        directions.setdefault(metric["metric"], set()).add(metric["higher_is_better"])
    return {
        "task": group.name,
        "version": _text(group.version),
        "shots": shots.pop() if len(shots) == 1 else None,
        "samples": numbers.get("sample_len"),
        "metrics": _metrics(numbers, {name: found.pop() for name, found in directions.items() if len(found) == 1}),
    }


def _metrics(numbers: dict[str, Any], directions: dict[str, bool]) -> list[dict[str, Any]]:
    return [
        {
            "metric": metric,
            "filter": which,
            "value": _number(value),
            "standard_error": _number(numbers.get(f"{metric}_stderr,{which}")),
            "higher_is_better": directions.get(metric),
        }
        for key, value in numbers.items()
        for metric, _, which in [key.partition(",")]
        if which and not metric.endswith("_stderr")
    ]


def _number(value: Any) -> float | None:
    """A number as it is; None for what is none, such as the harness's N/A."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _text(version: Any) -> str:
    return "" if version in (None, "N/A", "Yaml") else str(version)


def write_result(folder: Path, result: dict[str, Any], samples: list[dict[str, Any]] | None) -> None:
    """Leave a task's result, its samples first: where the result is, all is."""
    file = samples_file(folder, result["task"])
    if samples is None:
        file.unlink(missing_ok=True)
    else:
        lines = (json.dumps(sample, ensure_ascii=False, default=handle_non_serializable) for sample in samples)
        write_atomic(file, "".join(f"{line}\n" for line in lines))
    write_json(result_file(folder, result["task"]), result)


def rows(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row of tasks.csv for every metric."""
    return [
        {**{key: result[key] for key in COLUMNS if key in result}, **{key: metric[key] for key in _OF_METRIC}}
        for result in results
        for metric in result["metrics"]
    ]


_OF_METRIC = ("metric", "filter", "value", "standard_error")


def write_table(file: Path, columns: Sequence[str], lines: Iterable[dict[str, Any]]) -> None:
    """A CSV file; a cell is empty where there is no number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: repr(value) if isinstance(value, float) else value for key, value in line.items()} for line in lines
    )
    write_atomic(file, text.getvalue())


def table(results: Iterable[dict[str, Any]]) -> str:
    """The numbers for a terminal of 100 columns."""
    lines = [["task", "version", "shots", "filter", "metric", "", "value", "std. error", "samples"]]
    for result in results:
        name = shortened(result["task"], _LONGEST_NAME)
        shots = "" if result["shots"] is None else str(result["shots"])
        first = [name, result["version"][:8], shots]
        for metric in result["metrics"]:
            better = {True: "higher", False: "lower", None: ""}[metric["higher_is_better"]]
            lines.append([*first, metric["filter"], metric["metric"], better, shown_number(metric["value"]),
                          shown_number(metric["standard_error"]), f"{result['samples']:,}"])  # fmt: skip
            first = ["", "", ""]
    lines[0][5] = "better"
    if all(line[3] in ("filter", "none") for line in lines):
        lines = [line[:3] + line[4:] for line in lines]
    return "\n".join(_aligned(lines))


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = {lines[0].index(name) for name in ("shots", "value", "std. error", "samples")}
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else 1
    # Long names give way first, then those of metrics.
    for column in (0, lines[0].index("metric")):
        excess = sum(widths) + gap * (len(widths) - 1) - WIDTH
        widths[column] = max(min(widths[column], 16), widths[column] - max(excess, 0))
    text = [
        (" " * gap)
        .join(
            shortened(cell, width).rjust(width) if number in right else shortened(cell, width).ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        .rstrip()
        for line in lines
    ]
    return [text[0], "-" * (sum(widths) + gap * (len(widths) - 1)), *text[1:]]


def shown_number(value: float | None) -> str:
    """A score as a person reads it."""
    if value is None:
        return ""
    return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.4e}"

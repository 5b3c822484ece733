"""Task files for tests: the pack of tests/lm_tasks, and small ones beside it."""

from pathlib import Path
from typing import Any

import yaml
from tests.lm_tasks.build import build

from retlab.evaluation.settings import EvaluateSection


def pack(folder: Path, questions: int = 6, documents: int = 2) -> Path:
    """The pack with few questions."""
    return build(folder, questions, documents)


def write_task(folder: Path, name: str, **settings: Any) -> Path:
    """A task that asks for text; without `data`, its data file is missing."""
    folder.mkdir(exist_ok=True)
    data = settings.pop("data", None)
    if data is not None:
        (folder / f"{name}.jsonl").write_text(data)
    values = {
        "task": name, "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 2.0}, **settings,
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return file


QUESTIONS = '{"question": "the cat", "answer": "sat"}\n{"question": "a dog", "answer": "sat"}\n'


def section(folder: Path | None, *names: str, **settings: Any) -> EvaluateSection:
    """`evaluate` for tasks of a folder on a CPU; `tasks` adds to that section."""
    tasks = {"names": list(names), "include_path": folder, **settings.pop("tasks", {})}
    return EvaluateSection.model_validate({"measure": ["tasks"], "device": "cpu", "tasks": tasks, **settings})

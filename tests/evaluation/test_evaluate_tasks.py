"""The stage with `tasks`: up to date, names added, tasks that fail, names that are none, stops."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.harness.task_folder import QUESTIONS, pack, write_task
from tests.evaluation.lab import Lab

from retlab.errors import UserError
from retlab.evaluation.harness.leaves import Leaf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pack(tmp_path / "pack", questions=3, documents=1)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that were run."""
    names: list[str] = []
    load = Leaf.load

    def counted(self: Leaf) -> Any:
        names.append(self.name)
        return load(self)

    monkeypatch.setattr(Leaf, "load", counted)
    return names


def evaluate(lab: Lab, folder: Path, *names: str, measure: str = "tasks", force: bool = False) -> None:
    tasks = f"{{names: [{', '.join(names)}], include_path: {folder}}}"
    lab.evaluate(f"evaluate.measure=[{measure}]", f"evaluate.tasks={tasks}", force=force)


def measured(lab: Lab) -> list[str]:
    return [row["task"] for row in lab.results()["tasks"]]


def test_up_to_date_added_forced(lab: Lab, folder: Path, loads: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(lab, folder, "local_wino")
    rows = lab.results()["tasks"]
    assert [(row["task"], row["metric"], row["model"], row["samples"]) for row in rows] == [
        ("local_wino", "acc", "mine", 3)
    ]
    assert isinstance(rows[0]["value"], float)
    written = (lab.run_folder / "results.json").stat().st_mtime_ns
    evaluate(lab, folder, "local_wino")
    assert "up to date" in capsys.readouterr().out
    assert (lab.run_folder / "results.json").stat().st_mtime_ns == written
    evaluate(lab, folder, "local_ppl", "local_wino")
    assert loads == ["local_wino", "local_ppl"]
    assert measured(lab) == ["local_ppl"] * 3 + ["local_wino"]
    assert rows[0] in lab.results()["tasks"]
    evaluate(lab, folder, "local_ppl", "local_wino", force=True)
    assert loads[2:] == ["local_ppl", "local_wino"]
    lab.make_model(seed=1)
    evaluate(lab, folder, "local_wino")
    assert loads[4:] == ["local_wino"]


def test_a_result_that_was_changed_is_measured_anew(lab: Lab, folder: Path, loads: list[str]) -> None:
    evaluate(lab, folder, "local_mc", "local_wino")
    file = lab.run_folder / "evaluation" / "tasks" / "local_wino.json"
    file.write_text(file.read_text().replace('"value": ', '"value": 1'))
    evaluate(lab, folder, "local_mc", "local_wino")
    assert loads == ["local_mc", "local_wino", "local_wino"]
    assert all(row["value"] <= 1 for row in lab.results()["tasks"])


def test_a_task_that_fails_is_tried_again_alone(lab: Lab, folder: Path, loads: list[str]) -> None:
    write_task(folder, "gone")
    for _ in range(2):
        with pytest.raises(UserError, match=r"evaluate.tasks.names: .*gone: Unable to find"):
            evaluate(lab, folder, "local_wino", "gone")
        assert measured(lab) == ["local_wino"]
    assert loads == ["local_wino", "gone", "gone"]
    write_task(folder, "gone", data=QUESTIONS)
    evaluate(lab, folder, "local_wino", "gone")
    assert measured(lab) == ["local_wino", "gone"]
    evaluate(lab, folder, "local_wino", "gone")
    assert loads[3:] == ["gone"]


def test_names_that_are_none_are_refused_before_anything_is_measured(
    lab: Lab, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retlab.evaluation.harness import task_names

    here = task_names.LeafManager(folder, include_defaults=False)
    monkeypatch.setattr(task_names, "_defaults", lambda _say: here)
    with pytest.raises(UserError, match=r"local_wimo \(did you mean local_wino"):
        evaluate(lab, folder, "local_wimo", measure="perplexity, tasks")
    assert not (lab.run_folder / "evaluation" / "perplexity").exists()


def test_a_stop_keeps_finished_tasks_whatever_is_asked_next(
    lab: Lab, folder: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Leaf.load

    def stopped(self: Leaf) -> Any:
        if self.name == "local_ppl":
            raise KeyboardInterrupt
        return load(self)

    with monkeypatch.context() as patch:
        patch.setattr(Leaf, "load", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate(lab, folder, "local_wino", "local_ppl")
    assert not (lab.run_folder / "evaluation" / "tasks").exists()
    assert loads == ["local_wino"]
    evaluate(lab, folder, "local_mc", "local_ppl", "local_wino")
    assert loads[1:] == ["local_mc", "local_ppl"]
    files = {file.name for file in (lab.run_folder / "evaluation").iterdir()}
    assert files == {"tasks"}, "nothing is left of the attempt"
    published = {file.name for file in (lab.run_folder / "evaluation" / "tasks").iterdir()}
    assert published == {"manifest.json", "tasks.csv", "not_measured.csv"} | {
        f"{name}.{kind}" for name in ("local_mc", "local_ppl", "local_wino") for kind in ("json", "samples.jsonl")
    }


def test_another_model_is_measured_on_the_same_tasks(lab: Lab, folder: Path, tmp_path: Path) -> None:
    from tests.evaluation.trained import write_other_model

    evaluate(lab, folder, "local_ppl")
    other = write_other_model(tmp_path / "tiny-neox", "gpt_neox")
    names = f"evaluate.tasks={{names: [local_ppl], include_path: {folder}}}"
    lab.evaluate("evaluate.measure=[tasks]", names, f"evaluate.model={other}")
    theirs = json.loads((lab.run_folder / "other_models" / "tiny-neox" / "results.json").read_text())
    assert {row["model"] for row in theirs["tasks"]} == {"tiny-neox"}
    assert theirs["tasks"][1]["value"] != lab.results()["tasks"][1]["value"]


def test_a_text_is_read_with_its_state_after_samples_were_written(lab: Lab, folder: Path) -> None:
    tasks = f"evaluate.tasks={{names: [local_ppl], include_path: {folder}}}"
    lab.evaluate("evaluate.measure=[perplexity, samples, tasks]", "evaluate.carry_state=true", tasks)
    assert measured(lab) == ["local_ppl"] * 3

"""The measurement: which tasks are run, which are not run again, what is kept when some fail, what is written."""

import csv
import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.harness.task_folder import QUESTIONS, pack, section, write_task
from tests.evaluation.trained import write_model, write_other_model

from retlab.errors import StorageFailed, UserError
from retlab.evaluation.harness import results, run
from retlab.evaluation.harness.leaves import Leaf
from retlab.evaluation.harness.outcome import remaining
from retlab.evaluation.harness.run import measure_tasks
from retlab.evaluation.settings import EvaluateSection
from retlab.evaluation.trained_model import load_trained_model

Measure = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("tasks") / "pack", questions=4, documents=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "retnet")
    write_model(folder / "transformer", "transformer")
    write_other_model(folder / "llama", window=512)
    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks whose data were loaded, that is those that were run."""
    names: list[str] = []
    load = Leaf.load

    def counted(self: Leaf) -> Any:
        names.append(self.name)
        return load(self)

    monkeypatch.setattr(Leaf, "load", counted)
    return names


def measure(model: Path, chosen: EvaluateSection, folder: Path, lines: list[str] | None = None) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    say = (lambda _line: None) if lines is None else lines.append
    return measure_tasks(load_trained_model(chosen, model), chosen, folder, say, "mine")


def table(folder: Path, name: str = "tasks.csv") -> list[dict[str, str]]:
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def test_every_number_is_in_the_table_and_in_the_tasks_file(tasks: Path, models: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    chosen = section(tasks, "local_choices", "local_ppl")
    report = measure(models / "retnet", chosen, tmp_path / "out", lines)
    assert report == {"tasks": 3, "samples": 9, "failed": {}, "out_of_reach": 0}
    rows = table(tmp_path / "out")
    found = [(row["task"], row["metric"], row["shots"], row["samples"]) for row in rows]
    assert found == [
        ("local_mc", "acc", "0", "4"), ("local_mc", "acc_norm", "0", "4"), ("local_wino", "acc", "0", "4"),
        ("local_ppl", "word_perplexity", "0", "1"), ("local_ppl", "byte_perplexity", "0", "1"),
        ("local_ppl", "bits_per_byte", "0", "1"), ("local_choices", "acc", "0", "8"),
    ]  # fmt: skip
    assert {row["version"] for row in rows} == {"1.0"}
    assert {row["model"] for row in rows} == {"mine"}
    mean = (float(rows[0]["value"]) + float(rows[2]["value"])) / 2
    assert float(rows[-1]["value"]) == pytest.approx(mean)
    assert [row["standard_error"] for row in rows[3:6]] == ["", "", ""], "the harness has none of a single text"
    result = json.loads((tmp_path / "out" / "local_mc.json").read_text())
    assert repr(result["metrics"][0]["value"]) == rows[0]["value"]
    assert result["metrics"][0]["higher_is_better"] is True
    samples = (tmp_path / "out" / "local_mc.samples.jsonl").read_text().splitlines()
    assert [json.loads(sample)["doc_id"] for sample in samples] == [0, 1, 2, 3]
    shown = "\n".join(lines)
    assert re.search(r"\nlocal_choices +1.0 +0 +acc +higher +0\.\d{4} +0\.\d{4} +8\n", shown)
    assert lines[0] == "3 tasks: local_mc, local_wino, local_ppl"
    assert max(map(len, shown.splitlines())) <= 100


def test_finished_tasks_are_not_run_again(tasks: Path, models: Path, tmp_path: Path, loads: list[str]) -> None:
    out = tmp_path / "out"
    model = shutil.copytree(models / "retnet", tmp_path / "retnet")

    def again(*names: str, **settings: Any) -> list[str]:
        loads.clear()
        measure(model, section(tasks, *names, **settings), out)
        return list(loads)

    assert again("local_mc") == ["local_mc"]
    date = table(out)[0]["date"]
    assert again("local_wino", "local_mc") == ["local_wino"]
    assert [row["task"] for row in table(out)] == ["local_wino", "local_mc", "local_mc"]
    assert table(out)[1]["date"] == date
    assert again("local_mc", tasks={"log_samples": False}) == []
    assert not (out / "local_mc.samples.jsonl").exists()
    assert not (out / "local_wino.json").exists()
    assert again("local_mc") == ["local_mc"], "its samples are asked for again"
    for changed in ({"num_fewshot": 1}, {"limit": 2}, {"seed": 5}, {"batch_size": 2}):
        assert again("local_mc", tasks=changed) == ["local_mc"]
        assert again("local_mc", tasks=changed) == []
    assert again("local_mc", form="recurrent") == ["local_mc"]
    assert again("local_mc", precision="bf16") == ["local_mc"]
    assert again("local_mc", "local_ppl") == ["local_mc", "local_ppl"]
    assert again("local_mc", "local_ppl", carry_state=True) == ["local_ppl"], "only texts are read with their state"
    write_model(model, seed=1)
    assert again("local_mc") == ["local_mc"]


def test_a_change_of_the_task_or_its_data_is_run_again(models: Path, tmp_path: Path, loads: list[str]) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"

    def again() -> list[str]:
        loads.clear()
        measure(models / "retnet", section(folder, "asked", "other"), out)
        return list(loads)

    for name in ("asked", "other"):
        write_task(folder, name, data=QUESTIONS)
    assert again() == ["asked", "other"]
    assert again() == []
    write_task(folder, "asked", data=QUESTIONS * 2)
    assert again() == ["asked"]
    assert table(out)[0]["samples"] == "4"
    write_task(folder, "other", data=QUESTIONS, doc_to_text="So: {{question}}")
    assert again() == ["other"]


def test_a_stop_keeps_what_is_finished(
    tasks: Path, models: Path, tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Leaf.load

    def stopped(self: Leaf) -> Any:
        if self.name == "local_wino":
            raise KeyboardInterrupt
        return load(self)

    chosen = section(tasks, "local_mc", "local_wino")
    with monkeypatch.context() as patch:
        patch.setattr(Leaf, "load", stopped)
        with pytest.raises(KeyboardInterrupt):
            measure(models / "retnet", chosen, tmp_path / "out")
    loads.clear()
    measure(models / "retnet", chosen, tmp_path / "out")
    assert loads == ["local_wino"]
    whole = tmp_path / "whole"
    measure(models / "retnet", chosen, whole)
    for name in ("local_mc", "local_wino"):
        file = f"{name}.samples.jsonl"
        assert (whole / file).read_bytes() == (tmp_path / "out" / file).read_bytes()


def test_tasks_that_fail_are_told_at_the_end_and_the_others_kept(models: Path, tmp_path: Path) -> None:
    folder, lines = tmp_path / "folder", []  # type: ignore[var-annotated]
    write_task(folder, "good", data=QUESTIONS)
    write_task(folder, "gone")
    write_task(folder, "gone_too")
    write_task(folder, "wordy", data=QUESTIONS, generation_kwargs={"max_gen_toks": 10**6})
    write_task(folder, "ends", data=QUESTIONS, process_docs=None)
    (folder / "leave.py").write_text("raise SystemExit('no Prolog here')\n")
    (folder / "ends.yaml").write_text((folder / "ends.yaml").read_text() + "process_docs: !function leave.now\n")
    names = ["good", "gone", "gone_too", "wordy", "ends"]
    report = measure(models / "retnet", section(folder, *names), tmp_path / "out", lines)
    assert sorted(report["failed"]) == ["ends", "gone", "gone_too", "wordy"]
    assert remaining(report) == "tried again, as it could not be measured: ends, gone, gone_too, wordy"
    assert [row["task"] for row in table(tmp_path / "out")] == ["good"]
    reasons = {row["task"]: row["reason"] for row in table(tmp_path / "out", "not_measured.csv")}
    assert reasons["ends"] == "no Prolog here"
    assert f"Unable to find '{folder}/gone.jsonl'" in reasons["gone"]
    assert "must be less than model's maximum sequence length" in reasons["wordy"]
    assert lines[-1].startswith("4 tasks could not be measured (not_measured.csv):\n")
    assert "gone, gone_too: Unable to find" in lines[-1].replace("\n  ", " "), "tasks of one reason share a line"
    (folder / "gone.jsonl").write_text(QUESTIONS)
    report = measure(models / "retnet", section(folder, "good", "gone"), tmp_path / "out")
    assert report["failed"] == {}
    assert remaining(report) is None
    with pytest.raises(UserError, match="none of the tasks could be measured: gone_too: Unable to find"):
        measure(models / "retnet", section(folder, "gone_too"), tmp_path / "other")


def test_the_hub_is_asked_once(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, questions = tmp_path / "folder", []  # type: ignore[var-annotated]

    def asked() -> bool:
        questions.append(1)
        return False

    monkeypatch.setattr(run, "hub_is_reachable", asked)
    write_task(folder, "here", data=QUESTIONS)
    measure(models / "retnet", section(folder, "here"), tmp_path / "out")
    assert not questions, "nothing of it is needed"
    for name in ("far", "farther"):
        write_task(folder, name, dataset_path="owner/name", dataset_kwargs=None)
    lines: list[str] = []
    report = measure(models / "retnet", section(folder, "here", "far", "farther"), tmp_path / "out", lines)
    assert len(questions) == 1
    assert report["failed"] == dict.fromkeys(("far", "farther"), run.NO_HUB)
    assert lines[-1].count(run.NO_HUB[:40]) == 1


def test_output_is_for_people(tasks: Path, models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_task(tmp_path / "folder", "asked", data=QUESTIONS)
    measure(models / "retnet", section(tasks, "local_choices", "local_ppl"), tmp_path / "out")
    measure(models / "retnet", section(tmp_path / "folder", "asked"), tmp_path / "out")
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "local_mc (1 of 3)", "local_wino (2 of 3)", "local_ppl (3 of 3)", "asked (1 of 1)",
    ]  # fmt: skip
    assert lines[0].startswith("local_mc (1 of 3): 16 of 16 requests (100 %)")


def test_what_is_longer_than_the_window_is_told(tasks: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    model = write_other_model(tmp_path / "short", window=64)
    measure(model, section(tasks, "local_mc", tasks={"num_fewshot": 3}), tmp_path / "out", lines)
    told = "16 requests longer than the model's window of 64 tokens: the beginning was cut off, as the harness does"
    assert f"local_mc: {told}" in lines


def test_a_state_is_refused_where_there_is_none(tasks: Path, models: Path, tmp_path: Path) -> None:
    for name in ("transformer", "llama"):
        with pytest.raises(UserError, match=f"a {name} model keeps no state"):
            measure(models / name, section(tasks, "local_ppl", carry_state=True), tmp_path / "out")


def test_the_seed_decides_the_examples(tasks: Path, models: Path, tmp_path: Path) -> None:
    def samples(seed: int, name: str) -> str:
        settings = {"num_fewshot": 2, "seed": seed}
        measure(models / "llama", section(tasks, "local_mc", tasks=settings), tmp_path / name)
        return (tmp_path / name / "local_mc.samples.jsonl").read_text()

    assert json.loads(samples(1, "a").splitlines()[0])["arguments"][0][0].count("\n\n") == 2, "two examples"
    assert table(tmp_path / "a")[0]["shots"] == "2"
    assert samples(1, "a") == samples(1, "b")
    assert samples(2, "c") != samples(1, "d")


def test_a_full_disk_ends_all_and_is_no_fault_of_a_task(
    tasks: Path, models: Path, tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "write_json", full)
    with pytest.raises(StorageFailed, match="the disk is full: .*out; free some space"):
        measure(models / "retnet", section(tasks, "local_wino", "local_mc"), tmp_path / "out")
    assert loads == ["local_wino"]

"""The stage: each measurement for itself, the results of all together, and other models beside the run."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.lab import Lab
from tests.evaluation.trained import write_other_model

from retlab.artifacts import sha256_file
from retlab.config import load_config
from retlab.errors import UserError
from retlab.evaluation import samples, scoring
from retlab.subject import find_subject


@pytest.fixture
def scorings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every scoring of the test split."""
    found: list[int] = []
    score = scoring.score_documents

    def counted(*arguments: Any) -> Any:
        found.append(1)
        return score(*arguments)

    monkeypatch.setattr(scoring, "score_documents", counted)
    return found


def test_other_samples_leave_the_scores(lab: Lab, scorings: list[int]) -> None:
    lab.evaluate()
    before, results = lab.hashes(), lab.results()
    for overrides in (["generate.prompts=[x, the]"], ["generate.seed=5"], ["generate.prompts=[]"]):
        lab.evaluate(*overrides)
        assert (len(scorings), lab.hashes(), lab.results()) == (1, before, results)
    lab.evaluate("generate.prompts=[x, the]")
    assert [sample["prompt"] for sample in lab.samples()] == ["x", "the"]
    kept_samples = lab.samples()
    lab.evaluate("generate.prompts=[x, the]", force=True)
    assert len(scorings) == 2
    assert (lab.samples(), lab.hashes(), lab.results()) == (kept_samples, before, results)


def test_anything_else_that_changed_is_scored_anew(lab: Lab, scorings: list[int]) -> None:
    lab.evaluate()
    lab.evaluate("data.sequence_length=12")
    assert len(scorings) == 2
    lab.make_model(seed=1)
    lab.evaluate("data.sequence_length=12")
    assert len(scorings) == 3
    file = lab.run_folder / "evaluation" / "perplexity" / "results.json"
    file.write_bytes(file.read_bytes().replace(b"test", b"tent"))
    lab.evaluate("data.sequence_length=12")
    assert len(scorings) == 4
    assert b"tent" not in file.read_bytes()


def test_only_what_is_listed_is_measured_and_only_what_is_of_this_model_is_told(lab: Lab, scorings: list[int]) -> None:
    lab.evaluate("evaluate.measure=[samples]")
    assert not scorings
    assert list(lab.results()) == ["model"]
    lab.evaluate()
    assert {"model", "test", "settings", "loss_by_position"} <= lab.results().keys()
    lab.make_model(seed=1)
    lab.evaluate("evaluate.measure=[samples]")
    assert list(lab.results()) == ["model"], "the scores are those of another model"
    lab.evaluate("evaluate.measure=[perplexity]")
    assert "test" in lab.results()


def test_json_is_all_that_standard_output_gets(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        lab.evaluate(as_json=True)
        printed = capsys.readouterr()
        assert json.loads(printed.out) == lab.results()
        assert "[evaluate_model perplexity]" in printed.err


def test_a_kill_leaves_what_was_finished(lab: Lab, scorings: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    lab.evaluate()
    old = lab.hashes(), lab.samples(), lab.results()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(samples, "continue_prompt", killed)
        with pytest.raises(KeyboardInterrupt):
            lab.evaluate("generate.prompts=[x]")
    assert (lab.hashes(), lab.samples(), lab.results()) == old
    lab.evaluate("generate.prompts=[x]")
    assert len(scorings) == 1
    assert [sample["prompt"] for sample in lab.samples()] == ["x"]


def test_another_model_is_measured_beside_the_run(lab: Lab, tmp_path: Path) -> None:
    lab.evaluate()
    mine = lab.results()
    other = write_other_model(tmp_path / "tiny-llama")
    for _ in range(2):
        lab.evaluate(f"evaluate.model={other}")
    assert lab.results() == mine
    folder = lab.run_folder / "other_models" / "tiny-llama"
    theirs = json.loads((folder / "results.json").read_text())
    assert theirs["model"]["architecture"] == "llama"
    assert theirs["test"]["bytes"] == mine["test"]["bytes"]
    assert theirs["settings"]["test_text_sha256"] == mine["settings"]["test_text_sha256"]
    assert (folder / "evaluation" / "samples" / "samples.json").is_file()
    # The configuration that lies there leads to the same place.
    overrides = ["evaluate.measure=[perplexity]"]
    assert find_subject(load_config(folder / "config.yaml", overrides)).config.run_folder == folder
    # The same model under its own name is RetLab's again, with the same numbers.
    lab.evaluate(f"evaluate.model={lab.run_folder / 'model'}")
    again = json.loads((lab.run_folder / "other_models" / "mine" / "results.json").read_text())
    assert again["test"] == mine["test"]


def test_folders_that_are_no_model_are_a_sentence(lab: Lab, tmp_path: Path) -> None:
    other = write_other_model(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    for source, sentence in (
        (tmp_path / "nowhere", "there is no folder"),
        (tmp_path / "empty", r"holds no model \(config.json\)"),
        (lab.data, r"holds no model \(config.json\); name a whole model folder"),
        (lab.run_folder, r"holds no model \(config.json\); that of this run lies in .*mine/model$"),
    ):
        with pytest.raises(UserError, match=sentence):
            lab.evaluate(f"evaluate.model={source}")
    (other / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="holds no fast tokenizer"):
        lab.evaluate(f"evaluate.model={other}")
    (other / "model.safetensors").unlink()
    (other / "pytorch_model.bin").write_bytes(b"a pickle")
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="holds no weights"):
        lab.evaluate(f"evaluate.model={other}")


@pytest.mark.component
def test_latency_is_a_measurement_of_the_stage(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate.measure=[latency]", "evaluate.latency.contexts=[8,100000000000]", "evaluate.latency.trials=2"]
    with pytest.raises(UserError, match=r"evaluate.latency.contexts"):
        lab.evaluate(*words)
    words[1] = "evaluate.latency.contexts=[2000000000,8]"
    lab.evaluate(*words)
    rows = lab.results()["latency"]
    assert [(row["model"], row["method"], row["context"]) for row in rows] == [
        ("mine", method, context) for method in ("recurrent", "no cache") for context in (8, 2_000_000_000)
    ]
    assert [row["status"] == "measured" for row in rows] == [True, False] * 2
    folder = lab.run_folder / "evaluation" / "latency"
    found = {file.name for file in folder.iterdir()}
    assert found == {"latency.csv", "time_per_token.png", "memory.png", "manifest.json"}
    printed = capsys.readouterr().out
    assert "latency of mine, float32, cpu" in printed
    assert "does not fit" in printed
    written = sha256_file(folder / "latency.csv")
    lab.evaluate(*words)
    assert sha256_file(folder / "latency.csv") == written

"""The stage: what is scored stays while only the samples change, and never where anything else did."""

import importlib.util
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.evaluation.trained import write_data, write_model
from tests.training.experiment import publish

from retlab.artifacts import read_manifest, sha256_file
from retlab.command import SIGNALS, StageCommand
from retlab.config import load_config
from retlab.evaluation import results
from retlab.section import PROJECT_ROOT

SCORED = ("results.json", "results.csv", "document_losses.parquet")


class Lab:
    """An experiment whose model and data are there."""

    def __init__(self, folder: Path) -> None:
        self.run_folder, self.data = folder / "runs" / "mine", folder / "data"
        self.make_model(seed=0)
        write_data(self.data, self.run_folder / "model")
        publish(self.data / "splits", {})
        for split in ("train", "test"):
            shards = self.data / "tokens" / split
            report = json.loads((shards / "manifest.json").read_text())["report"]
            (shards / "manifest.json").unlink()
            publish(shards, report)
        self.file = folder / "mine.yaml"
        values = {
            "name": "mine", "output_dir": str(folder / "runs"), "emissions": {"enabled": False},
            "data": {"folder": str(self.data), "sequence_length": 16}, "evaluate": {"device": "cpu"},
            "generate": {"prompts": ["def "], "max_new_tokens": 4},
        }  # fmt: skip
        self.file.write_text(yaml.safe_dump(values))

    def make_model(self, seed: int) -> None:
        write_model(self.run_folder / "model", seed=seed)
        (self.run_folder / "model" / "manifest.json").unlink(missing_ok=True)
        publish(self.run_folder / "model", {})

    def evaluate(self, *overrides: str, force: bool = False) -> None:
        spec = importlib.util.spec_from_file_location("evaluate_model", PROJECT_ROOT / "src" / "evaluate_model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main(load_config(self.file, overrides), StageCommand(force=force))

    def hashes(self) -> list[str]:
        return [sha256_file(self.run_folder / name) for name in SCORED]

    def samples(self) -> list[dict[str, Any]]:
        return list(json.loads((self.run_folder / "samples.json").read_text()))

    def manifest(self) -> dict[str, Any]:
        manifest = read_manifest(self.run_folder, "evaluate_model.manifest.json")
        assert manifest is not None
        return {key: value for key, value in manifest.items() if key != "volatile"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield Lab(tmp_path)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def scorings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every scoring of the test split."""
    found: list[int] = []
    score = results.score_documents

    def counted(*arguments: Any) -> Any:
        found.append(1)
        return score(*arguments)

    monkeypatch.setattr(results, "score_documents", counted)
    return found


def test_other_samples_leave_the_scores_and_all_is_as_if_made_anew(lab: Lab, scorings: list[int]) -> None:
    lab.evaluate()
    before = lab.hashes()
    for overrides in (["generate.prompts=[x, the]"], ["generate.seed=5"], ["generate.prompts=[]"]):
        lab.evaluate(*overrides)
        assert len(scorings) == 1
        assert lab.hashes() == before
    lab.evaluate("generate.prompts=[x, the]")
    assert [sample["prompt"] for sample in lab.samples()] == ["x", "the"]
    kept, kept_samples = lab.manifest(), lab.samples()
    lab.evaluate("generate.prompts=[x, the]", force=True)
    assert len(scorings) == 2
    assert (lab.manifest(), lab.samples(), lab.hashes()) == (kept, kept_samples, before)
    lab.evaluate("generate.prompts=[x, the]")
    assert len(scorings) == 2


def test_anything_else_that_changed_is_scored_anew(lab: Lab, scorings: list[int]) -> None:
    lab.evaluate()
    lab.evaluate("generate.seed=1", "data.sequence_length=12")
    assert len(scorings) == 2
    lab.make_model(seed=1)
    lab.evaluate("generate.seed=2", "data.sequence_length=12")
    assert len(scorings) == 3
    file = lab.run_folder / "results.csv"
    file.write_bytes(file.read_bytes().replace(b"test", b"tent"))
    lab.evaluate("generate.seed=3", "data.sequence_length=12")
    assert len(scorings) == 4
    assert b"tent" not in file.read_bytes()


def test_a_kill_leaves_the_old_files_or_has_all_made_anew(
    lab: Lab, scorings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.evaluate()
    old = lab.manifest(), lab.hashes(), lab.samples()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "write_samples", killed)
        with pytest.raises(KeyboardInterrupt):
            lab.evaluate("generate.prompts=[x]")
    assert (lab.manifest(), lab.hashes(), lab.samples()) == old
    # While the files are put in their places there is no manifest, and so nothing to trust.

    def torn(partial: Path, folder: Path, manifest: str) -> None:
        (folder / manifest).unlink()
        (partial / "samples.json").replace(folder / "samples.json")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("retlab.artifacts.publish_files", torn)
        with pytest.raises(KeyboardInterrupt):
            lab.evaluate("generate.prompts=[x]")
    lab.evaluate("generate.prompts=[x]")
    assert len(scorings) == 2
    assert lab.hashes() == old[1]
    assert [sample["prompt"] for sample in lab.samples()] == ["x"]

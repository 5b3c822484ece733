"""An experiment to evaluate in this process."""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import yaml
from tests.evaluation.trained import write_data, write_model
from tests.training.experiment import publish

from retlab.artifacts import sha256_file
from retlab.command import StageCommand
from retlab.config import load_config
from retlab.section import PROJECT_ROOT

SCORED = ("results.json", "loss_by_position.csv", "document_losses.parquet")


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

    def make_model(self, seed: int, architecture: str = "retnet") -> None:
        write_model(self.run_folder / "model", architecture, seed)
        (self.run_folder / "model" / "manifest.json").unlink(missing_ok=True)
        publish(self.run_folder / "model", {})

    def evaluate(self, *overrides: str, force: bool = False, as_json: bool = False) -> None:
        spec = importlib.util.spec_from_file_location("evaluate_model", PROJECT_ROOT / "src" / "evaluate_model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        options = argparse.Namespace(json=as_json)
        module.main(load_config(self.file, overrides), StageCommand(force=force, options=options))

    def hashes(self) -> list[str]:
        return [sha256_file(self.run_folder / "evaluation" / "perplexity" / name) for name in SCORED]

    def samples(self) -> list[dict[str, Any]]:
        return list(json.loads((self.run_folder / "evaluation" / "samples" / "samples.json").read_text()))

    def results(self) -> dict[str, Any]:
        return dict(json.loads((self.run_folder / "results.json").read_text()))

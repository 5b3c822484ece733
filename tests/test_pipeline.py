"""The whole pipeline: results, the resolved copy, kills at random moments."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from retlab.section import PROJECT_ROOT
from tests import kill_stages
from tests.conftest import TINY, environment
from tests.forked import Script
from tests.kill_stages import STAGES, differences, finish, run_with_kills

pytestmark = pytest.mark.component


def test_every_stage_left_what_the_readme_says(quickstart: Path) -> None:
    run, data = quickstart / "runs" / "quickstart-retnet", quickstart / "data" / "quickstart"
    for name in (
        "config.yaml", "metrics.csv", "emissions.csv", "results.json", "results.csv",
        "evaluation/perplexity/document_losses.parquet", "evaluation/perplexity/loss_by_position.csv",
        "evaluation/perplexity/loss_by_position.png", "evaluation/samples/samples.json",
        "model/config.json", "model/model.safetensors", "model/README.md", "model/tokenizer.json",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    for name in ("raw", "splits/train", "splits/validation", "splits/test", "tokenizer", "tokens/train", "tokens/test"):
        assert (data / name).is_dir(), name


def test_energy_is_recorded_for_every_stage(quickstart: Path) -> None:
    table = (quickstart / "runs" / "quickstart-retnet" / "emissions.csv").read_text()
    for stage in STAGES:
        assert stage in table


def test_running_from_the_resolved_copy_is_the_same_run(quickstart: Path) -> None:
    copy = quickstart / "runs" / "quickstart-retnet" / "config.yaml"
    command = ["bash", str(quickstart / "scripts" / "run_pipeline.sh"), str(copy)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("up to date") == 9, answer.stdout


def test_the_matched_transformer_has_the_same_size_within_one_percent(quickstart: Path) -> None:
    runs = [quickstart / "runs" / name for name in ("quickstart-retnet", "quickstart-transformer")]
    results = [json.loads((run / "model" / "manifest.json").read_text()) for run in runs]
    retnet, transformer = (result["report"]["parameters"] for result in results)
    assert abs(transformer / retnet - 1) <= 0.01
    assert json.loads((runs[1] / "model" / "config.json").read_text())["model_type"] == "retlab_transformer"


def test_kills_at_random_moments_of_every_stage_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the seconds of imports, the kills find the stages at work.
    monkeypatch.setattr(kill_stages, "start", lambda words: Script(Path(words[1]), *words[2:]))
    config, lab = PROJECT_ROOT / "configs" / "quickstart.yaml", tmp_path / "lab"
    # Stages that are killed beside their monitors of energy: tests/test_emissions.py.
    words = [*TINY, "emissions.enabled=false"]
    seconds = {stage: finish(stage, config, lab, words)[0] for stage in STAGES}
    shutil.move(lab, tmp_path / "calm")
    hits = run_with_kills(config, lab, words, seconds, kills=12, chance=random.Random(1))
    assert hits, "no kill found its stage at work"
    assert differences(tmp_path / "calm", lab) == []

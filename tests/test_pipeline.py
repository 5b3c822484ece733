"""The whole pipeline: results, the second run, the resolved copy, kills at random moments."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from retlab.section import PROJECT_ROOT
from tests import kill_stages
from tests.conftest import TINY, environment, run_pipeline
from tests.forked import Script
from tests.kill_stages import STAGES, differences, finish, run_with_kills

pytestmark = pytest.mark.component


def test_every_stage_left_what_the_readme_says(tiny_lab: Path) -> None:
    run = tiny_lab / "runs" / "quickstart-retnet"
    for name in (
        "config.yaml", "metrics.csv", "emissions.csv", "results.json", "results.csv", "document_losses.parquet",
        "samples.json", "model/config.json", "model/model.safetensors", "model/README.md", "model/tokenizer.json",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    for name in ("raw", "splits/train", "splits/validation", "splits/test", "tokenizer", "tokens/train", "tokens/test"):
        assert (tiny_lab / "data" / name).is_dir(), name
    assert not list(tiny_lab.rglob(".*")), "nothing unfinished and no lock is left"


def test_energy_is_recorded_for_every_stage(tiny_lab: Path) -> None:
    table = (tiny_lab / "runs" / "quickstart-retnet" / "emissions.csv").read_text()
    for stage in STAGES:
        assert stage in table


def test_a_second_run_says_up_to_date_and_changes_nothing(tiny_lab: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in tiny_lab.rglob("*") if file.is_file()}
    text = run_pipeline(tiny_lab)
    assert text.count("up to date") == 8
    assert {file: file.stat().st_mtime_ns for file in tiny_lab.rglob("*") if file.is_file()} == before


def test_running_from_the_resolved_copy_is_the_same_run(tiny_lab: Path) -> None:
    copy = tiny_lab / "runs" / "quickstart-retnet" / "config.yaml"
    command = ["bash", str(PROJECT_ROOT / "scripts" / "run_pipeline.sh"), str(copy)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("up to date") == 8, answer.stdout


def test_the_matched_transformer_has_the_same_size_within_one_percent(tiny_lab: Path) -> None:
    run_pipeline(
        tiny_lab,
        "name=quickstart-transformer",
        "model.architecture=transformer",
        f"model.match_parameters_of={tiny_lab}/runs/quickstart-retnet",
    )
    results = [json.loads((tiny_lab / "runs" / name / "model" / "manifest.json").read_text()) for name in
               ("quickstart-retnet", "quickstart-transformer")]  # fmt: skip
    retnet, transformer = (result["report"]["parameters"] for result in results)
    assert abs(transformer / retnet - 1) <= 0.01
    command = [sys.executable, str(PROJECT_ROOT / "src" / "compare_runs.py")]
    runs = [str(tiny_lab / "runs" / name) for name in ("quickstart-retnet", "quickstart-transformer")]
    answer = subprocess.run([*command, *runs], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    for word in (
        "bits per byte",
        "perplexity",
        "uniform",
        "unigram",
        "bigram",
        "gzip",
        "xz",
        "kWh",
        "quickstart-retnet",
    ):
        assert word in answer.stdout, word
    assert max(len(line) for line in answer.stdout.splitlines()) <= 100


def test_kills_at_random_moments_of_every_stage_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the seconds of imports, the kills find the stages at work.
    monkeypatch.setattr(kill_stages, "start", lambda words: Script(Path(words[1]), *words[2:]))
    config, lab = PROJECT_ROOT / "configs" / "quickstart.yaml", tmp_path / "lab"
    seconds = {stage: finish(stage, config, lab, TINY)[0] for stage in STAGES}
    shutil.move(lab, tmp_path / "calm")
    hits = run_with_kills(config, lab, TINY, seconds, kills=9, chance=random.Random(1))
    assert hits, "no kill found its stage at work"
    assert differences(tmp_path / "calm", lab) == []

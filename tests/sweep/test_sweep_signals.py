"""A signal while a sweep does not train: while it waits for another process, and before its tables."""

import argparse
import importlib.util
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from tests.forked import Script
from tests.sweep.made_trials import finish, make_grid
from tests.training.experiment import make_config, make_inputs

from retlab import artifacts
from retlab.errors import EXIT_INTERRUPTED, Interrupted
from retlab.section import PROJECT_ROOT
from retlab.sweep import local, table
from retlab.sweep.trial_list import write_trials

SCRIPT = PROJECT_ROOT / "src" / "grid_search.py"


def wait_for(process: Script, words: str) -> None:
    while words not in process.so_far():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.component
def test_a_sweep_that_waits_for_another_process_leaves_at_once(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    (tmp_path / "tokens" / "test").symlink_to(tmp_path / "tokens" / "validation")
    file = make_config(tmp_path, "twice", max_steps=2)
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"grid_search": {"architectures": ["retnet"]}}))
    folder = tmp_path / "runs" / "twice" / "grid_search"
    folder.mkdir(parents=True)
    with artifacts.lock(folder, True, lambda: None):
        process = Script(SCRIPT, str(file))
        wait_for(process, "another process runs this sweep")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == EXIT_INTERRUPTED


@pytest.mark.component
def test_a_task_whose_trial_another_process_runs_leaves_at_once(tmp_path: Path) -> None:
    (trial, *_) = make_grid(tmp_path).trials
    write_trials(tmp_path / "trials.json", [trial])
    (tmp_path / "any.yaml").write_text("{}")
    trial.folder.mkdir(parents=True)
    with artifacts.lock(trial.folder, True, lambda: None):
        words = ["--trials", str(tmp_path / "trials.json"), "--task", "0"]
        process = Script(SCRIPT, str(tmp_path / "any.yaml"), *words)
        wait_for(process, "another process runs p1-retnet-0")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == EXIT_INTERRUPTED
        assert "another process still runs the trial" in process.communicate()[0]


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """The script as a module; it changes what signals do."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    usual = {number: signal.getsignal(number) for number in numbers}
    spec = importlib.util.spec_from_file_location("grid_search", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for number, handler in usual.items():
        signal.signal(number, handler)


def test_a_signal_with_the_last_trial_asks_for_no_comparisons(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = make_grid(tmp_path)
    finish(grid.trials[0])
    compared = []

    def run_locally(*_: object, **__: object) -> bool:
        signal.raise_signal(signal.SIGINT)
        return True

    def write_tables(*_: object, compares: bool, **__: Any) -> None:
        compared.append(compares)

    monkeypatch.setattr(local, "run_locally", run_locally)
    monkeypatch.setattr(table, "write_tables", write_tables)
    with pytest.raises(Interrupted):
        script._run(grid, argparse.Namespace(plan=False, retry_failed=False))
    assert compared == [False]

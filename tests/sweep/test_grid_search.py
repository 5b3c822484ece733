"""The sweep as a process: kills at all levels, hangs, signals, failures, and one trial in two sweeps."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.forked import Script
from tests.training.experiment import make_config, make_inputs

from retlab.artifacts import sha256_file, write_json
from retlab.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR
from retlab.section import PROJECT_ROOT
from retlab.sweep.grid import Grid, Trial
from retlab.sweep.points import make_grid
from retlab.sweep.results import read_failure, read_result
from retlab.sweep.trial_list import write_trials

pytestmark = pytest.mark.component
STEPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep")
    make_inputs(path)
    shutil.copytree(path / "tokens" / "validation", path / "tokens" / "test")
    return path


def write(folder: Path, name: str, **grid_search: Any) -> Path:
    """Two good points, and between them one that diverges."""
    file = make_config(folder, name, max_steps=STEPS, micro_batch_size=8, validate_every_steps=20)
    values = yaml.safe_load(file.read_text())
    section = {"axes": {"train.learning_rate": [1e-3, 1e30, 1e-2]}, "architectures": ["retnet"], "workers": 2,
               "trials_folder": str(folder / name), "similarity_windows": 2}  # fmt: skip
    file.write_text(yaml.safe_dump(values | {"grid_search": section | grid_search}))
    return file


def start(config: Path, *words: str) -> Script:
    return Script(PROJECT_ROOT / "src" / "grid_search.py", str(config), *words, OMP_NUM_THREADS="1")


def finish(config: Path, *words: str) -> tuple[int, str]:
    process = start(config, *words)
    output, _ = process.communicate()
    return process.wait(), output


def wait_until(condition: Callable[[], object], process: Script) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def saved(trial: Trial) -> bool:
    return any((trial.folder / "checkpoints").glob("step-*.pt"))


def started(trial: Trial) -> int:
    """How often a process has taken the trial up, or has measured its speed with it."""
    log = trial.folder / "log.txt"
    return log.read_text().count("--- ") if log.exists() else 0


def process_of(trial: Trial) -> int:
    return int(re.findall(r"process (\d+)", (trial.folder / "log.txt").read_text())[-1])


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def weights(grid: Grid) -> list[str]:
    return [sha256_file(trial.folder / "model" / "model.safetensors") for trial in (grid.trials[0], grid.trials[2])]


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Grid:
    config = write(folder, "undisturbed")
    code, output = finish(config)
    assert code == EXIT_OK, output
    return make_grid(config, [])


def test_results_and_what_stays_of_a_trial(undisturbed: Grid) -> None:
    good, diverged, other = [read_result(trial.folder) for trial in undisturbed.trials]
    assert good is not None
    assert diverged is not None
    assert other is not None
    assert (good.status, good.steps, good.tokens) == ("finished", STEPS, STEPS * 8 * 16)
    assert good.test_loss is not None
    assert other.test_loss is not None
    assert other.test_loss < good.test_loss, "the higher rate learns more in so few steps"
    assert (diverged.status, diverged.test_loss) == ("diverged", None)
    assert re.search("became (nan|inf) at step", str(diverged.message))
    assert "kept" not in str(diverged.message), "checkpoints of a trial with a result are dropped"
    for trial in undisturbed.trials:
        assert not (trial.folder / "checkpoints").exists()
    assert (undisturbed.folder / "grid_search.csv").is_file()


def test_another_sweep_takes_over_the_trials_that_are_there(folder: Path, undisturbed: Grid) -> None:
    before = {trial.id: (trial.folder / "result.json").stat().st_mtime_ns for trial in undisturbed.trials}
    config = write(folder, "other", trials_folder=str(undisturbed.trials_folder))
    code, output = finish(config)
    assert (code, "up to date: no trial is missing" in output) == (EXIT_OK, True), output
    assert {trial.id: (trial.folder / "result.json").stat().st_mtime_ns for trial in undisturbed.trials} == before


def test_the_folder_of_a_sweep_on_other_data_keeps_its_tables(folder: Path) -> None:
    config = write(folder, "claimed")
    table = make_grid(config, []).folder / "grid_search.csv"
    table.parent.mkdir(parents=True)
    table.write_text("of the other sweep")
    write_json(table.with_name("sweep.json"), {"tokenizer": "another"})
    for words in ([], ["--plan"], ["--table"]):
        code, output = finish(config, *words)
        assert (code, "holds a sweep on other data" in output) == (EXIT_USER_ERROR, True), output
    assert table.read_text() == "of the other sweep"


def test_the_folder_of_a_trial_that_was_copied_by_hand_is_no_result(folder: Path, undisturbed: Grid) -> None:
    config = write(folder, "copied")
    first, _, last = make_grid(config, []).trials
    shutil.copytree(undisturbed.trials[2].folder, last.folder)
    shutil.copytree(undisturbed.trials[2].folder, first.folder)
    code, output = finish(config)
    assert (code, "finished 1, failed 0, to run 2" in output) == (EXIT_OK, True), output
    assert weights(make_grid(config, [])) == weights(undisturbed)


def test_a_killed_sweep_leaves_no_process_and_goes_on(folder: Path, undisturbed: Grid) -> None:
    config = write(folder, "killed")
    grid = make_grid(config, [])
    for number in (signal.SIGKILL, signal.SIGTERM):
        attempts = started(grid.trials[0])
        process = start(config)
        wait_until(lambda n=attempts: started(grid.trials[0]) > n and saved(grid.trials[0]), process)
        pids = [process_of(trial) for trial in grid.trials if (trial.folder / "log.txt").exists()]
        process.send_signal(number)
        output, _ = process.communicate()
        assert process.returncode == (-number if number == signal.SIGKILL else EXIT_INTERRUPTED), output
        while not all(map(is_gone, pids)):
            time.sleep(0.05)
    assert "interrupted: saved after step" in (grid.trials[0].folder / "log.txt").read_text()
    code, output = finish(config)
    assert code == EXIT_OK, output
    assert weights(grid) == weights(undisturbed)


def test_a_killed_and_a_hanging_trial_are_lost_alone(folder: Path, undisturbed: Grid) -> None:
    config = write(folder, "lost")
    grid = make_grid(config, [])
    first, _, last = grid.trials
    process = start(config)
    wait_until(lambda: saved(first), process)
    os.kill(process_of(first), signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == EXIT_USER_ERROR, output
    assert "error: 1 trial of 3 failed" in output
    failure = read_failure(first.folder)
    assert failure, output
    assert (failure.kind, "SIGKILL" in str(failure)) == ("killed", True)
    code, output = finish(config)
    assert (code, "failed 1, to run 0" in output) == (EXIT_USER_ERROR, True), "failed trials stay failed until asked"

    # Only what hangs is left to run, so no other trial can be too slow for the short time.
    attempts = started(first)
    process = start(config, "--retry-failed", "grid_search.trial_timeout=5")
    wait_until(lambda: started(first) > attempts, process)
    os.kill(process_of(first), signal.SIGSTOP)
    output, _ = process.communicate()
    assert process.returncode == EXIT_USER_ERROR, output
    failure = read_failure(first.folder)
    assert failure, output
    assert failure.kind == "timeout"
    code, output = finish(config, "--retry-failed")
    assert code == EXIT_OK, output
    assert weights(grid) == weights(undisturbed)


def test_one_trial_as_its_own_process(folder: Path, undisturbed: Grid) -> None:
    config = write(folder, "alone")
    grid = make_grid(config, [])
    write_trials(folder / "tasks.json", grid.trials[1:])
    process = start(config, "--trials", str(folder / "tasks.json"), "--task", "1")
    wait_until(lambda: saved(grid.trials[2]), process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate()
    assert process.returncode == EXIT_INTERRUPTED, output
    code, output = finish(config, "--trials", str(folder / "tasks.json"), "--task", "1")
    assert code == EXIT_OK, output
    assert sha256_file(grid.trials[2].folder / "model" / "model.safetensors") == weights(undisturbed)[1]


def test_wrong_words_and_folders_are_a_sentence(folder: Path) -> None:
    config = write(folder, "wrong")
    broken = str(folder / "broken.json")
    Path(broken).write_text('["unknown"]')
    write_trials(folder / "three.json", make_grid(config, []).trials)
    for words, sentence in (
        (["--task", "0"], "--task needs --trials"),
        (["--trials", str(folder / "three.json")], "--trials needs --task"),
        (["--trials", str(folder / "none.json"), "--task", "0"], "none.json"),
        (["--trials", broken, "--task", "0"], "no list of trials"),
        (["--trials", str(folder / "three.json"), "--task", "3"], "there is no trial 3"),
        (["train.devices=2", "train.micro_batch_size=null"], "a trial of a sweep takes one"),
        (["grid_search.axes={model.num_attention_heads: [2, 3]}"], "--skip-invalid"),
        (["grid_search.trials_folder=/proc/x"], "no folder can be made here: /proc/x"),
    ):
        code, output = finish(config, *words)
        assert code == EXIT_USER_ERROR, output
        assert sentence in output
        assert "Traceback" not in output

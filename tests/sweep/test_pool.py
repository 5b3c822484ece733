"""Workers: when they start, and what their reports lead to."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.sweep.made_trials import make_grid

from retlab.artifacts import read_json, write_json
from retlab.errors import StorageFailed, UserError
from retlab.progress import progress
from retlab.sweep import local
from retlab.sweep.energy import EnergyShares
from retlab.sweep.estimate import Calibration
from retlab.sweep.grid import Trial
from retlab.sweep.pool import Pool
from retlab.sweep.trial import ENERGY


def test_all_workers_start_although_the_first_work_is_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []
    start = Pool._start

    def counted(pool: Pool, place: int, environment: dict[str, str]) -> None:
        places.append(place)
        start(pool, place, environment)

    monkeypatch.setattr(Pool, "_start", counted)
    grid = make_grid(tmp_path)
    # A signal that was there before: nothing is given to a worker, and none is waited for.
    with Pool([{}, {}, {}], None, lambda: True, tmp_path) as pool:
        pool.start()
        assert places == [0, 1, 2]
        assert not pool.run(grid.trials[:1], Calibration(grid, pool.places))
    assert places == [0, 1, 2]


@pytest.mark.parametrize(
    ("visible", "seen", "expected"),
    [
        (None, 3, ["0", "1", "2"]),
        ("2,5", 2, ["2", "5"]),
        ("GPU-1f2e, GPU-77aa", 2, ["GPU-1f2e", "GPU-77aa"]),
        # One process sees the first part of a GPU alone.
        ("MIG-1,MIG-2,MIG-3", 1, ["MIG-1", "MIG-2", "MIG-3"]),
        ("4,-1,5", 1, ["4"]),
        ("NoDevFiles", 0, ["NoDevFiles"] * 2),
        ("", 0, [""] * 2),
        # A machine that has no driver, whatever the environment says.
        ("0,1", 0, ["0,1"] * 2),
    ],
)
def test_each_worker_has_one_gpu_of_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: int, expected: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    monkeypatch.setattr("torch.cuda.is_available", lambda: seen > 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    start = subprocess.Popen
    monkeypatch.setattr(
        "retlab.sweep.pool.subprocess.Popen", lambda _, **words: start(["env"], **words | {"cwd": tmp_path})
    )
    grid = make_grid(tmp_path, axes={"train.learning_rate": [0.1, 0.2, 0.3, 0.4]})
    with local.pool_for(grid, grid.trials, lambda: False) as pool:
        pool.start()
        found = []
        for worker in pool._workers:
            assert worker.process.stdout is not None
            os.set_blocking(worker.process.stdout.fileno(), True)
            environment = dict(line.split("=", 1) for line in worker.process.stdout.read().decode().splitlines())
            found.append(environment["CUDA_VISIBLE_DEVICES"])
    assert found == expected


def test_more_workers_than_gpus_and_a_gpu_that_is_not_there_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    grid = make_grid(tmp_path, workers=3)
    with pytest.raises(UserError, match="grid_search.workers is 3, but this machine has 2 GPUs"):
        local.pool_for(grid, grid.trials, lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for section, changes, said in (
        ("train", {"device": "cuda"}, "train.device is cuda, but torch sees no GPU here"),
        ("evaluate", {"device": "cuda"}, "evaluate.device is cuda, but torch sees no GPU here"),
        ("train", {"num_nodes": 2}, "train.num_nodes is 2, but a trial of a sweep takes one GPU or process"),
    ):
        changed = getattr(grid.config, section).model_copy(update=changes)
        wrong = dataclasses.replace(grid, config=grid.config.model_copy(update={section: changed}))
        with pytest.raises(UserError, match=said):
            local.pool_for(wrong, grid.trials, lambda: False)


@pytest.mark.component
def test_what_lies_in_the_users_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('not the library')")
    monkeypatch.chdir(tmp_path)
    with Pool([{}], None, lambda: False, tmp_path) as pool:
        pool.start()
        (worker,) = pool._workers
        assert worker.process.stdout is not None
        os.set_blocking(worker.process.stdout.fileno(), True)
        assert worker.process.stdout.readline() == b'{"event": "ready"}\n'


# In place of a worker: what becomes of a trial is read from a file of its name, a line each time it is ordered; between
# a report and the next order comes the word that it was written down. A signal interrupts what waits. What another
# process runs (busy) or has run (elsewhere) is not taken, and that is found out after some time.
STAND_IN = """
import json, pathlib, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
print('{"event": "ready"}', flush=True)
for line in sys.stdin:
    trial = json.loads(line)["trial"]["id"]
    with open("given", "a") as file:
        file.write(trial + "\\n")
    script = pathlib.Path(trial)
    lines = script.read_text().splitlines()
    script.write_text("\\n".join(lines[1:]))
    if lines[0] in ("busy", "elsewhere"):
        time.sleep(0.7)
    else:
        print('{"event": "taken"}', flush=True)
    if lines[0] == "wait":
        end = time.monotonic() + 300
        while not stopped and time.monotonic() < end:
            time.sleep(0.01)
        lines[0] = "interrupted" if stopped else "done"
    report = {"event": lines[0], "message": "the disk is full", "result": {}}
    if lines[0] == "gone":
        report["event"] = "done"
    if lines[0] == "elsewhere":
        report |= {"event": "done", "result": None}
    print(json.dumps(report), flush=True)
    if lines[0] == "gone":
        sys.exit(3)
    assert json.loads(sys.stdin.readline()) == {"kept": True}
"""


class Told:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def __getattr__(self, event: str) -> Any:
        return lambda *words: self.events.append((event, words[0].id)) if words else None


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Six trials, whose workers do what their scripts say."""
    start = subprocess.Popen

    def popen(_command: list[str], **words: Any) -> Any:
        return start([sys.executable, "-c", STAND_IN], **{**words, "cwd": tmp_path})

    monkeypatch.setattr("retlab.sweep.pool.subprocess.Popen", popen)
    monkeypatch.setattr("retlab.sweep.pool._BUSY_SECONDS", 0.05)
    trials = make_grid(tmp_path, axes={"train.learning_rate": [0.1, 0.2, 0.3]}, seeds=[0]).trials
    trials[0].folder.parent.mkdir(parents=True)
    for trial in trials:
        (tmp_path / trial.id).write_text("done")
    return trials


def test_what_another_process_runs_is_looked_at_again(tmp_path: Path, scripted: list[Trial]) -> None:
    first, *others = [trial.id for trial in scripted]
    (tmp_path / first).write_text("busy\nbusy\ndone")
    told = Told()
    with Pool([{}], None, lambda: False, tmp_path) as pool:
        assert pool.run(scripted, told)
    assert [name for event, name in told.events if event == "done"][:2] == others[:2]
    assert sorted(name for event, name in told.events if event == "done") == sorted([first, *others])
    assert told.events.count(("busy", first)) == 2
    assert told.events.count(("started", first)) == 1


def test_energy_of_a_trial_that_another_sweep_runs_is_left_alone(
    tmp_path: Path, scripted: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scripted[0]
    (tmp_path / first.id).write_text("busy\nelsewhere")
    first.folder.mkdir()
    write_json(first.folder / ENERGY, {"kwh": 5.0, "kg": 1.0})
    seconds = iter(range(1, 1000))
    row = {"emissions_kg_co2e": 1.0, "power_method": "by hand"}
    shares = EnergyShares(lambda: row | dict.fromkeys(("duration_seconds", "energy_kwh"), next(seconds)))
    monkeypatch.setattr(local, "_INTERVAL_SECONDS", 0.0)
    with progress("trials", 1, "trial") as bar, Pool([{}], None, lambda: False, tmp_path) as pool:
        keeper = local.Keeper(shares, bar, print)
        assert pool.run([first], keeper)
    assert shares.kilowatts > 0
    assert read_json(first.folder / ENERGY) == {"kwh": 5.0, "kg": 1.0}
    assert not any(keeper.counts.values())


def test_a_worker_that_ends_after_its_report_costs_no_other_trial(tmp_path: Path, scripted: list[Trial]) -> None:
    for trial in scripted[:3]:
        (tmp_path / trial.id).write_text("gone")
    told = Told()
    with Pool([{}], None, lambda: False, tmp_path) as pool:
        assert pool.run(scripted, told)
    assert sorted(name for event, name in told.events if event == "done") == sorted(trial.id for trial in scripted)
    assert "failed" not in dict(told.events)


def test_files_that_cannot_be_written_stop_all(tmp_path: Path, scripted: list[Trial]) -> None:
    (tmp_path / scripted[0].id).write_text("wait")
    (tmp_path / scripted[1].id).write_text("storage")
    told = Told()
    with Pool([{}, {}], None, lambda: False, tmp_path) as pool, pytest.raises(StorageFailed, match="the disk is full"):
        pool.run(scripted, told)
    assert sorted((tmp_path / "given").read_text().split()) == sorted(trial.id for trial in scripted[:2])
    assert {event for event, _ in told.events} == {"started", "interrupted"}

"""Energy rows: places, attempts, endings, and a real CodeCarbon beside real processes."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from retlab.emissions import EmissionsSection, emission_errors, track_emissions
from retlab.emissions_rows import COLUMNS, claim_row_file, is_running, move_rows, process_mark, read_rows, write_row
from retlab.errors import Interrupted

STAGE = """
import sys, time
from pathlib import Path
from retlab.emissions import EmissionsSection, track_emissions
section = EmissionsSection(country="USA", region="Utah", interval_seconds=0.5)
with track_emissions(section, Path(sys.argv[1]), "train_model"):
    print("started", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def table(run_folder: Path) -> list[dict[str, str]]:
    with open(run_folder / "emissions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def start_stage(run_folder: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", STAGE, str(run_folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def row_of(status: str, started: str, attempt: int, process: str = "") -> dict[str, Any]:
    plain: dict[str, Any] = dict.fromkeys(COLUMNS, 0.0) | {"stage": "split_data", "host": os.uname().nodename}
    return plain | {"status": status, "started": started, "attempt": attempt, "process": process}


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"country": "DEU"},
        {"country": "USA", "region": "Utah"},
        {"country": "CAN", "region": "quebec"},
        {"country": "SWE", "region": "SE3"},
        {"country": "CHN", "region": "Guangdong"},
        {"country": "XX", "region": "nowhere", "enabled": False},
    ],
)
def test_places_that_codecarbon_knows(place: dict[str, Any]) -> None:
    assert emission_errors(EmissionsSection(**place)) == []


@pytest.mark.parametrize(
    ("place", "key", "found", "nearest"),
    [
        ({"country": "US"}, "country", "'US'", "USA (United States)"),
        ({"country": "Germany"}, "country", "'Germany'", "DEU (Germany)"),
        ({"country": "ZZZ"}, "country", "'ZZZ'", "("),
        ({"country": "USA", "region": "Utha"}, "region", "'Utha'", "utah"),
        ({"country": "USA", "region": "CA"}, "region", "'CA'", "california"),
        ({"country": "CAN", "region": "quebek"}, "region", "'quebek'", "quebec"),
        ({"country": "NOR", "region": "SE3"}, "region", "'SE3'", "no3"),
        ({"country": "DEU", "region": "Bayern"}, "region", "'Bayern'", "no regions of DEU (Germany); set it to null"),
    ],
)
def test_unknown_places_are_named_with_the_nearest(place: dict[str, str], key: str, found: str, nearest: str) -> None:
    [(at, sentence)] = emission_errors(EmissionsSection(**place))
    assert at == key
    assert sentence.startswith(f"found {found}")
    assert nearest in sentence


def test_regions_named_valid_change_codecarbons_number() -> None:
    """What the check accepts, CodeCarbon must really use: it falls back to the country in silence."""
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    source = Emissions(DataSource())
    for country, region in [("USA", "Utah"), ("CAN", "Alberta"), ("SWE", "SE1"), ("CHN", "Nei Mongol")]:
        assert emission_errors(EmissionsSection(country=country, region=region)) == []
        geo = GeoMetadata(country, region=region)
        energy = Energy.from_energy(1.0)
        regional = source.get_private_infra_emissions(energy, geo)
        assert regional != source.get_country_emissions(energy, geo)


def test_attempts_count_up_for_each_stage(tmp_path: Path) -> None:
    names = ["tokenize_data train", "tokenize_data", "tokenize_data train", "tokenize_data"]
    claimed = [claim_row_file(tmp_path, name) for name in names]
    assert [attempt for _, attempt in claimed] == [1, 1, 2, 2]
    assert len({file for file, _ in claimed}) == 4


def test_table_is_merged_in_order_and_shows_rows_without_an_end(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    gone = process_mark(ended.pid)
    ended.wait()
    assert is_running(process_mark(os.getpid()))
    assert not is_running(gone)
    rows = [
        row_of("running", "2026-01-01T00:00:02", 2, process_mark(os.getpid())),
        row_of("running", "2026-01-01T00:00:01", 1, gone),
        row_of("complete", "2026-01-01T00:00:03", 3),
    ]
    for row in rows:
        file, _ = claim_row_file(tmp_path, "split_data")
        write_row(file, row)
    expected = [("1", "killed"), ("2", "running"), ("3", "complete")]
    assert [(row["attempt"], row["status"]) for row in table(tmp_path)] == expected
    assert [str(row["attempt"]) for row in read_rows(tmp_path)] == ["1", "2", "3"]
    assert list(table(tmp_path)[0]) == list(COLUMNS)
    assert sorted(file.name for file in (tmp_path / "emissions").iterdir()) == [
        f"split_data-{number}.json" for number in (1, 2, 3)
    ]


def test_disabled_leaves_nothing_and_imports_nothing(tmp_path: Path) -> None:
    check = (
        "import sys, threading, psutil; from pathlib import Path; import retlab.emissions as e\n"
        f"section, folder = e.EmissionsSection(enabled=False), Path({str(tmp_path / 'run')!r})\n"
        "with e.track_emissions(section, folder, 'split_data') as m:\n"
        "    assert not psutil.Process().children()\n"
        "assert m.energy_kwh is None and m.emissions_kg is None\n"
        "assert not {'codecarbon', 'pandas', 'torch'} & set(sys.modules) and threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.component
def test_stage_leaves_one_quiet_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A setting that would send every row to a server, and one that would change the numbers.
    monkeypatch.setenv("CODECARBON_EMISSIONS_ENDPOINT", "http://127.0.0.1:9/")
    monkeypatch.setenv("CODECARBON_PUE", "1000")
    run = start_stage(tmp_path, 2)
    out, err = run.communicate()
    assert (run.returncode, out, err) == (0, "started\n", "")
    [row] = table(tmp_path)
    assert (row["stage"], row["attempt"], row["status"]) == ("train_model", "1", "complete")
    assert (row["country"], row["region"]) == ("USA", "Utah")
    assert "cpu " in row["power_method"]
    assert "ram estimated from its size" in row["power_method"]
    assert 2 <= float(row["duration_seconds"]) < 600
    parts = [float(row[f"{part}_energy_kwh"]) for part in ("cpu", "gpu", "ram")]
    energy = float(row["energy_kwh"])
    assert energy == pytest.approx(sum(parts), rel=1e-6)
    # Mean power of a machine that is on: more than 1 W, less than 20 kW.
    assert 1 < energy * 3.6e6 / float(row["duration_seconds"]) < 20_000
    import codecarbon

    states = json.loads(Path(codecarbon.__file__).with_name("data").joinpath(
        "private_infra/2023/usa_emissions.json").read_text())  # fmt: skip
    kg_per_kwh = states["utah"]["emissions"] * 0.45359237 / 1000
    assert float(row["emissions_kg_co2e"]) == pytest.approx(energy * kg_per_kwh, rel=1e-4)


@pytest.mark.component
def test_killed_stage_leaves_its_row_up_to_the_kill(tmp_path: Path) -> None:
    with start_stage(tmp_path, 600) as run:
        wait_for(lambda: (tmp_path / "emissions.csv").exists() and float(table(tmp_path)[0]["energy_kwh"]) > 0)
        assert table(tmp_path)[0]["status"] == "running"
        before = float(table(tmp_path)[0]["duration_seconds"])
        run.send_signal(signal.SIGKILL)
        run.wait()
        wait_for(lambda: table(tmp_path)[0]["status"] == "killed")
        assert float(table(tmp_path)[0]["duration_seconds"]) >= before > 0


@pytest.mark.component
def test_killed_together_with_its_monitor_the_row_still_says_so(tmp_path: Path) -> None:
    import psutil

    with start_stage(tmp_path, 600) as run:
        wait_for(lambda: (tmp_path / "emissions.csv").exists() and float(table(tmp_path)[0]["energy_kwh"]) > 0)
        [monitor] = psutil.Process(run.pid).children()
        monitor.kill()
        run.send_signal(signal.SIGKILL)
        run.wait()
        [row] = read_rows(tmp_path)
        assert row["status"] == "killed"
        assert row["energy_kwh"] > 0


@pytest.mark.component
def test_two_stages_at_once_share_the_machine(tmp_path: Path) -> None:
    runs = [start_stage(tmp_path, 8) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    for run in runs:
        run.communicate()
    rows = table(tmp_path)
    assert sorted(row["attempt"] for row in rows) == ["1", "2"]
    for row in rows:
        assert 0.3 < float(row["share_of_host"]) < 0.8


@pytest.mark.component
@pytest.mark.parametrize(("error", "status"), [(Interrupted("SIGTERM received"), "interrupted"), (OSError(), "failed")])
def test_the_row_says_how_the_stage_ended(tmp_path: Path, error: BaseException, status: str) -> None:
    section = EmissionsSection(interval_seconds=1)
    with pytest.raises(type(error)), track_emissions(section, tmp_path, "split_data") as measured:
        raise error
    assert table(tmp_path)[0]["status"] == status
    assert measured.energy_kwh is not None
    assert measured.energy_kwh > 0


@pytest.mark.component
def test_a_monitor_that_fails_is_named_in_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "codecarbon").mkdir()
    (tmp_path / "codecarbon" / "__init__.py").write_text("raise RuntimeError('no sensors here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with track_emissions(EmissionsSection(), tmp_path, "split_data"):
        pass
    [row] = table(tmp_path)
    assert row["status"] == "complete"
    assert row["power_method"] == "not measured to the end: RuntimeError: no sensors here"


@pytest.mark.parametrize("failing", ["claim_row_file", "write_row"])
def test_a_row_that_cannot_be_written_stops_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"retlab.emissions.{failing}", full)
    with track_emissions(EmissionsSection(), tmp_path, "split_data") as measured:
        pass
    assert measured.energy_kwh is None
    assert "energy is not recorded: " in capsys.readouterr().out
    assert not list(tmp_path.glob("emissions/*"))


def test_rows_of_a_training_that_is_set_aside_go_with_it(tmp_path: Path) -> None:
    run, aside = tmp_path / "run", tmp_path / "run.1"
    aside.mkdir()
    rows = [
        row_of("complete", "2026-01-01T00:00:00", 1) | {"stage": "download_data"},
        row_of("complete", "2026-01-01T00:00:01", 1) | {"stage": "train_model"},
        row_of("running", "2026-01-01T00:00:02", 2, process_mark(os.getpid())) | {"stage": "train_model"},
    ]
    for row in rows:
        (run / "emissions").mkdir(parents=True, exist_ok=True)
        file, _ = claim_row_file(run, row["stage"])
        write_row(file, row)
    move_rows(run, aside, ("train_model", "evaluate_model"))
    assert [(row["stage"], row["attempt"]) for row in read_rows(aside)] == [("train_model", 1)]
    assert [(row["stage"], row["attempt"]) for row in read_rows(run)] == [("download_data", 1), ("train_model", 2)]
    assert "train_model,1" in (aside / "emissions.csv").read_text()
    assert "train_model,1" not in (run / "emissions.csv").read_text()

"""Energy and emissions of a stage, measured by CodeCarbon without a network."""

import contextlib
import difflib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from retlab.artifacts import read_json
from retlab.emissions_rows import claim_row_file, process_mark, write_row
from retlab.errors import Interrupted, UserError
from retlab.section import Section, shown_path

_REGION_FILES = {"USA": "2023/usa_emissions.json", "CAN": "2023/canada_energy_mix.json"}
_NORDIC_PREFIXES = {"SWE": "SE", "NOR": "NO", "FIN": "FI"}
# CodeCarbon needs about 2 s to start, more on a busy machine.
_PATIENCE_SECONDS = 60.0


class EmissionsSection(Section):
    """Whether and for which place energy and emissions are recorded."""

    enabled: bool = True
    "Record energy and emissions of every stage in runs/<name>/emissions.csv."
    country: str = "USA"
    "ISO 3166 code of three letters of the country whose electricity is used."
    region: str | None = None
    "State, province or bidding zone, where CodeCarbon knows them; null takes the country."
    interval_seconds: float = Field(default=15, gt=0)
    "Seconds between two measurements; a killed stage loses at most one."


@dataclass
class StageEmissions:
    """What a stage used, once it has ended; None where nothing was measured."""

    energy_kwh: float | None = None
    emissions_kg: float | None = None
    file: Path | None = None
    "The row while it grows."


def emission_errors(section: EmissionsSection) -> list[tuple[str, str]]:
    """Key and sentence for a country or region that CodeCarbon has no data for; it would take any in silence."""
    if not section.enabled:
        return []
    countries = {code: entry["country_name"] for code, entry in _codecarbon_data("global_energy_mix.json").items()}
    if section.country not in countries:
        nearest = _nearest_countries(section.country, countries)
        return [
            (
                "country",
                f"found {section.country!r}, which is not among the {len(countries)} countries (ISO 3166 codes of"
                f" three letters) that CodeCarbon knows; nearest: {nearest}",
            )
        ]
    regions = _regions(section.country)
    if section.region is None or section.region.lower() in regions:
        return []
    name = f"{section.country} ({countries[section.country]})"
    if not regions:
        return [("region", f"found {section.region!r}, but CodeCarbon knows no regions of {name}; set it to null")]
    return [
        (
            "region",
            f"found {section.region!r}, which is not among the regions of {name} that CodeCarbon knows;"
            f" nearest: {_nearest_regions(section, regions)}",
        )
    ]


def _nearest_countries(found: str, countries: dict[str, str]) -> str:
    codes = difflib.get_close_matches(found.upper(), countries, n=3, cutoff=0.5)
    by_name = {name.lower(): code for code, name in countries.items()}
    named = [by_name[name] for name in difflib.get_close_matches(found.lower(), by_name, n=2, cutoff=0.7)]
    codes = list(dict.fromkeys(named + codes)) or difflib.get_close_matches(found.upper(), countries, n=3, cutoff=0.0)
    return ", ".join(f"{code} ({countries[code]})" for code in codes[:3])


def _nearest_regions(section: EmissionsSection, regions: list[str]) -> str:
    found = str(section.region)
    if section.country == "USA":
        states = _codecarbon_data(_REGION_FILES["USA"])
        postal = [name for name in regions if states[name].get("regionCode") == found.upper()]
        if postal:
            return postal[0]
    return ", ".join(difflib.get_close_matches(found.lower(), regions, n=3, cutoff=0.0))


def _regions(country: str) -> list[str]:
    """Names in lower case of the regions whose electricity CodeCarbon can tell apart."""
    if country in _REGION_FILES:
        return [name for name in _codecarbon_data(_REGION_FILES[country]) if not name.startswith("_")]
    if country == "CHN":
        provinces = _codecarbon_data("2023/china_provincial_emissions.json")["data"].values()
        return [name for province in provinces for name in province["names"]]
    if country in _NORDIC_PREFIXES:
        zones = _codecarbon_data("nordic_emissions.json")["data"]
        return [zone.lower() for zone in zones if zone.startswith(_NORDIC_PREFIXES[country])]
    return []


@functools.cache
def _codecarbon_data(name: str) -> dict[str, Any]:
    """A data file of CodeCarbon, read without importing it."""
    package = importlib.util.find_spec("codecarbon")
    if package is None:
        raise UserError(
            "emissions.enabled is true, but codecarbon is not installed; run pip install codecarbon, or set it to false"
        )
    assert package.submodule_search_locations
    file = Path(package.submodule_search_locations[0], "data", "private_infra", name)
    return dict(json.loads(file.read_text(encoding="utf-8")))


@contextlib.contextmanager
def track_emissions(section: EmissionsSection, run_folder: Path, stage: str) -> Iterator[StageEmissions]:
    """Record the energy and emissions of the block as one row of the run folder's emissions.csv.

    The row is there from the start, grows every `interval_seconds`, and says how the block ended.
    A process beside this one measures (`emissions_monitor`), so nothing of CodeCarbon runs in this one.
    Where no row can be written, the stage goes on without one and says so.
    """
    measured = StageEmissions()
    monitor = _start_monitor(section, run_folder, stage) if section.enabled else None
    if monitor is None:
        yield measured
        return
    measured.file = monitor.file
    status = "complete"
    try:
        yield measured
    except (Interrupted, KeyboardInterrupt, SystemExit):
        status = "interrupted"
        raise
    except BaseException:
        status = "failed"
        raise
    finally:
        row = monitor.finish(status)
        measured.energy_kwh, measured.emissions_kg = row["energy_kwh"], row["emissions_kg_co2e"]


def _start_monitor(section: EmissionsSection, run_folder: Path, stage: str) -> "_MonitorProcess | None":
    try:
        return _MonitorProcess(section, run_folder, stage)
    except OSError as error:
        where = shown_path(run_folder / "emissions")
        print(f"[{stage}] energy is not recorded: {where} cannot be written ({error.strerror})", flush=True)
        return None


class _MonitorProcess:
    """The stage's side of `emissions_monitor`."""

    def __init__(self, section: EmissionsSection, run_folder: Path, stage: str) -> None:
        self._started = time.monotonic()
        self.file, attempt = claim_row_file(run_folder, stage)
        self._row = row = _new_row(section, stage, attempt)
        try:
            write_row(self.file, row)
        except OSError:
            self.file.unlink(missing_ok=True)
            raise
        order = {
            "file": str(self.file.absolute()),
            "row": row,
            "interval": section.interval_seconds,
            "stage": os.getpid(),
            "started": self._started,
        }
        # Open as long as the process, which may be stuck at its first import.
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        library = str(Path(__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "retlab.emissions_monitor", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([library, os.environ.get("PYTHONPATH", "")])},
            # Ctrl-C and a kill of the stage's process group leave it alive to close the row.
            start_new_session=True,
        )

    def finish(self, status: str) -> dict[str, Any]:
        """Tell how the stage ended and wait for the closed row."""
        duration = time.monotonic() - self._started
        word = json.dumps({"status": status, "duration_seconds": duration}).encode()
        try:
            self._process.communicate(word, timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        row: dict[str, Any] = read_json(self.file) or self._row
        if row["status"] == "running":
            row |= {"status": status, "duration_seconds": round(duration, 3), "power_method": self._failure()}
            # What the stage itself has to say matters more than its row.
            with contextlib.suppress(OSError):
                write_row(self.file, row)
        self._messages.close()
        return row

    def _failure(self) -> str:
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return f"not measured to the end: {lines[-1] if lines else 'the monitor was stopped'}"


def _new_row(section: EmissionsSection, stage: str, attempt: int) -> dict[str, Any]:
    return {
        "stage": stage,
        "attempt": attempt,
        "status": "running",
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "duration_seconds": 0.0,
        "energy_kwh": 0.0,
        "cpu_energy_kwh": 0.0,
        "gpu_energy_kwh": 0.0,
        "ram_energy_kwh": 0.0,
        "emissions_kg_co2e": 0.0,
        "country": section.country,
        "region": section.region or "",
        "power_method": "not measured yet",
        "share_of_host": 1.0,
        "host": os.uname().nodename,
        "process": process_mark(os.getpid()),
    }

"""The rows of emissions.csv: one JSON file per attempt of a stage, merged into one table."""

import contextlib
import csv
import fcntl
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retlab.artifacts import read_json, write_atomic, write_json

COLUMNS = (
    "stage",
    "attempt",
    "status",
    "started",
    "duration_seconds",
    "energy_kwh",
    "cpu_energy_kwh",
    "gpu_energy_kwh",
    "ram_energy_kwh",
    "emissions_kg_co2e",
    "country",
    "region",
    "power_method",
    "share_of_host",
    "host",
    "cpu_model",
    "gpu_model",
    "codecarbon_version",
)
"""Columns of emissions.csv. Status is running, complete, interrupted, failed or killed (no clean end)."""


def process_mark(pid: int) -> str:
    """A process' id and start time: unlike the id alone, never used again."""
    import psutil

    return f"{pid}-{psutil.Process(pid).create_time():.2f}"


def is_running(mark: str) -> bool:
    """Whether the process of a `process_mark` of this host still runs; a zombie does not."""
    import psutil

    pid = mark.partition("-")[0]
    try:
        return process_mark(int(pid)) == mark and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


def claim_row_file(run_folder: Path, stage: str) -> tuple[Path, int]:
    """A new, empty row file for the next attempt of a stage, and the attempt's number from 1."""
    folder = run_folder / "emissions"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.]+", "-", stage)
    taken = [int(file.stem.rpartition("-")[2]) for file in folder.glob(f"{name}-[0-9]*.json") if _is_of(file, name)]
    attempt = max(taken, default=0) + 1
    while True:
        file = folder / f"{name}-{attempt}.json"
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            attempt += 1
        else:
            return file, attempt


def _is_of(file: Path, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(name)}-\d+", file.stem) is not None


def write_row(file: Path, row: dict[str, Any]) -> None:
    """Replace a row file atomically and rebuild the run folder's emissions.csv from all of them."""
    write_json(file, row)
    _merge_rows(file.parent.parent)


def move_rows(run_folder: Path, target: Path, stages: Sequence[str]) -> None:
    """Move the rows of ended attempts of these stages to another run folder; both get their table anew."""
    moved = [
        file
        for file in sorted((run_folder / "emissions").glob("*.json"))
        if isinstance(row := read_json(file), dict)
        and row["stage"].split()[0] in stages
        and not (row["status"] == "running" and is_running(row["process"]))
    ]
    if moved:
        (target / "emissions").mkdir(exist_ok=True)
        for file in moved:
            file.rename(target / "emissions" / file.name)
        _merge_rows(target)
        _merge_rows(run_folder)


def _merge_rows(run_folder: Path) -> None:
    with _merging(run_folder / "emissions"):
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for one in read_rows(run_folder):
            writer.writerow({key: f"{value:.9g}" if isinstance(value, float) else value for key, value in one.items()})
        write_atomic(run_folder / "emissions.csv", table.getvalue())


def read_rows(run_folder: Path) -> list[dict[str, Any]]:
    """All rows of a run folder in the order in which their stages started.

    A row whose process ended without closing it has the status `killed`.
    """
    rows = [row for file in (run_folder / "emissions").glob("*.json") if isinstance(row := read_json(file), dict)]
    for row in rows:
        if row["status"] == "running" and row["host"] == os.uname().nodename and not is_running(row["process"]):
            row["status"] = "killed"
    return sorted(rows, key=lambda row: (row["started"], row["stage"], row["attempt"]))


@contextlib.contextmanager
def _merging(folder: Path) -> Iterator[None]:
    """One merge at a time, so that no older table replaces a newer one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

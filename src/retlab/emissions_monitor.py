"""The process beside a stage that measures the host with CodeCarbon; `emissions.track_emissions` starts it.

A process of its own keeps CodeCarbon's start (2 s), its threads and its messages out of the stage, and closes
the row of a stage that was killed.

CodeCarbon measures the whole machine. Where several stages run on a host at the same time, each of their
monitors counts an equal share of it, so that the sum is the machine's energy. The seconds that CodeCarbon
needs to start are counted with the mean power of the first interval; a stage that ends sooner is counted with
the power just after it.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from codecarbon import OfflineEmissionsTracker
from codecarbon.output_methods.base_output import BaseOutput
from codecarbon.output_methods.emissions_data import EmissionsData

from retlab.emissions_rows import is_running, process_mark, write_row

_PARTS = ("cpu", "gpu", "ram")
_SHORTEST_MEASUREMENT_SECONDS = 0.5


class _Totals(BaseOutput):
    """Receives CodeCarbon's running totals at every flush."""

    latest: EmissionsData

    def out(self, total: EmissionsData, delta: EmissionsData) -> None:  # noqa: ARG002
        self.latest = total


class _Host:
    """The monitors of this host: a file in shared memory for each that lives."""

    def __init__(self) -> None:
        shared = Path("/dev/shm")
        self._folder = (shared if shared.is_dir() else Path(tempfile.gettempdir())) / "retlab-emissions"
        self._mark = self._folder / process_mark(os.getpid())

    def __enter__(self) -> "_Host":
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            # Every user of the host may leave a file here and remove only their own.
            self._folder.chmod(0o1777)
        with contextlib.suppress(OSError):
            self._mark.touch()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._mark.unlink()

    def share(self) -> float:
        """One over the number of monitors that measure this host now."""
        living = 1
        with contextlib.suppress(OSError):
            for mark in self._folder.iterdir():
                if mark == self._mark:
                    continue
                if is_running(mark.name):
                    living += 1
                else:
                    with contextlib.suppress(OSError):
                        mark.unlink()
        return 1 / living


class _Monitor:
    """Follows one stage to its end.

    Args:
        file: the row file.
        row: the row so far.
        interval: seconds between two writings of the row.
        stage: process id of the stage.
        started: `time.monotonic()` at the start of the stage.
    """

    def __init__(self, file: str, row: dict[str, Any], interval: float, stage: int, started: float) -> None:
        self._file, self._row, self._interval = Path(file), row, interval
        self._stage, self._started = stage, started
        self._totals = _Totals()
        self._counted: EmissionsData | None = None
        self._shares: list[float] = []
        self._weighted_seconds = self._seconds = 0.0

    def run(self) -> None:
        """Measure until the stage says that it has ended, or is gone."""
        with _Host() as host:
            tracker = self._start_tracker()
            ending, flushed = None, time.monotonic()
            while ending is None:
                self._shares.append(host.share())
                ending = self._wait(min(1.0, self._interval))
                if ending is None and time.monotonic() - flushed >= self._interval:
                    tracker.flush()
                    flushed = time.monotonic()
                    self._count(flushed - self._started)
                    with contextlib.suppress(OSError):
                        write_row(self._file, self._row)
            measured = time.monotonic() - self._measuring_since
            time.sleep(max(0.0, _SHORTEST_MEASUREMENT_SECONDS - measured))
            tracker.stop()
        self._count(ending["duration_seconds"])
        self._row["status"] = ending["status"]
        write_row(self._file, self._row)

    def _start_tracker(self) -> OfflineEmissionsTracker:
        # The configuration alone decides: a .codecarbon.config could switch network services on.
        os.environ["HOME"] = "/nonexistent"
        os.chdir("/")
        for key in [key for key in os.environ if key.lower().startswith("codecarbon_")]:
            del os.environ[key]
        # CodeCarbon waits for another program, then imports pandas: side by side saves most of a second.
        threading.Thread(target=importlib.import_module, args=("pandas",), daemon=True).start()
        tracker = OfflineEmissionsTracker(
            country_iso_code=self._row["country"],
            region=self._row["region"] or None,
            measure_power_secs=self._interval,
            output_methods=[],
            output_handlers=[self._totals],
            api_call_interval=-1,
            log_level="critical",
        )
        tracker.start()
        self._measuring_since = time.monotonic()
        self._row["power_method"] = _power_method(tracker)
        return tracker

    def _wait(self, seconds: float) -> dict[str, Any] | None:
        """The stage's last word, `killed` where it is gone without one, None where it still works."""
        if select.select([0], [], [], seconds)[0]:
            word = os.read(0, 65536)
            if word:
                return dict(json.loads(word))
        # A worker process that outlives a killed stage may hold the pipe open.
        elif os.getppid() == self._stage:
            return None
        return {"status": "killed", "duration_seconds": time.monotonic() - self._started}

    def _count(self, elapsed: float) -> None:
        """Add the energy since the last count to the row."""
        total, before, row = self._totals.latest, self._counted, self._row
        share = sum(self._shares) / len(self._shares)
        # The first interval stands for the start of CodeCarbon, too.
        stretch = 1.0 if before else elapsed / total.duration
        for part in _PARTS:
            used = getattr(total, f"{part}_energy") - (getattr(before, f"{part}_energy") if before else 0.0)
            row[f"{part}_energy_kwh"] += used * share * stretch
        row["energy_kwh"] = sum(row[f"{part}_energy_kwh"] for part in _PARTS)
        row["emissions_kg_co2e"] += (total.emissions - (before.emissions if before else 0.0)) * share * stretch
        row["duration_seconds"] = round(elapsed, 3)
        self._weighted_seconds += share * (elapsed - self._seconds)
        self._seconds = elapsed
        row["share_of_host"] = round(self._weighted_seconds / elapsed, 4) if elapsed > 0 else share
        row.update(cpu_model=total.cpu_model, gpu_model=total.gpu_model, codecarbon_version=total.codecarbon_version)
        self._counted, self._shares = total, self._shares[-1:]


def _power_method(tracker: OfflineEmissionsTracker) -> str:
    """How each part's power is found; CodeCarbon's own table does not say it."""
    methods = {}
    for part in tracker._hardware:
        kind = type(part).__name__
        if kind == "RAM":
            methods["ram"] = "estimated from its size"
        elif kind == "GPU":
            methods["gpu"] = "measured by its driver"
        elif kind == "CPU" and part._mode == "intel_rapl":
            methods["cpu"] = "measured by RAPL"
        elif kind == "CPU":
            load = "its load and " if part._mode == "cpu_load" else ""
            methods["cpu"] = f"estimated from {load}a constant TDP of {part._tdp} W"
        else:
            methods[getattr(part, "chip_part", kind).lower()] = f"measured by {kind}"
    return "; ".join(f"{part} {methods[part]}" for part in sorted(methods))


def main() -> None:
    """Follow the stage that the first argument describes."""
    # The stage decides what a signal to the whole job means, and tells the monitor.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    _Monitor(**json.loads(sys.argv[1])).run()


if __name__ == "__main__":
    main()

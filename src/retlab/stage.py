"""What stages share: up-to-date check, locks, signals, emissions, publishing."""

import contextlib
import errno
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from retlab import artifacts, provenance
from retlab.command import SIGNALS, StageCommand
from retlab.config import ExperimentConfig, dump_config
from retlab.differences import differences
from retlab.emissions import track_emissions
from retlab.errors import Interrupted, UserError
from retlab.machine_checks import check_machine
from retlab.progress import duration
from retlab.section import absolute, portable, script, shown_path
from retlab.storage import make_folder
from retlab.upstream import outdated

# Notes of this process: a script that runs a stage for every split says each once.
_SAID: set[str] = set()


class Stage:
    """One step of the pipeline, from finished input folders to one finished output.

    Args:
        name: the stage's name, as of its script.
        config: the whole configuration.
        command: what the command line asked for.
        settings: the configuration values that decide the output, by dotted key.
        inputs: folders that earlier stages finished.
        output: the folder to publish, or the folder to publish files into.
        part: which of several outputs of the stage this is, such as the split.
        sources: what is known of inputs outside the pipeline, such as sizes and times of files.
        volatile_files: files of the output that tell of time or energy, so that they are no part of its identity;
            patterns such as *.json.
        resumable: an interrupted attempt with the same settings and inputs is continued.
        continues: the work begins with all that earlier attempts left, finished or not, whatever has changed since, and
            itself keeps what still counts; only --force empties the folder.
        remaining: says from the report of the finished output what it still lacks; the work is then taken up again.
        handles_signals: the work watches `stop_requested` itself and leaves by raising Interrupted.
    """

    def __init__(
        self,
        name: str,
        config: ExperimentConfig,
        command: StageCommand,
        *,
        settings: dict[str, Any],
        inputs: Sequence[Path],
        output: Path,
        part: str = "",
        sources: dict[str, Any] | None = None,
        volatile_files: Sequence[str] = (),
        resumable: bool = False,
        continues: bool = False,
        remaining: Callable[[dict[str, Any]], str | None] = lambda _report: None,
        handles_signals: bool = False,
    ) -> None:
        self.name, self.config, self.command = name, config, command
        self.label = f"{name} {part}" if part else name
        self.inputs, self.output = list(inputs), output
        self.resumable, self.continues, self.handles_signals = resumable, continues, handles_signals
        self.remaining = remaining
        self.volatile_files = volatile_files
        self.volatile: dict[str, Any] = {}
        """Facts of this attempt for the manifest's volatile part, such as speeds."""
        self._described = {"settings": settings, "sources": sources or {}}
        self._stop: signal.Signals | None = None

    def say(self, text: str) -> None:
        """Print one line for people."""
        print(f"[{self.label}] {text}", flush=True)

    def stop_requested(self) -> bool:
        """Whether a signal asked the work to save and leave."""
        return self._stop is not None

    def changes(self) -> list[str] | None:
        """Why the output is not up to date; empty where it is, None where there is no output."""
        manifest = artifacts.read_manifest(self.output)
        if manifest is None:
            return None
        now = self._describe()
        found = [line for group in ("settings", "sources") for line in differences(manifest[group], now[group])]
        before = manifest["inputs"]
        changed = [absolute(name) for name, value in now["inputs"].items() if before.get(name) != value]
        found += [f"input {shown_path(folder)} has changed" for folder in changed]
        damage = artifacts.damage(self.output, manifest, self.command.verify)
        return found + ([damage] if damage else [])

    def run(self, build: Callable[[Path], dict[str, Any]]) -> bool:
        """Do the work unless its output is up to date; returns whether it was done.

        `build` gets an empty folder (or an unfinished one, see `resumable`) to fill and returns a report
        of plain, deterministic values for the manifest.
        """
        missing = self._missing_folders()
        try:
            return self._run(build)
        except (UserError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
                error.filename = str(self._fullest_folder())
            self._undo(missing)
            raise

    def _run(self, build: Callable[[Path], dict[str, Any]]) -> bool:
        with contextlib.ExitStack() as stack:
            for folder in self.inputs:
                stack.enter_context(artifacts.lock(folder, False, partial(self._waiting, folder)))
            self._check_inputs()
            for line in outdated(self.config, self.name, self.inputs):
                if line not in _SAID:
                    _SAID.add(line)
                    self.say(line)
            if self._is_current():
                return False
            check_machine(self.config, [self.name])
            make_folder(self.output.parent)
            stack.enter_context(artifacts.lock(self.output, True, lambda: self._waiting(self.output)))
            artifacts.recover_folder(self.output)
            changes = self.changes()
            if self._nothing_to_do(changes):
                self.say("up to date")
                return False
            self._announce(changes)
            self._prepare()
            self._work(build)
        return True

    def _fullest_folder(self) -> Path:
        """The folder with the least free space among those that the stage writes to."""
        folders = [folder for folder in (self.output.parent, self.config.run_folder) if folder.exists()]
        return min(folders, key=lambda folder: shutil.disk_usage(folder).free)

    def _missing_folders(self) -> list[Path]:
        """The folders that this attempt would be the first to make, inner ones first."""
        wanted = (self.config.run_folder, self.output)
        missing = {folder for path in wanted for folder in (path, *path.parents) if not folder.exists()}
        return sorted(missing, key=lambda folder: -len(folder.parts))

    def _undo(self, missing: Sequence[Path]) -> None:
        """Take away the folders that a refused attempt made and put no result into."""
        run = self.config.run_folder
        with contextlib.suppress(OSError):
            made = {file.relative_to(run).parts[0] for file in run.rglob("*") if file.is_file()}
            rows = list((run / "emissions").glob("[!.]*"))
            if run in missing and made <= {"config.yaml", "emissions", "emissions.csv"} and len(rows) <= 1:
                shutil.rmtree(run)
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _is_current(self) -> bool:
        """Whether the finished output is up to date, without waiting for those who only read it."""
        if self.command.force or not self.output.exists():
            return False
        with artifacts.lock(self.output, False, lambda: self._waiting(self.output)):
            if not self._nothing_to_do(self.changes()):
                return False
            # What a killed attempt at other settings or with --force left; nobody works on it while the lock is held.
            shutil.rmtree(self._partial, ignore_errors=True)
            artifacts.recover_folder(self.output)
        self.say(f"up to date: {shown_path(self.output)}")
        return True

    def has_work(self) -> bool:
        """Whether `run` would do anything, for those who check first what it needs; its inputs must be finished."""
        return not self._nothing_to_do(self.changes())

    def _nothing_to_do(self, changes: list[str] | None) -> bool:
        return changes == [] and not self.command.force and self._lacks() is None

    def _lacks(self) -> str | None:
        """What the finished output still lacks."""
        manifest = artifacts.read_manifest(self.output)
        return None if manifest is None else self.remaining(manifest["report"])

    def _announce(self, changes: list[str] | None) -> None:
        if changes:
            self.say("changed since the last run:")
            for change in changes:
                self.say(f"  {change}")
        elif changes == []:
            self.say("up to date, but done anew because of --force" if self.command.force else str(self._lacks()))

    def _describe(self) -> dict[str, Any]:
        inputs = {portable(folder): artifacts.fingerprint(folder) for folder in self.inputs}
        return {"stage": self.label, **self._described, "inputs": inputs}

    def _check_inputs(self) -> None:
        for folder in self.inputs:
            artifacts.recover_folder(folder)
            manifest = artifacts.read_manifest(folder)
            if manifest is None:
                # A new name for an experiment means new data, too, which is rarely what was meant.
                data = self.config.data.folder
                own = data is not None and data.name == self.config.name and folder.is_relative_to(data)
                other = ", or take another experiment's data: data.folder=data/<its name>" if own else ""
                raise UserError(
                    f"{shown_path(folder)} is missing or unfinished, and {self.name} needs it;"
                    f" {_hint(folder, None)}{other}"
                )
            damage = artifacts.damage(folder, manifest, self.command.verify)
            if damage:
                raise UserError(f"{damage} since {manifest['stage']} wrote it; {_hint(folder, manifest)}")

    @property
    def _partial(self) -> Path:
        return self.output.with_name(f".{self.output.name}.partial")

    def _prepare(self) -> None:
        """Make the partial folder; an earlier one stays only if it belongs to the same work, or the work sorts it."""
        unfinished, claim = self._partial, self._partial / ".claim.json"
        described = {**self._describe(), "force": self.command.force}
        begun = self.resumable and artifacts.read_json(claim) == described
        if unfinished.exists() and not (begun or (self.continues and not self.command.force)):
            shutil.rmtree(unfinished)
        if not unfinished.exists():
            unfinished.mkdir()
            if self.resumable:
                artifacts.write_json(claim, described)
        if self.continues and not self.command.force and artifacts.read_manifest(self.output):
            artifacts.link_files(self.output, unfinished)

    def _work(self, build: Callable[[Path], dict[str, Any]]) -> None:
        self._install_signals()
        started, clock = datetime.now(UTC), time.monotonic()
        try:
            with track_emissions(self.config.emissions, self.config.run_folder, self.label) as energy:
                report = build(self._partial)
            self._keep_config()
        except BaseException:
            keeps = self.resumable or self.continues
            if not (keeps and any(not file.name.startswith(".") for file in self._partial.iterdir())):
                shutil.rmtree(self._partial, ignore_errors=True)
            raise
        outputs, times = artifacts.describe_outputs(self._partial)
        volatile = [name for name in outputs if any(fnmatch(name, pattern) for pattern in self.volatile_files)]
        volatile_outputs = {name: outputs.pop(name) for name in volatile}
        manifest = {
            **self._describe(),
            "report": report,
            "outputs": outputs,
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "threads": provenance.threads(),
            "volatile": {
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - clock, 3),
                "energy_kwh": energy.energy_kwh,
                "emissions_kg": energy.emissions_kg,
                **self.volatile,
                "files": volatile_outputs,
                "times": times,
            },
        }
        artifacts.write_json(self._partial / artifacts.MANIFEST, manifest)
        artifacts.publish_folder(self._partial, self.output)
        self.say(f"done in {duration(time.monotonic() - clock)}: {shown_path(self.output)}")

    def write_config(self) -> None:
        """Leave the resolved configuration in the run folder."""
        make_folder(self.config.run_folder)
        artifacts.write_atomic(self.config.run_folder / "config.yaml", dump_config(self.config))

    def _keep_config(self) -> None:
        """Write the configuration, unless it is that of a training, which training alone may replace."""
        if not any((self.config.run_folder / part).exists() for part in ("checkpoints", "model")):
            self.write_config()

    def _waiting(self, path: Path) -> None:
        self.say(f"waiting: another process is using {shown_path(path)}")

    def _install_signals(self) -> None:
        def handle(number: int, _frame: object) -> None:
            self._stop = signal.Signals(number)
            if not self.handles_signals:
                raise Interrupted(f"{self._stop.name} received")

        for number in SIGNALS:
            signal.signal(number, handle)


def _hint(folder: Path, manifest: dict[str, Any] | None) -> str:
    places = {"raw": "download_data", "splits": "split_data", "tokenizer": "train_tokenizer", "model": "train_model"}
    places |= dict.fromkeys(("train", "validation", "test"), "tokenize_data")
    name = manifest["stage"].split()[0] if manifest else places.get(folder.name)
    if name is None:
        return "run the stage that makes it first"
    return f"run {script(name)} with this configuration{' and --force' if manifest else ''}"

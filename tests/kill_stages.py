"""Kill the stages of an experiment at random moments and compare with an undisturbed run:

python tests/kill_stages.py configs/quickstart.yaml --kills 20 --folder /tmp/kills [--seed 0] [key=value ...]

Every stage is first run undisturbed and timed. Then everything is run again from nothing at the same place;
each kill (SIGKILL to the process, or to all it started) comes at a random moment of the whole pipeline, and
the same command is run again. At the end all files must be equal: byte for byte, manifests and tables in all
but their fields of time and energy, and nothing unfinished may be left. Only a kill that found its stage at
work counts: as many rounds are run, each from nothing, as it takes to reach the number asked for.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
STAGES = ("download_data", "split_data", "train_tokenizer", "tokenize_data", "train_model", "evaluate_model")


def command(stage: str, config: Path, lab: Path, overrides: list[str]) -> list[str]:
    places = [f"data.folder={lab}/data", f"output_dir={lab}/runs"]
    return [sys.executable, str(ROOT / "src" / f"{stage}.py"), str(config), *places, *overrides]


def start(words: list[str]) -> "subprocess.Popen[str]":
    """Run a command in a process group of its own; the tests have a start of theirs in its place."""
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(stage: str, config: Path, lab: Path, overrides: list[str]) -> tuple[float, str]:
    """Run a stage to its end; returns its seconds and what it printed."""
    started = time.monotonic()
    process = start(command(stage, config, lab, overrides))
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{stage} failed with {process.returncode}:\n{text}")
    return time.monotonic() - started, text


def kill(stage: str, config: Path, lab: Path, overrides: list[str], delay: float, all_of_it: bool) -> bool:
    """Start a stage and kill it after `delay` seconds; False if it had ended before."""
    process = start(command(stage, config, lab, overrides))
    try:
        process.communicate(timeout=delay)
        return False
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):  # It may have ended in between.
            os.killpg(process.pid, signal.SIGKILL) if all_of_it else process.kill()
        process.wait()
        return True


def run_with_kills(
    config: Path, lab: Path, overrides: list[str], seconds: dict[str, float], kills: int, chance: random.Random
) -> int:
    """Run all stages; the kills fall on the stages in proportion to their time, at least one where there are enough.

    Returns how many found their stage at work.
    """
    stages, hits = [*STAGES[: min(kills, len(STAGES))]], 0
    stages += chance.choices(STAGES, weights=[seconds[stage] for stage in STAGES], k=kills - len(stages))
    for stage in STAGES:
        count = stages.count(stage)
        for _ in range(count):
            # A stage that goes on where it was killed needs less each time: shorter delays still find it at work.
            delay, all_of_it = chance.uniform(0, 2 * seconds[stage] / (count + 1)), chance.random() < 0.5
            hit = kill(stage, config, lab, overrides, delay, all_of_it)
            hits += hit
            print(f"{stage}: {'killed' if hit else 'had ended'} after {delay:.2f} s", flush=True)
        finish(stage, config, lab, overrides)
    for stage in STAGES:
        _, text = finish(stage, config, lab, overrides)
        if "up to date" not in text:
            raise SystemExit(f"{stage} is not up to date after all:\n{text}")
    return hits


def comparable(file: Path) -> Any:
    """A file's content without what two equal runs may differ in."""
    if file.name.endswith("manifest.json") or file.name == "results.json":
        value = json.loads(file.read_text())
        value.pop("volatile", None)
        return value
    if file.name == "metrics.csv":
        from retlab.training.metrics import VOLATILE_COLUMNS

        rows = list(csv.DictReader(file.open()))
        return [{key: value for key, value in row.items() if key not in VOLATILE_COLUMNS} for row in rows]
    if file.suffix == ".pt":
        from retlab.training.checkpoints import load_checkpoint

        checkpoint = load_checkpoint(file)
        return _plain({key: checkpoint[key] for key in ("step", "model", "optimizer", "position")})
    return file.read_bytes()


def _plain(value: Any) -> Any:
    """Nested mappings with tensors as bytes, so that == compares bit by bit."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.numpy().tobytes() if hasattr(value, "numpy") else value


def files_of(lab: Path) -> dict[str, Path]:
    return {
        str(file.relative_to(lab)): file
        for file in sorted(lab.rglob("*"))
        if file.is_file() and not {"emissions", "tensorboard", "__pycache__"} & set(file.parts)
    }


def differences(calm: Path, killed: Path) -> list[str]:
    """Every way in which two labs differ that they may not, and everything unfinished in the second."""
    first, second = files_of(calm), files_of(killed)
    found = [f"only in one of them: {name}" for name in sorted(first.keys() ^ second.keys())]
    found += [f"unfinished: {path}" for path in killed.rglob(".*")]
    volatile = {
        str((file.parent / name).relative_to(calm))
        for file in calm.rglob("*manifest.json")
        for name in json.loads(file.read_text())["volatile"].get("files", {})
    } | {name for name in first if name.endswith("emissions.csv")}
    for name in sorted(first.keys() & second.keys() - volatile):
        if comparable(first[name]) != comparable(second[name]):
            found.append(f"differs: {name}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="an empty or missing folder to work in")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    lab, calm = options.folder.resolve() / "lab", options.folder.resolve() / "calm"
    if lab.exists() or calm.exists():
        raise SystemExit(f"{options.folder} is not empty")
    seconds = {}
    for stage in STAGES:
        seconds[stage], _ = finish(stage, options.config, lab, options.overrides)
        print(f"{stage}: undisturbed in {seconds[stage]:.1f} s", flush=True)
    shutil.move(lab, calm)
    chance, hits, found = random.Random(options.seed), 0, []
    while hits < options.kills and not found:
        shutil.rmtree(lab, ignore_errors=True)
        hits += run_with_kills(options.config, lab, options.overrides, seconds, options.kills - hits, chance)
        found = differences(calm, lab)
    print("\n".join(found) or f"{hits} kills: all files are those of the undisturbed run")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

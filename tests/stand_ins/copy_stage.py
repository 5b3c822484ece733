"""A stage of a few lines, for the tests of what all stages share:

python tests/stand_ins/copy_stage.py CONFIG INPUT=... (environment: COPY_INPUT, COPY_OUTPUT, COPY_FAULT)
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.errors import UserError
from retlab.stage import Stage


def build(folder: Path, source: Path | None, seed: int) -> dict[str, int]:
    fault = os.environ.get("COPY_FAULT", "")
    if fault == "refuse at once":
        raise UserError("nothing was written yet")
    text = (source / "a.txt").read_text() if source else "origin"
    (folder / "a.txt").write_text(f"{text} {seed}")
    if fault == "refuse":
        raise UserError("the work met what only its user can mend")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "wait":
        (folder.parent / "waiting").touch()
        while not (folder.parent / "release").exists():
            time.sleep(0.02)
    if fault == "disk":
        (folder / "big").write_bytes(bytes(4_000_000))
    (folder / "b.txt").write_text("end")
    return {"length": len(text)}


def main(config: ExperimentConfig, command: StageCommand) -> None:
    source = Path(os.environ["COPY_INPUT"]) if "COPY_INPUT" in os.environ else None
    stage = Stage(
        "split_data" if source else "download_data",
        config,
        command,
        settings={"seed": config.seed},
        inputs=[source] if source else [],
        output=Path(os.environ["COPY_OUTPUT"]),
    )
    stage.run(lambda folder: build(folder, source, config.seed))


if __name__ == "__main__":
    run_stage(main)

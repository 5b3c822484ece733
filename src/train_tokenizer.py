"""Stage 3, train split into a tokenizer: a byte-level BPE trained on it, or an existing one.

python src/train_tokenizer.py configs/quickstart.yaml tokenizer.vocab_size=4096
"""

from pathlib import Path
from typing import Any

from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.stage import Stage
from retlab.upstream import tokenizer_settings


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Write the tokenizer to `tokenizer.folder`."""
    section, splits = config.tokenizer, config.data.splits_folder
    assert section.folder is not None
    stage = Stage(
        "train_tokenizer",
        config,
        command,
        settings=tokenizer_settings(config),
        inputs=[splits],
        output=section.folder,
    )
    report: dict[str, Any] = {}

    def build(folder: Path) -> dict[str, Any]:
        # Imported here, so that a stage that is up to date says so at once.
        from retlab.data.tokenizer import make_tokenizer

        report.update(make_tokenizer(section, splits, folder))
        return report

    if stage.run(build):
        requested = report.get("vocab_size_requested", report["vocab_size"])
        reached = "" if requested == report["vocab_size"] else f" (the text does not give the {requested:,} asked for)"
        stage.say(f"{report['vocab_size']:,} tokens{reached}")
        stage.say(f"{report['validation_bytes_per_token']} bytes per token on the validation split")


if __name__ == "__main__":
    run_stage(main)

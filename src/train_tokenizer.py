"""Stage 3, train split into a tokenizer: a byte-level BPE trained on it, or an existing one.

python src/train_tokenizer.py configs/quickstart.yaml tokenizer.vocab_size=4096
"""

from pathlib import Path
from typing import Any

import retlab.script_start  # noqa: F401
from retlab.artifacts import fingerprint, read_manifest, sha256_file
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.errors import UserError
from retlab.section import absolute, portable, shown_path
from retlab.stage import Stage
from retlab.upstream import tokenizer_settings


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Write the tokenizer to `tokenizer.folder`."""
    section, splits = config.tokenizer, config.data.splits_folder
    assert section.folder is not None
    if not command.force:
        refuse_to_replace(section.folder, splits)
    stage = Stage(
        "train_tokenizer",
        config,
        command,
        settings=tokenizer_settings(config),
        inputs=[splits],
        output=section.folder,
        sources=source_of_tokenizer(section.from_pretrained),
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
        if report["validation_tokens"]:
            stage.say(f"{report['validation_bytes_per_token']} bytes per token on the validation split")


def refuse_to_replace(folder: Path, splits: Path) -> None:
    """Keep the tokenizer that another experiment made from splits of its own.

    Raises:
        UserError: the folder holds such a tokenizer.
    """
    manifest = read_manifest(folder)
    if manifest is None or portable(splits) in manifest["inputs"]:
        return
    # Under another name, the same splits: the data were moved.
    if read_manifest(splits) is not None and fingerprint(splits) in manifest["inputs"].values():
        return
    others = " and ".join(shown_path(absolute(name)) for name in manifest["inputs"])
    raise UserError(
        f"{shown_path(folder)} holds the tokenizer of another experiment, made from {others}: to use it, set"
        " tokenizer.from_pretrained to that folder and tokenizer.folder to one of your own; --force replaces it"
    )


def source_of_tokenizer(from_pretrained: str | None) -> dict[str, Any]:
    """Contents of the files of the tokenizer that is taken over, where they are local."""
    if from_pretrained is None:
        return {}
    files = [absolute(from_pretrained) / name for name in ("tokenizer.json", "tokenizer_config.json")]
    return {file.name: sha256_file(file) for file in files if file.is_file()}


if __name__ == "__main__":
    run_stage(main)

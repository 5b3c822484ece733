"""Stage 4, splits and tokenizer into token shards, for all splits or those that are named.

python src/tokenize_data.py configs/quickstart.yaml train validation test
"""

import contextlib
from pathlib import Path
from typing import Any

import retlab.script_start  # noqa: F401
from retlab.artifacts import read_manifest
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.data.settings import SPLITS, SplitName
from retlab.stage import Stage


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Write the shards of each split to `data.tokens_folder`/<split>."""
    # One Dask cluster for all splits, where there is one.
    with contextlib.ExitStack() as stack:
        for split in [name for name in SPLITS if name in command.words] or SPLITS:
            _tokenise(config, command, split, stack)


def _tokenise(config: ExperimentConfig, command: StageCommand, split: SplitName, stack: contextlib.ExitStack) -> None:
    data, tokenizer = config.data, config.tokenizer.folder
    assert tokenizer is not None
    stage = Stage(
        "tokenize_data",
        config,
        command,
        part=split,
        settings={"split": split},
        inputs=[data.splits_folder, tokenizer],
        output=data.shards_folder(split),
    )
    report: dict[str, Any] = {}

    def build(folder: Path) -> dict[str, Any]:
        # Imported here, so that a stage that is up to date says so at once.
        from retlab.cluster.dask_client import data_cluster
        from retlab.data.parallel import is_remote
        from retlab.data.tokens import tokenise

        if not is_remote():
            logs = config.run_folder / "slurm"
            stack.enter_context(data_cluster(config.cluster, stage.name, data.dask_workers, logs, stage.say))
        report.update(tokenise(data, data.splits_folder / split, tokenizer, folder))
        return report

    if stage.run(build):
        stage.say(f"{report['documents']:,} documents, {report['tokens']:,} tokens, {report['bytes']:,} bytes")
        done = [read_manifest(data.shards_folder(name)) for name in SPLITS]
        tokens = [manifest["report"]["tokens"] for manifest in done if manifest]
        if len(tokens) == len(SPLITS):
            shares = ", ".join(f"{name} {count / sum(tokens):.2%}" for name, count in zip(SPLITS, tokens, strict=True))
            stage.say(f"share of the tokens: {shares}")


if __name__ == "__main__":
    run_stage(main, words=SPLITS)

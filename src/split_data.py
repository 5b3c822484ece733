"""Stage 2, raw documents into train, validation and test, by each document's text and `data.split_seed` alone.

python src/split_data.py configs/quickstart.yaml data.splits.test=0.05
"""

from pathlib import Path
from typing import Any

import retlab.script_start  # noqa: F401
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.progress import counted
from retlab.stage import Stage
from retlab.upstream import split_settings


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Write the splits of `data.folder`/raw to `data.folder`/splits."""
    data = config.data
    stage = Stage(
        "split_data",
        config,
        command,
        settings=split_settings(config),
        inputs=[data.raw_folder],
        output=data.splits_folder,
    )

    def build(folder: Path) -> dict[str, Any]:
        # Imported here, so that a stage that is up to date says so at once.
        from retlab.cluster.dask_client import data_cluster
        from retlab.data.split import split_documents

        logs = config.run_folder / "slurm"
        with data_cluster(config.cluster, stage.name, data.dask_workers, logs, stage.say):
            report = split_documents(data, data.raw_folder, folder)
        for split, counts in report["splits"].items():
            stage.say(
                f"{split}: {counted(counts['documents'], 'document')} ({counts['share_of_documents']:.2%}),"
                f" {counted(counts['bytes'], 'byte')} ({counts['share_of_bytes']:.2%})"
            )
        stage.say(f"{counted(report['empty_documents'], 'empty document')} dropped")
        return report

    stage.run(build)


if __name__ == "__main__":
    run_stage(main)

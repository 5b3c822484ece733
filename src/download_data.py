"""Stage 1, text into parquet: from the Hub, from files, or from this Python's standard library.

    python src/download_data.py configs/quickstart.yaml data.max_bytes=8000000

An interrupted download goes on where it was. Hub tokens come from the Hub's own login or HF_TOKEN.
"""

from pathlib import Path
from typing import Any

import retlab.script_start  # noqa: F401
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.data.sources import local_state
from retlab.progress import counted
from retlab.stage import Stage
from retlab.upstream import download_settings


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Write the documents of `data.source` to `data.folder`/raw."""
    data = config.data
    stage = Stage(
        "download_data",
        config,
        command,
        settings=download_settings(config),
        inputs=[],
        sources=local_state(data),
        output=data.raw_folder,
        resumable=True,
    )

    def build(folder: Path) -> dict[str, Any]:
        # Imported here, so that a stage that is up to date says so at once.
        from retlab.data.download import download

        report = download(data, folder)
        documents, skipped = counted(report["documents"], "document"), report["skipped_records"]
        stage.say(f"{documents} ({report['empty_documents']:,} empty), {counted(report['bytes'], 'byte')} of text")
        if skipped:
            stage.say(f"{counted(skipped, 'record')} skipped, first: {report['first_skipped_record']}")
        return report

    stage.run(build)


if __name__ == "__main__":
    run_stage(main)

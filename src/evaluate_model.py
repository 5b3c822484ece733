"""Stage 6: measure the trained model on the test split and let it write.

    python src/evaluate_model.py CONFIG [key.path=value ...] [--force] [--verify]

Reads runs/<name>/model, the token shards and the test text; leaves results.json, results.csv, document_losses.parquet
and samples.json in runs/<name>. Where the `generate` section alone changed, only the samples are written anew.
"""

from pathlib import Path
from typing import Any

from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.data.settings import SplitName
from retlab.stage import Stage


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Evaluate the model of one experiment."""
    data, model_folder = config.data, config.run_folder / "model"
    shards: list[SplitName] = ["train", "test"] if config.evaluate.reference_points else ["test"]
    # The batch size changes no result.
    evaluate_settings = config.evaluate.model_dump(mode="json", exclude={"batch_size"})
    windows = {key: getattr(data, key) for key in ("sequence_length", "packing", "reset_at_documents")}
    stage = Stage(
        "evaluate_model",
        config,
        command,
        settings={
            **{f"evaluate.{key}": value for key, value in evaluate_settings.items()},
            **{f"generate.{key}": value for key, value in config.generate.dump().items()},
            **{f"data.{key}": value for key, value in windows.items()},
        },
        inputs=[model_folder, data.splits_folder, *(data.shards_folder(split) for split in shards)],
        output=config.run_folder,
        files=True,
    )

    def build(folder: Path) -> dict[str, Any]:
        from retlab.evaluation.results import SCORED_FILES, evaluate

        scored = config.run_folder if stage.keeps(SCORED_FILES, beside="generate") else None
        if scored:
            stage.say("the scores are those of the last run; only the samples are written anew")
        test = evaluate(config.evaluate, config.generate, data, model_folder, folder, stage.say, scored)
        stage.say(
            f"test loss {test['loss']:.4f} nats/token, perplexity {test['perplexity']:.2f},"
            f" {test['bits_per_byte']:.4f} bits/byte"
        )
        return test

    stage.run(build)


if __name__ == "__main__":
    run_stage(main)

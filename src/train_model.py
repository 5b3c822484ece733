"""Stage 5: train the model, and leave its best checkpoint as a Hugging Face folder.

    python src/train_model.py configs/quickstart.yaml train.max_steps=20
    python src/train_model.py configs/quickstart.yaml --export last exported/last-checkpoint
    srun --ntasks-per-node=1 --kill-on-bad-exit=1 python src/train_model.py CONFIG    # inside a job of several nodes

Reads the token shards of train and validation and the tokenizer; leaves checkpoints/, metrics.csv, tensorboard/ and
model/ in runs/<name>. Interrupted by a signal or killed, the same command goes on from the last checkpoint.
"""

import argparse
from pathlib import Path
from typing import Any, NoReturn

import retlab.script_start  # noqa: F401
from retlab.artifacts import fingerprint
from retlab.cluster.notes import note_forced, was_forced
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.config_model import resolve_model, vocabulary_size
from retlab.section import shown_path
from retlab.slurm_step import Step
from retlab.stage import Stage
from retlab.training.allocation import allocated
from retlab.training.request import TrainingRequest, source_of_weights
from retlab.upstream import train_settings


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this script alone."""
    parser.add_argument(
        "--export",
        nargs=2,
        metavar=("CHECKPOINT", "FOLDER"),
        help="write a checkpoint (best, last or a file) as a Hugging Face model to a new folder, and do nothing else",
    )


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Train one experiment, or export one of its checkpoints."""
    config = resolve_model(config)
    if command.options.export:
        export(config, *command.options.export)
        return
    command.nodes.gather()
    shards = [config.data.shards_folder("train"), config.data.shards_folder("validation")]
    assert config.tokenizer.folder is not None
    stage = Stage(
        "train_model",
        config,
        command,
        settings=train_settings(config),
        inputs=[*shards, config.tokenizer.folder],
        output=config.run_folder / "model",
        sources=source_of_weights(config.train.init_from),
        volatile_files=["README.md"],
        handles_signals=True,
    )

    train_section = allocated(config.train, command.nodes, stage.say)
    if command.nodes.count > 1 and config.emissions.enabled:
        stage.say("energy is measured on the first node alone")

    def begin() -> None:
        stage.write_config()
        if command.force:
            note_forced(config)

    def build(folder: Path) -> dict[str, Any]:
        from retlab.training.export import export_best
        from retlab.training.trainer import train

        names = ("train shards", "validation shards", "tokenizer")
        inputs = {name: fingerprint(one) for name, one in zip(names, stage.inputs, strict=True)}
        request = make_request(config, train_settings(config) | inputs, command.force and not was_forced(config))
        result = train(
            request.model_copy(update={"train": train_section}),
            say=stage.say,
            stop_requested=stage.stop_requested,
            on_start=begin,
            nodes=command.nodes,
        )
        stage.volatile.update(result.speed())
        if result.state.stopped_early:
            stage.say(f"stopped early after step {result.state.step:,}: the validation loss no longer falls")
        stage.say(f"best validation loss {result.state.best[0][0]:.4f} nats/token, after step {result.best_step:,}")
        export_best(request, result, folder)
        return result.report()

    stage.run(build)


def make_request(config: ExperimentConfig, identity: dict[str, Any], start_anew: bool = False) -> TrainingRequest:
    """The training of this configuration; the shards must be those of its tokenizer."""
    from retlab.training.inputs import request_for

    vocabulary = vocabulary_size(config)
    assert vocabulary is not None
    assert config.tokenizer.folder is not None
    request = request_for(
        config.seed, config.data, config.model, config.train, config.tokenizer.folder, config.run_folder,
        vocab_size=vocabulary, identity=identity,
    )  # fmt: skip
    return request.model_copy(update={"start_anew": start_anew})


def export(config: ExperimentConfig, checkpoint: str, folder: str) -> None:
    """Write one checkpoint as a model folder."""
    from retlab.training.export import export_checkpoint

    request = make_request(config, {})
    target = Path(folder).expanduser().absolute()
    written = export_checkpoint(request, checkpoint, target)
    print(f"[train_model] exported {shown_path(written)} to {shown_path(target)}")


def on_other_nodes(step: Step) -> NoReturn:
    """Take part in the training of the first node."""
    from retlab.training.other_node import train_on_other_node

    train_on_other_node(step)


if __name__ == "__main__":
    run_stage(main, configure=add_options, on_other_nodes=on_other_nodes)
